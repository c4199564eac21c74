//! PixArt-alpha, the image denoiser that STDiT extends.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/pixart/pixart.py`, class `PixArt`.

use crate::{
    AttentionCache, DenoiserConfig, LoadError, PositionScales, PromptModel, SizeError,
    block::PixArtBlock,
    embed::{Embeddings, add_space, add_time, latent_grid},
    final_layer::{FinalLayer, unpatchify},
    hooks::{BlockHooks, Pass, PassHooks},
    keys,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap, PublishedModel};
use opensora_nn::{mask::TokenMask, sincos};

/// Predicts the noise in latent images (or in clips, all tokens of which attend to each other).
///
/// [`load`](PublishedModel::load) reads PixArt-XL-2 `.pth` files (256, SAM-256, 512). The multi-scale model
/// (1024-MS) has layers that this model lacks and is rejected; see [`PixArtMs`](crate::PixArtMs).
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

impl PublishedModel for PixArt {
    type Config = DenoiserConfig;
    type ConfigError = SizeError;
    type LoadError = LoadError;

    fn validate(config: &DenoiserConfig) -> Result<(), SizeError> {
        config.validate()
    }

    fn build(config: &DenoiserConfig, device: &Device) -> Self {
        Self {
            embed: Embeddings::new(config, device),
            blocks: (0..config.depth).map(|_| PixArtBlock::new(config, device)).collect(),
            final_layer: FinalLayer::new(config, device),
            config: config.clone(),
            temporal_positions: false,
            base_size: None,
        }
    }

    fn block_count(config: &DenoiserConfig) -> (&'static str, usize) {
        ("depth", config.depth)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        keys::unwrapped(checkpoint)
    }

    fn key_map(_: &DenoiserConfig, _: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        Ok(keys::pixart())
    }
}

impl PixArt {
    /// Returns the model with the side of the square grid of tokens that positions are scaled to.
    ///
    /// `None`, the reference's rule and the default: the side of the square of as many tokens, rounded
    /// down. PixArt-alpha was trained with one side for all shapes, 64 for the multi-scale model; both
    /// rules agree on square images of the training size.
    pub fn with_base_size(self, base_size: Option<usize>) -> Self {
        Self { base_size, ..self }
    }

    /// Returns the same weights at other position scales.
    pub fn with_scales(mut self, scales: PositionScales) -> Self {
        self.config.scales = scales;
        self
    }

    /// Returns the same weights with or without temporal positions, the reference's
    /// `!no_temporal_pos_emb`. The default is `false`, as in the published image models.
    ///
    /// Quirk, kept: with temporal positions (the reference's default) the vector of frame 0, `[0.., 1..]`,
    /// is added to single images too.
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

    /// Predicts noise and variance; arguments, result and panics as in
    /// [`StDit::forward`](crate::StDit::forward).
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> Tensor<5> {
        self.forward_with(latents, timesteps, prompt, mask, None, &mut ())
    }

    /// Runs a forward pass where `extra` `[B, C]` is added to the timestep embedding.
    pub(crate) fn forward_with(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        extra: Option<Tensor<2>>,
        hooks: &mut impl PassHooks,
    ) -> Tensor<5> {
        let config = &self.config;
        let (dtype, device) = (self.null_prompt().dtype(), latents.device());
        let grid @ [t, h, w] = latent_grid(&latents, timesteps, |size| config.grid(size));
        let PositionScales { space_scale, time_scale } = config.scales;

        // Unlike in STDiT, positions are rescaled to the square of the same number of tokens.
        let base_size = Some(self.base_size.unwrap_or((h * w).isqrt()));
        let hidden = config.hidden_size;
        let space = sincos::spatial([h, w], hidden, space_scale, base_size, dtype, &device);
        let time = self
            .temporal_positions
            .then(|| sincos::temporal(t, hidden, time_scale, dtype, &device));
        let c = self.embed.condition(timesteps, prompt.cast(dtype), mask, extra);

        let x = self.embed.x_embedder.forward(latents.cast(dtype)); // [B, T*S, C]
        let mut x = add_time(add_space(x, space), time);
        let prompt_tokens = c.prompt.dims()[1];
        hooks.begin(&Pass { config, timesteps, grid: [1, 1, t * h * w], prompt_tokens });
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &c, &mut BlockHooks::new(hooks, index));
        }
        let x = self.final_layer.forward(x, c.t);
        unpatchify(x, grid, config.patch_size).cast(FloatDType::F32)
    }
}

impl PromptModel for PixArt {
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
        Ok(self.forward_with(latents, timesteps, prompt, mask, None, cache))
    }
}
