//! DiT, the denoiser of images or clips of a class.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/dit/dit.py`, class `DiT`, after
//! facebookresearch/DiT, `models.py`. Deviations: as in the [crate's](crate) description;
//! conditioning on pooled text is left out (no weights were published for it).

use crate::{
    ClassConfig, ClassModel, DenoiserWork, LoadError, SizeError,
    adaln::{AdaLnBlock, AdaLnFinalLayer, LabelEmbedder},
    attention::{Axis, TokenGrid},
    embed::{PatchEmbed, add_space, add_time, latent_grid},
    final_layer::unpatchify,
    keys,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor, activation::silu},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap, PublishedModel};
use opensora_nn::{sincos, timestep::TimestepEmbedder};

/// Predicts the noise in latents, given a timestep and a class label; all tokens of a clip attend to
/// each other.
///
/// [`load`](PublishedModel::load) reads the published DiT-XL-2 `.pt` files, and state dicts of the
/// reference's class.
#[derive(Module, Debug)]
pub struct Dit {
    /// Maps latents to tokens.
    pub x_embedder: PatchEmbed,
    /// Maps timesteps to vectors.
    pub t_embedder: TimestepEmbedder,
    /// Maps labels to vectors.
    pub y_embedder: LabelEmbedder,
    /// The blocks.
    pub blocks: Vec<AdaLnBlock>,
    /// Tokens to patches.
    pub final_layer: AdaLnFinalLayer,
    #[module(skip)]
    config: ClassConfig,
}

/// Inputs of the blocks of one forward pass.
pub(crate) struct ClassInputs {
    /// Tokens `[B, T*S, C]` with spatial positions.
    pub x: Tensor<3>,
    /// Timestep and label after SiLU, the input of every modulation layer: `[B, C]`.
    pub c: Tensor<2>,
    /// Tokens along (t, h, w).
    pub grid: [usize; 3],
}

impl PublishedModel for Dit {
    type Config = ClassConfig;
    type ConfigError = SizeError;
    type LoadError = LoadError;

    fn validate(config: &ClassConfig) -> Result<(), SizeError> {
        config.validate()
    }

    fn build(config: &ClassConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            x_embedder: PatchEmbed::new(config.in_channels, hidden, config.patch_size, device),
            t_embedder: TimestepEmbedder::new(hidden, device),
            y_embedder: LabelEmbedder::new(config, device),
            blocks: (0..config.depth).map(|_| AdaLnBlock::new(config, device)).collect(),
            final_layer: AdaLnFinalLayer::new(config, device),
            config: config.clone(),
        }
    }

    fn block_count(config: &ClassConfig) -> (&'static str, usize) {
        ("depth", config.depth)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        keys::unwrapped(checkpoint)
    }

    fn key_map(_: &ClassConfig, _: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        Ok(keys::dit())
    }
}

impl ClassModel for Dit {
    fn config(&self) -> &ClassConfig {
        &self.config
    }

    fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5> {
        let ClassInputs { mut x, c, grid } = self.embed(latents, timesteps, labels);
        if !self.config.no_temporal_pos_emb {
            x = self.with_time(x, grid);
        }
        let all = TokenGrid::flat(grid.iter().product());
        for block in &self.blocks {
            x = block.forward(x, c.clone(), Axis::Space, all);
        }
        self.head(x, c, grid)
    }

    fn work(&self, samples: usize, grid: [usize; 3]) -> DenoiserWork {
        let tokens = grid.iter().product();
        DenoiserWork::of_class_pass(&self.config, samples, tokens, |_| tokens)
    }
}

impl Dit {
    /// Embeds latents, timesteps and labels; arguments and panics as in [`ClassModel::forward`].
    pub(crate) fn embed(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        labels: &[usize],
    ) -> ClassInputs {
        let dtype = self.y_embedder.embedding_table.weight.val().dtype();
        let grid @ [_, rows, columns] =
            latent_grid(&latents, timesteps, |size| self.config.grid(size));
        assert_eq!(timesteps.len(), labels.len(), "one label a sample");
        let (hidden, device) = (self.config.hidden_size, latents.device());

        let c = self.t_embedder.forward(timesteps, dtype) + self.y_embedder.forward(labels);
        let space = sincos::spatial([rows, columns], hidden, 1.0, None, dtype, &device);
        let x = self.x_embedder.forward(latents.cast(dtype)); // [B, T*S, C]
        ClassInputs { x: add_space(x, space), c: silu(c), grid }
    }

    /// Adds the temporal table to tokens `[B, T*S, C]`.
    pub(crate) fn with_time(&self, x: Tensor<3>, grid: [usize; 3]) -> Tensor<3> {
        let [_, _, hidden] = x.dims();
        let time = sincos::temporal(grid[0], hidden, 1.0, x.dtype(), &x.device());
        add_time(x, Some(time))
    }

    /// Returns the prediction `[B, C_out, T, H, W]` in f32 of tokens `[B, T*S, C]`.
    pub(crate) fn head(&self, x: Tensor<3>, c: Tensor<2>, grid: [usize; 3]) -> Tensor<5> {
        let x = self.final_layer.forward(x, c);
        unpatchify(x, grid, self.config.patch_size).cast(FloatDType::F32)
    }
}
