//! The VAE, loaded once for any number of clips.

use super::{
    Observer, PipelineError,
    decode_plan::DecodePlan,
    decode_shards::{DecodeShards, Outcome},
    finite,
    observer::Decoded,
    options::Residency,
    shared::Core,
};
use crate::{
    frames::{from_frames, to_frames},
    vae::{AutoencoderKl, keys},
    video::Frames,
};
use burn::tensor::Tensor;
use std::iter::FusedIterator;

/// A VAE in memory, which decodes latents to frames and encodes clips.
#[derive(Debug)]
pub struct LoadedVae<'a> {
    core: &'a Core,
    vae: AutoencoderKl,
    /// Memory of a discrete GPU in bytes, if it is known.
    memory: Option<u64>,
}

impl<'a> LoadedVae<'a> {
    pub(super) fn new(core: &'a Core, vae: AutoencoderKl, memory: Option<u64>) -> Self {
        Self { core, vae, memory }
    }

    /// Decodes the latents of one clip, `[1, C, T, h, w]`.
    ///
    /// # Errors
    /// Returns an error if the latents do not fit the VAE, the decoded values are not finite, or the observer
    /// stops the decoding.
    pub fn decode(
        &self,
        latents: Tensor<5>,
        observer: &mut dyn Observer,
    ) -> Result<Frames, PipelineError> {
        self.decode_one(latents, [0, 1], observer)
    }

    /// [`decode`](Self::decode) for clip `index` of `clips`.
    pub(super) fn decode_one(
        &self,
        latents: Tensor<5>,
        [index, clips]: [usize; 2],
        observer: &mut dyn Observer,
    ) -> Result<Frames, PipelineError> {
        let [found, channels, frames, height, width] = latents.dims();
        let config = &self.core.vae_config;
        let expected = config.latent_channels;
        if channels != expected || found != 1 {
            return Err(PipelineError::Parts(format!(
                "latents are {found} clips of {channels} channels, expected 1 of {expected}"
            )));
        }
        let factor = config.downsample_factor();
        let plan = self.plan([height * factor, width * factor]);
        let shards = DecodeShards::new(self.core.ranks.world(), frames, plan.frames);
        let (mut parts, mut outcome) = (Vec::new(), Outcome::Decoded);
        for part in shards.held() {
            let part = latents.clone().narrow(2, part.start, part.len());
            parts.push(match plan.tile_rows {
                Some(rows) => self.vae.decode_in_tiles(part, None, rows),
                None => self.vae.decode(part, None),
            });
            let event = Decoded {
                frames: index * frames + shards.frames_after(parts.len()),
                total: clips * frames,
            };
            if observer.decoded(&event).is_break() {
                outcome = Outcome::Stopped(event);
                break;
            }
        }
        self.joined(parts, outcome, &shards, [index, clips])
    }

    /// Joins the parts of all ranks `[1, 3, T, H, W]` to a clip, if no rank stopped or has values that are not finite.
    fn joined(
        &self,
        parts: Vec<Tensor<5>>,
        mut outcome: Outcome,
        shards: &DecodeShards,
        [index, clips]: [usize; 2],
    ) -> Result<Frames, PipelineError> {
        let mut decoded = None;
        if matches!(outcome, Outcome::Decoded) && !parts.is_empty() {
            let parts = Tensor::cat(parts, 2); // [1, 3, T, H, W]
            // Reads one number per clip; the pixels are read to the host next anyway.
            if finite::all_finite(&parts)? {
                decoded = to_frames(parts)?.pop();
            } else {
                outcome = Outcome::NonFinite;
            }
        }
        match (self.core.ranks.largest(outcome.code()), outcome) {
            (0, _) => shards.join(decoded),
            (_, Outcome::Stopped(event)) => Err(event.stopped()),
            (2, _) => {
                // Another rank stopped.
                let total = clips * shards.frames;
                Err(PipelineError::DecodingStopped { frames: index * shards.frames, total })
            }
            _ => Err(self.non_finite("the decoded frames")),
        }
    }

    /// Encodes a clip to scaled latents, `[1, C, T, h, w]`: the mean of the posterior.
    ///
    /// # Errors
    /// Returns an error if the VAE does not support frames of this size or the latents are not finite.
    pub fn encode(&self, clip: &Frames) -> Result<Tensor<5>, PipelineError> {
        let pixels = [clip.height(), clip.width()];
        self.core.vae_config.latent_size([clip.len(), pixels[0], pixels[1]])?;
        let frames = from_frames(clip, &self.core.device); // [1, 3, T, H, W]
        // The encoder's activations are no larger than the decoder's.
        let latents = self.vae.encode(frames, Some(self.plan(pixels).frames)).mean_latents();
        if !finite::all_finite(&latents)? {
            return Err(self.non_finite("the encoded latents"));
        }
        Ok(latents)
    }

    fn non_finite(&self, what: &'static str) -> PipelineError {
        let Core { vae, options, .. } = self.core;
        let cause = finite::cause(vae, |file| keys::unwrapped(&file), options.dtype, None);
        PipelineError::NonFinite { what, cause }
    }

    /// Returns how the VAE processes frames of `[height, width]` pixels.
    fn plan(&self, pixels: [usize; 2]) -> DecodePlan {
        let Core { vae_config, options, .. } = self.core;
        if options.residency == Residency::Streamed {
            return DecodePlan::SMALLEST;
        }
        DecodePlan::new(vae_config, pixels, options.dtype, self.memory)
    }
}

/// Iterator over the clips of latents, in order. `next` decodes a clip; the iterator ends after an error.
pub struct DecodedClips<'a> {
    vae: LoadedVae<'a>,
    /// `[B, C, T, h, w]`
    latents: Tensor<5>,
    observer: &'a mut dyn Observer,
    next: usize,
}

impl<'a> DecodedClips<'a> {
    pub(super) fn new(
        vae: LoadedVae<'a>,
        latents: Tensor<5>,
        observer: &'a mut dyn Observer,
    ) -> Self {
        Self { vae, latents, observer, next: 0 }
    }
}

impl Iterator for DecodedClips<'_> {
    type Item = Result<Frames, PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let clips = self.latents.dims()[0];
        if self.next >= clips {
            return None;
        }
        let one = self.latents.clone().narrow(0, self.next, 1);
        let clip = self.vae.decode_one(one, [self.next, clips], &mut *self.observer);
        self.next = if clip.is_ok() { self.next + 1 } else { clips };
        Some(clip)
    }
}

impl FusedIterator for DecodedClips<'_> {}
