//! On the processor's vectors: products of panels whose sums stay in registers.
//!
//! A panel is some lines of a factor with the numbers of one depth side by side. A task takes some rows;
//! for each panel of columns it goes through a part of the depth at a time, so that this part of the
//! panel stays in the first cache while those of all its rows go by.
//!
//! Loops count, where iterators and copies of slices would be shorter: a compiler that has put so much into
//! one function leaves those as calls.
//!
//! Source of the order: Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

#![allow(
    clippy::manual_memcpy,
    clippy::needless_range_loop,
    reason = "loops that count, as said above"
)]

use super::{
    Factor,
    scratch::{Kept, Rooms},
    vectorized,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Depth that is multiplied at once.
const MOST_DEPTH: usize = 2304;

/// Numbers of a panel of columns in the first cache: 16 KB.
const AT_HAND: usize = 1 << 12;

/// Numbers of the left factor that one task takes, at most: 432 KB.
const MOST_OF_TASK: usize = 96 * 1152;

/// Panels of columns that one task packs: of numbers that lie side by side, half a kilobyte or more.
const PACKED: usize = 8;

/// Numbers that are packed at once along the depth: a line of the caches.
const RUN: usize = 16;

static COLUMNS: Rooms<f32> = Rooms::new(Vec::new());
static ROWS: Rooms<f32> = Rooms::new(Vec::new());

/// Lines of a panel of rows and of a panel of columns: their sums take most registers that there are.
#[derive(Clone, Copy)]
struct Panels {
    rows: usize,
    columns: usize,
}

/// With sixteen registers of eight numbers, and with 32 of sixteen.
const EIGHT: Panels = Panels { rows: 6, columns: 16 };
const SIXTEEN: Panels = Panels { rows: 12, columns: 32 };

/// Those of this processor, if it has vectors that are worth it.
fn panels() -> Option<Panels> {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match Arch::new().dispatch(Lanes) {
        8 => Some(EIGHT),
        16 => Some(SIXTEEN),
        _ => None,
    }
}

/// Whether this processor has such vectors.
pub(super) fn available() -> bool {
    panels().is_some()
}

/// Writes `left right` to `out`, after `finish` as in [`super::multiply`].
pub(super) fn multiply(
    left: Factor,
    right: Factor,
    out: &mut [MaybeUninit<f32>],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let panels = panels().expect("asked before");
    let columns = right.lines;
    let turns = left.depth.div_ceil(MOST_DEPTH).max(1);
    let most = left.depth.div_ceil(turns);
    let tasks = rayon::current_num_threads();
    let rows = left.lines.div_ceil(tasks).min(MOST_OF_TASK / most.max(1)).max(1);
    let rows = rows.next_multiple_of(panels.rows);
    let across = columns.next_multiple_of(panels.columns);
    let mut packed = Kept::of(&COLUMNS, across * most, 0.0);
    for turn in 0..turns {
        let (first, depth) = (turn * most, most.min(left.depth - turn * most));
        let (left, right) = (left.part(first, depth), right.part(first, depth));
        let packed = &mut packed.get()[..across * depth];
        let together = PACKED * panels.columns;
        packed.par_chunks_mut((together * depth).max(1)).enumerate().for_each(|(task, packed)| {
            let (from, to) = (task * together, columns.min((task + 1) * together));
            pack(right.lines(from, to - from), panels.columns, packed);
        });
        let packed = &*packed;
        out.par_chunks_mut(rows * columns).enumerate().for_each(|(task, out)| {
            let count = out.len() / columns;
            let rows = left.lines(task * rows, count);
            let ends = [turn == 0, turn + 1 == turns];
            multiply_rows(panels, rows, packed, out, ends, &finish);
        });
    }
}

/// Writes `left right` to `out`, on this thread alone.
pub(super) fn multiply_here(left: Factor, right: Factor, out: &mut [MaybeUninit<f32>]) {
    if out.is_empty() {
        return;
    }
    let panels = panels().expect("asked before");
    let whole = right.lines.next_multiple_of(panels.columns) * right.depth;
    let mut packed = Kept::of(&ROWS, whole, 0.0);
    pack(right, panels.columns, packed.get());
    multiply_rows(panels, left, packed.get(), out, [true, true], &|_, _: &mut [f32]| ());
}

/// `left` times packed columns into `out`; `ends` says whether these are the first and the last numbers along
/// the depth.
fn multiply_rows(
    panels: Panels,
    left: Factor,
    right: &[f32],
    out: &mut [MaybeUninit<f32>],
    ends: [bool; 2],
    finish: &impl Fn(usize, &mut [f32]),
) {
    let whole = left.lines.next_multiple_of(panels.rows) * left.depth;
    let mut packed = Kept::of(&ROWS, whole, 0.0);
    pack(left, panels.rows, packed.get());
    let (rows, depth) = (left.lines, left.depth);
    let product = Product { left: packed.get(), right, rows, depth, out, ends, finish };
    Arch::new().dispatch(product);
}

/// Puts a factor's lines into panels of `lines`, `[panel][depth][line]`, with zeros for lines that are not
/// there.
fn pack(factor: Factor, lines: usize, packed: &mut [f32]) {
    // As constants, for loops without an end to look for.
    vectorized(
        #[inline(always)]
        || match lines {
            6 => pack_by::<6>(factor, packed),
            12 => pack_by::<12>(factor, packed),
            16 => pack_by::<16>(factor, packed),
            32 => pack_by::<32>(factor, packed),
            _ => unreachable!("no panels of {lines}"),
        },
    );
}

#[inline(always)]
fn pack_by<const L: usize>(factor: Factor, packed: &mut [f32]) {
    let Factor { values, lines, depth, line_stride, depth_stride } = factor;
    let (packed, _) = packed.as_chunks_mut::<L>();
    let whole = lines / L;
    // In the order in which numbers lie.
    if line_stride == 1 {
        for d in 0..depth {
            let values = &values[d * depth_stride..];
            for panel in 0..whole {
                let (packed, values) = (&mut packed[panel * depth + d], &values[panel * L..][..L]);
                for l in 0..L {
                    packed[l] = values[l];
                }
            }
        }
    }
    let first = if line_stride == 1 { whole } else { 0 };
    for panel in first..lines.div_ceil(L) {
        let count = L.min(lines - panel * L);
        let packed = &mut packed[panel * depth..][..depth];
        for at in (0..depth).step_by(RUN) {
            let packed = &mut packed[at..depth.min(at + RUN)];
            for l in 0..count {
                let values = &values[(panel * L + l) * line_stride + at * depth_stride..];
                if depth_stride == 1 {
                    let values = &values[..packed.len()];
                    for d in 0..packed.len() {
                        packed[d][l] = values[d];
                    }
                } else {
                    for d in 0..packed.len() {
                        packed[d][l] = values[d * depth_stride];
                    }
                }
            }
            for l in count..L {
                for d in 0..packed.len() {
                    packed[d][l] = 0.0;
                }
            }
        }
    }
}

/// Packed rows times packed columns.
struct Product<'a, F> {
    left: &'a [f32],
    right: &'a [f32],
    rows: usize,
    depth: usize,
    out: &'a mut [MaybeUninit<f32>],
    ends: [bool; 2],
    finish: &'a F,
}

impl<F: Fn(usize, &mut [f32])> WithSimd for Product<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 16 {
            self.in_panels::<S, { SIXTEEN.rows }, { SIXTEEN.columns }>(simd);
        } else {
            self.in_panels::<S, { EIGHT.rows }, { EIGHT.columns }>(simd);
        }
    }
}

impl<F: Fn(usize, &mut [f32])> Product<'_, F> {
    /// In panels of `R` rows and `C` columns.
    #[inline(always)]
    #[allow(unsafe_code, reason = "sums of the numbers before are read where they were written")]
    fn in_panels<S: Simd, const R: usize, const C: usize>(self, simd: S) {
        let Self { left, right, rows, depth, out, ends: [is_first, is_last], finish } = self;
        let columns = out.len() / rows;
        let mut sums = vec![0.0; rows.next_multiple_of(R) * C];
        for panel in 0..columns.div_ceil(C) {
            let column = panel * C;
            let count = C.min(columns - column);
            if is_first {
                sums.fill(0.0);
            } else {
                for (sums, out) in sums.chunks_mut(C).zip(out.chunks(columns)) {
                    // SAFETY: the turn before wrote all of it.
                    sums[..count]
                        .copy_from_slice(unsafe { out[column..][..count].assume_init_ref() });
                }
            }
            let right = &right[column * depth..][..C * depth];
            let part = AT_HAND / C;
            for at in (0..depth).step_by(part) {
                let part = part.min(depth - at);
                let right = &right[at * C..][..part * C];
                for panel in 0..rows.div_ceil(R) {
                    let left = &left[(panel * depth + at) * R..][..part * R];
                    add_products::<S, R>(simd, left, right, &mut sums[panel * R * C..][..R * C]);
                }
            }
            for row in 0..rows {
                let (sums, out) = (&mut sums[row * C..][..C], &mut out[row * columns + column..]);
                let finish = is_last.then_some(finish);
                // Apart, since the compiler knows the length of one of them.
                if count == C {
                    write(finish, column, sums, &mut out[..C]);
                } else {
                    write(finish, column, &mut sums[..count], &mut out[..count]);
                }
            }
        }
    }
}

/// Writes sums to where they belong, finished if there is a `finish`.
#[inline(always)]
fn write(
    finish: Option<&impl Fn(usize, &mut [f32])>,
    column: usize,
    sums: &mut [f32],
    out: &mut [MaybeUninit<f32>],
) {
    if let Some(finish) = finish {
        finish(column, sums);
    }
    for i in 0..out.len() {
        out[i].write(sums[i]);
    }
}

/// Adds the products of `R` rows and two vectors of columns to their sums.
#[inline(always)]
fn add_products<S: Simd, const R: usize>(simd: S, left: &[f32], right: &[f32], sums: &mut [f32]) {
    let (left, _) = left.as_chunks::<R>();
    let (right, _) = S::as_simd_f32s(right).0.as_chunks::<2>();
    let (sums, _) = S::as_mut_simd_f32s(sums).0.as_chunks_mut::<2>();
    let sums: &mut [[S::f32s; 2]; R] = sums.first_chunk_mut().expect("sums of each row");
    // By value, so that they stay in registers.
    let mut found = *sums;
    let depth = left.len().min(right.len());
    let (left, right) = (&left[..depth], &right[..depth]);
    for d in 0..depth {
        for row in 0..R {
            let left = simd.splat_f32s(left[d][row]);
            found[row][0] = simd.mul_add_f32s(left, right[d][0], found[row][0]);
            found[row][1] = simd.mul_add_f32s(left, right[d][1], found[row][1]);
        }
    }
    *sums = found;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;
    use pulp::{Scalar256b, Scalar512b};

    /// The panels of processors that this one may not be, by plain arithmetic in their place.
    #[test]
    fn panels_of_every_width_give_the_product() {
        let (rows, columns, depth) = (25, 70, 300);
        let [left, right] = [normal(0, rows * depth), normal(1, columns * depth)];
        let whole = |x: &[f32], row: usize, column: usize| x[row * depth + column];
        for panels in [EIGHT, SIXTEEN] {
            let packed = |values, width| {
                let factor = Factor::of_rows(values, depth);
                let mut packed = vec![0.0; factor.lines.next_multiple_of(width) * depth];
                pack(factor, width, &mut packed);
                packed
            };
            let [left_packed, right_packed] =
                [packed(&left, panels.rows), packed(&right, panels.columns)];
            let mut out = vec![MaybeUninit::new(f32::NAN); rows * columns];
            let product = Product {
                left: &left_packed,
                right: &right_packed,
                rows,
                depth,
                out: &mut out,
                ends: [true, true],
                finish: &|column, sums: &mut [f32]| {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        *sum += (column + at) as f32;
                    }
                },
            };
            if panels.columns == EIGHT.columns {
                product.with_simd(Scalar256b);
            } else {
                product.with_simd(Scalar512b);
            }
            for (at, found) in out.iter().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let term =
                    |d| f64::from(whole(&left, row, d)) * f64::from(whole(&right, column, d));
                let want = (0..depth).map(term).sum::<f64>() + column as f64;
                // SAFETY: written from the beginning.
                #[allow(unsafe_code, reason = "numbers in places that may be unwritten")]
                let found = f64::from(unsafe { found.assume_init() });
                assert!((found - want).abs() < 1e-4, "{row} {column}: {found} {want}");
            }
        }
    }
}
