//! Errors of a pipeline.

use crate::{
    checkpoint::CheckpointError,
    denoiser::PromptError,
    diffusion::{SampleError, sampler::SamplerError},
    frames::ToFramesError,
    nn::{dtype::DtypeError, read::ReadError},
    request::RequestError,
    stdit::{LoadError as DenoiserLoadError, SizeError},
    t5::TextEncodeError,
    vae::VaeConfigError,
    video::FramesError,
};

/// Error of a pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A dtype that the device does not support.
    #[error(transparent)]
    Dtype(#[from] DtypeError),
    /// A size or label that does not fit the denoiser.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A size that does not fit the VAE, or a malformed configuration of the VAE.
    #[error(transparent)]
    VaeConfig(#[from] VaeConfigError),
    /// A number of steps that the sampler does not support.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Sampling stopped.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The text encoder cannot be loaded.
    #[error(transparent)]
    TextEncoder(#[from] crate::t5::LoadError),
    /// The text encoder's configuration cannot be used.
    #[error(transparent)]
    TextConfig(#[from] crate::t5::T5ConfigError),
    /// The prompts cannot be encoded.
    #[error(transparent)]
    Prompt(#[from] TextEncodeError),
    /// The denoiser cannot be loaded.
    #[error(transparent)]
    Denoiser(#[from] DenoiserLoadError),
    /// The VAE cannot be loaded.
    #[error(transparent)]
    Vae(#[from] crate::vae::LoadError),
    /// A checkpoint cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// The decoded values cannot be converted to frames.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// Models or tensors that do not fit each other.
    #[error("the parts do not fit: {0}")]
    Parts(String),
    /// An invalid request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Prompt states of another model.
    #[error(transparent)]
    PromptStates(#[from] PromptError),
    /// The latents were not finite after a step of the sampler, which stopped the sampling.
    #[error("step {} of {total}: the latents are not finite; {cause}", step + 1)]
    NonFiniteLatents {
        /// The first such step, from 0.
        step: usize,
        /// Steps of the sampler.
        total: usize,
        /// The cause.
        cause: NonFiniteCause,
    },
    /// The observer stopped the decoding.
    #[error("decoding was stopped after {frames} of {total} frames")]
    DecodingStopped {
        /// Frames that were decoded.
        frames: usize,
        /// Frames of all clips of the call.
        total: usize,
    },
    /// The output of a model is not finite.
    #[error("{what} are not finite; {cause}")]
    NonFinite {
        /// The output.
        what: &'static str,
        /// The cause.
        cause: NonFiniteCause,
    },
}

/// The cause of an output that is not finite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NonFiniteCause {
    /// Weights in the file are not finite, which the text names.
    #[error("{0}")]
    Weights(String),
    /// All weights are finite. The text names likely causes, such as the dtype or the guidance scale.
    #[error("all weights are finite: {0}")]
    Computation(String),
}

impl From<ToFramesError> for PipelineError {
    fn from(error: ToFramesError) -> Self {
        match error {
            ToFramesError::Device(error) => Self::Device(error),
            ToFramesError::Frames(error) => Self::Frames(error),
        }
    }
}
