//! PixArtMS, PixArt-alpha for images of any size and shape.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/pixart/pixart.py`, class `PixArtMS`, and
//! `layers/blocks.py`, class `SizeEmbedder`. Deviation: sizes stay in f32 in every dtype.

use crate::{DenoiserConfig, PixArt, PositionScales, SizeError, keys, stdit::LoadError};
use burn::{
    module::Module,
    tensor::{DType, Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, ImportReport, check_import, import};
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
#[derive(Module, Debug)]
pub struct PixArtMs {
    /// The model without its size conditions.
    pub base: PixArt,
    /// Height and width to vectors, each a third of the model's width.
    pub csize_embedder: TimestepEmbedder,
    /// Aspect ratio to vectors, a third of the model's width.
    pub ar_embedder: TimestepEmbedder,
}

impl PixArtMs {
    /// Returns a model with fresh weights; nothing is allocated before a weight is used or loaded.
    /// `temporal_positions` as in [`PixArt::new`].
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range.
    pub fn new(
        config: &DenoiserConfig,
        temporal_positions: bool,
        device: &Device,
    ) -> Result<Self, SizeError> {
        let base = PixArt::new(config, temporal_positions, device)?;
        let hidden = config.hidden_size;
        if !hidden.is_multiple_of(3) {
            return Err(SizeError::Config(format!("hidden_size {hidden} must be a multiple of 3")));
        }
        let embedder = || TimestepEmbedder::new(hidden / 3, device);
        Ok(Self { base, csize_embedder: embedder(), ar_embedder: embedder() })
    }

    /// Loads published weights: PixArt-XL-2-1024-MS.pth.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range or the file does not fit it.
    pub fn load(
        config: &DenoiserConfig,
        temporal_positions: bool,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let checkpoint = PixArt::unwrapped(config, checkpoint)?;
        let model = Self::new(config, temporal_positions, device)?;
        Ok(import(model, &checkpoint, &keys::pixart_ms(), dtype)?)
    }

    /// Checks that published weights fit, as [`load`](Self::load) does, from the file's headers alone.
    ///
    /// # Errors
    /// Returns an error if [`load`](Self::load) would.
    pub fn check(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<ImportReport, LoadError> {
        let checkpoint = PixArt::unwrapped(config, checkpoint)?;
        let model = Self::new(config, false, device)?;
        Ok(check_import(&model, &checkpoint, &keys::pixart_ms())?)
    }

    /// Returns the model with position tables for another base size; see [`PixArt::with_base_size`].
    pub fn with_base_size(self, base_size: Option<usize>) -> Self {
        Self { base: self.base.with_base_size(base_size), ..self }
    }

    /// Returns the same weights at other position scales.
    pub fn with_scales(self, scales: PositionScales) -> Self {
        Self { base: self.base.with_scales(scales), ..self }
    }

    /// Returns the same weights with or without temporal positions; see [`PixArt::new`].
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
        let [batch, ..] = latents.dims();
        let extra = self.size_vectors(sizes, batch, self.null_prompt().dtype());
        self.base.forward_with(latents, timesteps, prompt, mask, Some(extra))
    }

    /// Returns the floating point operations of a forward pass; see [`PixArt::flops`].
    pub fn flops(&self, grid: [usize; 3], caption_tokens: usize) -> f64 {
        self.base.flops(grid, caption_tokens)
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
