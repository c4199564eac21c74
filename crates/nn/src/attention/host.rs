//! Attention over values in this process's memory: two matrix products and one pass between them.
//!
//! burn's flex backend copies queries, keys and values into one piece for each head and takes one
//! exponential at a time. Its matrix products read heads where they lie, though, so here nothing is
//! copied before them, and scale, bias and softmax of the scores are one pass on all cores.
//!
//! Scores are held, of as many samples and queries at once as stay near the processor.

use super::Heads;
use crate::host::{Values, exp, fold, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Scores that are held at once, over all heads: 16 MB, about the last cache of a processor.
pub(crate) const SCORE_BUDGET: usize = 1 << 22;

/// Beyond so many keys a chunk would be so few queries that the tiles of burn's kernel do better.
pub(super) const MOST_KEYS: usize = 1 << 12;

/// Rows of scores that one task works on.
const ROWS: usize = 256;

/// Whether [`attention`] takes them: f32 in this process's memory, not too many keys, and no bias but
/// one for each key.
pub(super) fn can_take(heads: &Heads) -> bool {
    let keys = heads.key.dims()[2];
    let bias_of_keys = |bias: &Tensor<4>| {
        let [_, heads, queries, columns] = bias.dims();
        [heads, queries, columns] == [1, 1, keys] && Values::can_take(bias)
    };
    Values::can_take(&heads.query)
        && (1..=MOST_KEYS).contains(&keys)
        && heads.bias.as_ref().is_none_or(bias_of_keys)
}

/// `softmax(q kᵀ * scale + bias) v` of what [can be taken](can_take), with all scores held; the heads
/// back where they cannot.
#[allow(clippy::result_large_err, reason = "the heads go on either way")]
pub(super) fn attention(heads: Heads) -> Result<Tensor<4>, Heads> {
    if !can_take(&heads) {
        return Err(heads);
    }
    let Heads { query, key, value, bias, scale } = heads;
    let [_, count, queries, head_dim] = query.dims();
    let keys = key.dims()[2];
    let scale = scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt()) as f32;
    // [B, heads, N, D] x [B, heads, D, M] -> [B, heads, N, M]
    let scores = query.matmul(key.swap_dims(2, 3));
    let (Ok(mut scores), Ok(bias)) = (Values::take(scores), bias.map(Values::take).transpose())
    else {
        unreachable!("asked before")
    };
    let bias = bias.as_ref().map(Values::get);
    softmax(scores.get_mut(), keys, count * queries, scale, bias);
    Ok(scores.put().matmul(value))
}

/// Replaces scores by their softmax: rows of `keys`, `rows_of_sample` of them for each sample, with
/// `scale` and a `bias` `[1 or B, keys]`.
pub(crate) fn softmax(
    scores: &mut [f32],
    keys: usize,
    rows_of_sample: usize,
    scale: f32,
    bias: Option<&[f32]>,
) {
    scores.par_chunks_mut(rows_of_sample * keys).enumerate().for_each(|(sample, scores)| {
        let bias = bias.map(|bias| of_samples(bias, keys, sample, 1));
        scores
            .par_chunks_mut(ROWS * keys)
            .for_each(|scores| softmax_here(scores, keys, scale, bias));
    });
}

/// The rows of `keys` of some samples in a bias; one row serves all samples where it has only one.
pub(crate) fn of_samples(bias: &[f32], keys: usize, first: usize, count: usize) -> &[f32] {
    if bias.len() == keys { bias } else { &bias[first * keys..][..count * keys] }
}

/// [`softmax`] of the rows of one sample, on this thread alone.
pub(crate) fn softmax_here(scores: &mut [f32], keys: usize, scale: f32, bias: Option<&[f32]>) {
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
