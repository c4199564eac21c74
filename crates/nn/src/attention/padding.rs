//! Heads widened by zeros, for kernels that want a multiple of some `head_dim`.
//!
//! Zeros in queries and keys add nothing to a score, and columns of zeros in the values give columns
//! of zeros, which are cut off. The kernel divides by the root of the wider `head_dim`, so what that
//! is off by is multiplied into the queries. The accelerated kernels take no scale of one's own
//! either, which that solves too.

use super::Heads;
use burn::tensor::Tensor;

/// The same attention at the default scale and with a `head_dim` that `multiple` divides; its
/// result is as many columns wider as the values became.
pub(super) fn pad_heads(heads: Heads, multiple: usize) -> Heads {
    let head_dim = heads.query.dims()[3];
    let padded_dim = head_dim.next_multiple_of(multiple);
    let scale = heads.scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt());
    let factor = scale * (padded_dim as f64).sqrt();
    let query = heads.query;
    let query = if factor == 1.0 { query } else { query * factor };
    Heads {
        query: pad(query, multiple),
        key: pad(heads.key, multiple),
        value: pad(heads.value, multiple),
        bias: heads.bias,
        scale: None,
    }
}

/// Zeros behind the last axis, up to the next multiple.
fn pad(x: Tensor<4>, multiple: usize) -> Tensor<4> {
    let [batch, heads, tokens, dim] = x.dims();
    let missing = dim.next_multiple_of(multiple) - dim;
    if missing == 0 {
        return x;
    }
    let zeros = Tensor::zeros([batch, heads, tokens, missing], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 3)
}
