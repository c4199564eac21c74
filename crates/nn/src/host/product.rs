//! Matrix products of f32 on a processor's matrix unit.
//!
//! Intel's processors have multiplied tiles of bf16 since 2023 (AMX), at some thirty times the rate at
//! which their vectors multiply f32. Here an f32 is taken apart into three bf16 that add up to it,
//! 8 bits of its 24 each, and of the nine products of parts the six that count are added in f32:
//! those left out are below 2^-25 of the product, half of what one rounding to f32 changes. What comes
//! out is as near to the exact product as that of f32 arithmetic, in a fraction of the time.
//!
//! Numbers below f32's normal range count as zero; an infinity makes NaN of what it meets, and so do
//! finite numbers from 3.39e38 on, beyond which there is no bf16.
//!
//! Source of the split: Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial
//! Intelligence Datatype For Higher-Precision Computations" (arXiv 1904.06376).

use super::{tiles, vectorized};
use rayon::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tiles::{Block, DEPTH, LINES, Numbers, Panel, SIDE};

/// Depth that is multiplied at once: a panel of 32 lines and this depth takes 216 KB.
const MOST_DEPTH: usize = 1152;

/// Blocks of the left factor that one task keeps in its core's cache: 864 KB.
const BLOCKS: usize = 4 * MOST_DEPTH / DEPTH;

/// Steps by which what is taken apart next is fetched ahead.
const AHEAD: usize = 4;

/// Fewer inputs or outputs of a layer than this, and taking the factors apart costs too much.
const LEAST: usize = 64;

/// Lines of numbers in memory: the rows of a left factor, the columns of a right one.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    /// What holds the lines.
    pub(crate) values: &'a [f32],
    /// How many lines.
    pub(crate) lines: usize,
    /// Numbers of a line.
    pub(crate) depth: usize,
    /// From a line to the next.
    pub(crate) line_stride: usize,
    /// From a number of a line to the next.
    pub(crate) depth_stride: usize,
}

impl<'a> Factor<'a> {
    /// Rows of `width` in one piece as lines.
    pub(crate) fn of_rows(values: &'a [f32], width: usize) -> Self {
        let lines = values.len() / width;
        Self { values, lines, depth: width, line_stride: width, depth_stride: 1 }
    }

    /// Columns of rows of `width` in one piece as lines.
    #[cfg(feature = "autodiff")]
    pub(crate) fn of_columns(values: &'a [f32], width: usize) -> Self {
        let depth = values.len() / width;
        Self { values, lines: width, depth, line_stride: 1, depth_stride: width }
    }

    /// Whether every number lies within the values.
    fn is_held(&self) -> bool {
        let last = (self.lines.max(1) - 1)
            .checked_mul(self.line_stride)
            .zip((self.depth.max(1) - 1).checked_mul(self.depth_stride))
            .and_then(|(line, depth)| line.checked_add(depth));
        self.lines == 0 || self.depth == 0 || last.is_some_and(|last| last < self.values.len())
    }

    /// Takes apart the lines of a panel from `line` on, numbers `depth..depth + panel.len() * DEPTH`; the
    /// rows of its tiles are lines where `lines_first`, else pairs along the depth. What lies beyond the
    /// factor is zero.
    fn pack(&self, line: usize, depth: usize, lines_first: bool, panel: &mut [Block]) {
        let &Self { values, lines: count, depth: length, line_stride, depth_stride } = self;
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
}

/// Runs of numbers, and how far it is from a run to the next, from a number of a run to the next.
struct Runs<'a> {
    values: &'a [f32],
    strides: [usize; 2],
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

/// Whether [`multiply`] takes the products of a layer of this size, and of its gradients: where the
/// processor has a matrix unit and the layer is large enough to be worth it. How many rows go through it
/// does not count, so that what becomes of one does not depend on how many there are.
pub(crate) fn is_worth_it(inputs: usize, outputs: usize) -> bool {
    inputs.min(outputs) >= LEAST && tiles::available()
}

/// `left right`, `[rows, columns]`, after `finish(first column, values)` of each run of a row's values,
/// while they are at hand.
///
/// # Panics
/// Where the sizes do not fit each other, or [`is_worth_it`] was not asked: there may be no such unit.
#[allow(unsafe_code, reason = "numbers are written before they are read, so that none are zeroed")]
pub(crate) fn multiply(
    left: Factor,
    right: Factor,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let (rows, columns, depth) = (left.lines, right.lines, left.depth);
    assert!(left.depth == right.depth && left.is_held() && right.is_held(), "factors that fit");
    assert!(tiles::available(), "asked before");
    let count = rows.checked_mul(columns).expect("a product that memory has room for");
    if count == 0 {
        return Vec::new();
    }
    let mut product = Vec::with_capacity(count);
    let out = &mut product.spare_capacity_mut()[..count];
    let turns = depth.div_ceil(MOST_DEPTH).max(1);
    let steps = depth.div_ceil(turns).div_ceil(DEPTH).max(1);
    let panels_of = |lines: usize| lines.div_ceil(LINES);
    // As many panels a task as the cache holds, since each task goes through all columns, but a task for each
    // thread.
    let tasks = rayon::current_num_threads();
    let panels = panels_of(rows).div_ceil(tasks).clamp(1, (BLOCKS / steps).max(1));
    let mut columns_apart = Blocks::of(&COLUMNS_APART, panels_of(columns) * steps);
    for turn in 0..turns {
        let depth = turn * steps * DEPTH;
        columns_apart.get().par_chunks_mut(steps).enumerate().for_each(|(panel, blocks)| {
            right.pack(panel * LINES, depth, false, blocks);
        });
        let columns_apart = &*columns_apart.get();
        out.par_chunks_mut(panels * LINES * columns).enumerate().for_each(|(task, out)| {
            let first_row = task * panels * LINES;
            let rows = out.len() / columns;
            let mut rows_apart = Blocks::of(&ROWS_APART, panels_of(rows) * steps);
            let rows_apart = rows_apart.get();
            for (panel, blocks) in rows_apart.chunks_mut(steps).enumerate() {
                left.pack(first_row + panel * LINES, depth, true, blocks);
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
    // SAFETY: the panels cover all rows and columns.
    unsafe { product.set_len(count) };
    product
}

/// `left right` into `out` `[rows, columns]`, on this thread alone: for small products of which many are
/// made at once.
///
/// # Panics
/// Where the sizes do not fit each other, or there is no matrix unit.
pub(crate) fn multiply_here(left: Factor, right: Factor, out: &mut [f32]) {
    let (rows, columns) = (left.lines, right.lines);
    assert!(left.depth == right.depth && left.is_held() && right.is_held(), "factors that fit");
    assert!(Some(out.len()) == rows.checked_mul(columns), "one number a row and column");
    assert!(tiles::available(), "asked before");
    let steps = left.depth.div_ceil(DEPTH).max(1);
    let taken_apart = |factor: Factor, kept_in, lines_first| {
        let mut blocks = Blocks::of(kept_in, factor.lines.div_ceil(LINES) * steps);
        for (panel, blocks) in blocks.get().chunks_mut(steps).enumerate() {
            factor.pack(panel * LINES, 0, lines_first, blocks);
        }
        blocks
    };
    let mut left = taken_apart(left, &ROWS_APART, true);
    let mut right = taken_apart(right, &ROWS_APART, false);
    let unit = tiles::Unit::begin();
    for (index, left) in left.get().chunks(steps).enumerate() {
        let row = index * LINES;
        for (index, right) in right.get().chunks(steps).enumerate() {
            let column = index * LINES;
            unit.multiply_over(
                Panel { blocks: left, lines: LINES.min(rows - row) },
                Panel { blocks: right, lines: LINES.min(columns - column) },
                &mut out[row * columns + column..],
                columns,
            );
        }
    }
}

/// Whether a processor has what [`multiply_here`] needs.
pub(crate) fn is_at_hand() -> bool {
    tiles::available()
}

/// Factors taken apart, kept for the next product: to have tens of megabytes zeroed by the system each
/// time would take a tenth of a product's time.
struct Blocks {
    kept_in: &'static Mutex<Vec<Vec<Block>>>,
    blocks: Vec<Block>,
    count: usize,
}

static COLUMNS_APART: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());
static ROWS_APART: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());

impl Blocks {
    /// `count` blocks with anything in them.
    fn of(kept_in: &'static Mutex<Vec<Vec<Block>>>, count: usize) -> Self {
        let mut blocks = lock(kept_in).pop().unwrap_or_default();
        if blocks.len() < count {
            blocks = vec![Block::ZERO; count];
        }
        Self { kept_in, blocks, count }
    }

    fn get(&mut self) -> &mut [Block] {
        &mut self.blocks[..self.count]
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        lock(self.kept_in).push(std::mem::take(&mut self.blocks));
    }
}

/// What a panic elsewhere left behind is a list of blocks all the same.
fn lock(kept: &Mutex<Vec<Vec<Block>>>) -> MutexGuard<'_, Vec<Vec<Block>>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, normal};

    /// `rows x columns` of `depth` with a bias of its column, or nothing where there is no unit.
    struct Case {
        rows: usize,
        columns: usize,
        depth: usize,
        /// Whether the lines of the left factor, of the right one, lie one after the other.
        lines_whole: [bool; 2],
    }

    impl Case {
        fn run(&self) {
            let &Self { rows, columns, depth, lines_whole } = self;
            let noise = |index, count| normal(1, Purpose::Weights, index, 0, count);
            let [left, right] = [noise(0, rows * depth), noise(1, columns * depth)];
            let bias = noise(2, columns);
            let factor = |values, lines, whole: bool| Factor {
                values,
                lines,
                depth,
                line_stride: if whole { depth } else { 1 },
                depth_stride: if whole { 1 } else { lines },
            };
            let left = factor(&left, rows, lines_whole[0]);
            let right = factor(&right, columns, lines_whole[1]);
            let out = multiply(left, right, |column, values| {
                values.iter_mut().zip(&bias[column..]).for_each(|(x, b)| *x += b);
            });
            let line = |f: &Factor, line: usize| -> Vec<f64> {
                let at = |d| f64::from(f.values[line * f.line_stride + d * f.depth_stride]);
                (0..f.depth).map(at).collect()
            };
            let right: Vec<_> = (0..columns).map(|column| line(&right, column)).collect();
            assert_eq!(out.len(), rows * columns);
            // Squares of what is wrong here, of what sums in f32 have wrong, and of the result.
            let mut squares = [0.0; 3];
            for (row, out) in out.chunks(columns).enumerate() {
                let left = line(&left, row);
                for (column, &got) in out.iter().enumerate() {
                    let products = || left.iter().zip(&right[column]).map(|(a, b)| a * b);
                    let bias = bias[column];
                    let want = products().sum::<f64>() + f64::from(bias);
                    let plain = products().fold(0.0f32, |sum, x| (f64::from(sum) + x) as f32);
                    squares[0] += (f64::from(got) - want).powi(2);
                    squares[1] += (f64::from(plain + bias) - want).powi(2);
                    squares[2] += want.powi(2);
                }
            }
            let [wrong, wrong_in_f32, result] = squares.map(f64::sqrt);
            let bound = 1.5 * wrong_in_f32 + 1e-7 * result;
            assert!(wrong <= bound, "{rows}x{columns}x{depth}: {wrong}, {wrong_in_f32} in f32");
        }
    }

    #[test]
    fn products_are_those_of_f32() {
        if !tiles::available() {
            return;
        }
        for (rows, columns, depth) in
            [(1, 1, 1), (33, 95, 31), (64, 64, 64), (300, 70, 1153), (129, 257, 2400), (5, 7, 0)]
        {
            for lines_whole in [[true, true], [true, false], [false, true], [false, false]] {
                Case { rows, columns, depth, lines_whole }.run();
            }
        }
    }

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
            factor.pack(0, 0, true, &mut panel);
            let [a, b, c] = panel[0].0.map(|[tile, _]| f32::from_bits(tile[0][0] << 16));
            if x.is_nan() || x.is_infinite() {
                assert!([a, b, c].iter().any(|part| !part.is_finite()));
            } else if (1e-30..3.38e38).contains(&x.abs()) || x == 0.0 {
                assert_eq!(a + (b + c), x, "{bits:x}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        if !tiles::available() {
            return;
        }
        for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let factor =
                |values| Factor { values, lines: 1, depth: 2, line_stride: 2, depth_stride: 1 };
            let out = multiply(factor(&[1.0, x]), factor(&[1.0, 2.0]), |_, _| ());
            assert!(!out[0].is_finite());
        }
    }
}
