//! The adaptive norms and gates of a block: adaLN.
//!
//! A block computes `x + gate * f(norm(x) * (1 + scale) + shift)` for each branch `f`. The types here let
//! the code of a block read as that equation, although the sum runs as one fused operation.

use burn::tensor::Tensor;
use opensora_nn::modulation::{gated_sum, norm_and_modulate};
use std::ops::{Add, Mul};

/// Epsilon of every LayerNorm in these models.
pub(crate) const NORM_EPSILON: f64 = 1e-6;

/// Shift, scale and gate of one branch of a block, each `[B, 1, C]`.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// Added after the scale.
    pub shift: Tensor<3>,
    /// Added to 1, then multiplied by the normalised tokens.
    pub scale: Tensor<3>,
    /// Multiplied by the output of the branch.
    pub gate: Gate,
}

impl Modulation {
    /// Splits six vectors `[B, 6, C]` into the modulations of the attention and of the MLP.
    pub fn split(six: &Tensor<3>) -> [Self; 2] {
        [0, 3].map(|first| {
            let row = |i: usize| six.clone().narrow(1, first + i, 1); // [B, 1, C]
            Self { shift: row(0), scale: row(1), gate: Gate(row(2)) }
        })
    }

    /// Returns `norm(x) * (1 + scale) + shift`; `x` and the result are `[B, N, C]`.
    pub fn modulate_norm(&self, x: Tensor<3>) -> Tensor<3> {
        norm_and_modulate(x, self.scale.clone(), self.shift.clone(), NORM_EPSILON)
    }
}

/// The gate of a branch, `[B, 1, C]`. `&gate * output` is a [`Branch`].
#[derive(Debug, Clone)]
pub struct Gate(pub Tensor<3>);

impl Mul<Tensor<3>> for &Gate {
    type Output = Branch;

    fn mul(self, output: Tensor<3>) -> Branch {
        Branch { gate: Some(self.0.clone()), output }
    }
}

/// The output of a branch `[B, N, C]` with its gate, not yet multiplied: `x + branch` multiplies and adds in
/// one operation.
#[derive(Debug, Clone)]
pub struct Branch {
    gate: Option<Tensor<3>>,
    output: Tensor<3>,
}

impl Branch {
    /// Returns the output multiplied by its gate, `[B, N, C]`.
    pub fn value(self) -> Tensor<3> {
        match self.gate {
            Some(gate) => gate * self.output,
            None => self.output,
        }
    }
}

/// A branch without a gate.
impl From<Tensor<3>> for Branch {
    fn from(output: Tensor<3>) -> Self {
        Self { gate: None, output }
    }
}

impl Add<Branch> for Tensor<3> {
    type Output = Tensor<3>;

    fn add(self, branch: Branch) -> Tensor<3> {
        match branch.gate {
            Some(gate) => gated_sum(self, gate, branch.output),
            None => self + branch.output,
        }
    }
}
