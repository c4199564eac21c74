//! The strategy for AMX: operands are split into three bf16 terms and packed into tiles; panels of A stay
//! in a core's cache while those of B are read.
//!
//! An operand is packed by its rows, so B is packed as its transpose.

mod tiles;

use super::{
    MatRef,
    scratch::{Pool, Scratch},
    vectorized,
};
use rayon::prelude::*;
use std::mem::MaybeUninit;
pub(super) use tiles::available;
use tiles::{Block, Elements, PANEL_ROWS, Panel, SIDE, TILE_K, TileRegisters};

/// The largest part of k that is multiplied between writes of C: a panel of 32 rows is 216 KB.
const MAX_K_BLOCK: usize = 1152;

/// Blocks of A that one task keeps in its core's cache: 864 KB.
const MAX_A_BLOCKS: usize = 4 * MAX_K_BLOCK / TILE_K;

/// Steps along k by which elements are prefetched before they are split.
const PREFETCH_STEPS: usize = 4;

static PACKED_B: Pool<Block> = Pool::new(Vec::new());
static PACKED_A: Pool<Block> = Pool::new(Vec::new());

/// Writes `a b` to all of `c`, after `epilogue` as in [`super::multiply`].
pub(super) fn multiply(
    a: MatRef,
    b: MatRef,
    c: &mut [MaybeUninit<f32>],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let b = b.transposed();
    let k_blocks = k.div_ceil(MAX_K_BLOCK).max(1);
    let steps = k.div_ceil(k_blocks).div_ceil(TILE_K).max(1);
    let panels_of = |rows: usize| rows.div_ceil(PANEL_ROWS);
    // Each task reads all of B, so it takes as many panels of A as the cache holds, unless threads would be
    // idle.
    let tasks = rayon::current_num_threads();
    let panels = panels_of(m).div_ceil(tasks).clamp(1, (MAX_A_BLOCKS / steps).max(1));
    let mut packed_b = Scratch::take(&PACKED_B, panels_of(n) * steps, Block::ZERO);
    for k_block in 0..k_blocks {
        let k = k_block * steps * TILE_K;
        packed_b.as_mut_slice().par_chunks_mut(steps).enumerate().for_each(|(panel, blocks)| {
            pack(&b, panel * PANEL_ROWS, k, false, blocks);
        });
        let packed_b = &*packed_b.as_mut_slice();
        c.par_chunks_mut(panels * PANEL_ROWS * n).enumerate().for_each(|(task, c)| {
            let first_row = task * panels * PANEL_ROWS;
            let rows = c.len() / n;
            let mut packed_a = Scratch::take(&PACKED_A, panels_of(rows) * steps, Block::ZERO);
            let packed_a = packed_a.as_mut_slice();
            for (panel, blocks) in packed_a.chunks_mut(steps).enumerate() {
                pack(&a, first_row + panel * PANEL_ROWS, k, true, blocks);
            }
            let registers = TileRegisters::configure();
            for (panel, blocks) in packed_b.chunks(steps).enumerate() {
                let column = panel * PANEL_ROWS;
                let next = packed_b.get((panel + 1) * steps..).unwrap_or_default();
                let share = steps.div_ceil(panels);
                let mut next = next[..steps.min(next.len())].chunks(share);
                for (index, packed_a) in packed_a.chunks(steps).enumerate() {
                    registers.multiply(
                        Panel { blocks: packed_a, rows: PANEL_ROWS.min(rows - index * PANEL_ROWS) },
                        Panel { blocks, rows: PANEL_ROWS.min(n - column) },
                        &mut c[index * PANEL_ROWS * n + column..],
                        n,
                        k_block > 0,
                        next.next().unwrap_or_default(),
                    );
                }
                if k_block + 1 == k_blocks {
                    let count = PANEL_ROWS.min(n - column);
                    vectorized(
                        #[inline(always)]
                        || {
                            for row in c.chunks_mut(n) {
                                let run = &mut row[column..][..count];
                                // SAFETY: the tiles of these columns were just stored, for all rows.
                                epilogue(column, unsafe { run.assume_init_mut() });
                            }
                        },
                    );
                }
            }
        });
    }
}

/// Writes `a b` to all of `c`, on this thread.
pub(super) fn multiply_single_threaded(a: MatRef, b: MatRef, c: &mut [MaybeUninit<f32>]) {
    let (m, n) = (a.rows, b.columns);
    let steps = a.columns.div_ceil(TILE_K).max(1);
    let packed = |operand: MatRef, rows_first| {
        let count = operand.rows.div_ceil(PANEL_ROWS) * steps;
        let mut blocks = Scratch::take(&PACKED_A, count, Block::ZERO);
        for (panel, blocks) in blocks.as_mut_slice().chunks_mut(steps).enumerate() {
            pack(&operand, panel * PANEL_ROWS, 0, rows_first, blocks);
        }
        blocks
    };
    let mut a = packed(a, true);
    let mut b = packed(b.transposed(), false);
    let registers = TileRegisters::configure();
    for (index, a) in a.as_mut_slice().chunks(steps).enumerate() {
        let row = index * PANEL_ROWS;
        for (index, b) in b.as_mut_slice().chunks(steps).enumerate() {
            let column = index * PANEL_ROWS;
            registers.multiply(
                Panel { blocks: a, rows: PANEL_ROWS.min(m - row) },
                Panel { blocks: b, rows: PANEL_ROWS.min(n - column) },
                &mut c[row * n + column..],
                n,
                false,
                &[],
            );
        }
    }
}

/// Splits and packs the rows of a panel from `row` on, elements `k..k + panel.len() * TILE_K` of each. The
/// rows of its tiles are rows of the operand if `rows_first`, else pairs along k. Elements beyond the
/// operand are zero.
fn pack(operand: &MatRef, row: usize, k: usize, rows_first: bool, panel: &mut [Block]) {
    let &MatRef { values, rows: count, columns: length, row_stride, column_stride } = operand;
    for (step, block) in panel.iter_mut().enumerate() {
        let k = k + step * TILE_K;
        for half in 0..PANEL_ROWS / SIDE {
            let row = row + half * SIDE;
            let tiles = block.0.each_mut().map(|term| &mut term[half]);
            if column_stride == 1 {
                let rows = Runs { values, strides: [row_stride, 1], of: [count, length] };
                rows.prefetch([row, k + PREFETCH_STEPS * TILE_K], SIDE);
                rows.prefetch([row, k + PREFETCH_STEPS * TILE_K + SIDE], SIDE);
                rows.at([row, k], |rows| {
                    tiles::split(&Elements::Rows(rows), rows_first, tiles);
                });
            } else {
                let strides = [column_stride, row_stride];
                let columns = Runs { values, strides, of: [length, count] };
                columns.prefetch([k + TILE_K, row], TILE_K);
                columns.at([k, row], |columns| {
                    tiles::split(&Elements::Columns(columns), rows_first, tiles);
                });
            }
        }
    }
}

/// The rows or the columns of an operand, as runs of elements.
struct Runs<'a> {
    values: &'a [f32],
    /// Distance from a run to the next, and from an element of a run to the next, in elements of the
    /// operand.
    strides: [usize; 2],
    /// Number of runs, and of elements of each.
    of: [usize; 2],
}

impl Runs<'_> {
    /// Calls `f` with `N` elements of `M` runs from the run and element `at` on; those beyond the operand
    /// are zero.
    #[inline(always)]
    fn at<const N: usize, const M: usize>(&self, at: [usize; 2], f: impl FnOnce([&[f32; N]; M])) {
        let index = |run: usize, element: usize| {
            (at[0] + run) * self.strides[0] + (at[1] + element) * self.strides[1]
        };
        let [runs, elements] = [0, 1].map(|axis| self.of[axis].saturating_sub(at[axis]));
        if runs >= M && elements >= N && self.strides[1] == 1 {
            f(std::array::from_fn(|run| {
                self.values[index(run, 0)..].first_chunk().expect("elements within the operand")
            }));
            return;
        }
        let mut padded = [[0.0; N]; M];
        let elements = elements.min(N);
        for (run, padded) in padded.iter_mut().enumerate().take(runs) {
            if self.strides[1] == 1 && elements > 0 {
                padded[..elements].copy_from_slice(&self.values[index(run, 0)..][..elements]);
            } else {
                for (element, padded) in padded[..elements].iter_mut().enumerate() {
                    *padded = self.values[index(run, element)];
                }
            }
        }
        f(padded.each_ref());
    }

    /// Prefetches an element of each of `count` runs.
    #[inline(always)]
    fn prefetch(&self, at: [usize; 2], count: usize) {
        for run in at[0]..at[0] + count {
            // The index may lie beyond the operand: prefetches do not fault.
            let index = run.wrapping_mul(self.strides[0]);
            let index = index.wrapping_add(at[1].wrapping_mul(self.strides[1]));
            tiles::prefetch(self.values, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_add_up() {
        if !available() {
            return;
        }
        for bits in (0..u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let mut panel = [Block::ZERO];
            pack(&MatRef::row_major(&[x], 1), 0, 0, true, &mut panel);
            let [a, b, c] = panel[0].0.map(|[tile, _]| f32::from_bits(tile[0][0] << 16));
            if x.is_nan() || x.is_infinite() {
                assert!([a, b, c].iter().any(|term| !term.is_finite()));
            } else if (1e-30..3.38e38).contains(&x.abs()) || x == 0.0 {
                assert_eq!(a + (b + c), x, "{bits:x}");
            }
        }
    }

    /// Returns the elements that [`Runs::at`] passes on.
    fn found<const N: usize, const M: usize>(runs: &Runs, at: [usize; 2]) -> Vec<f32> {
        let mut found = Vec::new();
        runs.at::<N, M>(at, |runs| found = runs.map(|run| &run[..]).concat());
        found
    }

    #[test]
    fn runs_are_those_of_the_operand_and_zero_beyond_it() {
        let values: Vec<f32> = (1..=35).map(|value| value as f32).collect();
        let rows = Runs { values: &values, strides: [7, 1], of: [5, 7] };
        assert_eq!(found::<3, 2>(&rows, [1, 2]), [10.0, 11.0, 12.0, 17.0, 18.0, 19.0]);
        assert_eq!(found::<3, 2>(&rows, [4, 5]), [34.0, 35.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(found::<3, 2>(&rows, [3, 4]), [26.0, 27.0, 28.0, 33.0, 34.0, 35.0]);
        assert_eq!(found::<2, 1>(&rows, [5, 0]), [0.0; 2]);
        assert_eq!(found::<2, 1>(&rows, [0, 7]), [0.0; 2]);
        // The first element would lie beyond the slice.
        assert_eq!(found::<2, 1>(&rows, [4, 8]), [0.0; 2]);
        let columns = Runs { values: &values, strides: [1, 7], of: [7, 5] };
        assert_eq!(found::<2, 2>(&columns, [1, 2]), [16.0, 23.0, 17.0, 24.0]);
        assert_eq!(found::<2, 2>(&columns, [6, 4]), [35.0, 0.0, 0.0, 0.0]);
    }
}
