//! The VAE, loaded once for any number of clips.

use super::{
    PipelineError, TextToVideo,
    decode_plan::{DecodePlan, own_memory},
    finite,
};
use crate::{
    checkpoint::Checkpoint,
    frames::to_frames,
    pipeline::Observer,
    vae::{AutoencoderKl, keys},
    video::Frames,
};
use burn::tensor::Tensor;

/// A VAE in memory.
#[derive(Debug)]
pub struct LoadedVae<'a> {
    pipeline: &'a TextToVideo,
    vae: AutoencoderKl,
    /// Memory of the device in bytes, if it has one of its own and its size is known.
    memory: Option<u64>,
}

impl TextToVideo {
    /// Loads the VAE.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot be loaded.
    pub fn load_vae(&self, observer: &mut dyn Observer) -> Result<LoadedVae<'_>, PipelineError> {
        observer.loading("VAE");
        let checkpoint = Checkpoint::open(&self.files.vae)?;
        let dtype = self.dtype.float();
        let (vae, report) =
            AutoencoderKl::load(&self.vae_config, &checkpoint, dtype, &self.device)?;
        observer.loaded(&report);
        Ok(LoadedVae { pipeline: self, vae, memory: own_memory(&self.device) })
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
        let expected = self.pipeline.vae_config.latent_channels;
        if channels != expected || clips != 1 {
            return Err(PipelineError::Parts(format!(
                "latents are {clips} clips of {channels} channels, expected 1 of {expected}"
            )));
        }
        let plan = if self.pipeline.low_memory {
            DecodePlan::SMALLEST
        } else {
            let config = &self.pipeline.vae_config;
            let pixels = [height, width].map(|side| side * config.downsample_factor());
            DecodePlan::new(config, pixels, self.pipeline.dtype.float(), self.memory)
        };
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
            let cause = finite::cause(
                &self.pipeline.files.vae,
                |file| keys::unwrapped(&file),
                self.pipeline.dtype,
                None,
            );
            return Err(PipelineError::NonFinite { what: "the decoded frames", cause });
        }
        let mut clips = to_frames(decoded)?;
        clips.pop().ok_or_else(|| PipelineError::Parts("the VAE decoded no clip".into()))
    }
}
