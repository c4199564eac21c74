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
