//! Where the tokens of a clip are: all in this process, or divided by frames among ranks.
//!
//! All layers of a block but one mix tokens within a frame or not at all, so ranks that hold different frames need
//! not communicate. Attention over time needs all frames of a position: the ranks exchange tokens before it, so that
//! each holds all frames of some positions, and after it. [`FrameShards`] does that with two all-to-alls a block; `()`
//! is the layout of one process and costs nothing.
//!
//! | tensor | `()` | [`FrameShards`] over N ranks |
//! |---|---|---|
//! | tokens in and out of every layer | `[B, T*S, C]` | `[B, (T/N)*S, C]` |
//! | tokens in attention over time | `[B, T*S, C]` | `[B, T*(S/N), C]` |
//!
//! If N does not divide T, the last ranks hold frames of zeros after the clip's own. Such frames only meet themselves
//! in the layers within a frame; they are removed before attention over time and before the loss or the sampler sees
//! them. If N does not divide S, positions of zeros follow the last one during the exchange; attention over time
//! treats every position separately, and they are dropped after it.
//!
//! Source: Zhao et al. 2024, "DSP: Dynamic Sequence Parallelism for Multi-Dimensional Transformers" (arXiv
//! 2403.10266), and hpcaitech/Open-Sora v1.0.0, `opensora/models/stdit/stdit.py` and `layers/blocks.py` with
//! `enable_sequence_parallelism`. Deviation: the reference divides the sequence of all tokens, exchanges heads in both
//! attentions, and needs a sequence that the ranks divide.

use crate::attention::TokenGrid;
use burn::tensor::Tensor;
use opensora_parallel::{
    Group,
    tensor::{all_gather, all_to_all},
};
use std::{fmt::Debug, ops::Range};

/// The part of a clip's tokens that this process holds between layers.
pub trait TokenLayout: Clone + Debug {
    /// Returns the number of frames of the whole clip, of which this process holds `held`.
    fn whole_frames(&self, held: usize) -> usize;

    /// Returns the rows `[held, C]` of the frames that this process holds; `table` returns those of the first frames of
    /// the clip, `[frames, C]`, whose number is its argument.
    fn rows_of_frames(&self, held: usize, table: impl FnOnce(usize) -> Tensor<2>) -> Tensor<2>;

    /// Applies `attend` to tokens with all frames of their positions. `grid` is the grid of the tokens `x`
    /// `[B, frames*positions, C]` that this process holds; returns the attended tokens in the same layout. `attend` gets
    /// the exchanged grid and tokens.
    fn over_time(
        &self,
        grid: TokenGrid,
        x: Tensor<3>,
        attend: impl FnOnce(TokenGrid, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3>;
}

/// All tokens are in this process.
impl TokenLayout for () {
    fn whole_frames(&self, held: usize) -> usize {
        held
    }

    fn rows_of_frames(&self, held: usize, table: impl FnOnce(usize) -> Tensor<2>) -> Tensor<2> {
        table(held)
    }

    fn over_time(
        &self,
        grid: TokenGrid,
        x: Tensor<3>,
        attend: impl FnOnce(TokenGrid, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        attend(grid, x)
    }
}

/// The frames of a clip, divided among the ranks of a group: `ceil(T / N)` frames a rank, in the order of ranks.
#[derive(Debug, Clone)]
pub struct FrameShards {
    group: Group,
    /// Frames of the clip in tokens, T.
    frames: usize,
}

impl FrameShards {
    /// Divides a clip of `frames` frames, counted in tokens, among the ranks of `group`.
    ///
    /// # Panics
    /// Panics if there are no frames.
    pub fn new(group: Group, frames: usize) -> Self {
        assert!(frames > 0, "a clip without frames");
        Self { group, frames }
    }

    /// Returns the number of frames of the clip, counted in tokens.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Returns the number of frames that every rank holds, frames of padding included.
    pub fn per_rank(&self) -> usize {
        self.frames.div_ceil(self.group.size())
    }

    /// Returns the frames of the clip that this rank holds; empty if there are fewer shards than ranks.
    pub fn held(&self) -> Range<usize> {
        let first = self.group.rank() * self.per_rank();
        first.min(self.frames)..(first + self.per_rank()).min(self.frames)
    }

    /// Returns this rank's part of latents `[B, C, T', h, w]` of the whole clip, `[B, C, T'/N, h, w]`, with zeros for
    /// frames of padding. T' is a multiple of the frames in tokens.
    pub fn shard(&self, latents: Tensor<5>) -> Tensor<5> {
        let [batch, channels, frames, height, width] = latents.dims();
        let (patch, held) = (frames / self.frames, self.held());
        let shape = [batch, channels, self.per_rank() * patch, height, width];
        let shard = Tensor::zeros(shape, (&latents.device(), latents.dtype()));
        if held.is_empty() {
            return shard;
        }
        // A copy, since a view would keep the whole clip in memory.
        let part = latents.narrow(2, held.start * patch, held.len() * patch);
        shard.slice_assign([0..batch, 0..channels, 0..part.dims()[2], 0..height, 0..width], part)
    }

    /// Returns the latents `[B, C, T', h, w]` of the whole clip, of which every rank has `[B, C, T'/N, h, w]` as
    /// [`shard`](Self::shard) divides them.
    pub fn gather(&self, latents: Tensor<5>) -> Tensor<5> {
        let patch = latents.dims()[2] / self.per_rank();
        all_gather(latents, 2, &self.group).narrow(2, 0, self.frames * patch)
    }
}

impl TokenLayout for FrameShards {
    fn whole_frames(&self, held: usize) -> usize {
        debug_assert_eq!(held, self.per_rank(), "a shard of another clip");
        self.frames
    }

    fn rows_of_frames(&self, held: usize, table: impl FnOnce(usize) -> Tensor<2>) -> Tensor<2> {
        let first = self.group.rank() * held;
        // Frames of padding have positions after the clip's.
        table(first + held).narrow(0, first, held)
    }

    fn over_time(
        &self,
        grid: TokenGrid,
        x: Tensor<3>,
        attend: impl FnOnce(TokenGrid, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let ([batch, _, channels], ranks) = (x.dims(), self.group.size());
        let TokenGrid { frames: held, positions } = grid;
        let exchanged = TokenGrid { frames: self.frames, positions: positions.div_ceil(ranks) };

        // [B, (T/N)*S, C] -> [B, T/N, S, C] -> [B, T, S/N, C] -> [B, T*(S/N), C]
        let x = x.reshape([batch, held, positions, channels]);
        let x = padded(x, 2, ranks * exchanged.positions);
        let x = all_to_all(x, 2, 1, &self.group).narrow(1, 0, self.frames);
        let x = x.reshape([batch, exchanged.frames * exchanged.positions, channels]);

        let y = attend(exchanged, x);

        // [B, T*(S/N), C] -> [B, T, S/N, C] -> [B, T/N, S, C] -> [B, (T/N)*S, C]
        let y = y.reshape([batch, exchanged.frames, exchanged.positions, channels]);
        let y = all_to_all(padded(y, 1, ranks * held), 1, 2, &self.group).narrow(2, 0, positions);
        y.reshape([batch, held * positions, channels])
    }
}

/// Appends zeros along `axis` until `x` has the length `length`.
fn padded<const D: usize>(x: Tensor<D>, axis: usize, length: usize) -> Tensor<D> {
    let mut shape = x.dims();
    let missing = length - shape[axis];
    if missing == 0 {
        return x;
    }
    shape[axis] = missing;
    let zeros = Tensor::zeros(shape, (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], axis)
}
