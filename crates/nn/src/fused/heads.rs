//! Attention over heads where they lie: queries, keys and values beside each other at every token, and
//! sequences that go along any axis of the tokens. burn's matrix products take views, so nothing is
//! copied before them, and results are put together in one pass. Long sequences are multiplied on the
//! processor's matrix unit where it has one.

use super::forward::{contiguous, tensor, values};
#[cfg(feature = "autodiff")]
use super::passes;
use crate::{
    attention::{Chunks, SCORES_AT_HAND, of_samples, softmax, softmax_here},
    host::product::{self, Factor, multiply_here},
};
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        ops::FloatTensorOps,
    },
    tensor::Shape,
};
use rayon::prelude::*;

/// Queries of one task on the processor's matrix unit, where a sequence may be cut.
const QUERIES: usize = 256;

/// Rows of `width` as lines.
fn factor_of_rows(x: &[f32], width: usize) -> Factor<'_> {
    let lines = x.len() / width;
    Factor { values: x, lines, depth: width, line_stride: width, depth_stride: 1 }
}

/// Columns of rows of `width` as lines.
#[cfg(feature = "autodiff")]
fn factor_of_columns(x: &[f32], width: usize) -> Factor<'_> {
    let depth = x.len() / width;
    Factor { values: x, lines: width, depth, line_stride: 1, depth_stride: width }
}

/// Sequences of tokens, and their heads in a tensor `[.., W]` in one piece: seen as `[B, G, H, N, D]`, N
/// tokens in G groups of each sample.
#[derive(Debug, Clone, Copy)]
struct Place {
    batch: usize,
    groups: usize,
    heads: usize,
    tokens: usize,
    dim: usize,
    /// From a group to the next, from a token of a sequence to the next; in tokens.
    strides: [usize; 2],
    /// Values of a token, and the first of these heads'.
    width: usize,
    first: usize,
}

impl Place {
    /// Part `index` of tokens with `parts` times the heads.
    fn part(self, index: usize, parts: usize) -> Self {
        let channels = self.heads * self.dim;
        Self { width: parts * channels, first: index * channels, ..self }
    }

    /// The heads of `x`, without a copy.
    ///
    /// # Panics
    /// Where `x` has not just the tokens of this place: products read views unchecked.
    fn view(self, x: &FlexTensor) -> FlexTensor {
        let values = self.batch * self.groups * self.tokens * self.width;
        assert_eq!(x.layout().num_elements(), values, "tokens that fit each other");
        let [of_group, of_token] = self.strides.map(|stride| (stride * self.width) as isize);
        let of_sample = (self.groups * self.tokens * self.width) as isize;
        let layout = Layout::new(
            [self.batch, self.groups, self.heads, self.tokens, self.dim].into(),
            vec![of_sample, of_group, self.dim as isize, of_token, 1],
            x.layout().start_offset() + self.first,
        );
        x.clone().with_layout(layout)
    }

    /// One head of `count` tokens from `token` of a sequence on, tokens as lines.
    fn tokens(self, x: &[f32], at: [usize; 3], token: usize, count: usize) -> Factor<'_> {
        Factor {
            values: &x[self.first_value(at, token)..],
            lines: count,
            depth: self.dim,
            line_stride: self.strides[1] * self.width,
            depth_stride: 1,
        }
    }

    /// One head of a sequence, channels as lines.
    fn channels(self, x: &[f32], at: [usize; 3]) -> Factor<'_> {
        Factor {
            values: &x[self.first_value(at, 0)..],
            lines: self.dim,
            depth: self.tokens,
            line_stride: 1,
            depth_stride: self.strides[1] * self.width,
        }
    }

    /// Where the values of a head of a token begin.
    fn first_value(self, [sample, group, head]: [usize; 3], token: usize) -> usize {
        let [of_group, of_token] = self.strides;
        let place = sample * self.groups * self.tokens + group * of_group + token * of_token;
        place * self.width + self.first + head * self.dim
    }

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

/// Queries, keys and values for an attention.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    /// Where the queries come from, and which part of it they are.
    queries: Source,
    keys: Source,
    values: Source,
    /// `[.., C]` of the queries' tokens.
    shape: Shape,
}

/// A tensor with heads.
#[derive(Debug, Clone)]
struct Source {
    tensor: FlexTensor,
    place: Place,
}

impl Source {
    fn view(&self) -> FlexTensor {
        self.place.view(&self.tensor)
    }
}

/// What the backward pass needs beside the heads: the softmax `[B, G, H, N, M]`.
pub(super) type Weights = FlexTensor;

impl Heads {
    /// `qkv` `[B, T, S, 3 C]`, sequences along `axis` 1 or 2.
    pub(super) fn of_self(qkv: FlexTensor, axis: usize, heads: usize) -> Self {
        let qkv = contiguous(qkv);
        let mut shape = qkv.layout().shape().clone();
        let (frames, places, width) = (shape[1], shape[2], shape[3]);
        let channels = width / 3;
        assert!(width == 3 * channels && channels % heads == 0, "{heads} heads in {width} values");
        shape[3] = channels;
        let (groups, tokens, strides) =
            if axis == 1 { (places, frames, [1, places]) } else { (frames, places, [places, 1]) };
        let place = Place {
            batch: shape[0],
            groups,
            heads,
            tokens,
            dim: channels / heads,
            strides,
            width,
            first: 0,
        };
        let source = |part| Source { tensor: qkv.clone(), place: place.part(part, 3) };
        Self { queries: source(0), keys: source(1), values: source(2), shape }
    }

    /// `query` `[B, N, C]`, `key_value` `[B, M, 2 C]`.
    pub(super) fn of_cross(query: FlexTensor, key_value: FlexTensor, heads: usize) -> Self {
        let (query, key_value) = (contiguous(query), contiguous(key_value));
        let shape = query.layout().shape().clone();
        let (batch, channels) = (shape[0], shape[2]);
        assert_eq!(channels % heads, 0, "{heads} heads in {channels} channels");
        let place = |tokens: usize, width: usize| Place {
            batch,
            groups: 1,
            heads,
            tokens,
            dim: channels / heads,
            strides: [tokens, 1],
            width,
            first: 0,
        };
        let of_keys = place(key_value.layout().shape()[1], 2 * channels);
        let source = |part| Source { tensor: key_value.clone(), place: of_keys.part(part, 2) };
        let (keys, values) = (source(0), source(1));
        let queries = Source { place: place(shape[1], channels), tensor: query };
        Self { queries, keys, values, shape }
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.queries.place.dim as f64).sqrt()) as f32
    }

    /// `softmax(q kᵀ / sqrt(D) + bias) v` with `bias` `[1 or B, M]`; `[.., C]`.
    pub(super) fn attention(&self, bias: Option<&[f32]>) -> FlexTensor {
        let (output, _) = if self.fits_unit() {
            self.attention_on_unit(bias, false)
        } else {
            self.attention_by_products(bias, SCORES_AT_HAND)
        };
        output
    }

    /// [`attention`](Self::attention), and the softmax.
    #[cfg(feature = "autodiff")]
    pub(super) fn attention_keeping(&self, bias: Option<&[f32]>) -> (FlexTensor, Weights) {
        let (output, weights) = if self.fits_unit() && self.has_many_sequences() {
            self.attention_on_unit(bias, true)
        } else {
            self.attention_by_products(bias, usize::MAX)
        };
        (output, weights.expect("kept"))
    }

    /// [`attention`](Self::attention) with about `budget` scores at once, and the softmax where that was
    /// one piece.
    fn attention_by_products(
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

    /// Whether the products are made on the processor's matrix unit: long sequences, one token after the
    /// other.
    fn fits_unit(&self) -> bool {
        let [queries, keys] = [self.queries.place, self.keys.place];
        queries.tokens.min(keys.tokens) >= 64 && queries.strides[1] == 1 && product::is_at_hand()
    }

    /// Whether there is a sequence for each core, where a task takes whole ones.
    #[cfg(feature = "autodiff")]
    fn has_many_sequences(&self) -> bool {
        self.queries.place.batch * self.queries.place.groups >= rayon::current_num_threads()
    }

    /// [`attention`](Self::attention) with a task for each sequence, whose scores are kept, or for some
    /// queries of it, whose scores stay near the core.
    fn attention_on_unit(&self, bias: Option<&[f32]>, keep: bool) -> (FlexTensor, Option<Weights>) {
        let Place { batch, groups, heads, tokens, dim, .. } = self.queries.place;
        let keys = self.keys.place.tokens;
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|of| values(&of.tensor));
        let width = heads * dim;
        let task = |sequence: usize, first: usize, out: &mut [f32], kept: Option<&mut [f32]>| {
            let (sample, group) = (sequence / groups, sequence % groups);
            let count = out.len() / width;
            let bias = bias.map(|bias| of_samples(bias, keys, sample, 1));
            let mut own = vec![0.0; if kept.is_some() { 0 } else { count * keys }];
            let mut kept = kept.map(|kept| kept.chunks_mut(count * keys));
            let mut seen = vec![0.0; count * dim];
            for head in 0..heads {
                let scores = kept.as_mut().and_then(Iterator::next).unwrap_or(&mut own);
                let at = [sample, group, head];
                let queries = self.queries.place.tokens(q, at, first, count);
                multiply_here(queries, self.keys.place.tokens(k, at, 0, keys), scores);
                softmax_here(scores, keys, self.scale(), bias);
                let weights = factor_of_rows(scores, keys);
                multiply_here(weights, self.values.place.channels(v, at), &mut seen);
                for (out, seen) in out.chunks_mut(width).zip(seen.chunks(dim)) {
                    out[head * dim..][..dim].copy_from_slice(seen);
                }
            }
        };
        let mut out = vec![0.0; batch * groups * tokens * width];
        let sequences = out.par_chunks_mut(tokens * width);
        let weights = if keep {
            let mut kept = vec![0.0; batch * groups * heads * tokens * keys];
            let each = kept.par_chunks_mut(heads * tokens * keys);
            sequences.zip(each).enumerate().for_each(|(sequence, (out, kept))| {
                task(sequence, 0, out, Some(kept));
            });
            Some(tensor(kept, [batch, groups, heads, tokens, keys]))
        } else {
            sequences.enumerate().for_each(|(sequence, out)| {
                let parts = out.par_chunks_mut(QUERIES * width).enumerate();
                parts.for_each(|(part, out)| task(sequence, part * QUERIES, out, None));
            });
            None
        };
        (tensor(out, self.shape.clone()), weights)
    }

    /// [`self_backward`](Self::self_backward) with a task for each sequence.
    #[cfg(feature = "autodiff")]
    fn self_backward_on_unit(&self, weights: &[f32], dy: &[f32]) -> Vec<f32> {
        let place @ Place { batch, groups, heads, tokens, dim, width, .. } = self.queries.place;
        let qkv = values(&self.queries.tensor);
        let of_dy = place.part(0, 1);
        let mut out = vec![0.0; batch * groups * tokens * width];
        out.par_chunks_mut(tokens * width).enumerate().for_each(|(sequence, out)| {
            let (sample, group) = (sequence / groups, sequence % groups);
            let mut d_scores = vec![0.0; tokens * tokens];
            let mut found = vec![0.0; tokens * dim];
            for head in 0..heads {
                let at = [sample, group, head];
                let first = (sequence * heads + head) * tokens * tokens;
                let weights = &weights[first..][..tokens * tokens];
                let mut write = |of: &Source, found: &[f32]| {
                    for (out, found) in out.chunks_mut(width).zip(found.chunks(dim)) {
                        out[of.place.first + head * dim..][..dim].copy_from_slice(found);
                    }
                };
                let columns = factor_of_columns(weights, tokens);
                multiply_here(columns, of_dy.channels(dy, at), &mut found);
                write(&self.values, &found);
                let values = self.values.place.tokens(qkv, at, 0, tokens);
                multiply_here(of_dy.tokens(dy, at, 0, tokens), values, &mut d_scores);
                passes::softmax_backward_here(tokens, &mut d_scores, weights, self.scale());
                let keys = self.keys.place.channels(qkv, at);
                multiply_here(factor_of_rows(&d_scores, tokens), keys, &mut found);
                write(&self.queries, &found);
                let queries = self.queries.place.channels(qkv, at);
                multiply_here(factor_of_columns(&d_scores, tokens), queries, &mut found);
                write(&self.keys, &found);
            }
        });
        out
    }

    /// The gradients of queries, keys and values, where `dy` is the output's.
    #[cfg(feature = "autodiff")]
    fn backward(&self, weights: FlexTensor, dy: FlexTensor) -> [Pieces; 3] {
        let dy = self.queries.place.part(0, 1).view(&contiguous(dy));
        let turned = |x: FlexTensor| x.transpose(3, 4);
        let d_values = Flex::float_matmul(turned(weights.clone()), dy.clone());
        let mut d_scores = Flex::float_matmul(dy, turned(self.values.view()));
        let keys = self.keys.place.tokens;
        passes::softmax_backward(keys, d_scores.storage_mut(), values(&weights), self.scale());
        let d_queries = Flex::float_matmul(d_scores.clone(), self.keys.view());
        let d_keys = Flex::float_matmul(turned(d_scores), self.queries.view());
        [d_queries, d_keys, d_values].map(Pieces::whole)
    }

    /// The gradient of `qkv`.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward(&self, weights: Weights, dy: FlexTensor) -> FlexTensor {
        let source = &self.queries.tensor;
        if self.fits_unit() && self.has_many_sequences() {
            let dy = contiguous(dy);
            let found = self.self_backward_on_unit(values(&weights), values(&dy));
            return tensor(found, source.layout().shape().clone());
        }
        let [queries, keys, values] = self.backward(weights, dy);
        assembled([(&self.queries, queries), (&self.keys, keys), (&self.values, values)])
    }

    /// The gradients of `query` and `key_value`.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward(&self, weights: Weights, dy: FlexTensor) -> [FlexTensor; 2] {
        let [queries, keys, values] = self.backward(weights, dy);
        [
            assembled([(&self.queries, queries)]),
            assembled([(&self.keys, keys), (&self.values, values)]),
        ]
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
