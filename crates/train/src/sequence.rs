//! A rank's share of the loss of samples whose frames are divided among ranks.

use burn::tensor::Tensor;
use opensora_parallel::{Group, tensor::all_reduce};
use opensora_stdit::FrameShards;

/// The frames of a rank that count in the loss of a clip, and their part of the clip.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Frames of this rank's latents that enter the loss.
    frames: usize,
    /// Part of the clip that they are; 0 for a rank that holds only padding.
    part: f32,
    ranks: usize,
}

impl Share {
    /// Returns the share of this rank of `group`; a token has `patch` frames.
    pub(crate) fn new(shards: &FrameShards, group: &Group, patch: usize) -> Self {
        let held = shards.held().len();
        // A rank without frames computes the loss of a frame of padding, so that its backward pass runs the same
        // collectives, and gives it no weight.
        let frames = held.max(1) * patch;
        let part = held as f64 / shards.frames() as f64;
        Self { frames, part: part as f32, ranks: group.size() }
    }

    /// Returns the frames that enter the loss: `[B, C, T/N, h, w] -> [B, C, frames, h, w]`.
    pub(crate) fn counted(&self, x: Tensor<5>) -> Tensor<5> {
        x.narrow(2, 0, self.frames)
    }

    /// Returns this rank's part of the mean loss `[1]` over the batch, of which `loss` is the mean over this rank's
    /// frames, times the number of ranks: gradients are averaged over ranks.
    pub(crate) fn of_mean(&self, loss: Tensor<1>) -> Tensor<1> {
        loss * (self.part * self.ranks as f32)
    }

    /// Returns the losses of whole samples, `[B]` each, from their means over the frames of each rank.
    pub(crate) fn sum(&self, losses: [Tensor<1>; 3], group: &Group) -> [Tensor<1>; 3] {
        let [batch] = losses[0].dims();
        let sums = all_reduce(Tensor::cat(losses.to_vec(), 0) * self.part, group); // [3 B]
        [0, 1, 2].map(|index| sums.clone().narrow(0, index * batch, batch))
    }
}
