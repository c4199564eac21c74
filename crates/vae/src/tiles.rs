//! The decoder's wide levels tile by tile.
//!
//! An activation at full resolution is large (256 channels of 512x512 are 268 MB in f32), and a
//! residual block holds three of them: what the shortcut needs, what the norm made and what the
//! convolution makes. Here an activation is a column of tiles of the picture's full width; norms and
//! convolutions work on one tile at a time, so that two activations and a tile's scratch are held.
//!
//! The result is that of the whole picture and no approximation: norms take their statistics over
//! all tiles, and a convolution sees the rows of the neighbours that it reaches. So there are no
//! seams, and nothing is blended. The price is the work on those rows, which are computed twice.
//! The middle level stays whole, as its attention sees all pixels; it has a 64th of the frame's.
//!
//! diffusers (`AutoencoderKL.tiled_decode`) decodes tiles on their own, norms and attention included,
//! and blends what differs between them.

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

/// Rows of the neighbours that come along with a tile. A convolution of 3x3 reaches one row
/// further; two keep the number even, which its fast form wants.
const HALO: usize = 2;

/// The least height of a tile: with less, most of the work would be on rows of neighbours.
const MIN_ROWS: usize = 8;

/// An activation `[N, C, H, W]` as tiles `[N, C, rows, W]` from top to bottom; the last may be lower.
pub(crate) struct Tiles {
    rows: usize,
    height: usize,
    tiles: VecDeque<Tensor<4>>,
    /// Tiles above the first, which nobody needs any more.
    gone: usize,
}

impl Tiles {
    /// `x` in tiles of about `rows` rows.
    pub(crate) fn new(x: Tensor<4>, rows: usize) -> Self {
        let rows = rows.max(MIN_ROWS).next_multiple_of(2);
        let height = x.dims()[2];
        Self { rows, height, tiles: x.split(rows, 2).into(), gone: 0 }
    }

    /// The whole.
    pub(crate) fn join(self) -> Tensor<4> {
        Tensor::cat(self.tiles.into(), 2)
    }

    /// [`ResnetBlock::forward`].
    pub(crate) fn resnet(self, block: &ResnetBlock) -> Self {
        // The shortcut needs what comes in until the end.
        let entering = self.tiles.clone();
        let y = self.norm_silu_conv(&block.norm1, &block.conv1);
        let mut y = y.norm_silu_conv(&block.norm2, &block.conv2);
        y.tiles = entering.into_iter().zip(y.tiles).map(|(x, y)| block.shortcut(x) + y).collect();
        y
    }

    /// `conv` of the SiLU of `norm`, the two that stand before every convolution but the upsampling.
    pub(crate) fn norm_silu_conv(self, norm: &GroupNorm, conv: &Conv2d) -> Self {
        let (tiles, moments) = self.moments(norm);
        let Some(moments) = moments else { return tiles };
        tiles.map(1, |x| conv2d(conv, moments.normalize_silu(norm, x)))
    }

    /// Twice the height and width, then `conv`.
    pub(crate) fn upsample(self, conv: &Conv2d) -> Self {
        self.map(2, |x| conv2d(conv, upsample_nearest(x)))
    }

    /// Statistics of `norm`'s groups over all tiles; nothing where there are no tiles.
    fn moments(mut self, norm: &GroupNorm) -> (Self, Option<GroupMoments>) {
        let mut moments: Option<GroupMoments> = None;
        for _ in 0..self.tiles.len() {
            // Taken out and put back at the other end: a tensor that two hold is copied to be read.
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

    /// `f` tile by tile, where `f` makes `scale` rows of one and looks at most [`HALO`] rows beyond.
    /// What no later tile looks at is let go.
    fn map(mut self, scale: usize, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        let step = self.rows / scale;
        let mut made = VecDeque::with_capacity(self.height.div_ceil(step));
        for first in (0..self.height).step_by(step) {
            let end = (first + step).min(self.height);
            let (from, to) = (first.saturating_sub(HALO), (end + HALO).min(self.height));
            let y = f(self.take_rows(from, to));
            made.push_back(y.narrow(2, (first - from) * scale, (end - first) * scale));
        }
        Self { rows: self.rows, height: self.height * scale, tiles: made, gone: 0 }
    }

    /// Rows `from..to`; those above are let go.
    fn take_rows(&mut self, from: usize, to: usize) -> Tensor<4> {
        for _ in self.gone..from / self.rows {
            self.tiles.pop_front();
            self.gone += 1;
        }
        let parts = (from / self.rows..to.div_ceil(self.rows)).map(|index| {
            let [start, end] =
                [from, to].map(|row| row.saturating_sub(index * self.rows).min(self.rows));
            self.tiles[index - self.gone].clone().narrow(2, start, end - start)
        });
        Tensor::cat(parts.collect(), 2)
    }
}
