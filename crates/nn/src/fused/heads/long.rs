//! Attention of long sequences by products of our own: a task takes some queries of a sequence, whose
//! scores stay near the core, and all heads one after the other.

#[cfg(feature = "autodiff")]
use super::super::{forward::contiguous, passes};
use super::{
    super::forward::{tensor, values},
    Heads, Place, Weights,
};
use crate::attention::{of_samples, softmax_here};
use burn::backend::flex::FlexTensor;
use opensora_gemm::{MatRef, multiply_single_threaded as multiply};
use rayon::prelude::*;

/// Queries of one task.
const QUERIES: usize = 256;

/// Fewer tokens than this, and a sequence does not fill the panels of a product.
const LEAST: usize = 64;

impl Heads {
    /// Whether these are, one token after the other, on a processor that has the products.
    pub(super) fn is_long(&self) -> bool {
        let [queries, keys] = [self.queries.place, self.keys.place];
        queries.tokens.min(keys.tokens) >= LEAST
            && queries.strides[1] == 1
            && opensora_gemm::available()
    }

    /// [`attention`](Self::attention), and the softmax where it is to be kept:
    /// `[B, G, part of the queries, H, query, M]`.
    pub(super) fn attention_of_long(
        &self,
        bias: Option<&[f32]>,
        keep: bool,
    ) -> (FlexTensor, Option<Weights>) {
        let Place { batch, groups, heads, tokens, dim, .. } = self.queries.place;
        let keys = self.keys.place.tokens;
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|of| values(&of.tensor));
        let width = heads * dim;
        let task = |sequence: usize, part: usize, out: &mut [f32], kept: Option<&mut [f32]>| {
            let (sample, group) = (sequence / groups, sequence % groups);
            let count = out.len() / width;
            let bias = bias.map(|bias| of_samples(bias, keys, sample, 1));
            let mut own = vec![0.0; if kept.is_some() { 0 } else { count * keys }];
            let mut kept = kept.map(|kept| kept.chunks_mut(count * keys));
            let mut seen = vec![0.0; count * dim];
            for head in 0..heads {
                let scores = kept.as_mut().and_then(Iterator::next).unwrap_or(&mut own);
                let at = [sample, group, head];
                let queries = self.queries.place.head(q, at, part * QUERIES, count);
                multiply(queries, self.keys.place.head(k, at, 0, keys).transposed(), scores);
                softmax_here(scores, keys, self.scale(), bias);
                let values = self.values.place.head(v, at, 0, keys);
                multiply(MatRef::row_major(scores, keys), values, &mut seen);
                for (out, seen) in out.chunks_mut(width).zip(seen.chunks(dim)) {
                    out[head * dim..][..dim].copy_from_slice(seen);
                }
            }
        };
        let mut out = vec![0.0; batch * groups * tokens * width];
        let sequences = out.par_chunks_mut(tokens * width);
        if !keep {
            sequences.enumerate().for_each(|(sequence, out)| {
                let parts = out.par_chunks_mut(QUERIES * width).enumerate();
                parts.for_each(|(part, out)| task(sequence, part, out, None));
            });
            return (tensor(out, self.shape.clone()), None);
        }
        let mut kept = vec![0.0; batch * groups * heads * tokens * keys];
        let each = kept.par_chunks_mut(heads * tokens * keys);
        sequences.zip(each).enumerate().for_each(|(sequence, (out, kept))| {
            let parts = out.par_chunks_mut(QUERIES * width);
            let parts = parts.zip(kept.par_chunks_mut(QUERIES * heads * keys)).enumerate();
            parts.for_each(|(part, (out, kept))| task(sequence, part, out, Some(kept)));
        });
        let kept = tensor(kept, [batch, groups, heads * tokens * keys]);
        (tensor(out, self.shape.clone()), Some(kept))
    }

    /// The gradient of `qkv`.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward_of_long(&self, weights: &Weights, dy: FlexTensor) -> FlexTensor {
        let source = &self.queries;
        let Place { tokens, width, heads, dim, .. } = source.place;
        let mut out = vec![0.0; source.tensor.layout().num_elements()];
        let found = self.backward_of_long(weights, dy, &mut out);
        let channels = heads * dim;
        out.par_chunks_mut(tokens * width).zip(found).for_each(|(out, found)| {
            for (out, found) in out.chunks_mut(width).zip(found.chunks(2 * channels)) {
                out[channels..].copy_from_slice(found);
            }
        });
        tensor(out, source.tensor.layout().shape().clone())
    }

    /// The gradients of `query` and `key_value`.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward_of_long(
        &self,
        weights: &Weights,
        dy: FlexTensor,
    ) -> [FlexTensor; 2] {
        let [query, key_value] = [&self.queries, &self.keys].map(|of| of.tensor.layout());
        let mut out = vec![0.0; query.num_elements()];
        let found = self.backward_of_long(weights, dy, &mut out);
        [tensor(out, query.shape().clone()), tensor(found.concat(), key_value.shape().clone())]
    }

    /// Writes the gradient of the queries to where they lie in `out`, and returns that of keys and values of
    /// each sequence, `[M, 2 C]`; `dy` is the output's.
    #[cfg(feature = "autodiff")]
    fn backward_of_long(
        &self,
        weights: &Weights,
        dy: FlexTensor,
        out: &mut [f32],
    ) -> Vec<Vec<f32>> {
        let place @ Place { groups, heads, tokens, dim, width, .. } = self.queries.place;
        let keys = self.keys.place.tokens;
        let channels = heads * dim;
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|of| values(&of.tensor));
        let (dy, weights) = (contiguous(dy), values(weights));
        let (dy, of_dy) = (values(&dy), place.part(0, 1));
        let task = |sequence: usize, part: usize, out: &mut [f32], weights: &[f32]| {
            let (sample, group) = (sequence / groups, sequence % groups);
            let (first, count) = (part * QUERIES, out.len() / width);
            let mut d_key_value = vec![0.0; keys * 2 * channels];
            let mut d_scores = vec![0.0; count * keys];
            let mut d_queries = vec![0.0; count * dim];
            let mut found = vec![0.0; keys * dim];
            for (head, weights) in weights.chunks(count * keys).enumerate() {
                let at = [sample, group, head];
                let mut write = |part: usize, found: &[f32]| {
                    let rows = d_key_value.chunks_mut(2 * channels).zip(found.chunks(dim));
                    for (out, found) in rows {
                        out[part * channels + head * dim..][..dim].copy_from_slice(found);
                    }
                };
                let dy = of_dy.head(dy, at, first, count);
                multiply(MatRef::row_major(weights, keys).transposed(), dy, &mut found);
                write(1, &found);
                let values = self.values.place.head(v, at, 0, keys);
                multiply(dy, values.transposed(), &mut d_scores);
                passes::softmax_backward_here(keys, &mut d_scores, weights, self.scale());
                let d_scores = MatRef::row_major(&d_scores, keys);
                multiply(d_scores, self.keys.place.head(k, at, 0, keys), &mut d_queries);
                for (out, found) in out.chunks_mut(width).zip(d_queries.chunks(dim)) {
                    out[place.first + head * dim..][..dim].copy_from_slice(found);
                }
                let queries = place.head(q, at, first, count);
                multiply(d_scores.transposed(), queries, &mut found);
                write(0, &found);
            }
            d_key_value
        };
        let sequences = out.par_chunks_mut(tokens * width);
        let sequences = sequences.zip(weights.par_chunks(heads * tokens * keys)).enumerate();
        sequences
            .map(|(sequence, (out, weights))| {
                let parts = out.par_chunks_mut(QUERIES * width);
                let parts = parts.zip(weights.par_chunks(QUERIES * heads * keys)).enumerate();
                let parts = parts.map(|(part, (out, weights))| task(sequence, part, out, weights));
                // Added in order, so that the sums do not depend on the number of threads.
                let parts: Vec<_> = parts.collect();
                let sum = parts.into_iter().reduce(|mut sum, part| {
                    passes::zip(&mut sum, &part, |sum, part| sum + part);
                    sum
                });
                sum.unwrap_or_default()
            })
            .collect()
    }
}
