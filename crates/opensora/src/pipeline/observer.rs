//! Events of a pipeline.

use super::PipelineError;
use crate::{checkpoint::ImportReport, diffusion::StepInfo};
use burn::tensor::Tensor;
use std::{fmt, ops::ControlFlow};

/// Receives the events of a pipeline; each method has a default that ignores its event.
///
/// `()` ignores all events. A closure receives the sampler's steps:
///
/// ```no_run
/// # use opensora::{PipelineError, SampleRequest, TextToVideo};
/// use opensora::pipeline::SamplerStep;
/// use std::ops::ControlFlow;
///
/// # fn show(pipeline: &TextToVideo, request: &SampleRequest) -> Result<(), PipelineError> {
/// let mut on_step = |step: &SamplerStep<'_>| {
///     println!("step {} of {}", step.step + 1, step.steps);
///     ControlFlow::Continue(())
/// };
/// pipeline.generate(&["a red fox"], request, &mut on_step)?;
/// # Ok(())
/// # }
/// ```
pub trait Observer {
    /// A model is about to be loaded.
    fn loading(&mut self, _part: Part) {}

    /// A model was loaded.
    fn loaded(&mut self, _event: &Loaded<'_>) {}

    /// A prompt has words that the text encoder does not know.
    fn unknown_words(&mut self, _event: &UnknownWords<'_>) {}

    /// The sampler completed a step. `Break` stops the sampling, which then returns
    /// [`SampleError::Interrupted`](crate::diffusion::SampleError::Interrupted).
    fn sampler_step(&mut self, _event: &SamplerStep<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// The VAE decoded frames. `Break` stops the decoding, which then returns
    /// [`PipelineError::DecodingStopped`](super::PipelineError::DecodingStopped).
    fn decoded(&mut self, _event: &Decoded) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Ignores all events.
impl Observer for () {}

/// Calls the closure after each step of the sampler.
impl<F: FnMut(&SamplerStep<'_>) -> ControlFlow<()>> Observer for F {
    fn sampler_step(&mut self, event: &SamplerStep<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// A model of a pipeline: text encoder, denoiser or VAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The text encoder.
    TextEncoder,
    /// The denoiser.
    Denoiser,
    /// The VAE.
    Vae,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextEncoder => "text encoder",
            Self::Denoiser => "denoiser",
            Self::Vae => "VAE",
        })
    }
}

/// Event: a model was loaded.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded<'a> {
    /// The model.
    pub part: Part,
    /// Report of the import: its file, tensors and sizes.
    pub report: &'a ImportReport,
}

impl<'a> Loaded<'a> {
    /// Returns the event of a model that was loaded.
    pub fn new(part: Part, report: &'a ImportReport) -> Self {
        Self { part, report }
    }
}

/// Words of a prompt that the text encoder does not know: it splits them into pieces with little meaning,
/// replaces them by one token, or cleaning removes them.
#[derive(Debug)]
#[non_exhaustive]
pub struct UnknownWords<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// The words.
    pub words: &'a [String],
}

/// Event: the sampler completed a step.
#[derive(Debug)]
#[non_exhaustive]
pub struct SamplerStep<'a> {
    /// The step, from 0.
    pub step: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// The batch, from 0.
    pub batch: usize,
    /// Batches of the call.
    pub batches: usize,
    /// Timestep that the model was evaluated at.
    pub timestep: f32,
    /// The latents after the step, `[B, C, T, h, w]`.
    pub latents: &'a Tensor<5>,
    /// The clean latents that the model predicted in this step, with guidance, `[B, C, T, h, w]`. A sampler that
    /// is not built in may not give them.
    pub clean: Option<&'a Tensor<5>>,
}

impl<'a> SamplerStep<'a> {
    /// Returns the event of step `info` of batch `batch` of `batches`.
    pub(super) fn new(info: &StepInfo<'a>, [batch, batches]: [usize; 2]) -> Self {
        let &StepInfo { step, total: steps, timestep, latents, clean, .. } = info;
        Self { step, steps, batch, batches, timestep, latents, clean }
    }
}

/// Frames that the VAE has decoded so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// Frames that are decoded, over all clips of the call.
    pub frames: usize,
    /// Frames of all clips of the call.
    pub total: usize,
}

impl Decoded {
    /// Returns the event of `frames` of `total` frames.
    pub fn new(frames: usize, total: usize) -> Self {
        Self { frames, total }
    }

    /// Returns the error of a decoding that an observer stopped at this event.
    pub fn stopped(self) -> PipelineError {
        PipelineError::DecodingStopped { frames: self.frames, total: self.total }
    }
}
