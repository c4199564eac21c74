//! The encoder with its blocks streamed from the checkpoint: each block is read, applied and dropped.
//!
//! T5-XXL has 4.8 billion weights, 4.6 billion of them in 24 blocks. A pass over all prompts needs every weight once, so keeping
//! them in memory saves no time: a pass reads as many bytes as loading, and memory holds one block.
//! Results are bitwise identical to those of [`T5Encoder`].

use crate::{LoadError, T5Config, T5Encoder, T5Model, encoder::Block};
use burn::{
    module::Param,
    tensor::{Device, FloatDType, Tensor},
};
use opensora_checkpoint::{
    BlockSource, Checkpoint, CheckpointError, Described, ImportReport, PublishedModel,
    StreamedBlocks, StreamedImport,
};
use opensora_nn::{mask::TokenMask, norm::RmsNorm};

/// [`T5Encoder`] with one block in memory at a time.
#[derive(Debug)]
pub struct StreamedT5Encoder {
    source: StreamedImport,
    relative_attention_bias: Param<Tensor<2>>,
    final_layer_norm: RmsNorm,
    config: T5Config,
    device: Device,
}

impl StreamedT5Encoder {
    /// Checks that published weights fit, as [`T5Encoder::load`](PublishedModel::load) does, and reads the
    /// two small tensors outside the blocks.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range or the file does not fit it.
    pub fn open(
        config: &T5Config,
        checkpoint: Checkpoint,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let Described { model, checkpoint, map } =
            T5Encoder::describe(config, &checkpoint, device)?;
        let (source, report) = StreamedImport::new(&model, checkpoint, map, dtype)?;
        let T5Encoder { relative_attention_bias, final_layer_norm, .. } = model;
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
}

impl T5Model for StreamedT5Encoder {
    fn config(&self) -> &T5Config {
        &self.config
    }

    /// Encodes token ids as [`T5Encoder::forward`] does. Reads all weights once, whatever the batch
    /// size.
    fn encode_ids(
        &self,
        ids: &[Vec<u32>],
        mask: Option<&TokenMask>,
    ) -> Result<Tensor<3>, CheckpointError> {
        let Self { source, config, device, .. } = self;
        let size @ [batch, length] = config.check_ids(ids);
        let rows: Vec<usize> = ids.iter().flatten().map(|&id| id as usize).collect();
        let table = source.rows("shared.weight", &rows)?;
        let x = Tensor::<2>::from_data(table, (device, source.dtype().into()));
        let x = x.reshape([batch, length, config.d_model]);

        let bias = config.attention_bias(self.relative_attention_bias.val(), size, mask);
        let fresh = || Block::new(config, device);
        let count = config.num_layers;
        let blocks = StreamedBlocks { source, count, fresh, device, overlap: false };
        let x = blocks.fold(x, |_, block, x| block.forward(x, &bias))?;
        Ok(self.final_layer_norm.forward(x))
    }
}
