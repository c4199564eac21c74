//! The shared part of both pipelines: the file of the denoiser, the VAE, options and device.

use super::{
    Observer, Part, PipelineError, PipelineOptions,
    decode_plan::own_memory,
    decoding::{DecodedClips, LoadedVae},
    observer::Loaded,
    ranks::SamplingRanks,
    slot::Slot,
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    diffusion::PredictionType,
    files::one_line,
    nn::dtype,
    request::SampleRequest,
    vae::{AutoencoderKl, VaeConfig},
};
use burn::tensor::{Device, Tensor};
use std::{fmt::Display, path::PathBuf};

/// Weights' paths, options, device and VAE that both pipelines share.
#[derive(Debug)]
pub(super) struct Core {
    /// The denoiser's file.
    pub(super) denoiser: PathBuf,
    /// Folder or file of the VAE.
    pub(super) vae: PathBuf,
    pub(super) vae_config: VaeConfig,
    pub(super) in_channels: usize,
    pub(super) options: PipelineOptions,
    pub(super) device: Device,
    pub(super) ranks: SamplingRanks,
    resident_vae: Slot<AutoencoderKl>,
}

impl Core {
    /// Checks the dtype and the headers of the VAE; reads no weights.
    pub(super) fn new(
        denoiser: PathBuf,
        vae: PathBuf,
        in_channels: usize,
        options: PipelineOptions,
        device: Device,
    ) -> Result<Self, PipelineError> {
        dtype::check(options.dtype, &device)?;
        let vae_config = VaeConfig::beside(&vae)?;
        check_fit("in_channels", vae_config.latent_channels, in_channels)?;
        vae_config.check_rgb()?;
        AutoencoderKl::check(&vae_config, &Checkpoint::open(&vae)?, &device)?;
        let (ranks, resident_vae) = (SamplingRanks::default(), Slot::default());
        Ok(Self { denoiser, vae, vae_config, in_channels, options, device, ranks, resident_vae })
    }

    /// Checks the number of sampler steps and the size of the clip; returns the size of the latents,
    /// `[T, h, w]`.
    pub(super) fn check(&self, request: &SampleRequest) -> Result<[usize; 3], PipelineError> {
        let [height, width] = request.image_size;
        request.sampler()?;
        Ok(self.vae_config.latent_size([request.num_frames, height, width])?)
    }

    /// Returns the VAE, from memory if it stays there.
    pub(super) fn load_vae(
        &self,
        observer: &mut dyn Observer,
    ) -> Result<LoadedVae<'_>, PipelineError> {
        let keep = self.options.residency.keeps_all();
        let vae = self.resident_vae.get(keep, || {
            observer.loading(Part::Vae);
            let checkpoint = Checkpoint::open(&self.vae)?;
            let dtype = self.options.dtype;
            let loaded = AutoencoderKl::load(&self.vae_config, &checkpoint, dtype, &self.device);
            let (vae, report) = loaded?;
            observer.loaded(&Loaded { part: Part::Vae, report: &report });
            Ok::<_, PipelineError>(vae)
        })?;
        Ok(LoadedVae::new(self, vae, own_memory(&self.device)))
    }

    /// Returns the clips of latents `[B, C, T, h, w]`.
    pub(super) fn decode<'a>(
        &'a self,
        latents: Tensor<5>,
        observer: &'a mut dyn Observer,
    ) -> Result<DecodedClips<'a>, PipelineError> {
        Ok(DecodedClips::new(self.load_vae(observer)?, latents, observer))
    }

    /// Drops the VAE if it is in memory.
    pub(super) fn release(&self) {
        self.resident_vae.clear();
    }
}

/// Returns the prediction target in the metadata of a denoiser's weights; `None` if they have none.
pub(super) fn recorded_target(
    checkpoint: &Checkpoint,
) -> Result<Option<PredictionType>, PipelineError> {
    let metadata = checkpoint.metadata()?;
    let Some(name) = metadata.get(PredictionType::NOTE) else { return Ok(None) };
    match PredictionType::from_name(name) {
        Some(target) => Ok(Some(target)),
        None => Err(wrong_target(
            checkpoint,
            format_args!("prediction_type '{}' is not known", one_line(name)),
        )),
    }
}

/// Returns the error of weights whose prediction target cannot be used.
pub(super) fn wrong_target(checkpoint: &Checkpoint, reason: impl Display) -> PipelineError {
    PipelineError::Parts(format!("{}: {reason}", checkpoint.path().display()))
}

/// Checks that a size of the denoiser equals that of another part.
pub(super) fn check_fit(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), PipelineError> {
    if found == expected {
        return Ok(());
    }
    Err(PipelineError::Parts(format!(
        "the denoiser's {what} is {expected}, but the part beside it has {found}"
    )))
}
