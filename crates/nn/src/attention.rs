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

/// `softmax(q kᵀ * scale + bias) v` for each head.
///
/// `query` `[B, heads, N, head_dim]`, `key` and `value` `[B, heads, M, head_dim]`, `bias` anything
/// that broadcasts to `[B, heads, N, M]`; returns `[B, heads, N, head_dim]`. `scale` is
/// `1 / sqrt(head_dim)` where not given (T5 uses 1).
///
/// A mask is always an additive bias here and never burn's boolean mask, whose meaning differs on
/// the libtorch backend.
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
    let options = AttentionModuleOptions { scale, ..Default::default() };
    fused_attention(query, key, value, None, bias, options)
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
}
