//! Why the pipeline made no video.

use crate::{
    checkpoint::CheckpointError,
    diffusion::{SampleError, sampler::SamplerError},
    frames::ToFramesError,
    nn::{dtype::DtypeError, read::ReadError},
    stdit::{LoadError as DenoiserLoadError, SizeError},
    t5::TextEncodeError,
    vae::VaeConfigError,
    video::FramesError,
};

/// Why there is no video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A dtype that the device lacks.
    #[error(transparent)]
    Dtype(#[from] DtypeError),
    /// A size that the denoiser cannot have.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A size that the VAE cannot have, or a bad configuration of it.
    #[error(transparent)]
    VaeConfig(#[from] VaeConfigError),
    /// Steps that the sampler cannot have.
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
    /// The pixels cannot be held.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// Parts of different models.
    #[error("the parts do not fit: {0}")]
    Parts(String),
    /// A request that cannot be.
    #[error("{0}")]
    Request(String),
    /// The latents were not finite after a step of the sampler. No later step ran, and nothing was
    /// decoded.
    #[error("step {} of {total}: the latents are not finite; {cause}", step + 1)]
    NonFiniteLatents {
        /// The first such step, from 0.
        step: usize,
        /// Steps of the sampler.
        total: usize,
        /// The damaged weight, or what else usually causes it.
        cause: String,
    },
    /// A model's output is not finite.
    #[error("{what} are not finite; {cause}")]
    NonFinite {
        /// The output.
        what: &'static str,
        /// The damaged weight, or what else usually causes it.
        cause: String,
    },
}

impl From<ToFramesError> for PipelineError {
    fn from(error: ToFramesError) -> Self {
        match error {
            ToFramesError::Device(error) => Self::Device(error),
            ToFramesError::Frames(error) => Self::Frames(error),
        }
    }
}
