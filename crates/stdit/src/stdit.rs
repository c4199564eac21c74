//! STDiT, the video denoiser of Open-Sora 1.0.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/stdit/stdit.py`, class `STDiT`.

use crate::{
    DenoiserConfig, PositionScales, SizeError,
    block::StDitBlock,
    embed::{Conditioning, Embeddings},
    final_layer::{FinalLayer, unpatchify},
    keys,
    reuse::{AttentionCache, BlockAttentions},
    work::BlockFlops,
};
use burn::{
    module::Module,
    tensor::{DType, Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, ImportReport, check_import, import};
use opensora_nn::{mask::TokenMask, sincos};
use std::{borrow::Borrow, convert::Infallible};

/// Predicts the noise in a latent clip, given a timestep and a prompt.
#[derive(Module, Debug)]
pub struct StDit {
    /// Patch, timestep and prompt embeddings.
    pub embed: Embeddings,
    /// The blocks.
    pub blocks: Vec<StDitBlock>,
    /// Tokens to patches.
    pub final_layer: FinalLayer,
    #[module(skip)]
    config: DenoiserConfig,
}

impl StDit {
    /// A model with fresh weights; nothing is allocated before a weight is used or loaded.
    ///
    /// # Errors
    /// Where the configuration cannot be.
    pub fn new(config: &DenoiserConfig, device: &Device) -> Result<Self, SizeError> {
        config.validate()?;
        Ok(Self {
            embed: Embeddings::new(config, device),
            blocks: (0..config.depth).map(|_| StDitBlock::new(config, device)).collect(),
            final_layer: FinalLayer::new(config, device),
            config: config.clone(),
        })
    }

    /// Loads published weights: OpenSora-v1 `.pth` files, training folders, safetensors.
    ///
    /// # Errors
    /// Where the configuration cannot be or the file does not fit it.
    pub fn load(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(import(model, &checkpoint, &keys::stdit(), dtype)?)
    }

    /// Checks that published weights fit, as [`load`](Self::load) does, from the file's headers alone.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn check(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<ImportReport, LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(check_import(&model, &checkpoint, &keys::stdit())?)
    }

    /// The model that `config` describes, none of its weights allocated, and the checkpoint without
    /// wrappers. The number of blocks is compared with the file before they are built.
    pub(crate) fn described(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<(Self, Checkpoint), LoadError> {
        config.validate()?;
        let checkpoint = keys::unwrapped(checkpoint)?;
        checkpoint.check_blocks("depth", config.depth)?;
        Ok((Self::new(config, device)?, checkpoint))
    }

    /// Starts from a published PixArt-alpha: its temporal attentions are fresh and silent (their
    /// projections are zero), so that `T` frames are `T` independent images.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_pixart(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let (model, checkpoint) = Self::described(config, checkpoint, device)?;
        Ok(import(model, &checkpoint, &keys::stdit_from_pixart(), dtype)?)
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &DenoiserConfig {
        &self.config
    }

    /// The position tables for latents of `size` `[T, h, w]` under their published keys: spatial
    /// `[1, S, C]` and temporal `[1, T, C]`.
    ///
    /// They are computed in every forward pass here. The reference's module has them as buffers, so
    /// that `load_state_dict` with `strict=True` expects them in a file.
    ///
    /// # Errors
    /// Returns an error if the patch does not divide the size.
    pub fn position_tables(&self, size: [usize; 3]) -> Result<Vec<(String, Tensor<3>)>, SizeError> {
        let grid = self.config.grid(size)?;
        let [space, time] = self.tables(grid, DType::F32, &self.null_prompt().device());
        let tables = [space, time].map(|table| table.unsqueeze::<3>());
        Ok(keys::POSITION_TABLES.map(str::to_string).into_iter().zip(tables).collect())
    }

    /// Spatial `[S, C]` and temporal `[T, C]` position tables of a grid of tokens.
    fn tables(&self, [t, h, w]: [usize; 3], dtype: DType, device: &Device) -> [Tensor<2>; 2] {
        let (PositionScales { space_scale, time_scale }, hidden) =
            (self.config.scales, self.config.hidden_size);
        [
            sincos::spatial([h, w], hidden, space_scale, None, dtype, device),
            sincos::temporal(t, hidden, time_scale, dtype, device),
        ]
    }

    /// The same weights at other position scales (a resolution's own).
    pub fn with_scales(mut self, scales: PositionScales) -> Self {
        self.config.scales = scales;
        self
    }

    /// The learnt null prompt of guidance, `[L, caption_channels]`.
    pub fn null_prompt(&self) -> Tensor<2> {
        self.embed.y_embedder.y_embedding.val()
    }

    /// Predicts noise and variance.
    ///
    /// - `latents` `[B, C, T, H, W]`: noisy clips; any T, H, W that the patch divides.
    /// - `timesteps` `[B]`: on the scale 0..1000, may be fractional.
    /// - `prompt` `[B, L, caption_channels]`: states of the text encoder.
    /// - `mask` `[B, L]`: the prompt tokens that count; fewer rows are repeated over the batch;
    ///   all count without it.
    ///
    /// Returns `[B, C_out, T, H, W]` in f32: `eps`, then the variance interpolation.
    ///
    /// # Panics
    /// Where the patch does not divide the size (ask [`DenoiserConfig::grid`] first) or batch
    /// sizes differ.
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> Tensor<5> {
        let blocks = self.blocks.iter().map(Ok::<_, Infallible>);
        let Ok(prediction) = self.forward_over(blocks, latents, timesteps, prompt, mask, None);
        prediction
    }

    /// [`forward`](Self::forward) as a step of a sampling run: attentions may be taken from earlier
    /// steps, as `cache` is set to. With ranges of 1 the result is the same to the bit.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Tensor<5> {
        let blocks = self.blocks.iter().map(Ok::<_, Infallible>);
        let Ok(prediction) =
            self.forward_over(blocks, latents, timesteps, prompt, mask, Some(cache));
        prediction
    }

    /// The forward pass over `blocks`, wherever they come from: each is asked for when it is needed
    /// and let go when it is done.
    pub(crate) fn forward_over<B: Borrow<StDitBlock>, E>(
        &self,
        blocks: impl ExactSizeIterator<Item = Result<B, E>>,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        mut cache: Option<&mut AttentionCache>,
    ) -> Result<Tensor<5>, E> {
        let (mut x, c) = self.embed(latents, timesteps, prompt, mask);
        let flops = BlockFlops::new(&self.config, c.grid, c.prompted.prompt.dims()[1]);
        if let Some(cache) = &mut cache {
            cache.begin(timesteps, x.dims(), blocks.len(), flops);
        }
        for (index, block) in blocks.enumerate() {
            let mut attentions = match &mut cache {
                Some(cache) => BlockAttentions::cached(cache, index, flops),
                None => BlockAttentions::computed(),
            };
            x = c.apply(block?.borrow(), index, x, &mut attentions);
        }
        Ok(self.head(x, &c))
    }

    /// What enters the blocks: tokens `[B, T*S, C]`, and what steers every block. Arguments and
    /// panics as of [`forward`](Self::forward).
    ///
    /// The three parts of a forward pass are public so that training can run them apart and
    /// recompute a block's activations instead of keeping them.
    pub fn embed(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> (Tensor<3>, StDitConditioning) {
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
        let [space, time] = self.tables(grid, dtype, &device);
        let prompted = self.embed.condition(timesteps, prompt.cast(dtype), mask);

        // [B, T*S, C] -> [B, T, S, C] + [S, C] -> [B, T*S, C]
        let x = self.embed.x_embedder.forward(latents.cast(dtype));
        let x = x.reshape([batch, grid_t, places, hidden]) + space.unsqueeze::<4>();
        let x = x.reshape([batch, grid_t * places, hidden]);
        (x, StDitConditioning { prompted, grid, time })
    }

    /// Block `index` on tokens `[B, T*S, C]`.
    ///
    /// # Panics
    /// Where there is no such block.
    pub fn block(&self, index: usize, x: Tensor<3>, c: &StDitConditioning) -> Tensor<3> {
        c.apply(&self.blocks[index], index, x, &mut BlockAttentions::computed())
    }

    /// Tokens `[B, T*S, C]` to the prediction `[B, C_out, T, H, W]` in f32.
    pub fn head(&self, x: Tensor<3>, c: &StDitConditioning) -> Tensor<5> {
        let x = self.final_layer.forward(x, c.prompted.t.clone());
        unpatchify(x, c.grid, self.config.patch_size).cast(FloatDType::F32)
    }
}

/// What steers the blocks and the final layer of one forward pass.
#[derive(Debug, Clone)]
pub struct StDitConditioning {
    /// Timestep and prompt.
    pub prompted: Conditioning,
    /// Tokens along (t, h, w).
    pub grid: [usize; 3],
    /// Temporal positions, `[T, C]`.
    pub time: Tensor<2>,
}

impl StDitConditioning {
    /// Block `index` on tokens `[B, T*S, C]`.
    fn apply(
        &self,
        block: &StDitBlock,
        index: usize,
        x: Tensor<3>,
        attentions: &mut BlockAttentions<'_>,
    ) -> Tensor<3> {
        // The temporal table enters the first block only.
        let positions = (index == 0).then(|| self.time.clone());
        block.forward_with(x, &self.prompted, self.grid[0], positions, attentions)
    }
}

/// Why a denoiser could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] SizeError),
    /// The file cannot be read or does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
