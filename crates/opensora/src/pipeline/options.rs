//! Options of a pipeline: dtypes and memory.

use burn::tensor::FloatDType;

/// Options of a pipeline.
///
/// ```
/// use opensora::{PipelineOptions, Residency, burn::tensor::FloatDType};
///
/// let options = PipelineOptions {
///     dtype: FloatDType::BF16,
///     residency: Residency::All,
///     ..PipelineOptions::default()
/// };
/// assert_eq!(options.text_dtype, FloatDType::F32);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineOptions {
    /// Float type of the denoiser and the VAE.
    pub dtype: FloatDType,
    /// Float type of the text encoder; the reference keeps it in f32.
    pub text_dtype: FloatDType,
    /// Models that stay in memory between calls.
    pub residency: Residency,
}

impl Default for PipelineOptions {
    /// Returns f32 for all models, none of which stays in memory.
    fn default() -> Self {
        Self {
            dtype: FloatDType::F32,
            text_dtype: FloatDType::F32,
            residency: Residency::default(),
        }
    }
}

/// Which models stay in memory between the calls of a pipeline.
///
/// A model that stays is read from its file once, by the first call that needs it. Models that do not
/// stay are loaded, used and dropped in every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Residency {
    /// None, and memory holds less than one large model: STDiT's blocks are read from its file in every
    /// step, and the VAE decodes one frame at a time, in tiles. Latents are the same as otherwise, frames
    /// up to rounding. Denoisers other than STDiT are loaded as a whole.
    Streamed,
    /// None: memory holds one large model at a time (with several batches, the denoiser beside the VAE), and the text
    /// encoder is read block by block.
    #[default]
    Sequential,
    /// The denoiser.
    Denoiser,
    /// Text encoder, denoiser and VAE: calls after the first open no file. In f32 T5-XXL takes 19 GB,
    /// STDiT-XL/2 3 GB and the VAE 0.3 GB.
    All,
}

impl Residency {
    /// Returns true if the denoiser stays in memory.
    pub(super) fn keeps_denoiser(self) -> bool {
        matches!(self, Self::Denoiser | Self::All)
    }

    /// Returns true if the text encoder and the VAE stay in memory.
    pub(super) fn keeps_all(self) -> bool {
        self == Self::All
    }
}
