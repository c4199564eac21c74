//! Products by every strategy that this processor has.

use super::*;
use crate::testing::normal;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The strategies of this processor.
fn strategies() -> impl Iterator<Item = Strategy> {
    Strategy::ALL.into_iter().filter(|strategy| strategy.is_available())
}

/// The memory layout of an operand.
#[derive(Debug, Clone, Copy)]
enum Layout {
    RowMajor,
    ColumnMajor,
    /// Neither rows nor columns are contiguous.
    Spread,
}

const LAYOUTS: [Layout; 3] = [Layout::RowMajor, Layout::ColumnMajor, Layout::Spread];

/// An operand of a product, with NaN between and behind its elements.
struct Operand {
    values: Vec<f32>,
    size: [usize; 2],
    strides: [usize; 2],
}

impl Operand {
    /// `values` are row-major.
    fn new(values: &[f32], [rows, columns]: [usize; 2], layout: Layout) -> Self {
        let strides = match layout {
            Layout::RowMajor => [columns + 3, 1],
            Layout::ColumnMajor => [1, rows + 2],
            Layout::Spread => [2 * columns + 1, 2],
        };
        let count = rows * strides[0] + columns * strides[1];
        let mut spread = vec![f32::NAN; count];
        for (index, &value) in values.iter().enumerate() {
            spread[index / columns * strides[0] + index % columns * strides[1]] = value;
        }
        Self { values: spread, size: [rows, columns], strides }
    }

    fn view(&self) -> MatRef<'_> {
        MatRef::with_strides(&self.values, self.size, self.strides)
    }
}

/// Compares `c` with `a b + bias` (row-major): its error may be 1.5 times that of sums in f32.
fn assert_product(c: &[f32], a: &[f32], b: &[f32], bias: &[f32], [m, n, k]: [usize; 3]) {
    assert_eq!(c.len(), m * n);
    // Squares of the error of `c`, of the error of sums in f32, and of the result.
    let mut squares = [0.0; 3];
    for (index, &found) in c.iter().enumerate() {
        let (row, column) = (index / n, index % n);
        let products = || (0..k).map(|p| f64::from(a[row * k + p]) * f64::from(b[p * n + column]));
        let expected = products().sum::<f64>() + f64::from(bias[column]);
        let in_f32 = products().fold(0.0f32, |sum, x| (f64::from(sum) + x) as f32) + bias[column];
        squares[0] += (f64::from(found) - expected).powi(2);
        squares[1] += (f64::from(in_f32) - expected).powi(2);
        squares[2] += expected.powi(2);
    }
    let [error, error_in_f32, result] = squares.map(f64::sqrt);
    let tolerance = 1.5 * error_in_f32 + 1e-7 * result;
    assert!(error <= tolerance, "{m}x{n}x{k}: {error}, {error_in_f32} in f32");
}

/// Sizes `[m, n, k]`: single elements, edges of tiles and panels, several blocks of k, alike and not, and k = 0.
const SIZES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [33, 95, 31],
    [64, 64, 64],
    [300, 70, 1153],
    [129, 257, 2400],
    [7, 40, 2401],
    [5, 7, 0],
    [40, 40, 0],
    [1, 200, 40],
    [200, 1, 40],
];

/// Every layout of `a`, with every layout of `b`.
fn layouts() -> impl Iterator<Item = (Layout, Layout)> {
    LAYOUTS.into_iter().flat_map(|of_a| LAYOUTS.map(|of_b| (of_a, of_b)))
}

#[test]
fn products_are_as_accurate_as_f32_in_every_layout() {
    for strategy in strategies() {
        for [m, n, k] in SIZES {
            let [a, b, bias] = [normal(0, m * k), normal(1, k * n), normal(2, n)];
            let add_bias = |column: usize, run: &mut [f32]| {
                run.iter_mut().zip(&bias[column..]).for_each(|(x, bias)| *x += bias);
            };
            let [mut first, mut first_single] = [None, None];
            for (of_a, of_b) in layouts() {
                let left = Operand::new(&a, [m, k], of_a);
                let right = Operand::new(&b, [k, n], of_b);
                let c = strategy.multiply(left.view(), right.view(), add_bias);
                let first = first.get_or_insert_with(|| {
                    assert_product(&c, &a, &b, &bias, [m, n, k]);
                    c.clone()
                });
                assert!(c == *first, "{m}x{n}x{k}, {of_a:?} by {of_b:?}");

                // The previous contents of `c` are ignored.
                let mut c = vec![f32::NAN; m * n];
                strategy.multiply_single_threaded(left.view(), right.view(), &mut c);
                let first = first_single.get_or_insert_with(|| {
                    assert_product(&c, &a, &b, &vec![0.0; n], [m, n, k]);
                    c.clone()
                });
                assert!(c == *first, "{m}x{n}x{k}, {of_a:?} by {of_b:?}, single-threaded");
            }
        }
    }
}

#[test]
fn the_epilogue_runs_once_for_every_element() {
    for strategy in strategies() {
        for [m, n, k] in SIZES {
            // Products of ones are exactly k.
            let (a, b) = (vec![1.0; m * k], vec![1.0; k * n]);
            let a = MatRef::with_strides(&a, [m, k], [k, 1]);
            let b = MatRef::with_strides(&b, [k, n], [n, 1]);
            let calls = AtomicUsize::new(0);
            let c = strategy.multiply(a, b, |first_column, run| {
                calls.fetch_add(run.len(), Ordering::Relaxed);
                for (offset, x) in run.iter_mut().enumerate() {
                    *x = 2.0 * *x + (first_column + offset) as f32;
                }
            });
            assert_eq!(calls.into_inner(), m * n, "{m}x{n}x{k}");
            for (index, &found) in c.iter().enumerate() {
                assert_eq!(found, (2 * k + index % n) as f32, "{index} of {m}x{n}x{k}");
            }
        }
    }
}

#[test]
fn empty_products_are_empty() {
    for strategy in strategies() {
        for [m, n, k] in [[0, 7, 5], [7, 0, 5], [0, 0, 0], [0, 7, 0], [7, 0, 0]] {
            let (a, b) = (vec![1.0; m * k], vec![1.0; k * n]);
            let a = MatRef::with_strides(&a, [m, k], [k, 1]);
            let b = MatRef::with_strides(&b, [k, n], [n, 1]);
            let c = strategy.multiply(a, b, |_, _| panic!("an epilogue of nothing"));
            assert!(c.is_empty(), "{m}x{n}x{k}");
            strategy.multiply_single_threaded(a, b, &mut []);
        }
    }
}

#[test]
fn non_finite_elements_reach_their_row_and_column_alone() {
    let [m, n, k] = [40, 50, 70];
    for strategy in strategies() {
        for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let [mut a, mut b] = [normal(5, m * k), normal(6, k * n)];
            a[3 * k + 4] = x;
            b[5 * n + 6] = x;
            let (a, b) = (MatRef::row_major(&a, k), MatRef::row_major(&b, n));
            let mut single = vec![0.0; m * n];
            strategy.multiply_single_threaded(a, b, &mut single);
            for c in [strategy.multiply(a, b, |_, _| ()), single] {
                for (index, found) in c.iter().enumerate() {
                    let (row, column) = (index / n, index % n);
                    assert_eq!(found.is_finite(), row != 3 && column != 6, "{row} {column}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows_or_threads() {
    let [m, n, k] = [130, 70, 1500];
    for strategy in strategies() {
        let [a, b] = [normal(7, m * k), normal(8, k * n)];
        let b = MatRef::row_major(&b, n);
        let all = strategy.multiply(MatRef::row_major(&a, k), b, |_, _| ());
        for rows in [1, 31, 64, 129] {
            let some = strategy.multiply(MatRef::row_major(&a[..rows * k], k), b, |_, _| ());
            assert!(some == all[..rows * n], "{rows} rows");
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let c = pool.install(|| strategy.multiply(MatRef::row_major(&a, k), b, |_, _| ()));
            assert!(c == all, "{threads} threads");
        }
    }
}

#[test]
fn repeated_rows_have_a_stride_of_zero() {
    let [m, n, k] = [20, 40, 50];
    for strategy in strategies() {
        let [row, b] = [normal(9, k), normal(10, k * n)];
        let a = MatRef::with_strides(&row, [m, k], [0, 1]);
        let c = strategy.multiply(a, MatRef::row_major(&b, n), |_, _| ());
        let repeated = row.repeat(m);
        assert_product(&c, &repeated, &b, &vec![0.0; n], [m, n, k]);
    }
}

#[test]
fn the_public_functions_use_the_fastest_strategy() {
    assert_eq!(Strategy::of_processor(), strategies().next());
    assert_eq!(available(), strategies().next().is_some());
    let Some(strategy) = strategies().next() else { return };
    let [a, b] = [normal(11, 50 * 60), normal(12, 60 * 70)];
    let (a, b) = (MatRef::row_major(&a, 60), MatRef::row_major(&b, 70));
    let add = |column: usize, run: &mut [f32]| run.iter_mut().for_each(|x| *x += column as f32);
    assert_eq!(multiply(a, b, add), strategy.multiply(a, b, add));
    let [mut found, mut expected] = [vec![0.0; 50 * 70], vec![1.0; 50 * 70]];
    multiply_single_threaded(a, b, &mut found);
    strategy.multiply_single_threaded(a, b, &mut expected);
    assert_eq!(found, expected);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn processors_with_avx2_have_a_strategy() {
    let has_vectors = pulp::x86::V3::try_new().is_some();
    assert_eq!(Strategy::Simd.is_available(), has_vectors);
    assert!(available() || !has_vectors);
}

#[test]
fn small_layers_are_not_profitable() {
    assert_eq!(profitable(MIN_SIDE, MIN_SIDE), available());
    assert_eq!(profitable(1152, 4608), available());
    assert!(!profitable(MIN_SIDE - 1, 1152));
    assert!(!profitable(1152, MIN_SIDE - 1));
}

#[test]
#[should_panic(expected = "a 2x3 matrix cannot be multiplied by a 2x3 one")]
fn operands_of_different_k_panic() {
    let x = MatRef::with_strides(&[0.0; 6], [2, 3], [3, 1]);
    Strategy::Simd.multiply(x, x, |_, _| ());
}

#[test]
#[should_panic(expected = "a 2x3 matrix cannot be multiplied by a 2x3 one")]
fn operands_of_different_k_panic_single_threaded() {
    let x = MatRef::with_strides(&[0.0; 6], [2, 3], [3, 1]);
    Strategy::Simd.multiply_single_threaded(x, x, &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "a product of 2x2 elements does not fill 5")]
fn an_output_of_another_size_panics() {
    let x = MatRef::with_strides(&[0.0; 6], [2, 3], [3, 1]);
    Strategy::Simd.multiply_single_threaded(x, x.transposed(), &mut [0.0; 5]);
}

#[test]
#[should_panic(expected = "a product that fits in memory")]
fn a_product_beyond_memory_panics() {
    let x = MatRef::with_strides(&[], [usize::MAX, 0], [1, 1]);
    Strategy::Simd.multiply(x, x.transposed(), |_, _| ());
}

#[test]
fn an_epilogue_may_compute_products() {
    let a = Operand::new(&normal(1, 70 * 40), [70, 40], Layout::RowMajor);
    let b = Operand::new(&normal(2, 40 * 100), [40, 100], Layout::RowMajor);
    for strategy in strategies() {
        let product =
            |c: &mut [f32]| strategy.multiply_single_threaded(b.view().transposed(), b.view(), c);
        let mut expected = vec![0.0; 100 * 100];
        product(&mut expected);
        let plain = strategy.multiply(a.view(), b.view(), |_, _| {});
        let nested = strategy.multiply(a.view(), b.view(), |_, _| {
            let mut c = vec![0.0; 100 * 100];
            product(&mut c);
            assert!(c == expected, "{strategy:?}");
        });
        assert!(nested == plain, "{strategy:?}");
    }
}
