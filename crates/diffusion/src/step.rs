//! What all samplers share: the report after a step, and the errors.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use thiserror::Error;

use crate::{denoiser::DenoiseError, process::ProcessError};

/// The state after a sampling step.
#[derive(Debug)]
#[non_exhaustive]
pub struct StepInfo<'a> {
    /// The step that is done, from 0.
    pub step: usize,
    /// How many there are.
    pub total: usize,
    /// The timestep that the model was called with, on the scale `0..1000`.
    pub timestep: f32,
    /// The latents after the step, `[B, C, T, H, W]`. A device may still be working on them; reading
    /// them waits for it.
    pub latents: &'a Tensor<5>,
}

impl<'a> StepInfo<'a> {
    /// Returns the state after step `step` (from 0) of `total`.
    pub fn new(step: usize, total: usize, timestep: f32, latents: &'a Tensor<5>) -> Self {
        Self { step, total, timestep, latents }
    }

    /// Passes the state to `on_step`.
    ///
    /// # Errors
    /// Returns [`SampleError::Interrupted`] if `on_step` breaks.
    pub fn report(
        self,
        mut on_step: impl FnMut(StepInfo<'_>) -> ControlFlow<()>,
    ) -> Result<(), SampleError> {
        let (completed, total) = (self.step + 1, self.total);
        match on_step(self) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(SampleError::Interrupted { completed, total }),
        }
    }
}

/// Why there are no samples.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The callback asked to stop.
    #[error("sampling was stopped after {completed} of {total} steps")]
    Interrupted {
        /// Steps done.
        completed: usize,
        /// Steps there would have been.
        total: usize,
    },
    /// A model output or a noise tensor that does not fit the latents.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The model gave no answer; this is its own error.
    #[error(transparent)]
    Denoiser(#[from] DenoiseError),
    /// An error of a sampler that is not built in.
    #[error(transparent)]
    Sampler(Box<dyn std::error::Error + Send + Sync>),
    /// Guidance that is not a number.
    #[error("guidance scale {found} is not finite")]
    GuidanceScale {
        /// The scale.
        found: f64,
    },
}
