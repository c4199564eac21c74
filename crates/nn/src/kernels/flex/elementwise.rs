//! Elementwise loops that compilers vectorise, on one core or on all, and the functions that they apply.

pub(super) use crate::kernels::in_place::CHUNK;

use crate::activation::TWICE_SQRT_2_OVER_PI;

use rayon::prelude::*;

/// Replaces each element `x` by `f(x)`, on all cores.
pub(super) fn map_parallel(values: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    values.par_chunks_mut(CHUNK).for_each(|values| map(values, &f));
}

/// Replaces each element `x` by `f(x)`, on the calling thread.
pub(super) fn map(values: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorized(
        #[inline(always)]
        || {
            for x in values {
                *x = f(*x);
            }
        },
    );
}

/// Replaces each element `x` by `f(x, y)` with the element of `y` at the same index, on all cores.
#[cfg(feature = "autodiff")]
pub(super) fn zip_parallel(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
        vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.iter_mut().zip(y) {
                    *x = f(*x, *y);
                }
            },
        );
    });
}

/// Folds `map` of all elements by `f`, in 16 lanes that are combined at the end. `f` must not depend on the
/// order of elements.
#[inline(always)]
pub(super) fn fold(
    values: &[f32],
    start: f32,
    map: impl Fn(f32) -> f32,
    f: impl Fn(f32, f32) -> f32,
) -> f32 {
    let (rows, rest) = values.as_chunks::<16>();
    let mut lanes = [start; 16];
    for row in rows {
        for (lane, &x) in lanes.iter_mut().zip(row) {
            *lane = f(*lane, map(x));
        }
    }
    rest.iter().fold(lanes.into_iter().fold(start, &f), |a, &x| f(a, map(x)))
}

/// Runs `f`, compiled for the widest vectors of this processor. (The program as a whole is compiled for the
/// oldest processors, with vectors of four.)
#[inline(always)]
pub(in crate::kernels) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Returns GELU in the tanh approximation; see [`crate::activation::gelu_tanh`].
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let inner = x * (0.044715 * (x * x) + 1.0);
    x * sigmoid(inner * TWICE_SQRT_2_OVER_PI as f32)
}

/// Returns the derivative of [`gelu_tanh`].
#[cfg(feature = "autodiff")]
#[inline(always)]
pub(super) fn gelu_tanh_derivative(x: f32) -> f32 {
    let square = 0.044715 * (x * x);
    let sigmoid = sigmoid(x * (square + 1.0) * TWICE_SQRT_2_OVER_PI as f32);
    let slope = (3.0 * square + 1.0) * TWICE_SQRT_2_OVER_PI as f32;
    sigmoid * (1.0 + x * (1.0 - sigmoid) * slope)
}

/// Returns SiLU, `x * sigmoid(x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// Returns `1 / (1 + exp(-x))` with a relative error below 3e-7, or 6e-39 for `x` below -88, where the
/// result is smaller than f32's normal numbers.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Returns `exp(x)` with a relative error below 3e-7, in arithmetic that compilers vectorise. `x` is
/// clamped to -87..88, beyond which exp leaves the range of f32.
///
/// `exp(x) = 2^n exp(r)` with an integer `n` and `|r| <= ln(2) / 2`, where the Taylor polynomial of degree
/// 6 is accurate to f32.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a sum, whose first term has so few bits that its products with n are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    // 2^n from its exponent bits; the higher bits of ROUND are shifted out.
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_is_the_logistic_function() {
        for i in -120_000..=120_000 {
            let x = i as f32 * 1e-3;
            let want = 1.0 / (1.0 + (-x as f64).exp());
            let got = sigmoid(x) as f64;
            let floor = f64::from(f32::MIN_POSITIVE);
            assert!((got - want).abs() <= 3e-7 * want + floor, "{x}: {got} != {want}");
        }
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_the_exponential() {
        for i in -86_990..=87_990 {
            let x = i as f32 * 1e-3;
            let want = (x as f64).exp();
            assert!((exp(x) as f64 - want).abs() <= 3e-7 * want, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN).is_nan());
    }
}
