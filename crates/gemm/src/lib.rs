//! Matrix products of f32 for layers of neural networks, on AMX, AVX-512 or AVX2.
//!
//! [`multiply`] computes `C = A B` on all of rayon's threads, and applies an epilogue, such as a bias and an
//! activation, to each part of C while that part is in cache. [`multiply_single_threaded`] is for many
//! small products at once. Operands are [`MatRef`]s: matrices at any strides, so that transposes and
//! parts of larger arrays need no copy. On AMX, f32 are multiplied as bf16 without losing accuracy.
//!
//! # Example
//!
//! ```
//! use opensora_gemm::{MatRef, available, multiply};
//!
//! if !available() {
//!     return; // No strategy for this processor.
//! }
//! let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
//! let weight = [1.0, 0.0, -1.0, 0.5, 0.5, 0.5]; // [2, 3], one row per output
//! let bias = [10.0, 20.0];
//!
//! // y = x weightᵀ + bias
//! let x = MatRef::row_major(&x, 3);
//! let weight = MatRef::row_major(&weight, 3);
//! let y = multiply(x, weight.transposed(), |first_column, run| {
//!     for (y, bias) in run.iter_mut().zip(&bias[first_column..]) {
//!         *y += bias;
//!     }
//! });
//! assert_eq!(y, [8.0, 23.0, 8.0, 27.5]); // [2, 2]
//! ```
//!
//! # Contents
//!
//! | item | purpose |
//! |---|---|
//! | [`MatRef`] | a matrix in a slice, at any strides |
//! | [`multiply`] | a product on all threads, with an epilogue |
//! | [`multiply_single_threaded`] | a product on the calling thread, into a slice |
//! | [`available`] | whether this processor has a strategy |
//! | [`profitable`] | whether a layer is large enough for one |
//!
//! # Processors
//!
//! The strategy is chosen at run time, once per process:
//!
//! | processor | strategy |
//! |---|---|
//! | x86-64 with AMX-BF16 and AVX-512-BF16 (Intel Xeon since 2023), Linux | AMX: three bf16 terms per f32, tiles of 16x32 |
//! | x86-64 with AVX-512 (level v4) | vectors of 16 f32 |
//! | x86-64 with AVX2 and FMA (level v3) | vectors of 8 f32 |
//! | others, such as AArch64 | none: [`available`] returns false |
//!
//! The environment variable `OPENSORA_NO_AMX`, set to anything, turns AMX off, for comparisons.
//!
//! # Accuracy
//!
//! Results are as accurate as f32 arithmetic on every strategy: in the tests, the error of a product (root
//! of the sum of squares, against f64) is at most 1.5 times that of sums in f32.
//!
//! AMX multiplies bf16, at about thirty times the rate at which vectors multiply f32. An f32 is split into
//! three bf16 terms that add up to it, 8 bits of its 24 each. Of the nine products of terms, six are added in
//! f32; the other three are below 2^-25 of the product, half the rounding error of one f32 operation. The
//! split is that of Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence
//! Datatype For Higher-Precision Computations" (arXiv 1904.06376).
//!
//! Non-finite operands give non-finite results. On AMX, subnormal f32 count as zero, an infinity always
//! gives NaN, and so do finite numbers from 3.39e38 on, which are beyond bf16.
//!
//! A row of C does not depend on the number of rows, nor on the number of threads.

#![allow(
    unsafe_code,
    reason = "instructions without safe names, and memory written before it is read"
)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod amx;
mod mat;
mod scratch;
mod simd;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{mem::MaybeUninit, sync::OnceLock};

pub use mat::MatRef;

/// Below this number of inputs or outputs, packing costs more than the faster kernel saves.
const MIN_SIDE: usize = 64;

/// Returns true if [`multiply`] is [`available`] and faster than a general-purpose product for a layer
/// with a weight of `[inputs, outputs]`, and for its gradients.
///
/// The number of rows that go through the layer is not considered, so that the result of a row does not
/// depend on it.
pub fn profitable(inputs: usize, outputs: usize) -> bool {
    inputs.min(outputs) >= MIN_SIDE && available()
}

/// Returns true if this processor has a strategy for [`multiply`] and [`multiply_single_threaded`]; see
/// [Processors](crate#processors).
pub fn available() -> bool {
    Strategy::of_processor().is_some()
}

/// Implementation of the matrix products: AMX tiles, or SIMD microkernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Amx,
    Simd,
}

impl Strategy {
    /// All strategies, the fastest first.
    const ALL: [Self; 2] = [Self::Amx, Self::Simd];

    /// Returns true if this processor has the instructions.
    fn is_available(self) -> bool {
        match self {
            Self::Amx => amx::available(),
            Self::Simd => simd::available(),
        }
    }

    /// Returns the fastest strategy of this processor.
    fn of_processor() -> Option<Self> {
        static FASTEST: OnceLock<Option<Strategy>> = OnceLock::new();
        *FASTEST.get_or_init(|| Self::ALL.into_iter().find(|strategy| strategy.is_available()))
    }

    /// Returns the fastest strategy of this processor.
    ///
    /// # Panics
    /// Panics if there is none.
    fn expect() -> Self {
        Self::of_processor().expect("no strategy for this processor: ask `available` first")
    }

    /// Computes [`multiply`] by this strategy, which must be available.
    fn multiply(
        self,
        a: MatRef,
        b: MatRef,
        epilogue: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let size = size_of_product(a, b);
        if size == 0 {
            return Vec::new();
        }
        let mut product = Vec::with_capacity(size);
        let c = &mut product.spare_capacity_mut()[..size];
        match self {
            Self::Amx => amx::multiply(a, b, c, epilogue),
            Self::Simd => simd::multiply(a, b, c, epilogue),
        }
        // SAFETY: both strategies write all of `c`.
        unsafe { product.set_len(size) };
        product
    }

    /// Computes [`multiply_single_threaded`] by this strategy, which must be available.
    fn multiply_single_threaded(self, a: MatRef, b: MatRef, c: &mut [f32]) {
        let size = size_of_product(a, b);
        assert!(
            c.len() == size,
            "a product of {}x{} elements does not fill {}",
            a.rows,
            b.columns,
            c.len()
        );
        let c = as_uninit(c);
        match self {
            Self::Amx => amx::multiply_single_threaded(a, b, c),
            Self::Simd => simd::multiply_single_threaded(a, b, c),
        }
    }
}

/// Returns the product of `a` (m x k) and `b` (k x n), row-major `[m, n]`, computed on all threads of rayon's
/// pool.
///
/// `epilogue(first_column, run)` may change each run of a row's elements, from column `first_column` on,
/// while the run is in cache. It is called once for every element, from several threads, in no particular
/// order. Mark it `#[inline(always)]` if it is to be compiled for this processor's vectors.
///
/// # Panics
/// Panics if the columns of `a` and the rows of `b` differ in number, if there is no strategy for this
/// processor (see [`available`]), or if the product does not fit in memory.
pub fn multiply(a: MatRef, b: MatRef, epilogue: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    Strategy::expect().multiply(a, b, epilogue)
}

/// Writes the product of `a` (m x k) and `b` (k x n) to `c`, row-major `[m, n]`, on the calling thread.
///
/// Suited to many small products in parallel: each task computes one product.
///
/// # Panics
/// Panics if the columns of `a` and the rows of `b` differ in number, if the length of `c` is not m n, or if
/// there is no strategy for this processor (see [`available`]).
pub fn multiply_single_threaded(a: MatRef, b: MatRef, c: &mut [f32]) {
    Strategy::expect().multiply_single_threaded(a, b, c);
}

/// Returns the number of elements of `a b`.
fn size_of_product(a: MatRef, b: MatRef) -> usize {
    assert!(
        a.columns == b.rows,
        "a {}x{} matrix cannot be multiplied by a {}x{} one",
        a.rows,
        a.columns,
        b.rows,
        b.columns
    );
    a.rows.checked_mul(b.columns).expect("a product that fits in memory")
}

/// Runs `f`, compiled for the widest vectors of this processor.
#[inline(always)]
fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Casts a slice for functions that write every element.
fn as_uninit(c: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: both types have the same layout, and only initialised elements are ever written.
    unsafe { &mut *(std::ptr::from_mut(c) as *mut [MaybeUninit<f32>]) }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
