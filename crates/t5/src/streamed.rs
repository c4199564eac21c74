//! The encoder block by block: each is read from the checkpoint, used and dropped.
//!
//! T5-XXL has 4.7 billion weights in 24 blocks. For one pass over all prompts every weight is
//! needed once, so nothing is gained by holding them together: a pass reads what loading would have
//! read, and memory holds one block. Numbers are those of [`T5Encoder`], to the bit.

use crate::{LoadError, T5Config, T5Encoder, encoder::Block};
use burn::{
    module::Param,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{Checkpoint, CheckpointError, ImportReport, StreamedImport};
use opensora_nn::{device::is_host, mask::TokenMask, norm::RmsNorm, read::wait};

/// Token ids to states, with one block in memory at a time.
#[derive(Debug)]
pub struct StreamedT5Encoder {
    source: StreamedImport,
    relative_attention_bias: Param<Tensor<2>>,
    final_layer_norm: RmsNorm,
    config: T5Config,
    device: Device,
}

impl StreamedT5Encoder {
    /// Checks that published weights fit, as [`T5Encoder::load`] does, and reads the two small
    /// tensors that stand outside the blocks.
    ///
    /// # Errors
    /// Where the configuration cannot be or the file does not fit it.
    pub fn open(
        config: &T5Config,
        checkpoint: Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        // Its parameters are described and never made.
        let (fresh, checkpoint, map) = T5Encoder::described(config, &checkpoint, device)?;
        let (source, report) = StreamedImport::new(&fresh, checkpoint, map, dtype)?;
        let T5Encoder { relative_attention_bias, final_layer_norm, .. } = fresh;
        let encoder = Self {
            relative_attention_bias: source
                .part("relative_attention_bias", relative_attention_bias)?,
            final_layer_norm: source.part("final_layer_norm.", final_layer_norm)?,
            source,
            config: config.clone(),
            device: device.clone(),
        };
        Ok((encoder, report))
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// States of all positions, also the padded ones: `ids` `[B, L]` to `[B, L, d_model]`. Reads
    /// all weights once, whatever the batch.
    ///
    /// # Errors
    /// Where a tensor cannot be read.
    ///
    /// # Panics
    /// As [`T5Encoder::forward`].
    pub fn forward(
        &self,
        ids: &[Vec<u32>],
        mask: Option<&TokenMask>,
    ) -> Result<Tensor<3>, CheckpointError> {
        let [batch, length] = self.config.check_ids(ids);
        let rows: Vec<usize> = ids.iter().flatten().map(|&id| id as usize).collect();
        let table = self.source.rows("shared.weight", &rows)?;
        let x = Tensor::<2>::from_data(table, (&self.device, self.source.dtype().into()));
        let mut x = x.reshape([batch, length, self.config.d_model]);

        let table = self.relative_attention_bias.val();
        let bias = self.config.attention_bias(table, [batch, length], mask);
        let paths = (0..self.config.num_layers).map(|index| format!("blocks.{index}.")).collect();
        let fresh = || Block::new(&self.config, &self.device);
        // Where the host computes, it has no time to read meanwhile.
        for block in self.source.parts(paths, fresh, !is_host(&self.device)) {
            x = block?.forward(x, &bias);
            // The device may run behind: weights of one block only are to be alive.
            wait(&self.device)?;
        }
        Ok(self.final_layer_norm.forward(x))
    }
}
