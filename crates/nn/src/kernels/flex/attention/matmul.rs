//! Attention by burn's batched matrix product, which reads heads through strides, with a bounded number of
//! scores at a time.

#[cfg(feature = "autodiff")]
use super::{super::softmax::softmax_backward, Operand, SavedWeights};
use super::{
    super::{
        contiguous, dims,
        softmax::{bias_of_samples, softmax},
        tensor, values,
    },
    Attention, SCORE_BUDGET, TokenLayout,
};
use crate::attention::Chunks;
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        ops::FloatTensorOps,
    },
    tensor::Shape,
};
use rayon::prelude::*;

/// Computes `softmax(q kᵀ * scale + bias) v` of split heads: `query` `[B, H, N, D]`, `key` `[B, H, M,
/// D]`, `value` `[B, H, M, V]`, `bias` `[1 or B, M]`; returns `[B, H, N, V]`.
pub(in super::super) fn of_heads(
    query_key_value: [FlexTensor; 3],
    bias: &[f32],
    scale: f32,
) -> FlexTensor {
    let [batch, heads, queries, _] = dims(&query_key_value[0]);
    let [_, _, _, value_dim] = dims(&query_key_value[2]);
    let (output, _) = attend(query_key_value.map(with_one_group), Some(bias), scale, SCORE_BUDGET);
    output.into_heads([batch, heads, queries, value_dim])
}

/// Reshapes `[B, H, N, D]` to `[B, 1, H, N, D]`, without a copy.
fn with_one_group(x: FlexTensor) -> FlexTensor {
    let layout = x.layout();
    let [batch, heads, tokens, dim] = dims(&x);
    let mut strides = layout.strides().to_vec();
    strides.insert(1, strides[0]);
    let shape = Shape::from([batch, 1, heads, tokens, dim]);
    let layout = Layout::new(shape, strides, layout.start_offset());
    x.with_layout(layout)
}

/// Computes attention of `query` `[B, G, H, N, D]`, `key` `[B, G, H, M, D]` and `value` `[B, G, H, M,
/// V]` with at most `budget` scores at a time, or those of one query of one sequence if these are more.
/// Also returns the softmax, `[B, G, H, N, M]`, if it was computed in one chunk.
fn attend(
    [query, key, value]: [FlexTensor; 3],
    bias: Option<&[f32]>,
    scale: f32,
    budget: usize,
) -> (Chunked, Option<FlexTensor>) {
    let [batch, groups, heads, tokens, _] = dims(&query);
    let [_, _, _, keys, _] = dims(&key);
    let key = key.transpose(3, 4);
    let chunks = Chunks::new([batch * groups, heads, tokens, keys], budget);
    let chunk = if chunks.samples >= groups {
        [chunks.samples / groups, groups, chunks.queries]
    } else {
        [1, chunks.samples, chunks.queries]
    };
    let mut output = Chunked { size: [batch, groups, tokens], chunk, chunks: Vec::new() };
    let mut weights = None;
    for (sample, samples) in output.ranges(0) {
        let bias = bias.map(|bias| bias_of_samples(bias, keys, sample, samples));
        for (group, groups) in output.ranges(1) {
            let part = |x: &FlexTensor| x.narrow(0, sample, samples).narrow(1, group, groups);
            let (query, key, value) = (part(&query), part(&key), part(&value));
            for (token, tokens) in output.ranges(2) {
                let mut scores = Flex::float_matmul(query.narrow(3, token, tokens), key.clone());
                let rows = groups * heads * tokens;
                softmax(scores.storage_mut(), keys, rows, scale, bias);
                let attended = Flex::float_matmul(scores.clone(), value.clone());
                output.chunks.push(contiguous(attended));
                weights = Some(scores);
            }
        }
    }
    let weights = weights.filter(|_| output.chunks.len() == 1);
    (output, weights)
}

impl Attention {
    /// Returns the output of [`forward`](Self::forward), computed with at most about `budget` scores in
    /// memory at a time, and the softmax if it was computed in one chunk. `bias` is `[1 or B, M]`.
    pub(super) fn forward_matmul(
        &self,
        bias: Option<&[f32]>,
        budget: usize,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let operands = [&self.query, &self.key, &self.value].map(|x| x.view());
        let (output, weights) = attend(operands, bias, self.scale(), budget);
        let mut out = vec![0.0; self.shape.num_elements()];
        self.output_layout().merge(&output, &mut out);
        (tensor(out, self.shape.clone()), weights)
    }

    /// Returns the gradients of queries, keys and values, given that of the output. Computes the softmax again if it is
    /// not saved, of at most about `budget` scores at a time or of one sequence.
    #[cfg(feature = "autodiff")]
    fn backward_matmul(
        &self,
        weights: &SavedWeights,
        bias: Option<&[f32]>,
        dy: FlexTensor,
        budget: usize,
    ) -> [Chunked; 3] {
        let TokenLayout { batch, groups, heads, tokens, .. } = self.query.layout;
        let keys = self.key.layout.tokens;
        let fitting = match weights {
            Some(_) => batch * groups,
            None => Chunks::new([batch * groups, heads, tokens, keys], budget).samples,
        };
        let (samples, groups_at_once) = ((fitting / groups).max(1), fitting.min(groups));
        let gradient_of = |tokens| {
            let chunk = [samples, groups_at_once, tokens];
            Chunked { size: [batch, groups, tokens], chunk, chunks: Vec::new() }
        };
        let mut found = [tokens, keys, keys].map(gradient_of);

        let operands = [self.query.view(), self.key.view(), self.value.view()];
        let dy = self.output_layout().view(&contiguous(dy));
        for (sample, samples) in found[0].ranges(0) {
            let bias = bias.map(|bias| bias_of_samples(bias, keys, sample, samples));
            for (group, groups) in found[0].ranges(1) {
                let part = |x: &FlexTensor| x.narrow(0, sample, samples).narrow(1, group, groups);
                let [query, key, value] = [0, 1, 2].map(|index| part(&operands[index]));
                let weights = weights.clone().unwrap_or_else(|| {
                    let mut scores = Flex::float_matmul(query.clone(), key.transpose(3, 4));
                    let rows = groups * heads * tokens;
                    softmax(scores.storage_mut(), keys, rows, self.scale(), bias);
                    scores
                });
                let gradients = self.backward_of_part([query, key, value], weights, part(&dy));
                for (found, gradient) in found.iter_mut().zip(gradients) {
                    found.chunks.push(contiguous(gradient));
                }
            }
        }
        found
    }

    /// Returns the gradients of queries, keys and values `[B, G, H, N, D]` of some sequences, given the softmax and the
    /// gradient of the output.
    #[cfg(feature = "autodiff")]
    fn backward_of_part(
        &self,
        [query, key, value]: [FlexTensor; 3],
        weights: FlexTensor,
        dy: FlexTensor,
    ) -> [FlexTensor; 3] {
        let transposed = |x: FlexTensor| x.transpose(3, 4);
        let d_value = Flex::float_matmul(transposed(weights.clone()), dy.clone());
        let mut d_scores = Flex::float_matmul(dy, transposed(value));
        let keys = self.key.layout.tokens;
        softmax_backward(keys, d_scores.storage_mut(), values(&weights), self.scale());
        let d_query = Flex::float_matmul(d_scores.clone(), key);
        [d_query, Flex::float_matmul(transposed(d_scores), query), d_value]
    }

    /// Returns the gradient of `qkv`, given the softmax of the forward pass and the gradient of the
    /// output. A softmax that is not saved is computed again with at most about `budget` scores at a time.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward_matmul(
        &self,
        weights: &SavedWeights,
        dy: FlexTensor,
        budget: usize,
    ) -> FlexTensor {
        let [query, key, value] = self.backward_matmul(weights, None, dy, budget);
        merged([(&self.query, query), (&self.key, key), (&self.value, value)])
    }

    /// Returns the gradients of `query` and `key_value`, given the softmax of the forward pass and the
    /// gradient of the output. A softmax that is not saved is computed again with at most about `budget` scores at a time.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward_matmul(
        &self,
        weights: &SavedWeights,
        bias: &[f32],
        dy: FlexTensor,
        budget: usize,
    ) -> [FlexTensor; 2] {
        let [query, key, value] = self.backward_matmul(weights, Some(bias), dy, budget);
        [merged([(&self.query, query)]), merged([(&self.key, key), (&self.value, value)])]
    }
}

impl TokenLayout {
    /// Writes the chunks of `heads` to the elements of `out` that this layout gives them.
    fn merge(self, heads: &Chunked, out: &mut [f32]) {
        let tokens_per_sample = self.groups * self.tokens;
        let (count, head_dim) = (self.heads, self.head_dim);
        out.par_chunks_mut(self.width).with_min_len(16).enumerate().for_each(|(index, out)| {
            let (sample, index) = (index / tokens_per_sample, index % tokens_per_sample);
            // Sequences one after the other, or interleaved.
            let (group, token) = if self.token_stride == 1 && self.group_stride == self.tokens {
                (index / self.tokens, index % self.tokens)
            } else {
                (index % self.groups, index / self.groups)
            };
            let (chunk, first, stride) = heads.find([sample, group, token], count, head_dim);
            let out = out[self.offset..][..count * head_dim].chunks_mut(head_dim);
            for (head, out) in out.enumerate() {
                out.copy_from_slice(&chunk[first + head * stride..][..head_dim]);
            }
        });
    }
}

/// A tensor `[B, G, H, N, D]` in chunks of samples, groups and tokens.
struct Chunked {
    /// B, G and N.
    size: [usize; 3],
    /// Samples, groups and tokens of a chunk; the last chunk along an axis may have fewer.
    chunk: [usize; 3],
    /// The chunks, each contiguous, in the order of samples, groups, tokens (tokens vary fastest).
    chunks: Vec<FlexTensor>,
}

impl Chunked {
    /// Returns the first index and length of each chunk along samples (0), groups (1) or tokens (2).
    fn ranges(&self, axis: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (size, chunk) = (self.size[axis], self.chunk[axis]);
        (0..size).step_by(chunk).map(move |first| (first, chunk.min(size - first)))
    }

    /// Returns the chunk that has a sample, group and token, the index of the first head's elements in it,
    /// and the distance to the next head's.
    fn find(&self, at: [usize; 3], heads: usize, head_dim: usize) -> (&[f32], usize, usize) {
        let mut index = 0;
        let mut within = [0; 3];
        let mut lengths = [0; 3];
        for axis in 0..3 {
            let (size, chunk) = (self.size[axis], self.chunk[axis]);
            let position = at[axis] / chunk;
            index = index * size.div_ceil(chunk) + position;
            within[axis] = at[axis] % chunk;
            lengths[axis] = chunk.min(size - position * chunk);
        }
        let [_, groups, tokens] = lengths;
        let sequence = within[0] * groups + within[1];
        let first = (sequence * heads * tokens + within[2]) * head_dim;
        (values(&self.chunks[index]), first, tokens * head_dim)
    }

    /// Reshapes `[B, 1, H, N, D]` to `[B, H, N, D]`.
    fn into_heads(self, shape @ [batch, heads, tokens, head_dim]: [usize; 4]) -> FlexTensor {
        if let [chunk] = self.chunks.as_slice() {
            return chunk.reshape(Shape::from(shape));
        }
        let mut out = Vec::with_capacity(batch * heads * tokens * head_dim);
        for sample in 0..batch {
            for head in 0..heads {
                for (token, count) in self.ranges(2) {
                    let (chunk, first, stride) = self.find([sample, 0, token], heads, head_dim);
                    out.extend_from_slice(&chunk[first + head * stride..][..count * head_dim]);
                }
            }
        }
        tensor(out, shape)
    }
}

/// Returns a tensor with the heads of all operands, which are parts of one.
#[cfg(feature = "autodiff")]
fn merged<const N: usize>(parts: [(&Operand, Chunked); N]) -> FlexTensor {
    let layout = parts[0].0.tensor.layout();
    let mut out = vec![0.0; layout.num_elements()];
    for (operand, heads) in &parts {
        operand.layout.merge(heads, &mut out);
    }
    tensor(out, layout.shape().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(shape: &[usize]) -> FlexTensor {
        let count = shape.iter().product();
        tensor((0..count).map(|i: usize| (i as f32 * 1.7).sin()).collect(), shape.to_vec())
    }

    fn assert_near(found: &FlexTensor, expected: &FlexTensor, case: &str) {
        for (found, expected) in values(found).iter().zip(values(expected)) {
            assert!((found - expected).abs() < 1e-6, "{case}: {found} {expected}");
        }
    }

    /// Chunks of samples, of groups and of queries.
    #[test]
    fn chunks_give_the_same_result_as_one_chunk() {
        let (heads, channels) = (2, 6);
        for (axis, [batch, frames, positions]) in [(1, [2, 5, 3]), (2, [2, 3, 9])] {
            let qkv = waves(&[batch, frames, positions, 3 * channels]);
            let self_attention = Attention::self_attention(qkv, axis, heads);
            let (queries, keys) = (11, 7);
            let query = waves(&[batch, queries, channels]);
            let key_value = waves(&[batch, keys, 2 * channels]);
            let cross_attention = Attention::cross_attention(query, key_value, heads);
            let bias = waves(&[batch, keys]);
            for (attention, bias) in
                [(self_attention, None), (cross_attention, Some(values(&bias)))]
            {
                let (whole, weights) = attention.forward_matmul(bias, usize::MAX);
                assert!(weights.is_some());
                for budget in [1, 20, 50, 200, 500] {
                    let (chunked, _) = attention.forward_matmul(bias, budget);
                    assert_near(&chunked, &whole, &format!("axis {axis}, budget {budget}"));
                }
            }
        }
    }

    /// Chunks of samples and of groups, compared with the softmax of the forward pass.
    #[cfg(feature = "autodiff")]
    #[test]
    fn chunks_give_the_same_gradients_as_a_saved_softmax() {
        let (heads, channels) = (2, 6);
        // A sequence has 50 or 162 scores.
        for (axis, [batch, frames, positions]) in [(1, [2, 5, 3]), (2, [2, 3, 9])] {
            let qkv = waves(&[batch, frames, positions, 3 * channels]);
            let dy = waves(&[batch, frames, positions, channels]);
            let attention = Attention::self_attention(qkv, axis, heads);
            let (_, saved) = attention.forward_matmul(None, usize::MAX);
            let expected = attention.self_backward_matmul(&saved, dy.clone(), usize::MAX);
            for budget in [1, 100, 150, 330, 500, usize::MAX] {
                let found = attention.self_backward_matmul(&None, dy.clone(), budget);
                assert_near(&found, &expected, &format!("axis {axis}, budget {budget}"));
            }
        }
        let (batch, queries, keys) = (3, 11, 7);
        let key_value = waves(&[batch, keys, 2 * channels]);
        let dy = waves(&[batch, queries, channels]);
        let attention =
            Attention::cross_attention(waves(&[batch, queries, channels]), key_value, heads);
        for bias in [waves(&[batch, keys]), waves(&[1, keys])] {
            let bias = values(&bias);
            let (_, saved) = attention.forward_matmul(Some(bias), usize::MAX);
            let expected = attention.cross_backward_matmul(&saved, bias, dy.clone(), usize::MAX);
            // One sample has 154 scores.
            for budget in [1, 310, usize::MAX] {
                let found = attention.cross_backward_matmul(&None, bias, dy.clone(), budget);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_near(found, expected, &format!("cross attention, budget {budget}"));
                }
            }
        }
    }

    #[test]
    fn chunks_of_split_heads_give_the_same_result_as_one_chunk() {
        let [batch, heads, queries, keys, dim, value_dim] = [3, 2, 9, 7, 4, 5];
        let operands = || {
            [[queries, dim], [keys, dim], [keys, value_dim]]
                .map(|[tokens, dim]| with_one_group(waves(&[batch, heads, tokens, dim])))
        };
        let bias = waves(&[batch, keys]);
        let attend = |budget| {
            let (output, _) = attend(operands(), Some(values(&bias)), 0.3, budget);
            output.into_heads([batch, heads, queries, value_dim])
        };
        let whole = attend(usize::MAX);
        for budget in [1, heads * keys * 2, heads * queries * keys, 2 * heads * queries * keys] {
            assert_near(&attend(budget), &whole, &format!("budget {budget}"));
        }
    }
}
