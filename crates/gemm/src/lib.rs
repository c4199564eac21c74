//! Matrix products of f32, on a processor's matrix unit (`amx`) or on its vectors (`simd`).
//!
//! Intel's processors have multiplied tiles of bf16 since 2023 (AMX), at some thirty times the rate at
//! which their vectors multiply f32. Here an f32 is taken apart into three bf16 that add up to it,
//! 8 bits of its 24 each, and of the nine products of parts the six that count are added in f32:
//! those left out are below 2^-25 of the product, half of what one rounding to f32 changes. What comes
//! out is as near to the exact product as that of f32 arithmetic, in a fraction of the time.
//!
//! On the unit, numbers below f32's normal range count as zero; an infinity makes NaN of what it meets, and
//! so do finite numbers from 3.39e38 on, beyond which there is no bf16.
//!
//! Where there is no such unit, but vectors of eight numbers or more, products are made on those: burn's
//! own are a tenth slower, read a factor's panels from farther away and leave bias and activation to another
//! pass.
//!
//! Source of the split: Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial
//! Intelligence Datatype For Higher-Precision Computations" (arXiv 1904.06376).

#![allow(
    unsafe_code,
    reason = "instructions without safe names, and memory written before it is read"
)]

mod amx;
mod mat;
mod scratch;
mod simd;
#[cfg(test)]
mod testing;

use std::{mem::MaybeUninit, sync::OnceLock};

pub use mat::Factor;

/// Fewer inputs or outputs of a layer than this, and preparing the factors costs too much.
const LEAST: usize = 64;

/// Whether [`multiply`] takes the products of a layer of this size, and of its gradients: where the
/// processor [can](is_at_hand) and the layer is large enough to be worth it. How many rows go through it
/// does not count, so that what becomes of one does not depend on how many there are.
pub fn is_worth_it(inputs: usize, outputs: usize) -> bool {
    inputs.min(outputs) >= LEAST && is_at_hand()
}

/// Whether a processor has what [`multiply`] and [`multiply_here`] need.
pub fn is_at_hand() -> bool {
    way().is_some()
}

/// Ways to multiply.
#[derive(Clone, Copy)]
enum Way {
    Unit,
    Vectors,
}

/// The one of this processor.
fn way() -> Option<Way> {
    static WAY: OnceLock<Option<Way>> = OnceLock::new();
    *WAY.get_or_init(|| {
        if amx::available() { Some(Way::Unit) } else { simd::available().then_some(Way::Vectors) }
    })
}

/// `left right`, `[rows, columns]`, after `finish(first column, values)` of each run of a row's values,
/// while they are at hand.
///
/// # Panics
/// Where the sizes do not fit each other, or [`is_at_hand`] was not asked.
#[allow(unsafe_code, reason = "numbers are written before they are read, so that none are zeroed")]
pub fn multiply(
    left: Factor,
    right: Factor,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    assert!(left.depth == right.depth && left.is_held() && right.is_held(), "factors that fit");
    let count = left.lines.checked_mul(right.lines).expect("a product that memory has room for");
    if count == 0 {
        return Vec::new();
    }
    let mut product = Vec::with_capacity(count);
    let out = &mut product.spare_capacity_mut()[..count];
    match way().expect("asked before") {
        Way::Unit => amx::multiply(left, right, out, finish),
        Way::Vectors => simd::multiply(left, right, out, finish),
    }
    // SAFETY: both ways write all rows and columns.
    unsafe { product.set_len(count) };
    product
}

/// `left right` into `out` `[rows, columns]`, on this thread alone: for small products of which many are
/// made at once.
///
/// # Panics
/// Where the sizes do not fit each other, or [`is_at_hand`] was not asked.
pub fn multiply_here(left: Factor, right: Factor, out: &mut [f32]) {
    assert!(left.depth == right.depth && left.is_held() && right.is_held(), "factors that fit");
    let count = left.lines.checked_mul(right.lines);
    assert!(Some(out.len()) == count, "one number a row and column");
    let out = as_unwritten(out);
    match way().expect("asked before") {
        Way::Unit => amx::multiply_here(left, right, out),
        Way::Vectors => simd::multiply_here(left, right, out),
    }
}

/// Runs `f`, compiled for the widest vectors that this processor has.
#[inline(always)]
fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Numbers as places to write numbers to.
#[allow(unsafe_code, reason = "for ways that write all of them, whatever was there")]
fn as_unwritten(out: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: of one layout, and nothing but numbers is ever written to it.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

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
            let noise = normal;
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
        if !is_at_hand() {
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
    fn what_is_not_finite_stays_so() {
        if !is_at_hand() {
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
