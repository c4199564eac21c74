//! The stages of ZeRO: what the ranks of a run divide among themselves.

use crate::error::RecipeError;
use serde::{Deserialize, Serialize};

/// The training state that is divided among the ranks of a run. A run of one rank divides nothing.
///
/// Every rank has all parameters, in the type to compute in. The results of the stages are the same; those of
/// [`Gradients`](Self::Gradients) are bitwise identical to the others' only without accumulation: with it, sums over
/// micro-batches and ranks are added in another order.
///
/// Source: Rajbhandari et al. 2020 (arXiv 1910.02054), stages 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Zero {
    /// Nothing: every rank has the whole state.
    #[default]
    Off,
    /// Stage 1: f32 parameters, moments of AdamW and moving average.
    Optimizer,
    /// Stage 2: gradients too. They are reduced after each micro-batch instead of once per step.
    Gradients,
}

impl TryFrom<u8> for Zero {
    type Error = RecipeError;

    fn try_from(stage: u8) -> Result<Self, RecipeError> {
        match stage {
            0 => Ok(Self::Off),
            1 => Ok(Self::Optimizer),
            2 => Ok(Self::Gradients),
            _ => Err(RecipeError::value("zero", stage, "0, 1 or 2")),
        }
    }
}

impl From<Zero> for u8 {
    fn from(zero: Zero) -> Self {
        match zero {
            Zero::Off => 0,
            Zero::Optimizer => 1,
            Zero::Gradients => 2,
        }
    }
}
