//! Multi-head attention over token sequences.
//!
//! Memory grows linearly with the number of tokens on every backend: where a backend would hold
//! all `[B, heads, N, M]` scores at once, the work is cut into `chunks`. Where its fast kernel
//! wants other sizes, heads are widened by zeros (`padding`). What a backend does is told by
//! [`attention_kernel`].

mod chunks;
#[cfg(feature = "flex")]
mod host;
mod padding;

use crate::device::{AttentionKernel, attention_kernel};
#[cfg(feature = "flex")]
use crate::fused::{self, Fused};
#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use chunks::SCORE_BUDGET;
#[cfg(feature = "flex")]
pub(crate) use {
    chunks::Chunks,
    host::{SCORE_BUDGET as SCORES_AT_HAND, of_samples, softmax, softmax_here},
};

/// `[B, N, heads * head_dim] -> [B, heads, N, head_dim]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, channels] = x.dims();
    x.reshape([batch, tokens, heads, channels / heads]).swap_dims(1, 2)
}

/// `[B, heads, N, head_dim] -> [B, N, heads * head_dim]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, tokens, head_dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * head_dim])
}

/// `softmax(q kᵀ * scale + bias) v` for each head.
///
/// `query` `[B, heads, N, head_dim]`, `key` and `value` `[B, heads, M, head_dim]`, `bias` anything
/// that broadcasts to `[B, heads, N, M]`; returns `[B, heads, N, head_dim]`. `scale` is
/// `1 / sqrt(head_dim)` where not given (T5 uses 1).
///
/// A mask is always an additive bias here and never burn's boolean mask, whose meaning differs on
/// the libtorch backend.
///
/// Under autodiff the scores of all chunks are kept for the backward pass, as burn's attention
/// keeps them; only activation checkpointing bounds those.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: Option<f64>,
) -> Tensor<4> {
    let kernel = attention_kernel(&query.device());
    attention_by(kernel, SCORE_BUDGET, Heads { query, key, value, bias, scale })
}

/// Whether [`self_attention`] reads sequences along either axis where they lie. Where it does not, whoever
/// makes queries, keys and values does well to turn the tokens before, as long as they are narrow.
pub fn reads_any_axis<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    return fused::takes(x);
    #[cfg(not(feature = "flex"))]
    {
        let _ = x;
        false
    }
}

/// Multi-head attention of tokens to those along one axis of theirs, 1 (frames) or 2 (places):
/// `qkv` `[B, T, S, 3 C]`, queries, keys and values of all heads at each token; returns
/// `[B, T, S, C]`.
pub fn self_attention(qkv: Tensor<4>, axis: usize, heads: usize) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if fused::takes(&qkv) && qkv.dims()[axis] <= host::MOST_KEYS {
        let qkv = qkv.into_dispatch();
        return Tensor::from_dispatch(Dispatch::fused_self_attention(qkv, axis, heads));
    }
    let [batch, frames, places, width] = qkv.dims();
    let channels = width / 3;
    // [B, T, S, 3C] -> [B, G, N, 3C] -> [B*G, N, 3C]
    let along_frames = axis == 1;
    let qkv = if along_frames { qkv.swap_dims(1, 2) } else { qkv };
    let [_, groups, tokens, _] = qkv.dims();
    let qkv = qkv.reshape([batch * groups, tokens, width]);
    let [q, k, v] =
        [0, 1, 2].map(|part| split_heads(qkv.clone().narrow(2, part * channels, channels), heads));
    // ... and back.
    let out = merge_heads(attention(q, k, v, None, None));
    let out = out.reshape([batch, groups, tokens, channels]);
    let out = if along_frames { out.swap_dims(1, 2) } else { out };
    out.reshape([batch, frames, places, channels])
}

/// Multi-head attention of `query` `[B, N, C]` to `key_value` `[B, M, 2 C]`, keys and values of all heads at
/// each token, with `bias` `[B, 1, 1, M]` (or of one sample for all) added to the scores; returns
/// `[B, N, C]`. No gradient goes to the bias.
pub fn cross_attention(
    query: Tensor<3>,
    key_value: Tensor<3>,
    bias: Option<Tensor<4>>,
    heads: usize,
) -> Tensor<3> {
    let width = key_value.dims()[2];
    #[cfg(feature = "flex")]
    let [batch, keys, _] = key_value.dims();
    #[cfg(feature = "flex")]
    if fused::takes(&query)
        && fused::takes(&key_value)
        && keys <= host::MOST_KEYS
        && [batch, width] == [query.dims()[0], 2 * query.dims()[2]]
        && bias.as_ref().is_none_or(|bias| {
            let [samples, others @ ..] = bias.dims();
            fused::takes(bias) && [1, batch].contains(&samples) && others == [1, 1, keys]
        })
    {
        let bias = match bias {
            Some(bias) => bias.reshape([-1, keys as i64]),
            None => Tensor::<2>::zeros([1, keys], &query.device()),
        };
        let [query, key_value] = [query, key_value].map(Tensor::into_dispatch);
        let bias = bias.into_dispatch();
        let out = Dispatch::fused_cross_attention(query, key_value, bias, heads);
        return Tensor::from_dispatch(out);
    }
    let (channels, bias) = (width / 2, bias.map(Tensor::detach));
    let [k, v] = [0, 1]
        .map(|part| split_heads(key_value.clone().narrow(2, part * channels, channels), heads));
    merge_heads(attention(split_heads(query, heads), k, v, bias, None))
}

/// The arguments of [`attention`].
#[derive(Clone)]
struct Heads {
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: Option<f64>,
}

/// [`attention`] by a kernel of a kind, with at most `budget` scores at once where it holds them.
fn attention_by(kernel: AttentionKernel, budget: usize, heads: Heads) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if host::can_take(&heads) {
        return chunks::attention(heads, budget.min(host::SCORE_BUDGET));
    }
    let budget = if kernel.tiled && heads.bias.is_none() { usize::MAX } else { budget };
    let is_half = matches!(heads.query.dtype(), DType::F16 | DType::BF16);
    match kernel.head_dim_multiple {
        // The accelerated kernel multiplies f32 as f16 as well; one with a scale is never taken.
        Some(_) if !is_half => {
            let head_dim = heads.query.dims()[3] as f64;
            let scale = heads.scale.unwrap_or_else(|| 1.0 / head_dim.sqrt());
            chunks::attention(Heads { scale: Some(scale), ..heads }, budget)
        }
        // With a bias no kernel is accelerated, so that padding would only cost.
        Some(multiple) if heads.bias.is_none() => attention_padded(heads, multiple, budget),
        _ => chunks::attention(heads, budget),
    }
}

/// [`attention`] with a `head_dim` that `multiple` divides and at the default scale.
fn attention_padded(heads: Heads, multiple: usize, budget: usize) -> Tensor<4> {
    let value_dim = heads.value.dims()[3];
    let out = chunks::attention(padding::pad_heads(heads, multiple), budget);
    if out.dims()[3] == value_dim { out } else { out.narrow(3, 0, value_dim) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, FloatDType};

    #[test]
    fn splitting_and_merging_heads_are_inverse() {
        let device = Device::flex();
        let values: Vec<f32> = (0..24).map(|v| v as f32).collect();
        let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([2, 3, 4]);
        let heads = split_heads(x.clone(), 2);
        assert_eq!(heads.dims(), [2, 2, 3, 2]);
        assert_eq!(merge_heads(heads).into_data(), x.into_data());
    }

    #[test]
    fn a_masked_key_has_no_weight() {
        let device = Device::flex();
        let one = Tensor::<4>::ones([1, 1, 2, 4], &device);
        let value = Tensor::<4>::from_floats([[[[1.0], [100.0]]]], &device);
        let bias = Tensor::<4>::from_floats([[[[0.0, -1.0e30]]]], &device);
        let out = attention(one.clone(), one, value, Some(bias), None);
        assert_eq!(out.into_data().try_to_vec::<f32>().unwrap(), [1.0, 1.0]);
    }

    /// Values that look random, on `device`.
    fn waves(shape: [usize; 4], phase: f32, device: &Device) -> Tensor<4> {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
    }

    /// Queries `[batch, heads, queries, dim]` over `keys` keys.
    fn heads([batch, heads, queries, dim]: [usize; 4], keys: usize, device: &Device) -> Heads {
        Heads {
            query: waves([batch, heads, queries, dim], 0.0, device),
            key: waves([batch, heads, keys, dim], 1.0, device),
            value: waves([batch, heads, keys, dim], 2.0, device),
            bias: None,
            scale: None,
        }
    }

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    const HELD: AttentionKernel = AttentionKernel { tiled: false, head_dim_multiple: None };

    #[test]
    fn chunks_give_what_the_whole_gives() {
        let device = Device::flex();
        for (shape, keys) in [([1, 1, 7, 3], 5), ([5, 2, 9, 4], 9), ([3, 3, 301, 8], 17)] {
            let [batch, count, queries, _] = shape;
            let biases = [
                None,
                Some([batch, 1, 1, keys]),
                Some([1, count, queries, keys]),
                Some([batch, count, queries, keys]),
            ];
            for bias in biases {
                let bias = bias.map(|shape| waves(shape, 3.0, &device));
                let heads = Heads { bias, ..heads(shape, keys, &device) };
                let whole = attention_by(HELD, usize::MAX, heads.clone());
                let item = count * queries * keys;
                // Down to a query at a time; several samples at a time; all but one.
                for budget in [1, count * keys * 2, item - 1, item, 2 * item, batch * item - 1] {
                    let found = attention_by(HELD, budget, heads.clone());
                    let distance = distance(found, whole.clone());
                    assert!(distance <= 1e-6, "{shape:?} {keys} {budget}: {distance}");
                }
            }
        }
    }

    #[test]
    fn gradients_through_chunks_are_those_of_the_whole() {
        let device = Device::flex().autodiff();
        let gradients = |budget| {
            let heads = heads([2, 2, 9, 4], 7, &device);
            let [query, key, value] =
                [heads.query, heads.key, heads.value].map(|x| x.detach().require_grad());
            let bias = waves([2, 1, 1, 7], 3.0, &device).require_grad();
            let (q, k, v, b) = (query.clone(), key.clone(), value.clone(), bias.clone());
            let heads = Heads { query: q, key: k, value: v, bias: Some(b), scale: Some(0.7) };
            let out = attention_by(HELD, budget, heads);
            let weights = waves(out.dims(), 4.0, &device);
            let gradients = (out * weights).sum().backward();
            [query, key, value, bias].map(|x| x.grad(&gradients).unwrap())
        };
        let whole = gradients(usize::MAX);
        for budget in [1, 50, 2 * 9 * 7] {
            for (found, whole) in gradients(budget).into_iter().zip(whole.clone()) {
                assert!(distance(found, whole) <= 1e-6);
            }
        }
    }

    #[cfg(feature = "autodiff")]
    #[test]
    fn attention_of_tokens_to_each_other_equals_its_operations() {
        // The last two are long, and one of them fit for products of our own.
        let sizes = [
            (1, [2, 5, 3]),
            (2, [2, 3, 7]),
            (1, [1, 1, 4]),
            (1, [2, 3, 1]),
            (2, [2, 3, 1]),
            (1, [2, 70, 2]),
            (2, [2, 2, 70]),
        ];
        for (axis, [batch, frames, places]) in sizes {
            let (heads, dim) = (2, 6);
            let channels = heads * dim;
            crate::testing::assert_gradients_agree(
                [crate::testing::waves([batch, frames, places, 3 * channels], 0.0)],
                |[qkv]| self_attention(qkv, axis, heads),
                |[qkv]| {
                    let qkv = if axis == 1 { qkv.swap_dims(1, 2) } else { qkv };
                    let [_, groups, tokens, _] = qkv.dims();
                    let heads_of = |part: usize| {
                        let of = qkv.clone().narrow(3, part * channels, channels);
                        split_heads(of.reshape([batch * groups, tokens, channels]), heads)
                    };
                    let scores = heads_of(0).matmul(heads_of(1).swap_dims(2, 3));
                    let scores = scores * (1.0 / (dim as f64).sqrt());
                    let weights = burn::tensor::activation::softmax(scores, 3);
                    let out = merge_heads(weights.matmul(heads_of(2)));
                    let out = out.reshape([batch, groups, tokens, channels]);
                    if axis == 1 { out.swap_dims(1, 2) } else { out }
                },
            );
        }
    }

    #[cfg(feature = "autodiff")]
    #[test]
    fn attention_to_a_prompt_equals_its_operations() {
        let (heads, dim) = (3, 4);
        let channels = heads * dim;
        let cases = [(1, Some(1)), (2, Some(1)), (2, Some(2)), (2, None)];
        let sizes = [(11, 6), (300, 70)];
        let cases = cases.into_iter().flat_map(|case| sizes.map(|size| (case, size)));
        for ((batch, of_bias), (queries, keys)) in cases {
            let bias = of_bias.map(|rows| waves([rows, 1, 1, keys], 3.0, &Device::flex()));
            let bias = |x: &Tensor<3>| {
                let lifted =
                    |bias| if x.device().is_autodiff() { Tensor::from_inner(bias) } else { bias };
                bias.clone().map(lifted)
            };
            crate::testing::assert_gradients_agree(
                [
                    crate::testing::waves([batch, queries, channels], 0.0),
                    crate::testing::waves([batch, keys, 2 * channels], 1.0),
                ],
                |[query, key_value]| {
                    let bias = bias(&query);
                    cross_attention(query, key_value, bias, heads)
                },
                |[query, key_value]| {
                    let part = |part: usize| {
                        split_heads(key_value.clone().narrow(2, part * channels, channels), heads)
                    };
                    let scores = split_heads(query.clone(), heads).matmul(part(0).swap_dims(2, 3));
                    let scores = scores * (1.0 / (dim as f64).sqrt());
                    let scores = match bias(&query) {
                        Some(bias) => scores + bias,
                        None => scores,
                    };
                    merge_heads(burn::tensor::activation::softmax(scores, 3).matmul(part(1)))
                },
            );
        }
    }

    #[test]
    fn padded_heads_give_what_the_bare_ones_give() {
        let device = Device::flex();
        for (dim, scale) in [(72, None), (72, Some(0.1)), (80, None), (80, Some(0.1)), (5, None)] {
            let heads = Heads { scale, ..heads([2, 2, 33, dim], 21, &device) };
            let bare = attention_by(HELD, usize::MAX, heads.clone());
            for budget in [usize::MAX, 1000] {
                let padded = attention_padded(heads.clone(), 16, budget);
                assert_eq!(padded.dims(), bare.dims());
                let distance = distance(padded, bare.clone());
                assert!(distance <= 1e-6, "{dim} {scale:?}: {distance}");
            }
        }
    }

    #[test]
    fn half_floats_are_padded_and_f32_keeps_its_sizes() {
        let device = Device::flex();
        let kernel = AttentionKernel { head_dim_multiple: Some(16), ..HELD };
        let heads = heads([2, 2, 33, 72], 21, &device);
        let bare = attention_by(HELD, usize::MAX, heads.clone());
        let exact = attention_by(kernel, usize::MAX, heads.clone());
        assert!(distance(exact, bare.clone()) <= 1e-6);
        let half = |x: Tensor<4>| x.cast(FloatDType::BF16);
        let Heads { query, key, value, .. } = heads;
        let [query, key, value] = [query, key, value].map(half);
        let heads = Heads { query, key, value, bias: None, scale: None };
        let padded = attention_by(kernel, usize::MAX, heads).cast(FloatDType::F32);
        // bf16 has 8 bits; values are about 1.
        assert!(distance(padded, bare) <= 0.02);
    }

    #[test]
    fn a_bias_is_not_padded_but_counts() {
        let device = Device::flex();
        let bias = Some(waves([1, 1, 1, 4], 3.0, &device));
        let heads = Heads { bias, ..heads([1, 2, 3, 5], 4, &device) };
        let kernel = AttentionKernel { head_dim_multiple: Some(16), ..HELD };
        let found = attention_by(kernel, usize::MAX, heads.clone());
        assert_eq!(found.into_data(), attention_by(HELD, usize::MAX, heads).into_data());
    }
}
