//! Implements [`StDitModel`] for PixArt-alpha, so that
//! [`PromptedDenoiser`](crate::denoiser::PromptedDenoiser) can sample it.

use crate::{
    checkpoint::CheckpointError,
    denoiser::StDitModel,
    stdit::{AttentionCache, DenoiserConfig, ImageSize, PixArt, PixArtMs},
};
use burn::tensor::Tensor;
use opensora_nn::mask::TokenMask;

/// A PixArtMS with the size of the images to sample.
#[derive(Debug)]
pub struct SizedPixArt {
    /// The model.
    pub model: PixArtMs,
    /// The size of every image.
    pub size: ImageSize,
}

impl StDitModel for PixArt {
    fn null_prompt(&self) -> Tensor<2> {
        self.null_prompt()
    }

    /// Attentions are always computed: the cache only counts them.
    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        count(cache, self.config(), &latents, &prompt, |grid, tokens| self.flops(grid, tokens));
        Ok(self.forward(latents, timesteps, prompt, mask))
    }
}

impl StDitModel for SizedPixArt {
    fn null_prompt(&self) -> Tensor<2> {
        self.model.null_prompt()
    }

    /// Attentions are always computed: the cache only counts them.
    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        let model = &self.model;
        count(cache, model.config(), &latents, &prompt, |grid, tokens| model.flops(grid, tokens));
        Ok(model.forward(latents, timesteps, prompt, mask, &[self.size]))
    }
}

/// Counts a forward pass; `flops(grid, caption_tokens)` is that of one sample.
fn count(
    cache: &mut AttentionCache,
    config: &DenoiserConfig,
    latents: &Tensor<5>,
    prompt: &Tensor<3>,
    flops: impl Fn([usize; 3], usize) -> f64,
) {
    let [samples, _, frames, height, width] = latents.dims();
    // A size that does not fit is reported by the forward pass itself.
    let Ok(grid) = config.grid([frames, height, width]) else { return };
    // Self-attention and cross attention in every block.
    cache.count(samples, 2 * config.depth, flops(grid, prompt.dims()[1]));
}
