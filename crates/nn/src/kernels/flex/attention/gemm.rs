//! Attention over long sequences by `opensora_gemm`. A task takes a block of queries of one sequence, whose
//! scores stay in the core's cache, and goes through the heads.

#[cfg(feature = "autodiff")]
use super::{
    super::{contiguous, elementwise::zip_parallel, softmax::softmax_backward_single_threaded},
    SavedWeights,
};
use super::{
    super::{
        softmax::{bias_of_samples, softmax_single_threaded},
        tensor, values,
    },
    Attention, TokenLayout,
};
use burn::backend::flex::FlexTensor;
use opensora_gemm::{MatRef, multiply_single_threaded as multiply};
use rayon::prelude::*;

/// Queries of one task.
const QUERY_BLOCK: usize = 256;

/// Blocks of queries of a sequence whose gradients of keys and values, `[M, 2 C]` each, are held at once.
#[cfg(feature = "autodiff")]
const BACKWARD_BLOCKS: usize = 8;

/// Shorter sequences do not fill the panels of a product.
const MIN_TOKENS: usize = 64;

impl Attention {
    /// Returns true if sequences are long and their tokens adjacent, on a processor with `opensora_gemm`.
    pub(super) fn fits_gemm(&self) -> bool {
        let [query, key] = [self.query.layout, self.key.layout];
        query.tokens.min(key.tokens) >= MIN_TOKENS
            && query.token_stride == 1
            && opensora_gemm::available()
    }

    /// Returns [`forward`](Self::forward), and the softmax if `save`: `[B, G, block of queries, H, query,
    /// M]`.
    pub(super) fn forward_gemm(
        &self,
        bias: Option<&[f32]>,
        save: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let TokenLayout { batch, groups, heads, tokens, head_dim, .. } = self.query.layout;
        let (keys, width) = (self.key.layout.tokens, heads * head_dim);
        let block = |sequence: usize, block: usize, out: &mut [f32], saved: Option<&mut [f32]>| {
            self.forward_block([sequence / groups, sequence % groups, block], bias, out, saved);
        };
        let mut out = vec![0.0; batch * groups * tokens * width];
        let sequences = out.par_chunks_mut(tokens * width);
        if !save {
            sequences.enumerate().for_each(|(sequence, out)| {
                let blocks = out.par_chunks_mut(QUERY_BLOCK * width).enumerate();
                blocks.for_each(|(index, out)| block(sequence, index, out, None));
            });
            return (tensor(out, self.shape.clone()), None);
        }
        let mut saved = vec![0.0; batch * groups * heads * tokens * keys];
        let saved_of_sequences = saved.par_chunks_mut(heads * tokens * keys);
        sequences.zip(saved_of_sequences).enumerate().for_each(|(sequence, (out, saved))| {
            let blocks = out.par_chunks_mut(QUERY_BLOCK * width);
            let blocks = blocks.zip(saved.par_chunks_mut(QUERY_BLOCK * heads * keys)).enumerate();
            blocks.for_each(|(index, (out, saved))| block(sequence, index, out, Some(saved)));
        });
        let saved = tensor(saved, [batch, groups, heads * tokens * keys]);
        (tensor(out, self.shape.clone()), Some(saved))
    }

    /// Writes the output of a block of queries to `out` `[query, C]`, and their softmax to `saved`
    /// `[H, query, M]`.
    fn forward_block(
        &self,
        [sample, group, block]: [usize; 3],
        bias: Option<&[f32]>,
        out: &mut [f32],
        saved: Option<&mut [f32]>,
    ) {
        let value = &self.value;
        let TokenLayout { heads, head_dim, .. } = self.query.layout;
        let (keys, width) = (self.key.layout.tokens, heads * head_dim);
        let count = out.len() / width;
        let bias = bias.map(|bias| bias_of_samples(bias, keys, sample, 1));
        let mut workspace = vec![0.0; if saved.is_some() { 0 } else { count * keys }];
        let mut saved = saved.map(|saved| saved.chunks_mut(count * keys));
        let mut output = vec![0.0; count * head_dim];
        for head in 0..heads {
            let scores = saved.as_mut().and_then(Iterator::next).unwrap_or(&mut workspace);
            let at = [sample, group, head];
            self.weights_of_block(at, [block * QUERY_BLOCK, count], bias, scores);
            let v = value.layout.head(value.values(), at, 0, keys);
            multiply(MatRef::row_major(scores, keys), v, &mut output);
            write_head(&output, head_dim, out, width, head * head_dim);
        }
    }

    /// Writes the softmax of `count` queries from `first` on of one head to `scores` `[query, M]`; `bias` is that of the
    /// sample.
    fn weights_of_block(
        &self,
        at: [usize; 3],
        [first, count]: [usize; 2],
        bias: Option<&[f32]>,
        scores: &mut [f32],
    ) {
        let [query, key] = [&self.query, &self.key];
        let keys = key.layout.tokens;
        let q = query.layout.head(query.values(), at, first, count);
        let k = key.layout.head(key.values(), at, 0, keys);
        multiply(q, k.transposed(), scores);
        softmax_single_threaded(scores, keys, self.scale(), bias);
    }

    /// Returns the gradient of `qkv`.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward_gemm(&self, weights: &SavedWeights, dy: FlexTensor) -> FlexTensor {
        let qkv = &self.query;
        let TokenLayout { tokens, width, heads, head_dim, .. } = qkv.layout;
        let mut out = vec![0.0; qkv.tensor.layout().num_elements()];
        let d_key_value = self.backward_gemm(weights, None, dy, &mut out);
        let channels = heads * head_dim;
        out.par_chunks_mut(tokens * width).zip(d_key_value).for_each(|(out, d_key_value)| {
            for (out, d_key_value) in out.chunks_mut(width).zip(d_key_value.chunks(2 * channels)) {
                out[channels..].copy_from_slice(d_key_value);
            }
        });
        tensor(out, qkv.tensor.layout().shape().clone())
    }

    /// Returns the gradients of `query` and `key_value`.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward_gemm(
        &self,
        weights: &SavedWeights,
        bias: &[f32],
        dy: FlexTensor,
    ) -> [FlexTensor; 2] {
        let [query, key_value] = [&self.query, &self.key].map(|x| x.tensor.layout());
        let mut d_query = vec![0.0; query.num_elements()];
        let d_key_value = self.backward_gemm(weights, Some(bias), dy, &mut d_query).concat();
        [tensor(d_query, query.shape().clone()), tensor(d_key_value, key_value.shape().clone())]
    }

    /// Writes the gradient of the queries to their elements in `out`, and returns the gradient of keys and
    /// values of each sequence, `[M, 2 C]`.
    #[cfg(feature = "autodiff")]
    fn backward_gemm(
        &self,
        weights: &SavedWeights,
        bias: Option<&[f32]>,
        dy: FlexTensor,
        out: &mut [f32],
    ) -> Vec<Vec<f32>> {
        let TokenLayout { groups, tokens, width, .. } = self.query.layout;
        let dy = contiguous(dy);
        let (dy, weights) = (values(&dy), weights.as_ref().map(values));
        let sequences = out.par_chunks_mut(tokens * width).enumerate();
        sequences
            .map(|(sequence, out)| {
                let mut sum: Option<Vec<f32>> = None;
                let windows = out.chunks_mut(BACKWARD_BLOCKS * QUERY_BLOCK * width).enumerate();
                for (window, out) in windows {
                    let blocks = out.par_chunks_mut(QUERY_BLOCK * width).enumerate();
                    let blocks: Vec<_> = blocks
                        .map(|(block, out)| {
                            let block = window * BACKWARD_BLOCKS + block;
                            let count = out.len() / width;
                            let weights = weights
                                .map(|saved| self.saved_of_block(saved, [sequence, block, count]));
                            let at = [sequence / groups, sequence % groups, block];
                            self.backward_block(at, dy, weights, bias, out)
                        })
                        .collect();
                    // Added in order, so that the sums do not depend on the number of threads.
                    for block in blocks {
                        match &mut sum {
                            Some(sum) => zip_parallel(sum, &block, |sum, block| sum + block),
                            none => *none = Some(block),
                        }
                    }
                }
                sum.unwrap_or_default()
            })
            .collect()
    }

    /// The saved softmax of `count` queries of a block, `[H, query, M]`.
    #[cfg(feature = "autodiff")]
    fn saved_of_block<'a>(
        &self,
        saved: &'a [f32],
        [sequence, block, count]: [usize; 3],
    ) -> &'a [f32] {
        let TokenLayout { heads, tokens, .. } = self.query.layout;
        let of_query = heads * self.key.layout.tokens;
        &saved[(sequence * tokens + block * QUERY_BLOCK) * of_query..][..count * of_query]
    }

    /// Writes the gradient of a block of queries to `out` `[query, W]`, and returns the block's part of the
    /// gradient of keys and values, `[M, 2 C]`. Computes the softmax again if it is not `saved`.
    #[cfg(feature = "autodiff")]
    fn backward_block(
        &self,
        [sample, group, block]: [usize; 3],
        dy: &[f32],
        saved: Option<&[f32]>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Vec<f32> {
        let [query, key, value] = [&self.query, &self.key, &self.value];
        let TokenLayout { heads, head_dim, width, offset, .. } = query.layout;
        let (keys, channels) = (key.layout.tokens, heads * head_dim);
        let (first, count) = (block * QUERY_BLOCK, out.len() / width);
        let bias = bias.map(|bias| bias_of_samples(bias, keys, sample, 1));
        let mut d_key_value = vec![0.0; keys * 2 * channels];
        let mut recomputed = vec![0.0; if saved.is_some() { 0 } else { count * keys }];
        let mut d_scores = vec![0.0; count * keys];
        let mut d_query = vec![0.0; count * head_dim];
        let mut d_rows = vec![0.0; keys * head_dim];
        for head in 0..heads {
            let (at, column) = ([sample, group, head], head * head_dim);
            let weights = match saved {
                Some(saved) => &saved[head * count * keys..][..count * keys],
                None => {
                    self.weights_of_block(at, [first, count], bias, &mut recomputed);
                    &recomputed
                }
            };
            let dy = self.output_layout().head(dy, at, first, count);
            // dV = Pᵀ dY
            multiply(MatRef::row_major(weights, keys).transposed(), dy, &mut d_rows);
            write_head(&d_rows, head_dim, &mut d_key_value, 2 * channels, channels + column);
            // dP = dY Vᵀ
            let v = value.layout.head(value.values(), at, 0, keys);
            multiply(dy, v.transposed(), &mut d_scores);
            softmax_backward_single_threaded(keys, &mut d_scores, weights, self.scale());
            // dQ = dS K
            let d_scores = MatRef::row_major(&d_scores, keys);
            multiply(d_scores, key.layout.head(key.values(), at, 0, keys), &mut d_query);
            write_head(&d_query, head_dim, out, width, offset + column);
            // dK = dSᵀ Q
            let q = query.layout.head(query.values(), at, first, count);
            multiply(d_scores.transposed(), q, &mut d_rows);
            write_head(&d_rows, head_dim, &mut d_key_value, 2 * channels, column);
        }
        d_key_value
    }
}

/// Writes `rows` of `head_dim` elements to rows of `width` elements in `out`, from column `first` on.
fn write_head(rows: &[f32], head_dim: usize, out: &mut [f32], width: usize, first: usize) {
    for (out, row) in out.chunks_mut(width).zip(rows.chunks(head_dim)) {
        out[first..][..head_dim].copy_from_slice(row);
    }
}
