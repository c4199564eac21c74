//! Multi-head attention over token sequences, with an additive bias.
//!
//! There are two implementations. Flex has a kernel (`kernels`) that reads heads through strides and has
//! gradients. Every other backend, every call that the kernel does not take (a bias for each query, half
//! precision, more than 4096 keys without autodiff), and split heads under autodiff use burn's attention: in `chunks`, so
//! that memory grows linearly with the number of tokens where a backend holds all `[B, heads, N, M]`
//! scores, and with heads padded by zeros (`padding`) where its fast kernel requires other sizes.
//! [`attention_kernel`] describes the backends.

mod chunks;
mod padding;

#[cfg(feature = "flex")]
pub(crate) use chunks::Chunks;

use crate::{
    device::{AttentionKernel, attention_kernel},
    kernels,
};
use burn::tensor::{DType, Tensor};
use chunks::SCORE_BUDGET;

/// Splits channels into heads: `[B, N, heads * head_dim] -> [B, heads, N, head_dim]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, channels] = x.dims();
    x.reshape([batch, tokens, heads, channels / heads]).swap_dims(1, 2)
}

/// Merges heads into channels: `[B, heads, N, head_dim] -> [B, N, heads * head_dim]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, tokens, head_dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * head_dim])
}

/// Computes `softmax(q kᵀ * scale + bias) v` for each head.
///
/// `query` `[B, heads, N, head_dim]`, `key` and `value` `[B, heads, M, head_dim]`, `bias` any shape
/// that broadcasts to `[B, heads, N, M]`; returns `[B, heads, N, head_dim]`. `scale` is
/// `1 / sqrt(head_dim)` by default (T5 uses 1).
///
/// Masks are additive biases, never burn's boolean masks, whose meaning differs on the libtorch backend.
///
/// Under autodiff the scores of all chunks are saved for backward, as in burn's attention; only activation
/// checkpointing bounds their memory.
///
/// # Panics
/// Panics if keys or values do not fit the queries.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: Option<f64>,
) -> Tensor<4> {
    let ([batch, heads, _, head_dim], keys) = (query.dims(), key.dims()[2]);
    // Kernels read keys and values by these sizes.
    assert!(
        key.dims() == [batch, heads, keys, head_dim] && value.dims()[..3] == [batch, heads, keys],
        "keys {:?} and values {:?} do not fit queries {:?}",
        key.dims(),
        value.dims(),
        query.dims()
    );
    kernels::attention(Heads { query, key, value, bias, scale }).unwrap_or_else(|heads| {
        let kernel = attention_kernel(&heads.query.device());
        attention_by_burn(kernel, SCORE_BUDGET, heads)
    })
}

/// Returns true if [`self_attention`] reads sequences along either axis through strides. Otherwise,
/// attention along axis 1 is faster if tokens are transposed before queries, keys and values are computed,
/// while they have a third of the width.
pub fn reads_any_axis<const D: usize>(x: &Tensor<D>) -> bool {
    kernels::supported(kernels::Operation::SelfAttention, x)
}

/// Computes multi-head self-attention along one axis of the tokens, 1 (frames) or 2 (spatial positions):
/// `qkv` `[B, T, S, 3 C]` holds queries, keys and values of all heads; returns `[B, T, S, C]`.
pub fn self_attention(qkv: Tensor<4>, axis: usize, heads: usize) -> Tensor<4> {
    kernels::self_attention(qkv, axis, heads).unwrap_or_else(|qkv| {
        let [batch, _, _, width] = qkv.dims();
        let channels = width / 3;
        let qkv = to_sequences(qkv, axis); // [B, G, N, 3C]
        let [_, groups, tokens, _] = qkv.dims();
        let qkv = qkv.reshape([batch * groups, tokens, width]);
        let [q, k, v] = [0, 1, 2]
            .map(|part| split_heads(qkv.clone().narrow(2, part * channels, channels), heads));
        let y = merge_heads(attention(q, k, v, None, None));
        // [B, G, N, C] -> [B, T, S, C]
        to_sequences(y.reshape([batch, groups, tokens, channels]), axis)
    })
}

/// Rearranges tokens `[B, T, S, W]` to sequences along `axis`, `[B, G, N, W]`: G groups of N tokens. The
/// function is its own inverse.
fn to_sequences(x: Tensor<4>, axis: usize) -> Tensor<4> {
    if axis == 1 { x.swap_dims(1, 2) } else { x }
}

/// Computes multi-head attention of `query` `[B, N, C]` to `key_value` `[B, M, 2 C]`, keys and values of
/// all heads, with `bias` `[1 or B, 1, 1, M]` added to the scores; returns `[B, N, C]`. The bias has no
/// gradient.
pub fn cross_attention(
    query: Tensor<3>,
    key_value: Tensor<3>,
    bias: Option<Tensor<4>>,
    heads: usize,
) -> Tensor<3> {
    kernels::cross_attention(query, key_value, bias, heads).unwrap_or_else(
        |(query, key_value, bias)| {
            let channels = key_value.dims()[2] / 2;
            let [k, v] = [0, 1].map(|part| {
                split_heads(key_value.clone().narrow(2, part * channels, channels), heads)
            });
            let bias = bias.map(Tensor::detach);
            merge_heads(attention(split_heads(query, heads), k, v, bias, None))
        },
    )
}

/// Arguments of [`attention`]: query, key, value, bias and scale.
#[derive(Clone)]
pub(crate) struct Heads {
    pub(crate) query: Tensor<4>,
    pub(crate) key: Tensor<4>,
    pub(crate) value: Tensor<4>,
    pub(crate) bias: Option<Tensor<4>>,
    pub(crate) scale: Option<f64>,
}

/// Computes [`attention`] by burn's operations on a device with the properties `kernel`. Where the
/// device does not compute scores tile by tile, at most `budget` scores are in memory at a time.
fn attention_by_burn(kernel: AttentionKernel, budget: usize, mut heads: Heads) -> Tensor<4> {
    let budget = if kernel.tiled && heads.bias.is_none() { usize::MAX } else { budget };
    let is_half = matches!(heads.query.dtype(), DType::F16 | DType::BF16);
    match kernel.head_dim_multiple {
        // The accelerated kernel multiplies f32 as f16. An explicit scale prevents its use.
        Some(_) if !is_half => {
            let head_dim = heads.query.dims()[3] as f64;
            heads.scale.get_or_insert_with(|| 1.0 / head_dim.sqrt());
            chunks::attention(heads, budget)
        }
        // With a bias no kernel is accelerated, so padding would only cost.
        Some(multiple) if heads.bias.is_none() => attention_padded(heads, multiple, budget),
        _ => chunks::attention(heads, budget),
    }
}

/// Computes [`attention`] with `head_dim` padded to a multiple of `multiple`, at the default scale.
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
    #[should_panic(
        expected = "keys [1, 2, 5, 4] and values [1, 2, 5, 4] do not fit queries [2, 2, 3, 4]"
    )]
    fn keys_of_another_batch_are_not_read() {
        let device = Device::flex();
        let zeros = |shape: [usize; 3]| Tensor::<3>::zeros(shape, &device);
        cross_attention(zeros([2, 3, 8]), zeros([1, 5, 16]), None, 2);
    }

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

    /// Returns pseudo-random values in [-1, 1].
    fn waves(shape: [usize; 4], phase: f32, device: &Device) -> Tensor<4> {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
    }

    /// Returns arguments with queries `[batch, heads, queries, dim]` and `keys` keys.
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
    fn the_kernel_of_flex_equals_attention_by_burn() {
        let device = Device::flex();
        for (shape, keys) in [([1, 1, 7, 3], 5), ([5, 2, 9, 4], 9), ([2, 3, 301, 8], 70)] {
            for samples in [None, Some(1), Some(shape[0])] {
                for scale in [None, Some(0.3)] {
                    let bias = samples.map(|samples| waves([samples, 1, 1, keys], 3.0, &device));
                    let heads = Heads { bias, scale, ..heads(shape, keys, &device) };
                    let expected = attention_by_burn(HELD, usize::MAX, heads.clone());
                    let Heads { query, key, value, bias, scale } = heads;
                    // Heads split from tokens have other strides.
                    let strided = |x: Tensor<4>| split_heads(merge_heads(x), shape[1]);
                    let [query, key, value] = [query, key, value].map(strided);
                    let found = attention(query, key, value, bias, scale);
                    let distance = distance(found, expected);
                    assert!(distance <= 1e-6, "{shape:?} {keys} {samples:?}: {distance}");
                }
            }
        }
    }

    #[test]
    fn chunks_give_the_same_result_as_one_chunk() {
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
                let whole = attention_by_burn(HELD, usize::MAX, heads.clone());
                let item = count * queries * keys;
                // One query at a time; several samples at a time; all samples but one.
                for budget in [1, count * keys * 2, item - 1, item, 2 * item, batch * item - 1] {
                    let found = attention_by_burn(HELD, budget, heads.clone());
                    let distance = distance(found, whole.clone());
                    assert!(distance <= 1e-6, "{shape:?} {keys} {budget}: {distance}");
                }
            }
        }
    }

    #[test]
    fn chunks_give_the_same_gradients_as_one_chunk() {
        let device = Device::flex().autodiff();
        let gradients = |budget| {
            let heads = heads([2, 2, 9, 4], 7, &device);
            let [query, key, value] =
                [heads.query, heads.key, heads.value].map(|x| x.detach().require_grad());
            let bias = waves([2, 1, 1, 7], 3.0, &device).require_grad();
            let (q, k, v, b) = (query.clone(), key.clone(), value.clone(), bias.clone());
            let heads = Heads { query: q, key: k, value: v, bias: Some(b), scale: Some(0.7) };
            let out = attention_by_burn(HELD, budget, heads);
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
    fn self_attention_equals_burn_operations() {
        // The last two are long; tokens of the last are adjacent, so that it uses `opensora_gemm`.
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
    fn cross_attention_equals_burn_operations() {
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

    #[cfg(feature = "flex")]
    #[test]
    fn attention_without_kernels_equals_the_kernels() {
        let half = FloatDType::BF16;
        let qkv = waves([2, 5, 7, 24], 0.0, &Device::flex());
        assert!(reads_any_axis(&qkv) && !reads_any_axis(&qkv.clone().cast(half)));
        for axis in [1, 2] {
            let expected = self_attention(qkv.clone(), axis, 2);
            let found = self_attention(qkv.clone().cast(half), axis, 2).cast(FloatDType::F32);
            assert_eq!(found.dims(), [2, 5, 7, 8]);
            // bf16 has 8 bits; values are at most 1.
            assert!(distance(found, expected) <= 0.02);
        }
        let query = crate::testing::waves([2, 9, 8], 1.0);
        let key_value = crate::testing::waves([2, 6, 16], 2.0);
        let bias = waves([2, 1, 1, 6], 3.0, &Device::flex());
        let expected = cross_attention(query.clone(), key_value.clone(), Some(bias.clone()), 2);
        let (query, key_value) = (query.cast(half), key_value.cast(half));
        let found = cross_attention(query, key_value, Some(bias.cast(half)), 2);
        let error = (found.cast(FloatDType::F32) - expected).abs().max().into_scalar::<f32>();
        assert!(error <= 0.02, "{error}");
    }

    #[test]
    fn padded_heads_give_the_same_result() {
        let device = Device::flex();
        for (dim, scale) in [(72, None), (72, Some(0.1)), (80, None), (80, Some(0.1)), (5, None)] {
            let heads = Heads { scale, ..heads([2, 2, 33, dim], 21, &device) };
            let bare = attention_by_burn(HELD, usize::MAX, heads.clone());
            for budget in [usize::MAX, 1000] {
                let padded = attention_padded(heads.clone(), 16, budget);
                assert_eq!(padded.dims(), bare.dims());
                let distance = distance(padded, bare.clone());
                assert!(distance <= 1e-6, "{dim} {scale:?}: {distance}");
            }
        }
    }

    #[test]
    fn half_precision_is_padded_and_f32_is_not() {
        let device = Device::flex();
        let kernel = AttentionKernel { head_dim_multiple: Some(16), ..HELD };
        let heads = heads([2, 2, 33, 72], 21, &device);
        let bare = attention_by_burn(HELD, usize::MAX, heads.clone());
        let exact = attention_by_burn(kernel, usize::MAX, heads.clone());
        assert!(distance(exact, bare.clone()) <= 1e-6);
        let half = |x: Tensor<4>| x.cast(FloatDType::BF16);
        let Heads { query, key, value, .. } = heads;
        let [query, key, value] = [query, key, value].map(half);
        let heads = Heads { query, key, value, bias: None, scale: None };
        let padded = attention_by_burn(kernel, usize::MAX, heads).cast(FloatDType::F32);
        // bf16 has 8 bits; values are about 1.
        assert!(distance(padded, bare) <= 0.02);
    }

    #[test]
    fn heads_are_not_padded_with_a_bias() {
        let device = Device::flex();
        let bias = Some(waves([1, 1, 1, 4], 3.0, &device));
        let heads = Heads { bias, ..heads([1, 2, 3, 5], 4, &device) };
        let kernel = AttentionKernel { head_dim_multiple: Some(16), ..HELD };
        let found = attention_by_burn(kernel, usize::MAX, heads.clone());
        assert_eq!(found.into_data(), attention_by_burn(HELD, usize::MAX, heads).into_data());
    }
}
