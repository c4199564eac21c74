//! Multi-head attention on flex. Queries, keys and values are read through strides, in any axis order of the
//! tokens, so that no head is copied before a product that reads views.
//!
//! | module | algorithm | used for |
//! |---|---|---|
//! | `short` | loops over one sequence, which fits in the first cache | self-attention over at most 64 tokens |
//! | `gemm` | `opensora_gemm`, one block of queries per task | sequences of at least 64 adjacent tokens |
//! | `matmul` | burn's batched matrix product | all others, and heads that are already split |

mod gemm;
mod matmul;
mod short;

pub(super) use matmul::of_heads;

use super::{contiguous, dims};
use burn::{
    backend::flex::{FlexTensor, Layout},
    tensor::Shape,
};
use opensora_gemm::MatRef;

/// Scores that are held at once, over all heads: 16 MiB, about the size of a last-level cache.
const SCORE_BUDGET: usize = 1 << 22;

/// Most softmax weights that an attention saves for backward: 256 MiB. With more, backward computes them again, so
/// that memory stays linear in the number of tokens: one more product of five. Those of short sequences are always saved.
#[cfg(feature = "autodiff")]
const SAVED_BUDGET: usize = 1 << 26;

/// The heads of token sequences in a contiguous tensor `[B, .., W]`, seen as `[B, G, H, N, D]`: G sequences
/// of N tokens for each sample.
///
/// All knowledge of the order of tokens in memory is here.
#[derive(Debug, Clone, Copy)]
struct TokenLayout {
    batch: usize,
    groups: usize,
    heads: usize,
    tokens: usize,
    head_dim: usize,
    /// Distance in tokens from a group to the next.
    group_stride: usize,
    /// Distance in tokens from a token of a sequence to the next.
    token_stride: usize,
    /// Elements of a token, W.
    width: usize,
    /// First element of these heads within a token.
    offset: usize,
}

impl TokenLayout {
    /// Returns the layout of part `index` of tokens that hold `parts` times the channels, such as the
    /// keys of `[Q | K | V]`.
    fn part(self, index: usize, parts: usize) -> Self {
        let channels = self.heads * self.head_dim;
        Self { width: parts * channels, offset: index * channels, ..self }
    }

    /// Returns a view `[B, G, H, N, D]` of `x`.
    ///
    /// # Panics
    /// Panics if `x` does not have the size of this layout, since products read views without checks.
    fn view(self, x: &FlexTensor) -> FlexTensor {
        let size = self.batch * self.groups * self.tokens * self.width;
        assert_eq!(x.layout().num_elements(), size, "a tensor of another layout");
        let layout = Layout::new(
            [self.batch, self.groups, self.heads, self.tokens, self.head_dim].into(),
            vec![
                (self.groups * self.tokens * self.width) as isize,
                (self.group_stride * self.width) as isize,
                self.head_dim as isize,
                (self.token_stride * self.width) as isize,
                1,
            ],
            x.layout().start_offset() + self.offset,
        );
        x.clone().with_layout(layout)
    }

    /// Returns one head of `count` tokens of a sequence from `token` on, `[count, D]`.
    fn head(self, x: &[f32], at: [usize; 3], token: usize, count: usize) -> MatRef<'_> {
        let values = &x[self.start_of(at, token)..];
        MatRef::with_strides(values, [count, self.head_dim], [self.token_stride * self.width, 1])
    }

    /// Returns the index of the first element of a head of a token.
    fn start_of(self, [sample, group, head]: [usize; 3], token: usize) -> usize {
        self.token_index([sample, group], token) * self.width + self.offset + head * self.head_dim
    }

    /// Returns the index of a token of a sequence among all tokens.
    fn token_index(self, [sample, group]: [usize; 2], token: usize) -> usize {
        sample * self.groups * self.tokens + group * self.group_stride + token * self.token_stride
    }
}

/// Queries, keys or values: a contiguous tensor, and the layout of their heads in it.
#[derive(Debug, Clone)]
struct Operand {
    tensor: FlexTensor,
    layout: TokenLayout,
}

impl Operand {
    /// Returns a view of the heads, `[B, G, H, N, D]`.
    fn view(&self) -> FlexTensor {
        self.layout.view(&self.tensor)
    }

    fn values(&self) -> &[f32] {
        super::values(&self.tensor)
    }
}

/// An attention over tokens, with all heads in one tensor `[.., W]`.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    query: Operand,
    key: Operand,
    value: Operand,
    /// Shape of the output: `[.., C]`, with the tokens of the queries.
    shape: Shape,
}

/// Softmax weights saved for backward, in an order that depends on the [`Algorithm`]. `None`: backward computes them
/// again.
#[cfg(feature = "autodiff")]
pub(super) type SavedWeights = Option<FlexTensor>;

impl Attention {
    /// Returns self-attention along `axis` 1 or 2 of `qkv` `[B, T, S, 3 C]`.
    pub(super) fn self_attention(qkv: FlexTensor, axis: usize, heads: usize) -> Self {
        let qkv = contiguous(qkv);
        let [batch, frames, positions, width] = dims(&qkv);
        let channels = width / 3;
        assert!(width == 3 * channels && channels % heads == 0, "{heads} heads in {width} values");
        let (groups, tokens, group_stride, token_stride) = if axis == 1 {
            (positions, frames, 1, positions)
        } else {
            (frames, positions, positions, 1)
        };
        let layout = TokenLayout {
            batch,
            groups,
            heads,
            tokens,
            head_dim: channels / heads,
            group_stride,
            token_stride,
            width,
            offset: 0,
        };
        let [query, key, value] =
            [0, 1, 2].map(|part| Operand { tensor: qkv.clone(), layout: layout.part(part, 3) });
        Self { query, key, value, shape: Shape::from([batch, frames, positions, channels]) }
    }

    /// Returns cross-attention of `query` `[B, N, C]` to `key_value` `[B, M, 2 C]`.
    pub(super) fn cross_attention(query: FlexTensor, key_value: FlexTensor, heads: usize) -> Self {
        let (query, key_value) = (contiguous(query), contiguous(key_value));
        let shape @ [batch, queries, channels] = dims(&query);
        let [_, keys, _] = dims(&key_value);
        assert_eq!(channels % heads, 0, "{heads} heads in {channels} channels");
        let layout = |tokens: usize, width: usize| TokenLayout {
            batch,
            groups: 1,
            heads,
            tokens,
            head_dim: channels / heads,
            group_stride: tokens,
            token_stride: 1,
            width,
            offset: 0,
        };
        let of_keys = layout(keys, 2 * channels);
        let [key, value] =
            [0, 1].map(|part| Operand { tensor: key_value.clone(), layout: of_keys.part(part, 2) });
        let query = Operand { tensor: query, layout: layout(queries, channels) };
        Self { query, key, value, shape: Shape::from(shape) }
    }

    /// Returns true for self-attention, where queries, keys and values are one tensor.
    fn is_self(&self) -> bool {
        self.query.layout.width == self.key.layout.width
    }

    /// Returns the layout of the output: tokens of C channels.
    fn output_layout(&self) -> TokenLayout {
        self.query.layout.part(0, 1)
    }

    /// Returns the scale of the scores, `1 / sqrt(D)`.
    fn scale(&self) -> f32 {
        (1.0 / (self.query.layout.head_dim as f64).sqrt()) as f32
    }

    /// Returns `softmax(q kᵀ / sqrt(D) + bias) v` with `bias` `[1 or B, M]`; `[.., C]`.
    pub(super) fn forward(&self, bias: Option<&[f32]>) -> FlexTensor {
        match self.algorithm() {
            Algorithm::Gemm => self.forward_gemm(bias, false).0,
            Algorithm::Short => self.forward_short(bias, false).0,
            Algorithm::Matmul => self.forward_matmul(bias, SCORE_BUDGET).0,
        }
    }

    /// Returns the output of [`forward`](Self::forward), and the softmax for the backward pass if it fits the budget.
    #[cfg(feature = "autodiff")]
    pub(super) fn forward_saving(&self, bias: Option<&[f32]>) -> (FlexTensor, SavedWeights) {
        self.forward_saving_within(bias, SAVED_BUDGET)
    }

    /// [`forward_saving`](Self::forward_saving) with at most `budget` saved weights.
    #[cfg(feature = "autodiff")]
    fn forward_saving_within(
        &self,
        bias: Option<&[f32]>,
        budget: usize,
    ) -> (FlexTensor, SavedWeights) {
        let TokenLayout { batch, groups, heads, tokens, .. } = self.query.layout;
        let scores = [batch, groups, heads, tokens, self.key.layout.tokens];
        let save = scores.iter().fold(1usize, |product, n| product.saturating_mul(*n)) <= budget;
        match self.algorithm() {
            Algorithm::Gemm => self.forward_gemm(bias, save),
            Algorithm::Short => self.forward_short(bias, true),
            Algorithm::Matmul if save => self.forward_matmul(bias, usize::MAX),
            Algorithm::Matmul => (self.forward_matmul(bias, SCORE_BUDGET).0, None),
        }
    }

    /// Returns the gradient of `qkv`, given that of the output.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward(&self, weights: &SavedWeights, dy: FlexTensor) -> FlexTensor {
        match (self.algorithm(), weights) {
            (Algorithm::Gemm, weights) => self.self_backward_gemm(weights, dy),
            (Algorithm::Short, Some(weights)) => self.self_backward_short(weights, dy),
            (Algorithm::Short, None) => unreachable!("weights of short sequences are saved"),
            (Algorithm::Matmul, weights) => self.self_backward_matmul(weights, dy, SCORE_BUDGET),
        }
    }

    /// Returns the gradients of `query` and `key_value`, given that of the output. `bias` is that of the forward pass.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward(
        &self,
        weights: &SavedWeights,
        bias: &[f32],
        dy: FlexTensor,
    ) -> [FlexTensor; 2] {
        match self.algorithm() {
            Algorithm::Gemm => self.cross_backward_gemm(weights, bias, dy),
            Algorithm::Short => unreachable!("short sequences are self-attention"),
            Algorithm::Matmul => self.cross_backward_matmul(weights, bias, dy, SCORE_BUDGET),
        }
    }

    /// Returns the algorithm for these operands, the same forward and backward.
    fn algorithm(&self) -> Algorithm {
        if self.fits_gemm() {
            Algorithm::Gemm
        } else if self.fits_short() {
            Algorithm::Short
        } else {
            Algorithm::Matmul
        }
    }
}

/// Algorithm of an attention; see the [module](self).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Gemm,
    Short,
    Matmul,
}

#[cfg(all(test, feature = "autodiff"))]
mod tests {
    use super::{super::tensor, *};

    fn waves(shape: &[usize], phase: f32) -> FlexTensor {
        let count = shape.iter().product();
        let values = (0..count).map(|i: usize| (i as f32 * 1.7 + phase).sin()).collect();
        tensor(values, shape.to_vec())
    }

    fn assert_near(found: &FlexTensor, expected: &FlexTensor, case: &str) {
        let [found, expected] = [found, expected].map(super::super::values);
        assert_eq!(found.len(), expected.len(), "{case}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{case}: {found} {expected}");
        }
    }

    /// Sizes for every algorithm; the longest has more than one window of query blocks.
    #[test]
    fn weights_that_are_not_saved_are_computed_again() {
        let (heads, channels) = (2, 6);
        for (axis, size) in [(2, [2, 2, 70]), (2, [1, 1, 2100]), (1, [2, 70, 3])] {
            let [batch, frames, positions] = size;
            let qkv = waves(&[batch, frames, positions, 3 * channels], 0.0);
            let dy = waves(&[batch, frames, positions, channels], 1.0);
            let attention = Attention::self_attention(qkv, axis, heads);
            let (expected, saved) = attention.forward_saving_within(None, usize::MAX);
            let (found, none) = attention.forward_saving_within(None, 0);
            assert!(saved.is_some() && none.is_none(), "{size:?}");
            assert_near(&found, &expected, "output");
            let expected = attention.self_backward(&saved, dy.clone());
            assert_near(&attention.self_backward(&none, dy), &expected, "gradient");
        }
        for [batch, queries, keys] in [[2, 300, 70], [2, 11, 7]] {
            let key_value = waves(&[batch, keys, 2 * channels], 2.0);
            let query = waves(&[batch, queries, channels], 0.0);
            let dy = waves(&[batch, queries, channels], 1.0);
            let bias = waves(&[batch, keys], 3.0);
            let bias = super::super::values(&bias);
            let attention = Attention::cross_attention(query, key_value, heads);
            let (_, saved) = attention.forward_saving_within(Some(bias), usize::MAX);
            let (_, none) = attention.forward_saving_within(Some(bias), 0);
            assert!(saved.is_some() && none.is_none());
            let expected = attention.cross_backward(&saved, bias, dy.clone());
            let found = attention.cross_backward(&none, bias, dy);
            for (found, expected) in found.iter().zip(&expected) {
                assert_near(found, expected, "gradient of cross attention");
            }
        }
    }
}
