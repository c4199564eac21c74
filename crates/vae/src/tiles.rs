//! The decoder's high-resolution levels in tiles, to save memory.
//!
//! An activation at full resolution is large (256 channels of 512x512 are 268 MB in f32), and a residual block
//! holds three: the input for the shortcut, the output of the norm and the output of the convolution. Here an
//! activation is a column of tiles of the image's full width. Norms and convolutions process one tile at a time,
//! so that memory holds two activations and the workspace of one tile.
//!
//! The result equals that of the whole image: norms take their statistics over all tiles, and a convolution gets
//! the neighbouring rows that it needs. So there are no seams and nothing is blended. The cost is the work on the
//! neighbouring rows, which are computed twice. The middle level is not tiled, since its attention covers all
//! pixels; it has a 64th of the frame's pixels.
//!
//! diffusers (`AutoencoderKL.tiled_decode`) decodes tiles independently, including norms and attention, and
//! blends their overlaps.

use crate::blocks::ResnetBlock;
use burn::{
    nn::{GroupNorm, conv::Conv2d},
    tensor::Tensor,
};
use opensora_nn::{
    conv::{conv2d, upsample_nearest},
    norm::GroupMoments,
};
use std::collections::VecDeque;

/// Rows of each neighbour that are processed with a tile. A 3x3 convolution needs one row; two keep the number
/// of rows even, which its fast path needs.
const HALO: usize = 2;

/// The smallest height of a tile. In smaller tiles, most of the work would be on rows of neighbours.
const MIN_ROWS: usize = 8;

/// An activation `[N, C, H, W]` as tiles `[N, C, rows, W]` from top to bottom; the last can have fewer rows.
pub(crate) struct Tiles {
    rows: usize,
    height: usize,
    tiles: VecDeque<Tensor<4>>,
    /// Number of tiles that were dropped from the front.
    dropped: usize,
}

impl Tiles {
    /// Splits `x` into tiles of about `rows` rows.
    pub(crate) fn new(x: Tensor<4>, rows: usize) -> Self {
        let rows = rows.max(MIN_ROWS).next_multiple_of(2);
        let height = x.dims()[2];
        Self { rows, height, tiles: x.split(rows, 2).into(), dropped: 0 }
    }

    /// Returns the whole activation.
    pub(crate) fn join(self) -> Tensor<4> {
        Tensor::cat(self.tiles.into(), 2)
    }

    /// Applies a residual block, as [`ResnetBlock::forward`] does.
    pub(crate) fn resnet(self, block: &ResnetBlock) -> Self {
        // The shortcut needs the input until the end.
        let input = self.tiles.clone();
        let y = self.norm_silu_conv(&block.norm1, &block.conv1);
        let mut y = y.norm_silu_conv(&block.norm2, &block.conv2);
        y.tiles = input.into_iter().zip(y.tiles).map(|(x, y)| block.shortcut(x) + y).collect();
        y
    }

    /// Applies `norm`, SiLU and `conv`, the order of every convolution except that of upsampling.
    pub(crate) fn norm_silu_conv(self, norm: &GroupNorm, conv: &Conv2d) -> Self {
        let (tiles, moments) = self.moments(norm);
        let Some(moments) = moments else { return tiles };
        tiles.map(1, |x| conv2d(conv, moments.normalize_silu(norm, x)))
    }

    /// Doubles height and width, then applies `conv`.
    pub(crate) fn upsample(self, conv: &Conv2d) -> Self {
        self.map(2, |x| conv2d(conv, upsample_nearest(x)))
    }

    /// Returns the statistics of `norm`'s groups over all tiles; `None` if there are no tiles.
    fn moments(mut self, norm: &GroupNorm) -> (Self, Option<GroupMoments>) {
        let mut moments: Option<GroupMoments> = None;
        for _ in 0..self.tiles.len() {
            // Removed and appended again, since a tensor with two owners is copied when it is read.
            let Some(tile) = self.tiles.pop_front() else { break };
            let (of_tile, tile) = GroupMoments::of(norm, tile);
            self.tiles.push_back(tile);
            moments = Some(match moments {
                Some(of_others) => of_others.merge(of_tile),
                None => of_tile,
            });
        }
        (self, moments)
    }

    /// Applies `f` tile by tile. `f` returns `scale` rows for each row, which depend on at most [`HALO`]
    /// neighbouring rows. Rows that later tiles do not need are dropped.
    fn map(mut self, scale: usize, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        let step = self.rows / scale;
        let mut made = VecDeque::with_capacity(self.height.div_ceil(step));
        for first in (0..self.height).step_by(step) {
            let end = (first + step).min(self.height);
            let (from, to) = (first.saturating_sub(HALO), (end + HALO).min(self.height));
            let y = f(self.take_rows(from, to));
            made.push_back(y.narrow(2, (first - from) * scale, (end - first) * scale));
        }
        Self { rows: self.rows, height: self.height * scale, tiles: made, dropped: 0 }
    }

    /// Returns rows `from..to` and drops the tiles above.
    fn take_rows(&mut self, from: usize, to: usize) -> Tensor<4> {
        for _ in self.dropped..from / self.rows {
            self.tiles.pop_front();
            self.dropped += 1;
        }
        let parts = (from / self.rows..to.div_ceil(self.rows)).map(|index| {
            let [start, end] =
                [from, to].map(|row| row.saturating_sub(index * self.rows).min(self.rows));
            self.tiles[index - self.dropped].clone().narrow(2, start, end - start)
        });
        Tensor::cat(parts.collect(), 2)
    }
}
