//! The event after a sampling step, its observer, and the errors of sampling.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use thiserror::Error;

use crate::{denoiser::DenoiseError, process::ProcessError};

/// Watches a sampling run and may stop it.
///
/// Closures `FnMut(&StepInfo<'_>) -> ControlFlow<()>` are observers; `()` ignores every event.
pub trait Observer {
    /// Called after each step. [`ControlFlow::Break`] stops the run.
    fn step(&mut self, _step: &StepInfo<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Observer for () {}

impl<F: FnMut(&StepInfo<'_>) -> ControlFlow<()>> Observer for F {
    fn step(&mut self, step: &StepInfo<'_>) -> ControlFlow<()> {
        self(step)
    }
}

/// The state after a sampling step.
#[derive(Debug)]
#[non_exhaustive]
pub struct StepInfo<'a> {
    /// The finished step, counted from 0.
    pub step: usize,
    /// Number of steps.
    pub total: usize,
    /// The timestep that the model was called with, on the scale `0..1000`.
    pub timestep: f32,
    /// The latents after the step, `[B, C, T, H, W]`. A device may still be computing them; reading
    /// them waits for it.
    pub latents: &'a Tensor<5>,
    /// The clean latents that the model predicted in this step, with guidance, `[B, C, T, H, W]`. All built-in
    /// samplers give them.
    pub clean: Option<&'a Tensor<5>>,
}

impl<'a> StepInfo<'a> {
    /// Returns the state after step `step` (from 0) of `total`, without predicted clean latents.
    pub fn new(step: usize, total: usize, timestep: f32, latents: &'a Tensor<5>) -> Self {
        Self { step, total, timestep, latents, clean: None }
    }

    /// Returns the state with the clean latents that the model predicted in this step.
    pub fn with_clean(self, clean: &'a Tensor<5>) -> Self {
        Self { clean: Some(clean), ..self }
    }

    /// Passes the state to an observer.
    ///
    /// # Errors
    /// Returns [`SampleError::Interrupted`] if the observer stops the run.
    pub fn report(&self, observer: &mut dyn Observer) -> Result<(), SampleError> {
        match observer.step(self) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(SampleError::Interrupted { completed: self.step + 1, total: self.total })
            }
        }
    }
}

/// Error of a sampling run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The observer stopped the run.
    #[error("sampling was stopped after {completed} of {total} steps")]
    Interrupted {
        /// Finished steps.
        completed: usize,
        /// Steps of the whole run.
        total: usize,
    },
    /// A model output or a noise tensor does not fit the latents.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The model's own error.
    #[error(transparent)]
    Denoiser(#[from] DenoiseError),
    /// The error of a sampler that is not built in.
    #[error(transparent)]
    Sampler(Box<dyn std::error::Error + Send + Sync>),
    /// The guidance scale is NaN or infinite.
    #[error("guidance scale {found} is not finite")]
    GuidanceScale {
        /// The scale.
        found: f64,
    },
}
