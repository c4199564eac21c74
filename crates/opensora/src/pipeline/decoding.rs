//! The VAE, loaded once for any number of clips.

use super::{
    PipelineError, TextToVideo,
    decode_plan::{DecodePlan, own_memory},
    finite,
    residency::Slot,
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    frames::{from_frames, to_frames},
    nn::dtype::Dtype,
    pipeline::Observer,
    vae::{AutoencoderKl, VaeConfig, keys},
    video::Frames,
};
use burn::tensor::{Device, Tensor};
use std::path::Path;

/// A VAE in memory.
#[derive(Debug)]
pub struct LoadedVae<'a> {
    part: VaePart<'a>,
    vae: AutoencoderKl,
    /// Memory of the device in bytes, if it has one of its own and its size is known.
    memory: Option<u64>,
}

/// The VAE of a pipeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct VaePart<'a> {
    pub(super) path: &'a Path,
    pub(super) config: &'a VaeConfig,
    pub(super) dtype: Dtype,
    pub(super) device: &'a Device,
    pub(super) low_memory: bool,
}

impl<'a> VaePart<'a> {
    /// Loads it, or takes the one that stays in memory if `keep`.
    pub(super) fn load(
        self,
        resident: &Slot<AutoencoderKl>,
        keep: bool,
        observer: &mut dyn Observer,
    ) -> Result<LoadedVae<'a>, PipelineError> {
        let vae = resident.get(keep, || {
            observer.loading("VAE");
            let checkpoint = Checkpoint::open(self.path)?;
            let dtype = self.dtype.float();
            let (vae, report) = AutoencoderKl::load(self.config, &checkpoint, dtype, self.device)?;
            observer.loaded(&report);
            Ok::<_, PipelineError>(vae)
        })?;
        Ok(LoadedVae { part: self, vae, memory: own_memory(self.device) })
    }
}

impl TextToVideo {
    /// Loads the VAE, or takes the one that [stays](super::Residency) in memory.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot be loaded.
    pub fn load_vae(&self, observer: &mut dyn Observer) -> Result<LoadedVae<'_>, PipelineError> {
        let part = VaePart {
            path: &self.files.vae,
            config: &self.vae_config,
            dtype: self.dtype,
            device: &self.device,
            low_memory: self.low_memory,
        };
        part.load(&self.resident_vae, self.keeps_all(), observer)
    }
}

impl LoadedVae<'_> {
    /// Decodes the latents of one clip, `[1, C, T, h, w]`. `on_frames(done)` is called after each
    /// micro-batch with the number of frames decoded so far.
    ///
    /// # Errors
    /// Returns an error if the latents do not fit the VAE or the decoded values are not finite.
    pub fn decode(
        &self,
        latents: Tensor<5>,
        mut on_frames: impl FnMut(usize),
    ) -> Result<Frames, PipelineError> {
        let [clips, channels, frames, height, width] = latents.dims();
        let expected = self.part.config.latent_channels;
        if channels != expected || clips != 1 {
            return Err(PipelineError::Parts(format!(
                "latents are {clips} clips of {channels} channels, expected 1 of {expected}"
            )));
        }
        let factor = self.part.config.downsample_factor();
        let plan = self.plan([height * factor, width * factor]);
        let mut parts = Vec::new();
        for part in latents.split(plan.frames, 2) {
            parts.push(match plan.tile_rows {
                Some(rows) => self.vae.decode_in_tiles(part, None, rows),
                None => self.vae.decode(part, None),
            });
            on_frames((parts.len() * plan.frames).min(frames));
        }
        let decoded = Tensor::cat(parts, 2); // [1, 3, T, H, W]
        // One number a clip; its pixels are read to the host next in any case.
        if !finite::all_finite(&decoded)? {
            let VaePart { path, dtype, .. } = self.part;
            let cause = finite::cause(path, |file| keys::unwrapped(&file), dtype, None);
            return Err(PipelineError::NonFinite { what: "the decoded frames", cause });
        }
        let mut clips = to_frames(decoded)?;
        clips.pop().ok_or_else(|| PipelineError::Parts("the VAE decoded no clip".into()))
    }

    /// Encodes a clip to the latents that denoisers work on, `[1, C, T, h, w]`: the mean of the posterior.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot have frames of this size or the latents are not finite.
    pub fn encode(&self, clip: &Frames) -> Result<Tensor<5>, PipelineError> {
        let VaePart { path, config, dtype, device, .. } = self.part;
        let pixels = [clip.height(), clip.width()];
        config.latent_size([clip.len(), pixels[0], pixels[1]])?;
        let frames = from_frames(clip, device); // [1, 3, T, H, W]
        // The encoder's activations are no larger than the decoder's.
        let latents = self.vae.encode(frames, Some(self.plan(pixels).frames)).mean_latents();
        if !finite::all_finite(&latents)? {
            let cause = finite::cause(path, |file| keys::unwrapped(&file), dtype, None);
            return Err(PipelineError::NonFinite { what: "the encoded latents", cause });
        }
        Ok(latents)
    }

    /// How frames of `[height, width]` pixels go through the VAE.
    fn plan(&self, pixels: [usize; 2]) -> DecodePlan {
        if self.part.low_memory {
            return DecodePlan::SMALLEST;
        }
        DecodePlan::new(self.part.config, pixels, self.part.dtype.float(), self.memory)
    }
}
