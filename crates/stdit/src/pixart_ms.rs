//! PixArtMS, PixArt-alpha for images of any size and aspect ratio.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/pixart/pixart.py`, class `PixArtMS`, and
//! `layers/blocks.py`, class `SizeEmbedder`. Deviation: sizes stay in f32 in every dtype.

use crate::{
    AttentionCache, DenoiserConfig, LoadError, PixArt, PositionScales, PromptModel, SizeError, keys,
};
use burn::{
    module::Module,
    tensor::{DType, Device, Tensor},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap, PublishedModel};
use opensora_nn::{mask::TokenMask, timestep::TimestepEmbedder};

/// Size conditions of an image, PixArt-alpha's "micro conditions".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageSize {
    /// Height in pixels.
    pub height: f32,
    /// Width in pixels.
    pub width: f32,
    /// Height divided by width.
    pub aspect_ratio: f32,
}

impl ImageSize {
    /// Returns the conditions of an image of `[height, width]` pixels.
    pub fn of_pixels(size: [usize; 2]) -> Self {
        let [height, width] = size.map(|side| side as f32);
        Self { height, width, aspect_ratio: height / width }
    }
}

/// Predicts the noise in latent images, given a timestep, a prompt and the size of the image.
///
/// [`load`](PublishedModel::load) reads PixArt-XL-2-1024-MS.pth.
#[derive(Module, Debug)]
pub struct PixArtMs {
    /// The model without its size conditions.
    pub base: PixArt,
    /// Maps height and width to vectors, each a third of the model's width.
    pub csize_embedder: TimestepEmbedder,
    /// Maps the aspect ratio to a vector of a third of the model's width.
    pub ar_embedder: TimestepEmbedder,
}

impl PublishedModel for PixArtMs {
    type Config = DenoiserConfig;
    type ConfigError = SizeError;
    type LoadError = LoadError;

    fn validate(config: &DenoiserConfig) -> Result<(), SizeError> {
        config.validate()?;
        let hidden = config.hidden_size;
        if !hidden.is_multiple_of(3) {
            return Err(SizeError::Config(format!("hidden_size {hidden} must be a multiple of 3")));
        }
        Ok(())
    }

    fn build(config: &DenoiserConfig, device: &Device) -> Self {
        let embedder = || TimestepEmbedder::new(config.hidden_size / 3, device);
        let base = PixArt::build(config, device);
        Self { base, csize_embedder: embedder(), ar_embedder: embedder() }
    }

    fn block_count(config: &DenoiserConfig) -> (&'static str, usize) {
        PixArt::block_count(config)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        keys::unwrapped(checkpoint)
    }

    fn key_map(_: &DenoiserConfig, _: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        Ok(keys::pixart_ms())
    }
}

impl PixArtMs {
    /// Returns the model with position tables for another base size; see [`PixArt::with_base_size`].
    pub fn with_base_size(self, base_size: Option<usize>) -> Self {
        Self { base: self.base.with_base_size(base_size), ..self }
    }

    /// Returns the same weights at other position scales.
    pub fn with_scales(self, scales: PositionScales) -> Self {
        Self { base: self.base.with_scales(scales), ..self }
    }

    /// Returns the same weights with or without temporal positions; see
    /// [`PixArt::with_temporal_positions`].
    pub fn with_temporal_positions(self, temporal_positions: bool) -> Self {
        Self { base: self.base.with_temporal_positions(temporal_positions), ..self }
    }

    /// Returns the configuration that the model was made with.
    pub fn config(&self) -> &DenoiserConfig {
        self.base.config()
    }

    /// Returns the learnt null prompt of guidance, `[L, caption_channels]`.
    pub fn null_prompt(&self) -> Tensor<2> {
        self.base.null_prompt()
    }

    /// Predicts noise and variance; arguments, result and panics as in
    /// [`StDit::forward`](crate::StDit::forward). `sizes` has one size for each sample, or fewer, which are
    /// repeated in order over the batch.
    ///
    /// # Panics
    /// Panics if the batch is not a multiple of the number of sizes.
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        sizes: &[ImageSize],
    ) -> Tensor<5> {
        let extra = self.size_vectors(sizes, timesteps.len(), self.null_prompt().dtype());
        self.base.forward_with(latents, timesteps, prompt, mask, Some(extra), &mut ())
    }

    /// Returns the vectors of the sizes, `[B, C]`: height, width, aspect ratio, a third of the width each.
    fn size_vectors(&self, sizes: &[ImageSize], batch: usize, dtype: DType) -> Tensor<2> {
        assert!(
            !sizes.is_empty() && batch.is_multiple_of(sizes.len()),
            "{} sizes cannot be repeated over a batch of {batch}",
            sizes.len()
        );
        let sides: Vec<f32> = sizes.iter().flat_map(|size| [size.height, size.width]).collect();
        let ratios: Vec<f32> = sizes.iter().map(|size| size.aspect_ratio).collect();
        let sides = self.csize_embedder.forward(&sides, dtype); // [2n, C/3]
        let ratios = self.ar_embedder.forward(&ratios, dtype); // [n, C/3]
        let [rows, third] = ratios.dims();
        let vectors = Tensor::cat(vec![sides.reshape([rows, 2 * third]), ratios], 1); // [n, C]
        if rows == batch { vectors } else { vectors.repeat_dim(0, batch / rows) }
    }
}

/// A PixArtMS for images of one size.
#[derive(Debug)]
pub struct SizedPixArt {
    /// The model.
    pub model: PixArtMs,
    /// The size of every image.
    pub size: ImageSize,
}

impl PromptModel for SizedPixArt {
    fn null_prompt(&self) -> Tensor<2> {
        self.model.null_prompt()
    }

    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        let Self { model, size } = self;
        let extra = model.size_vectors(&[*size], timesteps.len(), self.null_prompt().dtype());
        Ok(model.base.forward_with(latents, timesteps, prompt, mask, Some(extra), cache))
    }
}
