//! DiT, the denoiser of images (or clips) of a class.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/dit/dit.py`, class `DiT`, after
//! facebookresearch/DiT, `models.py`. Deviations: as in the [crate's](crate) description;
//! conditioning on pooled text is left out (no weights were published for it).

use crate::{
    ClassConfig, SizeError,
    adaln::{AdaLnBlock, AdaLnFinalLayer, LabelEmbedder},
    embed::PatchEmbed,
    final_layer::unpatchify,
    keys,
    stdit::LoadError,
    work::adaln_flops,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor, activation::silu},
};
use opensora_checkpoint::{Checkpoint, ImportReport, check_import, import};
use opensora_nn::{sincos, timestep::TimestepEmbedder};

/// Predicts the noise in latents, given a timestep and a class label; all tokens of a clip attend to
/// each other.
#[derive(Module, Debug)]
pub struct Dit {
    /// Latents to tokens.
    pub x_embedder: PatchEmbed,
    /// Timesteps to vectors.
    pub t_embedder: TimestepEmbedder,
    /// Labels to vectors.
    pub y_embedder: LabelEmbedder,
    /// The blocks.
    pub blocks: Vec<AdaLnBlock>,
    /// Tokens to patches.
    pub final_layer: AdaLnFinalLayer,
    #[module(skip)]
    config: ClassConfig,
}

/// Inputs to the blocks of one forward pass.
pub(crate) struct ClassInputs {
    /// Tokens `[B, T*S, C]` with their spatial positions.
    pub x: Tensor<3>,
    /// Timestep and label, after the SiLU that every layer of modulation begins with: `[B, C]`.
    pub c: Tensor<2>,
    /// Tokens along (t, h, w).
    pub grid: [usize; 3],
}

impl Dit {
    /// Returns a model with fresh weights; nothing is allocated before a weight is used or loaded.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range.
    pub fn new(config: &ClassConfig, device: &Device) -> Result<Self, SizeError> {
        config.validate()?;
        let hidden = config.hidden_size;
        Ok(Self {
            x_embedder: PatchEmbed::new(config.in_channels, hidden, config.patch_size, device),
            t_embedder: TimestepEmbedder::new(hidden, device),
            y_embedder: LabelEmbedder::new(config, device),
            blocks: (0..config.depth).map(|_| AdaLnBlock::new(config, device)).collect(),
            final_layer: AdaLnFinalLayer::new(config, device),
            config: config.clone(),
        })
    }

    /// Loads weights: the published DiT-XL-2 `.pt` files, and state dicts of the reference's class.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range or the file does not fit it.
    pub fn load(
        config: &ClassConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(import(model, &checkpoint, &keys::dit(), dtype)?)
    }

    /// Checks that weights fit, as [`load`](Self::load) does, from the file's headers alone.
    ///
    /// # Errors
    /// Returns an error if [`load`](Self::load) would.
    pub fn check(
        config: &ClassConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<ImportReport, LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(check_import(&model, &checkpoint, &keys::dit())?)
    }

    /// Returns the model that `config` describes, without allocating weights, and the checkpoint without
    /// wrappers.
    pub(crate) fn described(
        config: &ClassConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<(Self, Checkpoint), LoadError> {
        config.validate()?;
        let checkpoint = keys::unwrapped(checkpoint)?;
        checkpoint.check_blocks("depth", config.depth)?;
        Ok((Self::new(config, device)?, checkpoint))
    }

    /// Returns the configuration that the model was made with.
    pub fn config(&self) -> &ClassConfig {
        &self.config
    }

    /// Predicts noise and variance.
    ///
    /// - `latents` `[B, C, T, H, W]`: noisy images or clips, square in patches.
    /// - `timesteps` `[B]`: on the scale 0..1000, may be fractional.
    /// - `labels` `[B]`: classes, the null class ([`ClassConfig::null_class`]) included.
    ///
    /// Returns `[B, C_out, T, H, W]` in f32: `eps`, then the variance interpolation.
    ///
    /// # Panics
    /// Panics if the size does not fit (ask [`ClassConfig::grid`] first), a label has no row, or batch
    /// sizes differ.
    pub fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5> {
        let ClassInputs { mut x, c, grid } = self.embed(latents, timesteps, labels);
        if !self.config.no_temporal_pos_emb {
            x = self.add_temporal_positions(x, grid);
        }
        let tokens = grid.iter().product();
        for block in &self.blocks {
            x = block.forward(x, c.clone(), [1, tokens], 2);
        }
        self.head(x, c, grid)
    }

    /// Returns the floating point operations of a forward pass over one sample of `grid` tokens along
    /// (t, h, w), counted as in [`work`](crate::work).
    pub fn flops(&self, grid: [usize; 3]) -> f64 {
        let tokens = grid.iter().product();
        adaln_flops(&self.config, tokens, |_| tokens)
    }

    pub(crate) fn embed(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        labels: &[usize],
    ) -> ClassInputs {
        let dtype = self.y_embedder.embedding_table.weight.val().dtype();
        let [batch, _, frames, height, width] = latents.dims();
        assert_eq!([batch; 2], [timesteps.len(), labels.len()], "one timestep and label a sample");
        let grid @ [grid_t, rows, columns] = match self.config.grid([frames, height, width]) {
            Ok(grid) => grid,
            Err(error) => panic!("{error}"),
        };
        let (hidden, positions) = (self.config.hidden_size, rows * columns);
        let device = latents.device();

        let c = self.t_embedder.forward(timesteps, dtype) + self.y_embedder.forward(labels);
        // [B, T*S, C] -> [B, T, S, C] + [S, C] -> [B, T*S, C]
        let space = sincos::spatial([rows, columns], hidden, 1.0, None, dtype, &device);
        let x = self.x_embedder.forward(latents.cast(dtype));
        let x = x.reshape([batch, grid_t, positions, hidden]) + space.unsqueeze::<4>();
        ClassInputs { x: x.reshape([batch, grid_t * positions, hidden]), c: silu(c), grid }
    }

    /// Adds the temporal table to tokens `[B, T*S, C]`.
    pub(crate) fn add_temporal_positions(&self, x: Tensor<3>, grid: [usize; 3]) -> Tensor<3> {
        let [batch, tokens, hidden] = x.dims();
        let time = sincos::temporal(grid[0], hidden, 1.0, x.dtype(), &x.device());
        // [B, T*S, C] -> [B, T, S, C] + [1, T, 1, C] -> [B, T*S, C]
        let x = x.reshape([batch, grid[0], tokens / grid[0], hidden]);
        (x + time.reshape([1, grid[0], 1, hidden])).reshape([batch, tokens, hidden])
    }

    /// Tokens `[B, T*S, C]` to the prediction `[B, C_out, T, H, W]` in f32.
    pub(crate) fn head(&self, x: Tensor<3>, c: Tensor<2>, grid: [usize; 3]) -> Tensor<5> {
        let x = self.final_layer.forward(x, c);
        unpatchify(x, grid, self.config.patch_size).cast(FloatDType::F32)
    }
}
