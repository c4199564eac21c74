//! Softmax of attention scores, with scale and bias, and its gradient.

use super::elementwise::{exp, fold, vectorized};
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 256;

/// Replaces scores, in rows of `keys`, by `softmax(scores * scale + bias)`, on all cores. Each sample has
/// `rows_per_sample` rows; `bias` is `[1 or B, keys]`.
pub(super) fn softmax(
    scores: &mut [f32],
    keys: usize,
    rows_per_sample: usize,
    scale: f32,
    bias: Option<&[f32]>,
) {
    scores.par_chunks_mut(rows_per_sample * keys).enumerate().for_each(|(sample, scores)| {
        let bias = bias.map(|bias| bias_of_samples(bias, keys, sample, 1));
        scores
            .par_chunks_mut(ROWS * keys)
            .for_each(|scores| softmax_single_threaded(scores, keys, scale, bias));
    });
}

/// Returns the rows of `bias` for `count` samples from `first` on; all of it if it is one row for all
/// samples.
pub(super) fn bias_of_samples(bias: &[f32], keys: usize, first: usize, count: usize) -> &[f32] {
    if bias.len() == keys { bias } else { &bias[first * keys..][..count * keys] }
}

/// Computes [`softmax`] of the rows of one sample, on the calling thread.
pub(super) fn softmax_single_threaded(
    scores: &mut [f32],
    keys: usize,
    scale: f32,
    bias: Option<&[f32]>,
) {
    vectorized(
        #[inline(always)]
        || {
            for row in scores.chunks_mut(keys) {
                softmax_of_row(row, scale, bias);
            }
        },
    );
}

#[inline(always)]
fn softmax_of_row(row: &mut [f32], scale: f32, bias: Option<&[f32]>) {
    match bias {
        Some(bias) => {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x = *x * scale + bias;
            }
        }
        None => {
            for x in row.iter_mut() {
                *x *= scale;
            }
        }
    }
    let largest = fold(row, f32::NEG_INFINITY, |x| x, |a, b| if b > a { b } else { a });
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let inverse = 1.0 / fold(row, 0.0, |x| x, |a, b| a + b);
    for x in row {
        *x *= inverse;
    }
}

/// Replaces `dp`, the gradient of the softmax `p` in rows of `keys`, by the gradient of the scores before
/// `scale` was applied; on all cores.
#[cfg(feature = "autodiff")]
pub(super) fn softmax_backward(keys: usize, dp: &mut [f32], p: &[f32], scale: f32) {
    dp.par_chunks_mut(ROWS * keys)
        .zip(p.par_chunks(ROWS * keys))
        .for_each(|(dp, p)| softmax_backward_single_threaded(keys, dp, p, scale));
}

/// Computes [`softmax_backward`] on the calling thread.
#[cfg(feature = "autodiff")]
pub(super) fn softmax_backward_single_threaded(keys: usize, dp: &mut [f32], p: &[f32], scale: f32) {
    vectorized(
        #[inline(always)]
        || {
            for (dp, p) in dp.chunks_mut(keys).zip(p.chunks(keys)) {
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp *= p;
                }
                let sum = fold(dp, 0.0, |x| x, |a, b| a + b);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = (*dp - p * sum) * scale;
                }
            }
        },
    );
}
