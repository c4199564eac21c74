//! Attention over values in this process's memory: two matrix products and one pass between them.
//!
//! burn's flex backend copies queries, keys and values into one piece for each head and takes one
//! exponential at a time. Its matrix products read heads where they lie, though, so here nothing is
//! copied before them, and scale, bias and softmax of the scores are one pass on all cores.
//!
//! Scores are held, of as many samples and queries at once as stay near the processor.

use super::Heads;
use crate::host::{Values, exp, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Scores that are held at once, over all heads: 16 MB, about the last cache of a processor.
pub(super) const SCORE_BUDGET: usize = 1 << 22;

/// Beyond so many keys a chunk would be so few queries that the tiles of burn's kernel do better.
const MOST_KEYS: usize = 1 << 12;

/// Scores that the compiler takes side by side.
const LANES: usize = 16;

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
    scores.get_mut().par_chunks_mut(queries * keys).enumerate().for_each(|(head, scores)| {
        let sample = head / count;
        // One row of a bias serves all samples where it has only one.
        let bias =
            bias.map(|bias| if bias.len() == keys { bias } else { &bias[sample * keys..][..keys] });
        vectorized(|| scores.chunks_mut(keys).for_each(|row| softmax(row, scale, bias)));
    });
    Ok(scores.put().matmul(value))
}

/// The softmax of `row * scale + bias`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32, bias: Option<&[f32]>) {
    match bias {
        Some(bias) => row.iter_mut().zip(bias).for_each(|(x, b)| *x = *x * scale + b),
        None => row.iter_mut().for_each(|x| *x *= scale),
    }
    let largest = fold(row, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    row.iter_mut().for_each(|x| *x = exp(*x - largest));
    let inverse = 1.0 / fold(row, 0.0, |a, b| a + b);
    row.iter_mut().for_each(|x| *x *= inverse);
}

/// `f` over all values, in an order that takes [`LANES`] at once.
#[inline(always)]
fn fold(values: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let (rows, rest) = values.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for row in rows {
        for (lane, &x) in lanes.iter_mut().zip(row) {
            *lane = f(*lane, x);
        }
    }
    lanes.iter().chain(rest).fold(start, |a, &b| f(a, b))
}
