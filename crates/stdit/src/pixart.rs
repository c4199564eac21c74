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
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, ImportReport, import};
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
        })
    }

    /// Loads published weights: PixArt-XL-2 `.pth` files (256, SAM-256, 512).
    ///
    /// # Errors
    /// Where the configuration cannot be or the file does not fit it. The multi-scale model
    /// (1024-MS) has parts that this one lacks and is refused.
    pub fn load(
        config: &DenoiserConfig,
        temporal_positions: bool,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        config.validate()?;
        let checkpoint = keys::unwrapped(checkpoint)?;
        checkpoint.check_blocks("depth", config.depth)?;
        let model = Self::new(config, temporal_positions, device)?;
        Ok(import(model, &checkpoint, &keys::pixart(), dtype)?)
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
        let config = &self.config;
        let dtype = self.embed.y_embedder.y_embedding.val().dtype();
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
        let base_size = Some(places.isqrt());
        let space =
            sincos::spatial([grid_h, grid_w], hidden, space_scale, base_size, dtype, &device);
        let c = self.embed.condition(timesteps, prompt.cast(dtype), mask);

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
