//! STDiT, the video denoiser of Open-Sora 1.0.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/stdit/stdit.py`, class `STDiT`.

use crate::{
    DenoiserConfig, LoadError, PositionScales, SizeError,
    attention::TokenGrid,
    block::StDitBlock,
    embed::{Conditioning, Embeddings, add_space, latent_grid},
    final_layer::{FinalLayer, unpatchify},
    hooks::{BlockHooks, Pass, PassHooks},
    keys,
    layout::TokenLayout,
    sharded::InLayout,
};
use burn::{
    module::Module,
    tensor::{DType, Device, FloatDType, Tensor},
};
use opensora_checkpoint::{
    BlockSource, Checkpoint, CheckpointError, Described, ImportReport, KeyMap, PublishedModel,
    import,
};
use opensora_nn::{mask::TokenMask, sincos};

/// Predicts the noise in a latent clip, given a timestep and a prompt.
///
/// [`load`](PublishedModel::load) reads OpenSora-v1 `.pth` files, training folders and safetensors.
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

impl PublishedModel for StDit {
    type Config = DenoiserConfig;
    type ConfigError = SizeError;
    type LoadError = LoadError;

    fn validate(config: &DenoiserConfig) -> Result<(), SizeError> {
        config.validate()
    }

    fn build(config: &DenoiserConfig, device: &Device) -> Self {
        Self {
            embed: Embeddings::new(config, device),
            blocks: (0..config.depth).map(|_| StDitBlock::new(config, device)).collect(),
            final_layer: FinalLayer::new(config, device),
            config: config.clone(),
        }
    }

    fn block_count(config: &DenoiserConfig) -> (&'static str, usize) {
        ("depth", config.depth)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        keys::unwrapped(checkpoint)
    }

    fn key_map(_: &DenoiserConfig, _: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        Ok(keys::stdit())
    }
}

impl StDit {
    /// Loads the weights of a published PixArt-alpha to start from. The output projections of the temporal
    /// attentions are zero, so that a clip of `T` frames is treated as `T` independent images.
    ///
    /// # Errors
    /// Returns the errors of [`load`](PublishedModel::load).
    pub fn from_pixart(
        config: &DenoiserConfig,
        checkpoint: &Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let Described { model, checkpoint, .. } = Self::describe(config, checkpoint, device)?;
        Ok(import(model, &checkpoint, &keys::stdit_from_pixart(), dtype)?)
    }

    /// Returns the configuration that the model was made with.
    pub fn config(&self) -> &DenoiserConfig {
        &self.config
    }

    /// Returns the position tables for latents of `size` `[T, h, w]` under their published keys: spatial
    /// `[1, S, C]` and temporal `[1, T, C]`.
    ///
    /// They are computed in every forward pass here. The reference's module has them as buffers, so
    /// that `load_state_dict` with `strict=True` expects them in a file.
    ///
    /// # Errors
    /// Returns an error if the patch does not divide the size.
    pub fn position_tables(&self, size: [usize; 3]) -> Result<Vec<(String, Tensor<3>)>, SizeError> {
        let grid = self.config.grid(size)?;
        let device = &self.null_prompt().device();
        let space = self.space_table(grid, DType::F32, device);
        let tables = [space, self.time_table(grid[0], DType::F32, device)]
            .map(|table| table.unsqueeze::<3>());
        Ok(keys::POSITION_TABLES.map(str::to_string).into_iter().zip(tables).collect())
    }

    /// Returns the spatial position table `[S, C]` of a grid of tokens.
    fn space_table(&self, [_, h, w]: [usize; 3], dtype: DType, device: &Device) -> Tensor<2> {
        let DenoiserConfig { hidden_size, scales, .. } = self.config;
        sincos::spatial([h, w], hidden_size, scales.space_scale, None, dtype, device)
    }

    /// Returns the temporal position table of the first `frames` frames, `[T, C]`.
    fn time_table(&self, frames: usize, dtype: DType, device: &Device) -> Tensor<2> {
        let DenoiserConfig { hidden_size, scales, .. } = self.config;
        sincos::temporal(frames, hidden_size, scales.time_scale, dtype, device)
    }

    /// Returns the model with the blocks that `change` makes of its blocks.
    pub(crate) fn with_blocks(
        mut self,
        change: impl FnOnce(Vec<StDitBlock>) -> Vec<StDitBlock>,
    ) -> Self {
        self.blocks = change(self.blocks);
        self.config.depth = self.blocks.len();
        self
    }

    /// Returns the same weights at other position scales.
    pub fn with_scales(mut self, scales: PositionScales) -> Self {
        self.config.scales = scales;
        self
    }

    /// Returns the learnt null prompt of guidance, `[L, caption_channels]`.
    pub fn null_prompt(&self) -> Tensor<2> {
        self.embed.y_embedder.y_embedding.val()
    }

    /// Predicts noise and variance.
    ///
    /// - `latents` `[B, C, T, H, W]`: noisy clips; any T, H, W that the patch divides.
    /// - `timesteps` `[B]`: on the scale 0..1000, may be fractional.
    /// - `prompt` `[B, L, caption_channels]`: states of the text encoder.
    /// - `mask` `[B, L]`: the prompt tokens to attend to. Fewer rows are repeated over the batch. `None`:
    ///   all tokens.
    ///
    /// Returns `[B, C_out, T, H, W]` in f32: `eps`, then the variance interpolation.
    ///
    /// # Panics
    /// Panics if the patch does not divide the size (ask [`DenoiserConfig::grid`] first) or batch sizes
    /// differ.
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> Tensor<5> {
        let embedded = self.embed(latents, timesteps, prompt, mask);
        let Ok(prediction) = self.forward_over(&self.blocks, embedded, timesteps, &mut ());
        prediction
    }

    /// Runs the forward pass over `blocks` and the final layer on embedded tokens.
    pub(crate) fn forward_over<S: BlockSource<StDitBlock>>(
        &self,
        blocks: &S,
        (x, c): (Tensor<3>, StDitConditioning<impl TokenLayout>),
        timesteps: &[f32],
        hooks: &mut impl PassHooks,
    ) -> Result<Tensor<5>, S::Error> {
        let [_, prompt_tokens, _] = c.prompted.prompt.dims();
        let [held, height, width] = c.grid;
        let grid = [c.layout.whole_frames(held), height, width];
        hooks.begin(&Pass { config: &self.config, timesteps, grid, prompt_tokens });
        let x = blocks.fold(x, |index, block, x| c.apply(block, index, x, hooks))?;
        Ok(self.head(x, &c))
    }

    /// Returns the tokens `[B, T*S, C]` that enter the blocks, and the conditioning of all blocks.
    /// Arguments and panics as in [`forward`](Self::forward).
    ///
    /// The three parts of a forward pass ([`embed`](Self::embed), [`block`](Self::block),
    /// [`head`](Self::head)) are public so that training can recompute the activations of a block instead
    /// of storing them.
    pub fn embed(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> (Tensor<3>, StDitConditioning) {
        self.embed_in((), latents, timesteps, prompt, mask)
    }

    /// [`embed`](Self::embed) for the frames that this process holds in `layout`: `latents` `[B, C, T, H, W]` are
    /// those frames, and so are the tokens and the prediction of all later parts.
    pub fn embed_in<L: TokenLayout>(
        &self,
        layout: L,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> (Tensor<3>, StDitConditioning<L>) {
        let dtype = self.null_prompt().dtype();
        let grid = latent_grid(&latents, timesteps, |size| self.config.grid(size));
        let device = &latents.device();
        let space = self.space_table(grid, dtype, device);
        let time = layout.rows_of_frames(grid[0], |frames| self.time_table(frames, dtype, device));
        let prompted = self.embed.condition(timesteps, prompt.cast(dtype), mask, None);

        let x = self.embed.x_embedder.forward(latents.cast(dtype)); // [B, T*S, C]
        (add_space(x, space), StDitConditioning { prompted, grid, time, layout })
    }

    /// Applies block `index` to tokens `[B, T*S, C]`.
    ///
    /// # Panics
    /// Panics if the model has no such block.
    pub fn block(
        &self,
        index: usize,
        x: Tensor<3>,
        c: &StDitConditioning<impl TokenLayout>,
    ) -> Tensor<3> {
        c.apply(&self.blocks[index], index, x, &mut ())
    }

    /// Returns the prediction `[B, C_out, T, H, W]` in f32 of tokens `[B, T*S, C]`.
    pub fn head(&self, x: Tensor<3>, c: &StDitConditioning<impl TokenLayout>) -> Tensor<5> {
        let x = self.final_layer.forward(x, c.prompted.t.clone());
        unpatchify(x, c.grid, self.config.patch_size).cast(FloatDType::F32)
    }
}

impl InLayout for StDit {
    fn config(&self) -> &DenoiserConfig {
        &self.config
    }

    fn null(&self) -> Tensor<2> {
        self.null_prompt()
    }

    fn forward_in(
        &self,
        layout: impl TokenLayout,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        hooks: &mut impl PassHooks,
    ) -> Result<Tensor<5>, CheckpointError> {
        let embedded = self.embed_in(layout, latents, timesteps, prompt, mask);
        let Ok(prediction) = self.forward_over(&self.blocks, embedded, timesteps, hooks);
        Ok(prediction)
    }
}

/// The inputs that all blocks and the final layer of one forward pass share.
#[derive(Debug, Clone)]
pub struct StDitConditioning<L = ()> {
    /// Timestep and prompt.
    pub prompted: Conditioning,
    /// Tokens along (t, h, w) that this process holds.
    pub grid: [usize; 3],
    /// Temporal positions of these tokens, `[T, C]`.
    pub time: Tensor<2>,
    /// Where the other tokens are.
    pub layout: L,
}

impl<L: TokenLayout> StDitConditioning<L> {
    /// Applies block `index` to tokens `[B, T*S, C]`.
    fn apply(
        &self,
        block: &StDitBlock,
        index: usize,
        x: Tensor<3>,
        hooks: &mut impl PassHooks,
    ) -> Tensor<3> {
        // The temporal table enters the first block only.
        let time = (index == 0).then(|| self.time.clone());
        let grid = TokenGrid::new(self.grid);
        block.forward(
            x,
            &self.prompted,
            grid,
            time,
            &self.layout,
            &mut BlockHooks::new(hooks, index),
        )
    }
}
