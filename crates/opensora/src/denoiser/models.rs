//! The models of `stdit` as [`PromptModel`] and [`ClassModel`].

use crate::{
    checkpoint::CheckpointError,
    nn::mask::TokenMask,
    stdit::{
        AttentionCache, ClassConfig, DenoiserConfig, Dit, ImageSize, Latte, PixArt, PixArtMs,
        StDit, StreamedStDit,
    },
};
use burn::tensor::Tensor;
use std::fmt::Debug;

/// A denoiser that is conditioned on a prompt, with its weights in memory or streamed from their file.
pub trait PromptModel: Debug + Send + Sync {
    /// Returns the learned null prompt of guidance, `[L, caption_channels]`.
    fn null_prompt(&self) -> Tensor<2>;

    /// Predicts noise and variance in a step of a sampling run, reusing attention outputs of earlier steps
    /// as `cache` is set to; see [`StDit::forward_cached`].
    ///
    /// # Errors
    /// Returns an error if weights that are not in memory cannot be read.
    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError>;
}

/// A denoiser that is conditioned on a class label.
pub trait ClassModel: Debug + Send + Sync {
    /// Returns the model's configuration.
    fn config(&self) -> &ClassConfig;

    /// Predicts noise and variance; see [`Dit::forward`].
    fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5>;

    /// Returns the floating point operations of a forward pass over one sample of `grid` tokens along
    /// (t, h, w).
    fn flops(&self, grid: [usize; 3]) -> f64;
}

/// A PixArtMS with the size of the images to sample.
#[derive(Debug)]
pub struct SizedPixArt {
    /// The model.
    pub model: PixArtMs,
    /// The size of every image.
    pub size: ImageSize,
}

impl PromptModel for StDit {
    fn null_prompt(&self) -> Tensor<2> {
        self.null_prompt()
    }

    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        Ok(self.forward_cached(latents, timesteps, prompt, mask, cache))
    }
}

impl PromptModel for StreamedStDit {
    fn null_prompt(&self) -> Tensor<2> {
        self.null_prompt()
    }

    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        self.forward_cached(latents, timesteps, prompt, mask, cache)
    }
}

impl PromptModel for PixArt {
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

impl PromptModel for SizedPixArt {
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

impl ClassModel for Dit {
    fn config(&self) -> &ClassConfig {
        self.config()
    }

    fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5> {
        self.forward(latents, timesteps, labels)
    }

    fn flops(&self, grid: [usize; 3]) -> f64 {
        self.flops(grid)
    }
}

impl ClassModel for Latte {
    fn config(&self) -> &ClassConfig {
        self.config()
    }

    fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5> {
        self.forward(latents, timesteps, labels)
    }

    fn flops(&self, grid: [usize; 3]) -> f64 {
        self.flops(grid)
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
    // Self-attention and cross-attention in every block.
    cache.count(samples, 2 * config.depth, flops(grid, prompt.dims()[1]));
}
