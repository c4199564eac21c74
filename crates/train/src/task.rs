//! The interface between the training loop and what is trained.
//!
//! [`Task`] is implemented here for the denoiser, the VAE and the text encoder. Any other burn
//! module can be trained by the same loop, with its checkpoints, resume, metrics and guards:
//!
//! ```
//! use burn::{
//!     nn::{Linear, LinearConfig},
//!     tensor::{Device, Tensor, TensorData},
//! };
//! use opensora_data::{DataError, Source};
//! use opensora_train::{
//!     Graph, Run, Trainer,
//!     optimizer::OptimizerRecipe,
//!     run::RunRecipe,
//!     state::Progress,
//!     task::{Evaluation, Task},
//! };
//! use std::sync::Arc;
//!
//! /// Points of the line `y = 2 x + 1`.
//! struct Points;
//!
//! impl Source for Points {
//!     type Item = [f32; 2];
//!
//!     fn len(&self) -> usize {
//!         64
//!     }
//!
//!     fn read(&self, row: usize, _epoch: u64) -> Result<[f32; 2], DataError> {
//!         let x = row as f32 / 64.0;
//!         Ok([x, 2.0 * x + 1.0])
//!     }
//!
//!     fn describe(&self, row: usize) -> String {
//!         format!("point {row}")
//!     }
//! }
//!
//! /// The error of the loss.
//! #[derive(Debug, thiserror::Error)]
//! #[error("point {0:?} is not finite")]
//! struct BadPoint([f32; 2]);
//!
//! struct Regression {
//!     device: Device,
//! }
//!
//! impl Task for Regression {
//!     type Model = Linear;
//!     type Item = [f32; 2];
//!     type Error = BadPoint;
//!
//!     fn gradients(
//!         &self,
//!         graph: &Graph<Linear>,
//!         items: &[[f32; 2]],
//!         _indices: &[u64],
//!     ) -> Result<Evaluation, BadPoint> {
//!         if let Some(point) = items.iter().find(|point| !point[0].is_finite()) {
//!             return Err(BadPoint(*point));
//!         }
//!         let column = |axis: usize| {
//!             let values: Vec<f32> = items.iter().map(|point| point[axis]).collect();
//!             Tensor::<2>::from_data(TensorData::new(values, [items.len(), 1]), &self.device)
//!         };
//!         let losses = (graph.model.forward(column(0)) - column(1)).square(); // [B, 1]
//!         Ok(Evaluation {
//!             losses: losses.clone().inner().squeeze_dim(1),
//!             parts: Vec::new(),
//!             gradients: graph.backward(losses.mean()),
//!         })
//!     }
//! }
//!
//! let folder = tempfile::tempdir()?;
//! let task = Regression { device: Device::flex() };
//! let optimizer = OptimizerRecipe { learning_rate: 0.05, ..OptimizerRecipe::default() };
//! let model = LinearConfig::new(1, 1).init(&task.device);
//! let mut trainer = Trainer::new(model, &optimizer, |_| true)?;
//! let recipe = RunRecipe { steps: 50, ..RunRecipe::default() };
//! let run = Run { task: &task, recipe: &recipe, folder: folder.path(), peak_flops: None };
//! // `()` is an observer that ignores all events, and hooks that do nothing.
//! run.train(&mut trainer, Arc::new(Points), Progress::default(), &mut (), &mut ())?;
//! assert_eq!(trainer.step(), 50);
//! assert!(folder.path().join("metrics.csv").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::parameters::{FlatTensors, Graph};
use burn::{
    module::Module,
    tensor::{FloatDType, Tensor},
};
use opensora_checkpoint::BoxedError;

/// A model with its loss.
pub trait Task {
    /// The model.
    type Model: Module;
    /// A sample, as the loader delivers it.
    type Item: Send + 'static;
    /// The error of [`gradients`](Self::gradients). A run returns it as
    /// [`TrainError::Task`](crate::TrainError::Task) with its source, or unchanged if it is a
    /// [`TrainError`](crate::TrainError) itself.
    type Error: Into<BoxedError>;

    /// Returns losses and gradients of a micro-batch. `indices` are the keys of the samples' random
    /// draws: with them, noise and timesteps are the same after a resume.
    ///
    /// # Errors
    /// Returns an error if the samples do not fit the model or each other.
    fn gradients(
        &self,
        graph: &Graph<Self::Model>,
        items: &[Self::Item],
        indices: &[u64],
    ) -> Result<Evaluation, Self::Error>;

    /// Returns losses and gradients of a rank's part of a micro-batch: as [`gradients`](Self::gradients), for
    /// losses that depend on more than the samples and their indices.
    ///
    /// # Errors
    /// Returns an error if the samples do not fit the model or each other.
    fn gradients_of_part(
        &self,
        graph: &Graph<Self::Model>,
        items: &[Self::Item],
        indices: &[u64],
        whole: MicroBatch,
    ) -> Result<Evaluation, Self::Error> {
        let _ = whole;
        self.gradients(graph, items, indices)
    }

    /// Returns the type to compute in, f32 by default. The parameters themselves stay in f32.
    fn dtype(&self) -> FloatDType {
        FloatDType::F32
    }

    /// Returns the number of tokens of a sample and the FLOPs of its training step, for the metrics. Zero by
    /// default: the metrics then have no utilisation.
    fn cost(&self, item: &Self::Item) -> Cost {
        let _ = item;
        Cost::default()
    }
}

/// The micro-batch that a rank trains on a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MicroBatch {
    /// Number of the micro-batch, counted from 0 over all steps of the run.
    pub number: u64,
    /// Number of samples of all ranks.
    pub len: usize,
}

impl MicroBatch {
    /// Returns the micro-batch `number` (counted from 0) of `len` samples.
    pub fn new(number: u64, len: usize) -> Self {
        Self { number, len }
    }
}

/// The cost of training on a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Tokens, or pixels for models without tokens.
    pub tokens: f64,
    /// Floating point operations of forward and backward pass.
    pub flops: f64,
}

/// Losses and gradients of a micro-batch. Its numbers stay on the device, since reading them waits
/// for the device: the loop reads the numbers of several steps at once.
#[derive(Debug)]
pub struct Evaluation {
    /// The loss of each sample, `[B]`, f32 and without autodiff.
    pub losses: Tensor<1>,
    /// Terms of the loss and other numbers by name, f32 and without autodiff; the mean of each is
    /// reported. An empty tensor does not count in the mean of a step.
    pub parts: Vec<(&'static str, Tensor<1>)>,
    /// Gradients of the mean loss.
    pub gradients: FlatTensors,
}
