//! Multi-head attention over token sequences.

use burn::tensor::{Tensor, module::attention as fused_attention, ops::AttentionModuleOptions};

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

/// Scores (batch * heads * queries * keys) up to which attention is one call: 1 GiB in f32.
const MOST_SCORES: usize = 1 << 28;

/// `softmax(q kᵀ * scale + bias) v` for each head.
///
/// `query` `[B, heads, N, head_dim]`, `key` and `value` `[B, heads, M, head_dim]`, `bias` anything
/// that broadcasts to `[B, heads, N, M]`; returns `[B, heads, N, head_dim]`. `scale` is
/// `1 / sqrt(head_dim)` where not given (T5 uses 1).
///
/// A mask is always an additive bias here and never burn's boolean mask, whose meaning differs on
/// the libtorch backend.
///
/// Memory grows linearly with the tokens: some backends tile the scores, others (and every one
/// under autodiff) hold all of them, so above a fixed number of scores samples, and then queries,
/// are taken in parts. A row of scores stands for itself, so the parts give the same numbers.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: Option<f64>,
) -> Tensor<4> {
    // One row of scores a query: backends that tile over queries need the bias at full height,
    // and an expanded view keeps them from materialising it once a head.
    let bias = bias.map(|bias| {
        let [batch, heads, _, keys] = bias.dims();
        bias.expand([batch, heads, query.dims()[2], keys])
    });
    attention_in_parts(MOST_SCORES, Inputs { query, key, value, bias }, scale)
}

/// What one call of attention takes.
struct Inputs {
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
}

impl Inputs {
    /// `count` samples from `first`.
    fn samples(&self, first: usize, count: usize) -> Self {
        let narrow = |x: &Tensor<4>| x.clone().narrow(0, first, count);
        Self {
            query: narrow(&self.query),
            key: narrow(&self.key),
            value: narrow(&self.value),
            bias: self
                .bias
                .as_ref()
                .map(|bias| if bias.dims()[0] == 1 { bias.clone() } else { narrow(bias) }),
        }
    }

    /// `count` queries from `first`, with all keys.
    fn queries(&self, first: usize, count: usize) -> Self {
        let narrow = |x: &Tensor<4>| x.clone().narrow(2, first, count);
        Self {
            query: narrow(&self.query),
            key: self.key.clone(),
            value: self.value.clone(),
            bias: self.bias.as_ref().map(narrow),
        }
    }
}

fn attention_in_parts(most_scores: usize, inputs: Inputs, scale: Option<f64>) -> Tensor<4> {
    let [batch, heads, queries, _] = inputs.query.dims();
    let row = heads * inputs.key.dims()[2];
    let sample = row * queries;
    if batch * sample <= most_scores {
        let Inputs { query, key, value, bias } = inputs;
        let options = AttentionModuleOptions { scale, ..Default::default() };
        return fused_attention(query, key, value, None, bias, options);
    }
    let in_parts = |all: usize, at_once: usize, part: &dyn Fn(usize, usize) -> Inputs, axis| {
        let outputs = (0..all)
            .step_by(at_once)
            .map(|first| {
                let inputs = part(first, at_once.min(all - first));
                attention_in_parts(most_scores, inputs, scale)
            })
            .collect();
        Tensor::cat(outputs, axis)
    };
    if batch > 1 {
        let at_once = (most_scores / sample).max(1);
        in_parts(batch, at_once, &|first, count| inputs.samples(first, count), 0)
    } else if queries > 1 {
        let at_once = (most_scores / row).max(1);
        in_parts(queries, at_once, &|first, count| inputs.queries(first, count), 2)
    } else {
        // A single row is as small as it gets.
        attention_in_parts(usize::MAX, inputs, scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

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

    /// `[2, 3, 7, 4]` queries on 5 keys, with nothing, a bias for all, and one for each.
    #[test]
    fn parts_give_the_same_numbers() {
        let device = Device::flex();
        let draw = |seed, shape: [usize; 4]| {
            let len = shape.iter().product();
            let values =
                crate::noise::normal(seed, crate::noise::Purpose::InitialLatents, 0, 0, len);
            Tensor::<1>::from_floats(values.as_slice(), &device).reshape(shape)
        };
        let inputs = |bias: Option<[usize; 4]>| Inputs {
            query: draw(1, [2, 3, 7, 4]),
            key: draw(2, [2, 3, 5, 4]),
            value: draw(3, [2, 3, 5, 4]),
            bias: bias.map(|shape| draw(4, shape)),
        };
        for bias in [None, Some([1, 1, 7, 5]), Some([2, 3, 7, 5])] {
            let whole = attention_in_parts(usize::MAX, inputs(bias), None);
            let whole = whole.into_data().try_to_vec::<f32>().unwrap();
            // One sample at once, three queries, one query, less than one row.
            for most in [105, 45, 15, 1] {
                let parts = attention_in_parts(most, inputs(bias), None);
                assert_eq!(parts.dims(), [2, 3, 7, 4]);
                for (got, want) in parts.into_data().iter::<f32>().zip(&whole) {
                    assert!((got - want).abs() < 1e-6, "{most}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn gradients_go_through_the_parts() {
        let device = Device::flex().autodiff();
        let gradient = |most: usize| {
            let values: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
            let query = Tensor::<1>::from_floats(values.as_slice(), &device)
                .reshape([2, 1, 6, 2])
                .require_grad();
            let inputs = Inputs {
                query: query.clone(),
                key: query.clone() * 0.5,
                value: query.clone() + 1.0,
                bias: None,
            };
            let output = attention_in_parts(most, inputs, None);
            let gradients = (output.clone() * output).sum().backward();
            query.grad(&gradients).unwrap().into_data().try_to_vec::<f32>().unwrap()
        };
        for (got, want) in gradient(12).into_iter().zip(gradient(usize::MAX)) {
            assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{got} {want}");
        }
    }
}
