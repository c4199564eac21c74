//! PixArt-alpha, the image denoiser that STDiT grew from.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/pixart/pixart.py`, class `PixArt`.

use crate::{
    DenoiserConfig, PositionScales, SizeError,
    block::PixArtBlock,
    embed::Embeddings,
    final_layer::{FinalLayer, unpatchify},
    keys,
    stdit::LoadError,
    work::BlockFlops,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, ImportReport, check_import, import};
use opensora_nn::{mask::TokenMask, sincos};

/// Predicts the noise in latent images (or in clips, all tokens of which attend to each other).
#[derive(Module, Debug)]
pub struct PixArt {
    /// Patch, timestep and prompt embeddings.
    pub embed: Embeddings,
    /// The blocks.
    pub blocks: Vec<PixArtBlock>,
    /// Tokens to patches.
    pub final_layer: FinalLayer,
    #[module(skip)]
    config: DenoiserConfig,
    temporal_positions: bool,
    #[module(skip)]
    base_size: Option<usize>,
}

impl PixArt {
    /// A model with fresh weights; nothing is allocated before a weight is used or loaded.
    ///
    /// `temporal_positions` is the reference's `!no_temporal_pos_emb`. Quirk, kept: with it (the
    /// reference's default) the vector of frame 0, `[0.., 1..]`, is added to single images too.
    ///
    /// # Errors
    /// Where the configuration cannot be.
    pub fn new(
        config: &DenoiserConfig,
        temporal_positions: bool,
        device: &Device,
    ) -> Result<Self, SizeError> {
        config.validate()?;
        Ok(Self {
            embed: Embeddings::new(config, device),
            blocks: (0..config.depth).map(|_| PixArtBlock::new(config, device)).collect(),
            final_layer: FinalLayer::new(config, device),
            config: config.clone(),
            temporal_positions,
            base_size: None,
        })
    }

    /// Returns the model with the side of the square grid of tokens that positions are scaled to.
    ///
    /// `None`, the reference's rule and the default: that of the square of as many tokens, rounded down.
    /// PixArt-alpha was trained with one side for all shapes, 64 for the multi-scale model; both
    /// rules agree on square images of the training size.
    pub fn with_base_size(self, base_size: Option<usize>) -> Self {
        Self { base_size, ..self }
    }

    /// Returns the same weights at other position scales.
    pub fn with_scales(mut self, scales: PositionScales) -> Self {
        self.config.scales = scales;
        self
    }

    /// Returns the same weights with or without temporal positions; see [`new`](Self::new).
    pub fn with_temporal_positions(self, temporal_positions: bool) -> Self {
        Self { temporal_positions, ..self }
    }

    /// Returns the configuration that the model was made with.
    pub fn config(&self) -> &DenoiserConfig {
        &self.config
    }

    /// Returns the learnt null prompt of guidance, `[L, caption_channels]`.
    pub fn null_prompt(&self) -> Tensor<2> {
        self.embed.y_embedder.y_embedding.val()
    }

    /// Loads published weights: PixArt-XL-2 `.pth` files (256, SAM-256, 512).
    ///
    /// # Errors
    /// Where the configuration cannot be or the file does not fit it. The multi-scale model
    /// (1024-MS) has parts that this one lacks and is rejected: see [`PixArtMs`](crate::PixArtMs).
    pub fn load(
        config: &DenoiserConfig,
        temporal_positions: bool,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let checkpoint = Self::unwrapped(config, checkpoint)?;
        let model = Self::new(config, temporal_positions, device)?;
        Ok(import(model, &checkpoint, &keys::pixart(), dtype)?)
    }

    /// Checks that published weights fit, as [`load`](Self::load) does, from the file's headers alone.
    ///
    /// # Errors
    /// Returns the errors of [`load`](Self::load).
    pub fn check(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<ImportReport, LoadError> {
        let checkpoint = Self::unwrapped(config, checkpoint)?;
        let model = Self::new(config, false, device)?;
        Ok(check_import(&model, &checkpoint, &keys::pixart())?)
    }

    /// The checkpoint without wrappers. The number of blocks is compared with the file before they are
    /// built.
    pub(crate) fn unwrapped(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
    ) -> Result<Checkpoint, LoadError> {
        config.validate()?;
        let checkpoint = keys::unwrapped(checkpoint)?;
        checkpoint.check_blocks("depth", config.depth)?;
        Ok(checkpoint)
    }

    /// Returns the floating point operations of a forward pass over one sample of `grid` tokens along
    /// (t, h, w) that see `caption_tokens` each, counted as in [`work`](crate::work).
    pub fn flops(&self, grid: [usize; 3], caption_tokens: usize) -> f64 {
        // All tokens attend to each other, and there is no attention over time.
        let tokens = grid.iter().product();
        let block = BlockFlops::new(&self.config, [1, 1, tokens], caption_tokens);
        self.config.depth as f64 * (block.spatial + block.cross + block.mlp)
    }

    /// Predicts noise and variance; arguments, result and panics as in
    /// [`StDit::forward`](crate::StDit::forward).
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> Tensor<5> {
        self.forward_with(latents, timesteps, prompt, mask, None)
    }

    /// [`forward`](Self::forward), where `extra` `[B, C]` is added to the timestep embedding.
    pub(crate) fn forward_with(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        extra: Option<Tensor<2>>,
    ) -> Tensor<5> {
        let config = &self.config;
        let dtype = self.null_prompt().dtype();
        let [batch, _, frames, height, width] = latents.dims();
        assert_eq!(batch, timesteps.len(), "one timestep a sample");
        let grid @ [grid_t, grid_h, grid_w] = match config.grid([frames, height, width]) {
            Ok(grid) => grid,
            Err(error) => panic!("{error}"),
        };
        let (places, hidden) = (grid_h * grid_w, config.hidden_size);
        let device = latents.device();
        let PositionScales { space_scale, time_scale } = config.scales;

        // Unlike STDiT, positions are rescaled to the square of the same number of tokens.
        let base_size = Some(self.base_size.unwrap_or(places.isqrt()));
        let space =
            sincos::spatial([grid_h, grid_w], hidden, space_scale, base_size, dtype, &device);
        let c = self.embed.condition_with(timesteps, prompt.cast(dtype), mask, extra);

        // [B, T*S, C] -> [B, T, S, C] + [S, C] + [T, 1, C] -> [B, T*S, C]
        let x = self.embed.x_embedder.forward(latents.cast(dtype));
        let mut x = x.reshape([batch, grid_t, places, hidden]) + space.unsqueeze::<4>();
        if self.temporal_positions {
            let time = sincos::temporal(grid_t, hidden, time_scale, dtype, &device);
            x = x + time.reshape([1, grid_t, 1, hidden]);
        }
        let mut x = x.reshape([batch, grid_t * places, hidden]);
        for block in &self.blocks {
            x = block.forward(x, &c);
        }
        let x = self.final_layer.forward(x, c.t);
        unpatchify(x, grid, config.patch_size).cast(FloatDType::F32)
    }
}
