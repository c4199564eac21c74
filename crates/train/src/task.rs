//! What is trained, as the loop sees it.

use crate::{
    error::TrainError,
    parameters::{FlatTensors, Graph},
};
use burn::{
    module::Module,
    tensor::{FloatDType, Tensor},
};

/// A model with its loss.
pub trait Task {
    /// The model.
    type Model: Module;
    /// What the loader delivers, one a sample.
    type Item: Send + 'static;

    /// Loss and gradients of a micro-batch; `indices` name the samples' draws, so that noise and
    /// timesteps are the same after a resume.
    ///
    /// # Errors
    /// Where the samples do not fit the model or each other.
    fn gradients(
        &self,
        graph: &Graph<Self::Model>,
        items: &[Self::Item],
        indices: &[u64],
    ) -> Result<Evaluation, TrainError>;

    /// The type that is computed in; the parameters themselves stay in f32.
    fn dtype(&self) -> FloatDType;

    /// Tokens that the model works on for a sample, and the FLOPs of one training step of it.
    fn cost(&self, item: &Self::Item) -> Cost;
}

/// What a sample costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Tokens, or pixels where a model has none.
    pub tokens: f64,
    /// Floating point operations of forward and backward pass.
    pub flops: f64,
}

/// What a micro-batch gave. Its numbers stay on the device, since reading them waits for it: the loop
/// reads those of several steps at once.
#[derive(Debug)]
pub struct Evaluation {
    /// The loss of each sample, `[B]`, f32 and without autodiff.
    pub losses: Tensor<1>,
    /// What the loss is made of, by name: numbers of which the mean is reported, f32 and without
    /// autodiff.
    pub parts: Vec<(&'static str, Tensor<1>)>,
    /// Gradients of the mean loss.
    pub gradients: FlatTensors,
}
