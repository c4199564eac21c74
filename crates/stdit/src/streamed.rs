//! STDiT block by block: each is read from the checkpoint, used and dropped.
//!
//! STDiT-XL/2 has 750 million weights, 95 in 100 of them in its blocks: 3 GB in f32, of which one
//! block of 28 is in use at a time. Here memory holds that block only, and every evaluation reads
//! the file anew: a run of 100 steps reads it 100 times, from the system's cache where that has room
//! for it. Numbers are those of [`StDit`], to the bit.

use crate::{AttentionCache, DenoiserConfig, StDit, block::StDitBlock, keys, stdit::LoadError};
use burn::tensor::{Device, FloatDType, Tensor};
use opensora_checkpoint::{Checkpoint, CheckpointError, ImportReport, StreamedImport};
use opensora_nn::{device::is_host, mask::TokenMask, read::wait};

/// [`StDit`] with one block in memory at a time, on a device of its own with two.
#[derive(Debug)]
pub struct StreamedStDit {
    source: StreamedImport,
    /// The model without its blocks.
    ends: StDit,
    device: Device,
}

impl StreamedStDit {
    /// Checks that published weights fit, as [`StDit::load`] does, and reads what stands before and
    /// behind the blocks.
    ///
    /// The files stay open: what is put in their place later is not seen. One that is cut meanwhile
    /// is an error of the evaluation that misses its bytes.
    ///
    /// # Errors
    /// Where the configuration cannot be or the file does not fit it.
    pub fn open(
        config: &DenoiserConfig,
        checkpoint: Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        // The parameters of its blocks are described and never made.
        let (mut ends, checkpoint) = StDit::described(config, &checkpoint, device)?;
        let (source, report) = StreamedImport::new(&ends, checkpoint, keys::stdit(), dtype)?;
        ends.blocks.clear();
        let ends = source.part("", ends)?;
        Ok((Self { source, ends, device: device.clone() }, report))
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &DenoiserConfig {
        self.ends.config()
    }

    /// The learnt null prompt of guidance, `[L, caption_channels]`.
    pub fn null_prompt(&self) -> Tensor<2> {
        self.ends.null_prompt()
    }

    /// As [`StDit::forward`]; reads all blocks once, whatever the batch.
    ///
    /// # Errors
    /// Where a tensor cannot be read.
    ///
    /// # Panics
    /// As [`StDit::forward`].
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
    ) -> Result<Tensor<5>, CheckpointError> {
        self.ends.forward_over(self.blocks(), latents, timesteps, prompt, mask, None)
    }

    /// As [`StDit::forward_cached`]; reads all blocks once, whatever the batch.
    ///
    /// # Errors
    /// Where a tensor cannot be read.
    ///
    /// # Panics
    /// As [`StDit::forward`].
    pub fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError> {
        self.ends.forward_over(self.blocks(), latents, timesteps, prompt, mask, Some(cache))
    }

    /// The blocks, each read when it is asked for.
    fn blocks(&self) -> impl ExactSizeIterator<Item = Result<StDitBlock, CheckpointError>> {
        let config = self.config();
        let paths = (0..config.depth).map(|index| format!("blocks.{index}.")).collect();
        let fresh = move || StDitBlock::new(config, &self.device);
        // Where the host computes, it has no time to read meanwhile.
        self.source.parts(paths, fresh, !is_host(&self.device)).map(|block| {
            // The device may run behind: weights of this block and the one before only are to be alive.
            wait(&self.device)?;
            block
        })
    }
}
