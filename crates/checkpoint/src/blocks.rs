//! The blocks of a model, either in memory or read from the file one at a time.

use crate::{CheckpointError, StreamedImport};
use burn::{module::Module, tensor::Device};
use opensora_nn::{device::is_host, read::wait};
use std::convert::Infallible;

/// The blocks of a model, in the order in which a forward pass applies them.
///
/// A forward pass that is generic over this trait runs unchanged on blocks that are resident in memory
/// (`Vec<B>`) and on blocks that are streamed from their file ([`StreamedBlocks`]).
pub trait BlockSource<B> {
    /// Error for a block that cannot be read; [`Infallible`] for blocks in memory.
    type Error;

    /// Applies `apply(index, block, x)` to each block in order, where `x` is the result for the block
    /// before. Returns the last result.
    ///
    /// # Errors
    /// Returns an error if a block cannot be read.
    fn fold<X>(&self, x: X, apply: impl FnMut(usize, &B, X) -> X) -> Result<X, Self::Error>;
}

impl<B> BlockSource<B> for Vec<B> {
    type Error = Infallible;

    fn fold<X>(&self, x: X, mut apply: impl FnMut(usize, &B, X) -> X) -> Result<X, Infallible> {
        Ok(self.iter().enumerate().fold(x, |x, (index, block)| apply(index, block, x)))
    }
}

/// Blocks that are read from a checkpoint when they are applied and dropped afterwards.
///
/// On devices other than the host's processor, a thread reads the bytes of the next block meanwhile.
#[derive(Debug)]
pub struct StreamedBlocks<'a, F> {
    /// The checkpoint. Block `i` is at the path `blocks.i.`.
    pub source: &'a StreamedImport,
    /// Number of blocks.
    pub count: usize,
    /// Returns a block with fresh weights.
    pub fresh: F,
    /// Device of the blocks.
    pub device: &'a Device,
    /// If true, a block is copied to the device while the device computes the previous block: the device
    /// holds the weights of two blocks. If false, it holds the weights of one.
    pub overlap: bool,
}

impl<B: Module, F: Fn() -> B> BlockSource<B> for StreamedBlocks<'_, F> {
    type Error = CheckpointError;

    fn fold<X>(
        &self,
        mut x: X,
        mut apply: impl FnMut(usize, &B, X) -> X,
    ) -> Result<X, CheckpointError> {
        let paths = (0..self.count).map(|index| format!("blocks.{index}.")).collect();
        // The host's processor cannot read ahead while it computes.
        let ahead = !is_host(self.device);
        for (index, block) in self.source.parts(paths, &self.fresh, ahead).enumerate() {
            let block = block?;
            // Without the wait, a device that runs behind the host would hold many blocks.
            if self.overlap {
                wait(self.device)?;
                x = apply(index, &block, x);
            } else {
                x = apply(index, &block, x);
                drop(block);
                wait(self.device)?;
            }
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Checkpoint, KeyMap,
        source::{Contents, TensorEntry},
    };
    use burn::{
        nn::{Linear, LinearConfig},
        tensor::{DType, FloatDType},
    };
    use std::{path::Path, sync::Arc};

    #[derive(Module, Debug)]
    struct Model {
        blocks: Vec<Linear>,
    }

    fn block() -> Linear {
        LinearConfig::new(1, 1).with_bias(false).init(&Device::flex())
    }

    /// Returns indices and weights of the blocks in the order in which they are applied.
    fn applied<S: BlockSource<Linear>>(blocks: &S) -> Result<Vec<(usize, f32)>, S::Error> {
        blocks.fold(Vec::new(), |index, block, mut all| {
            all.push((index, block.weight.to_data().iter::<f32>().sum()));
            all
        })
    }

    #[test]
    fn streamed_blocks_are_applied_in_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path: Arc<Path> = file.path().into();
        let tensors = (0..3).map(|index| {
            let read = move || Ok((10.0 + index as f32).to_ne_bytes().to_vec());
            let contents = Contents::Readable { dtype: DType::F32, read: Arc::new(read) };
            let entry = TensorEntry { file: path.clone(), shape: vec![1, 1], contents };
            (format!("blocks.{index}.weight"), entry)
        });
        let checkpoint = Checkpoint::of_tensors(tensors.collect());
        let model = Model { blocks: vec![block(), block(), block()] };
        let map = KeyMap::new("blocks");
        let import = StreamedImport::new(&model, checkpoint, map, FloatDType::F32);
        let (source, _) = import.unwrap();
        let device = &Device::flex();
        for overlap in [false, true] {
            let blocks =
                StreamedBlocks { source: &source, count: 3, fresh: block, device, overlap };
            assert_eq!(applied(&blocks).unwrap(), [(0, 10.0), (1, 11.0), (2, 12.0)]);
        }
        let parts = source.parts(["blocks.2.", "blocks.0."].map(String::from).into(), block, false);
        let resident: Vec<Linear> = parts.map(Result::unwrap).collect();
        assert_eq!(applied(&resident), Ok(vec![(0, 12.0), (1, 10.0)]));
    }
}
