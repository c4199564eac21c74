//! The strategy for vectors of 8 or 16 f32: packed panels, and a microkernel whose sums stay in
//! registers.
//!
//! An operand is packed by its rows, so B is packed as its transpose. A packed panel interleaves `width`
//! rows, `[k][row]`. A task computes a block of rows of C. For each panel of B it splits k into parts, so
//! that a part of the panel stays in the first-level cache while the same part of all panels of A is read.
//!
//! Loops use indices where iterators and slice copies would be shorter: in functions as large as these,
//! after inlining, the compiler leaves those as calls.
//!
//! Source of the loop order: Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

#![allow(
    clippy::manual_memcpy,
    clippy::needless_range_loop,
    reason = "indexed loops, as explained above"
)]

mod pack;

use super::{
    MatRef,
    scratch::{Pool, Scratch},
};
use pack::pack;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// The largest part of k that is multiplied between writes of C.
const MAX_K_BLOCK: usize = 2304;

/// Elements of a panel of B in the first-level cache: 16 KB.
const L1_ELEMENTS: usize = 1 << 12;

/// Elements of A that one task packs, at most: 432 KB.
const MAX_A_ELEMENTS: usize = 96 * 1152;

/// Panels of B that one task packs, so that it reads at least half a kilobyte at a time if the elements of
/// one k are contiguous.
const PANELS_PER_TASK: usize = 8;

static PACKED_B: Pool<f32> = Pool::new(Vec::new());
static PACKED_A: Pool<f32> = Pool::new(Vec::new());

/// The size of a microkernel: rows of a panel of A (`mr`) and columns of a panel of B (`nr`), whose sums
/// take most of the registers.
#[derive(Clone, Copy)]
struct Microkernel {
    mr: usize,
    nr: usize,
}

/// The microkernel for 16 registers of 8 f32.
const AVX2: Microkernel = Microkernel { mr: 6, nr: 16 };

/// The microkernel for 32 registers of 16 f32.
const AVX512: Microkernel = Microkernel { mr: 12, nr: 32 };

/// Returns the microkernel for this processor, or `None` if its vectors are too short.
fn microkernel() -> Option<Microkernel> {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match Arch::new().dispatch(Lanes) {
        8 => Some(AVX2),
        16 => Some(AVX512),
        _ => None,
    }
}

/// Returns true if this processor has vectors of 8 or 16 f32.
pub(super) fn available() -> bool {
    microkernel().is_some()
}

/// Writes `a b` to all of `c`, after `epilogue` as in [`super::multiply`].
pub(super) fn multiply(
    a: MatRef,
    b: MatRef,
    c: &mut [MaybeUninit<f32>],
    epilogue: impl Fn(usize, &mut [f32]) + Sync,
) {
    let kernel = microkernel().expect("a strategy that is available");
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let b = b.transposed();
    let k_blocks = k.div_ceil(MAX_K_BLOCK).max(1);
    let max_k = k.div_ceil(k_blocks);
    let tasks = rayon::current_num_threads();
    let rows = rows_of_task(m, tasks, max_k, kernel.mr);
    let padded_n = n.next_multiple_of(kernel.nr);
    let mut packed = Scratch::take(&PACKED_B, padded_n * max_k, 0.0);
    for block in 0..k_blocks {
        let (first, k) = (block * max_k, max_k.min(k - block * max_k));
        let (a, b) = (a.column_range(first, k), b.column_range(first, k));
        let packed = &mut packed.as_mut_slice()[..padded_n * k];
        let columns = PANELS_PER_TASK * kernel.nr;
        packed.par_chunks_mut((columns * k).max(1)).enumerate().for_each(|(task, packed)| {
            let (from, to) = (task * columns, n.min((task + 1) * columns));
            pack(b.row_range(from, to - from), kernel.nr, packed);
        });
        let packed = &*packed;
        c.par_chunks_mut(rows * n).enumerate().for_each(|(task, c)| {
            let count = c.len() / n;
            let a = a.row_range(task * rows, count);
            let ends = [block == 0, block + 1 == k_blocks];
            multiply_rows(kernel, a, packed, c, ends, &epilogue);
        });
    }
}

/// Returns the number of rows of A, in whole panels of `mr` rows, that one of `tasks` tasks packs.
fn rows_of_task(m: usize, tasks: usize, max_k: usize, mr: usize) -> usize {
    let rows = m.div_ceil(tasks).min(MAX_A_ELEMENTS / max_k.max(1)).max(1);
    rows.next_multiple_of(mr)
}

/// Writes `a b` to all of `c`, on this thread.
pub(super) fn multiply_single_threaded(a: MatRef, b: MatRef, c: &mut [MaybeUninit<f32>]) {
    if c.is_empty() {
        return;
    }
    let kernel = microkernel().expect("a strategy that is available");
    let b = b.transposed();
    let size = b.rows.next_multiple_of(kernel.nr) * b.columns;
    let mut packed = Scratch::take(&PACKED_A, size, 0.0);
    pack(b, kernel.nr, packed.as_mut_slice());
    multiply_rows(kernel, a, packed.as_mut_slice(), c, [true, true], &|_, _: &mut [f32]| ());
}

/// Writes the product of `a` and packed columns to `c`, or adds it. `ends`: true for the first, and for the
/// last, block of k.
fn multiply_rows(
    kernel: Microkernel,
    a: MatRef,
    packed_b: &[f32],
    c: &mut [MaybeUninit<f32>],
    ends: [bool; 2],
    epilogue: &impl Fn(usize, &mut [f32]),
) {
    let size = a.rows.next_multiple_of(kernel.mr) * a.columns;
    let mut packed = Scratch::take(&PACKED_A, size, 0.0);
    pack(a, kernel.mr, packed.as_mut_slice());
    let (m, k) = (a.rows, a.columns);
    let product = Product { a: packed.as_mut_slice(), b: packed_b, m, k, c, ends, epilogue };
    Arch::new().dispatch(product);
}

/// The product of packed rows of A and packed columns of B.
struct Product<'a, F> {
    a: &'a [f32],
    b: &'a [f32],
    m: usize,
    k: usize,
    c: &'a mut [MaybeUninit<f32>],
    ends: [bool; 2],
    epilogue: &'a F,
}

impl<F: Fn(usize, &mut [f32])> WithSimd for Product<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 16 {
            self.run::<S, { AVX512.mr }, { AVX512.nr }>(simd);
        } else {
            self.run::<S, { AVX2.mr }, { AVX2.nr }>(simd);
        }
    }
}

impl<F: Fn(usize, &mut [f32])> Product<'_, F> {
    /// Computes the product with panels of `MR` rows and `NR` columns.
    #[inline(always)]
    fn run<S: Simd, const MR: usize, const NR: usize>(self, simd: S) {
        let Self { a, b, m, k, c, ends: [is_first, is_last], epilogue } = self;
        let n = c.len() / m;
        let mut sums = vec![0.0; m.next_multiple_of(MR) * NR];
        for panel in 0..n.div_ceil(NR) {
            let column = panel * NR;
            let count = NR.min(n - column);
            if is_first {
                sums.fill(0.0);
            } else {
                for (sums, c) in sums.chunks_mut(NR).zip(c.chunks(n)) {
                    // SAFETY: the block of k before this one wrote all of `c`.
                    sums[..count]
                        .copy_from_slice(unsafe { c[column..][..count].assume_init_ref() });
                }
            }
            let b = &b[column * k..][..NR * k];
            let part = L1_ELEMENTS / NR;
            for at in (0..k).step_by(part) {
                let part = part.min(k - at);
                let b = &b[at * NR..][..part * NR];
                for panel in 0..m.div_ceil(MR) {
                    let a = &a[(panel * k + at) * MR..][..part * MR];
                    add_products::<S, MR>(simd, a, b, &mut sums[panel * MR * NR..][..MR * NR]);
                }
            }
            for row in 0..m {
                let (sums, c) = (&mut sums[row * NR..][..NR], &mut c[row * n + column..]);
                let epilogue = is_last.then_some(epilogue);
                // Two calls, so that the compiler knows the length in the first.
                if count == NR {
                    write(epilogue, column, sums, &mut c[..NR]);
                } else {
                    write(epilogue, column, &mut sums[..count], &mut c[..count]);
                }
            }
        }
    }
}

/// Writes sums to their place in C, after the epilogue if there is one.
#[inline(always)]
fn write(
    epilogue: Option<&impl Fn(usize, &mut [f32])>,
    column: usize,
    sums: &mut [f32],
    c: &mut [MaybeUninit<f32>],
) {
    if let Some(epilogue) = epilogue {
        epilogue(column, sums);
    }
    for i in 0..c.len() {
        c[i].write(sums[i]);
    }
}

/// Adds the product of a panel of A (`MR` rows) and a panel of B (two vectors of columns) to its sums.
#[inline(always)]
fn add_products<S: Simd, const MR: usize>(simd: S, a: &[f32], b: &[f32], sums: &mut [f32]) {
    let (a, _) = a.as_chunks::<MR>();
    let (b, _) = S::as_simd_f32s(b).0.as_chunks::<2>();
    let (sums, _) = S::as_mut_simd_f32s(sums).0.as_chunks_mut::<2>();
    let sums: &mut [[S::f32s; 2]; MR] = sums.first_chunk_mut().expect("sums of each row");
    // By value, so that they stay in registers.
    let mut registers = *sums;
    let k = a.len().min(b.len());
    let (a, b) = (&a[..k], &b[..k]);
    for p in 0..k {
        for row in 0..MR {
            let a = simd.splat_f32s(a[p][row]);
            registers[row][0] = simd.mul_add_f32s(a, b[p][0], registers[row][0]);
            registers[row][1] = simd.mul_add_f32s(a, b[p][1], registers[row][1]);
        }
    }
    *sums = registers;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;
    use pulp::{Scalar256b, Scalar512b};

    /// Both microkernels, in scalar arithmetic where this processor lacks the vectors.
    #[test]
    fn microkernels_of_every_width_give_the_product() {
        let (m, n, k) = (25, 70, 300);
        let [a, b] = [normal(0, m * k), normal(1, n * k)];
        let at = |x: &[f32], row: usize, p: usize| f64::from(x[row * k + p]);
        for kernel in [AVX2, AVX512] {
            let packed = |values, width| {
                let operand = MatRef::row_major(values, k);
                let mut packed = vec![0.0; operand.rows.next_multiple_of(width) * k];
                pack(operand, width, &mut packed);
                packed
            };
            let [packed_a, packed_b] = [packed(&a, kernel.mr), packed(&b, kernel.nr)];
            let mut c = vec![MaybeUninit::new(f32::NAN); m * n];
            let product = Product {
                a: &packed_a,
                b: &packed_b,
                m,
                k,
                c: &mut c,
                ends: [true, true],
                epilogue: &|column, sums: &mut [f32]| {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        *sum += (column + at) as f32;
                    }
                },
            };
            if kernel.nr == AVX2.nr {
                product.with_simd(Scalar256b);
            } else {
                product.with_simd(Scalar512b);
            }
            for (index, found) in c.iter().enumerate() {
                let (row, column) = (index / n, index % n);
                let product = (0..k).map(|p| at(&a, row, p) * at(&b, column, p)).sum::<f64>();
                let expected = product + column as f64;
                // SAFETY: initialised from the beginning.
                let found = f64::from(unsafe { found.assume_init() });
                assert!((found - expected).abs() < 1e-4, "{row} {column}: {found} {expected}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_microkernel_is_that_of_the_widest_vectors() {
        let has_avx512 = pulp::x86::V4::try_new().is_some();
        let columns = match pulp::x86::V3::try_new() {
            Some(_) if has_avx512 => Some(AVX512.nr),
            Some(_) => Some(AVX2.nr),
            None => None,
        };
        assert_eq!(microkernel().map(|kernel| kernel.nr), columns);
        assert_eq!(available(), columns.is_some());
    }

    #[test]
    fn tasks_share_the_rows_and_pack_a_bounded_part_of_a() {
        // Whole panels, more than enough for all rows.
        assert_eq!(rows_of_task(130, 3, 1152, 12), 48);
        assert_eq!(rows_of_task(1, 8, 1152, 6), 6);
        // 96 x 1152 elements at most, but one panel at least.
        assert_eq!(rows_of_task(10_000, 4, 1152, 12), 96);
        assert_eq!(rows_of_task(10_000, 4, 2304, 12), 48);
        assert_eq!(rows_of_task(10_000, 4, 1 << 20, 12), 12);
        assert_eq!(rows_of_task(8, 2, 0, 6), 6);
    }
}
