//! STDiT with its blocks streamed from the checkpoint: each block is read, applied and dropped.
//!
//! STDiT-XL/2 has 760 million weights, 98 % of them in its blocks: 3 GB in f32, of which one block of 28 is
//! in use at a time. Memory then holds that block only, and every forward pass reads the file again: a run
//! of 100 steps reads it 100 times, from the system's page cache if it fits there. Results are bitwise
//! identical to those of [`StDit`].

use crate::{
    DenoiserConfig, LoadError, StDit, block::StDitBlock, hooks::PassHooks, layout::TokenLayout,
    sharded::InLayout,
};
use burn::tensor::{Device, FloatDType, Tensor};
use opensora_checkpoint::{
    Checkpoint, CheckpointError, Described, ImportReport, PublishedModel, StreamedBlocks,
    StreamedImport,
};
use opensora_nn::mask::TokenMask;

/// [`StDit`] with one block in memory at a time, or two on a device that is not the host's processor.
#[derive(Debug)]
pub struct StreamedStDit {
    source: StreamedImport,
    /// The model without its blocks.
    ends: StDit,
    device: Device,
}

impl StreamedStDit {
    /// Checks that published weights fit, as [`StDit::load`](PublishedModel::load) does, and reads the
    /// layers before and after the blocks.
    ///
    /// The files stay open, so replacing them has no effect. If a file is truncated, the forward pass that
    /// misses its bytes fails.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range or the file does not fit it.
    pub fn open(
        config: &DenoiserConfig,
        checkpoint: Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let Described { model: mut ends, checkpoint, map } =
            StDit::describe(config, &checkpoint, device)?;
        let (source, report) = StreamedImport::new(&ends, checkpoint, map, dtype)?;
        ends.blocks.clear();
        let ends = source.part("", ends)?;
        Ok((Self { source, ends, device: device.clone() }, report))
    }

    /// Returns the configuration that the model was made with.
    pub fn config(&self) -> &DenoiserConfig {
        self.ends.config()
    }

    /// Returns the learnt null prompt of guidance, `[L, caption_channels]`.
    pub fn null_prompt(&self) -> Tensor<2> {
        self.ends.null_prompt()
    }

    /// Predicts noise and variance as [`StDit::forward`] does. Reads each block once, for the whole batch.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be read.
    ///
    /// # Panics
    /// Panics as [`StDit::forward`] does.
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> Result<Tensor<5>, CheckpointError> {
        self.forward_in((), latents, timesteps, prompt, mask, &mut ())
    }
}

impl InLayout for StreamedStDit {
    fn config(&self) -> &DenoiserConfig {
        self.config()
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
        let Self { source, ends, device } = self;
        let config = ends.config();
        let fresh = || StDitBlock::new(config, device);
        let blocks = StreamedBlocks { source, count: config.depth, fresh, device, overlap: true };
        let embedded = ends.embed_in(layout, latents, timesteps, prompt, mask);
        ends.forward_over(&blocks, embedded, timesteps, hooks)
    }
}
