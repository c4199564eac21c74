//! Heads padded by zeros, for kernels that require a multiple of some `head_dim`.
//!
//! Zeros in queries and keys do not change a score, and zero columns of the values give zero columns, which
//! the caller removes. The kernel scales scores by the padded `head_dim`; the queries are multiplied by the
//! ratio of the requested scale to that one, since accelerated kernels take no explicit scale.

use super::Heads;
use burn::tensor::Tensor;

/// Returns arguments that give the same attention at the default scale and with a `head_dim` that is a
/// multiple of `multiple`. Values, and so the output, are padded as well.
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

/// Pads the last axis with zeros to the next multiple.
fn pad(x: Tensor<4>, multiple: usize) -> Tensor<4> {
    let [batch, heads, tokens, dim] = x.dims();
    let missing = dim.next_multiple_of(multiple) - dim;
    if missing == 0 {
        return x;
    }
    let zeros = Tensor::zeros([batch, heads, tokens, missing], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 3)
}
