//! Attention by burn's matrix products, which read heads where they lie, with about as many scores at
//! once as stay near the processor.

#[cfg(feature = "autodiff")]
use super::super::passes;
#[cfg(feature = "autodiff")]
use super::Source;
use super::{
    super::forward::{contiguous, tensor, values},
    Heads, Place, Weights,
};
use crate::attention::{Chunks, of_samples, softmax};
use burn::backend::{Flex, flex::FlexTensor, ops::FloatTensorOps};
use rayon::prelude::*;

impl Heads {
    /// [`attention`](Self::attention) with about `budget` scores at once, and the softmax where that was
    /// one piece.
    pub(super) fn attention_by_products(
        &self,
        bias: Option<&[f32]>,
        budget: usize,
    ) -> (FlexTensor, Option<Weights>) {
        let Place { batch, groups, heads, tokens, .. } = self.queries.place;
        let keys = self.keys.place.tokens;
        let (q, k, v) = (self.queries.view(), self.keys.view(), self.values.view());
        let k = k.transpose(3, 4);
        let chunks = Chunks::new([batch * groups, heads, tokens, keys], budget);
        let each = if chunks.samples >= batch * groups {
            [batch, groups, tokens]
        } else {
            [1, chunks.samples.min(groups), chunks.queries]
        };
        let of = [batch, groups, tokens];
        let mut weights = None;
        let mut pieces = Vec::new();
        let parts = |axis: usize| {
            (0..of[axis]).step_by(each[axis]).map(move |at| (at, each[axis].min(of[axis] - at)))
        };
        for (sample, samples) in parts(0) {
            let bias = bias.map(|bias| of_samples(bias, keys, sample, samples));
            for (group, groups) in parts(1) {
                let part = |x: &FlexTensor| x.narrow(0, sample, samples).narrow(1, group, groups);
                let (q, k, v) = (part(&q), part(&k), part(&v));
                for (token, tokens) in parts(2) {
                    let mut scores = Flex::float_matmul(q.narrow(3, token, tokens), k.clone());
                    let rows = groups * heads * tokens;
                    softmax(scores.storage_mut(), keys, rows, self.scale(), bias);
                    pieces.push(contiguous(Flex::float_matmul(scores.clone(), v.clone())));
                    weights = Some(scores);
                }
            }
        }
        let whole = pieces.len() == 1;
        let mut out = vec![0.0; self.shape.num_elements()];
        let place = self.queries.place.part(0, 1);
        place.assemble(&Pieces { of, each, pieces }, &mut out);
        (tensor(out, self.shape.clone()), weights.filter(|_| whole))
    }

    /// The gradients of queries, keys and values, where `dy` is the output's.
    #[cfg(feature = "autodiff")]
    fn backward_by_products(&self, weights: &Weights, dy: FlexTensor) -> [Pieces; 3] {
        let dy = self.queries.place.part(0, 1).view(&contiguous(dy));
        let turned = |x: FlexTensor| x.transpose(3, 4);
        let d_values = Flex::float_matmul(turned(weights.clone()), dy.clone());
        let mut d_scores = Flex::float_matmul(dy, turned(self.values.view()));
        let keys = self.keys.place.tokens;
        passes::softmax_backward(keys, d_scores.storage_mut(), values(weights), self.scale());
        let d_queries = Flex::float_matmul(d_scores.clone(), self.keys.view());
        let d_keys = Flex::float_matmul(turned(d_scores), self.queries.view());
        [d_queries, d_keys, d_values].map(Pieces::whole)
    }

    /// The gradient of `qkv`.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward_by_products(
        &self,
        weights: &Weights,
        dy: FlexTensor,
    ) -> FlexTensor {
        let [queries, keys, values] = self.backward_by_products(weights, dy);
        assembled([(&self.queries, queries), (&self.keys, keys), (&self.values, values)])
    }

    /// The gradients of `query` and `key_value`.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward_by_products(
        &self,
        weights: &Weights,
        dy: FlexTensor,
    ) -> [FlexTensor; 2] {
        let [queries, keys, values] = self.backward_by_products(weights, dy);
        [
            assembled([(&self.queries, queries)]),
            assembled([(&self.keys, keys), (&self.values, values)]),
        ]
    }
}

impl Place {
    /// Writes heads to where they belong in `out`.
    fn assemble(self, pieces: &Pieces, out: &mut [f32]) {
        let of_sample = self.groups * self.tokens;
        let [of_group, of_token] = self.strides;
        let (heads, dim) = (self.heads, self.dim);
        out.par_chunks_mut(self.width).with_min_len(16).enumerate().for_each(|(at, out)| {
            let (sample, place) = (at / of_sample, at % of_sample);
            // Sequences one after the other, or beside each other.
            let (group, token) = if of_token == 1 && of_group == self.tokens {
                (place / self.tokens, place % self.tokens)
            } else {
                (place % self.groups, place / self.groups)
            };
            let (piece, first, of_head) = pieces.find([sample, group, token], heads, dim);
            let out = out[self.first..][..heads * dim].chunks_mut(dim);
            for (head, out) in out.enumerate() {
                out.copy_from_slice(&piece[first + head * of_head..][..dim]);
            }
        });
    }
}

/// Heads `[B, G, H, N, D]` cut along samples, groups and tokens.
struct Pieces {
    /// Of all samples, groups and tokens.
    of: [usize; 3],
    /// Samples, groups and tokens of a piece; the last of an axis may have fewer.
    each: [usize; 3],
    /// The last axis fastest.
    pieces: Vec<FlexTensor>,
}

impl Pieces {
    #[cfg(feature = "autodiff")]
    fn whole(heads: FlexTensor) -> Self {
        let shape = heads.layout().shape();
        let of = [shape[0], shape[1], shape[3]];
        Self { of, each: of, pieces: vec![contiguous(heads)] }
    }

    /// The piece that has this sample, group and token, where its first head is and how far it is to the
    /// next head.
    fn find(&self, at: [usize; 3], heads: usize, dim: usize) -> (&[f32], usize, usize) {
        let mut index = 0;
        let mut within = [0; 3];
        let mut lengths = [0; 3];
        for axis in 0..3 {
            let (of, each) = (self.of[axis], self.each[axis]);
            let piece = at[axis] / each;
            index = index * of.div_ceil(each) + piece;
            within[axis] = at[axis] % each;
            lengths[axis] = each.min(of - piece * each);
        }
        let [_, groups, tokens] = lengths;
        let sequence = within[0] * groups + within[1];
        let first = (sequence * heads * tokens + within[2]) * dim;
        (values(&self.pieces[index]), first, tokens * dim)
    }
}

/// A tensor of the heads of all its sources, which lie beside each other in one.
#[cfg(feature = "autodiff")]
fn assembled<const N: usize>(parts: [(&Source, Pieces); N]) -> FlexTensor {
    let layout = parts[0].0.tensor.layout();
    let mut out = vec![0.0; layout.num_elements()];
    for (source, pieces) in &parts {
        source.place.assemble(pieces, &mut out);
    }
    tensor(out, layout.shape().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 1.7).sin()).collect()
    }

    /// In one piece, and cut along samples, groups and queries.
    #[test]
    fn pieces_give_what_the_whole_gives() {
        let (heads, channels) = (2, 6);
        for (axis, shape @ [batch, frames, places]) in [(1, [2, 5, 3]), (2, [2, 3, 9])] {
            let qkv = waves(batch * frames * places * 3 * channels);
            let qkv = tensor(qkv, [batch, frames, places, 3 * channels]);
            let of_self = Heads::of_self(qkv, axis, heads);
            let (queries, keys) = (11, 7);
            let query = tensor(waves(batch * queries * channels), [batch, queries, channels]);
            let key_value = waves(batch * keys * 2 * channels);
            let key_value = tensor(key_value, [batch, keys, 2 * channels]);
            let of_cross = Heads::of_cross(query, key_value, heads);
            let bias = waves(batch * keys);
            for (of, bias) in [(of_self, None), (of_cross, Some(bias.as_slice()))] {
                let (whole, weights) = of.attention_by_products(bias, usize::MAX);
                assert!(weights.is_some());
                for budget in [1, 20, 50, 200, 500] {
                    let (cut, _) = of.attention_by_products(bias, budget);
                    for (cut, whole) in values(&cut).iter().zip(values(&whole)) {
                        assert!((cut - whole).abs() < 1e-6, "{shape:?} {budget}: {cut} {whole}");
                    }
                }
            }
        }
    }
}
