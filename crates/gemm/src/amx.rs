//! On the processor's matrix unit: numbers taken apart into three bf16 each, panels of a factor that stay
//! in a core's cache, and the other factor's going by.

mod tiles;

use super::{
    Factor,
    scratch::{Kept, Rooms},
    vectorized,
};
use rayon::prelude::*;
use std::mem::MaybeUninit;
pub(super) use tiles::available;
use tiles::{Block, DEPTH, LINES, Numbers, Panel, SIDE};

/// Depth that is multiplied at once: a panel of 32 lines and this depth takes 216 KB.
const MOST_DEPTH: usize = 1152;

/// Blocks of the left factor that one task keeps in its core's cache: 864 KB.
const BLOCKS: usize = 4 * MOST_DEPTH / DEPTH;

/// Steps by which what is taken apart next is fetched ahead.
const AHEAD: usize = 4;

static COLUMNS_APART: Rooms<Block> = Rooms::new(Vec::new());
static ROWS_APART: Rooms<Block> = Rooms::new(Vec::new());

/// Writes `left right` to `out`, after `finish` as in [`super::multiply`].
#[allow(unsafe_code, reason = "sums are changed where the unit has just written them")]
pub(super) fn multiply(
    left: Factor,
    right: Factor,
    out: &mut [MaybeUninit<f32>],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (rows, columns, depth) = (left.lines, right.lines, left.depth);
    let turns = depth.div_ceil(MOST_DEPTH).max(1);
    let steps = depth.div_ceil(turns).div_ceil(DEPTH).max(1);
    let panels_of = |lines: usize| lines.div_ceil(LINES);
    // As many panels a task as the cache holds, since each task goes through all columns, but a task for each
    // thread.
    let tasks = rayon::current_num_threads();
    let panels = panels_of(rows).div_ceil(tasks).clamp(1, (BLOCKS / steps).max(1));
    let mut columns_apart = Kept::of(&COLUMNS_APART, panels_of(columns) * steps, Block::ZERO);
    for turn in 0..turns {
        let depth = turn * steps * DEPTH;
        columns_apart.get().par_chunks_mut(steps).enumerate().for_each(|(panel, blocks)| {
            pack(&right, panel * LINES, depth, false, blocks);
        });
        let columns_apart = &*columns_apart.get();
        out.par_chunks_mut(panels * LINES * columns).enumerate().for_each(|(task, out)| {
            let first_row = task * panels * LINES;
            let rows = out.len() / columns;
            let mut rows_apart = Kept::of(&ROWS_APART, panels_of(rows) * steps, Block::ZERO);
            let rows_apart = rows_apart.get();
            for (panel, blocks) in rows_apart.chunks_mut(steps).enumerate() {
                pack(&left, first_row + panel * LINES, depth, true, blocks);
            }
            let unit = tiles::Unit::begin();
            for (panel, blocks) in columns_apart.chunks(steps).enumerate() {
                let column = panel * LINES;
                let next = columns_apart.get((panel + 1) * steps..).unwrap_or_default();
                let share = steps.div_ceil(panels);
                let mut next = next[..steps.min(next.len())].chunks(share);
                for (index, rows_apart) in rows_apart.chunks(steps).enumerate() {
                    unit.multiply(
                        Panel { blocks: rows_apart, lines: LINES.min(rows - index * LINES) },
                        Panel { blocks, lines: LINES.min(columns - column) },
                        &mut out[index * LINES * columns + column..],
                        columns,
                        turn > 0,
                        next.next().unwrap_or_default(),
                    );
                }
                if turn + 1 == turns {
                    let count = LINES.min(columns - column);
                    vectorized(
                        #[inline(always)]
                        || {
                            for row in out.chunks_mut(columns) {
                                let run = &mut row[column..][..count];
                                // SAFETY: the unit has just written these columns of all rows.
                                finish(column, unsafe { run.assume_init_mut() });
                            }
                        },
                    );
                }
            }
        });
    }
}

/// Writes `left right` to `out`, on this thread alone.
pub(super) fn multiply_here(left: Factor, right: Factor, out: &mut [MaybeUninit<f32>]) {
    let (rows, columns) = (left.lines, right.lines);
    let steps = left.depth.div_ceil(DEPTH).max(1);
    let taken_apart = |factor: Factor, lines_first| {
        let mut blocks = Kept::of(&ROWS_APART, factor.lines.div_ceil(LINES) * steps, Block::ZERO);
        for (panel, blocks) in blocks.get().chunks_mut(steps).enumerate() {
            pack(&factor, panel * LINES, 0, lines_first, blocks);
        }
        blocks
    };
    let mut left = taken_apart(left, true);
    let mut right = taken_apart(right, false);
    let unit = tiles::Unit::begin();
    for (index, left) in left.get().chunks(steps).enumerate() {
        let row = index * LINES;
        for (index, right) in right.get().chunks(steps).enumerate() {
            let column = index * LINES;
            unit.multiply(
                Panel { blocks: left, lines: LINES.min(rows - row) },
                Panel { blocks: right, lines: LINES.min(columns - column) },
                &mut out[row * columns + column..],
                columns,
                false,
                &[],
            );
        }
    }
}

/// Takes apart the lines of a panel from `line` on, numbers `depth..depth + panel.len() * DEPTH`; the
/// rows of its tiles are lines where `lines_first`, else pairs along the depth. What lies beyond the
/// factor is zero.
fn pack(factor: &Factor, line: usize, depth: usize, lines_first: bool, panel: &mut [Block]) {
    let &Factor { values, lines: count, depth: length, line_stride, depth_stride } = factor;
    for (step, block) in panel.iter_mut().enumerate() {
        let depth = depth + step * DEPTH;
        for half in 0..LINES / SIDE {
            let line = line + half * SIDE;
            let tiles = block.0.each_mut().map(|part| &mut part[half]);
            if depth_stride == 1 {
                let lines = Runs { values, strides: [line_stride, 1], of: [count, length] };
                lines.fetch([line, depth + AHEAD * DEPTH], SIDE);
                lines.fetch([line, depth + AHEAD * DEPTH + SIDE], SIDE);
                lines.at([line, depth], |lines| {
                    tiles::take_apart(&Numbers::Lines(lines), lines_first, tiles);
                });
            } else {
                let strides = [depth_stride, line_stride];
                let depths = Runs { values, strides, of: [length, count] };
                depths.fetch([depth + DEPTH, line], DEPTH);
                depths.at([depth, line], |depths| {
                    tiles::take_apart(&Numbers::Depths(depths), lines_first, tiles);
                });
            }
        }
    }
}

/// Runs of numbers, and how far it is from a run to the next, from a number of a run to the next.
struct Runs<'a> {
    values: &'a [f32],
    strides: [usize; 2],
    /// How many runs, and numbers of each.
    of: [usize; 2],
}

impl Runs<'_> {
    /// `f` of so many numbers of so many runs from this run and number on, with zeros for those that are
    /// not there.
    #[inline(always)]
    fn at<const N: usize, const M: usize>(&self, at: [usize; 2], f: impl FnOnce([&[f32; N]; M])) {
        let place = |run: usize, number: usize| {
            (at[0] + run) * self.strides[0] + (at[1] + number) * self.strides[1]
        };
        let [runs, numbers] = [0, 1].map(|axis| self.of[axis].saturating_sub(at[axis]));
        if runs >= M && numbers >= N && self.strides[1] == 1 {
            f(std::array::from_fn(|run| {
                self.values[place(run, 0)..].first_chunk().expect("asked whether it is held")
            }));
            return;
        }
        let mut padded = [[0.0; N]; M];
        let numbers = numbers.min(N);
        for (run, padded) in padded.iter_mut().enumerate().take(runs) {
            if self.strides[1] == 1 && numbers > 0 {
                padded[..numbers].copy_from_slice(&self.values[place(run, 0)..][..numbers]);
            } else {
                for (number, padded) in padded[..numbers].iter_mut().enumerate() {
                    *padded = self.values[place(run, number)];
                }
            }
        }
        f(padded.each_ref());
    }

    /// Fetches a number of each of `count` runs to the core.
    #[inline(always)]
    fn fetch(&self, at: [usize; 2], count: usize) {
        for run in at[0]..at[0] + count {
            tiles::fetch(self.values, run * self.strides[0] + at[1] * self.strides[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        if !tiles::available() {
            return;
        }
        for bits in (0..u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let factor =
                Factor { values: &[x], lines: 1, depth: 1, line_stride: 1, depth_stride: 1 };
            let mut panel = [Block::ZERO];
            pack(&factor, 0, 0, true, &mut panel);
            let [a, b, c] = panel[0].0.map(|[tile, _]| f32::from_bits(tile[0][0] << 16));
            if x.is_nan() || x.is_infinite() {
                assert!([a, b, c].iter().any(|part| !part.is_finite()));
            } else if (1e-30..3.38e38).contains(&x.abs()) || x == 0.0 {
                assert_eq!(a + (b + c), x, "{bits:x}");
            }
        }
    }
}
