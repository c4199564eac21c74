//! Attention of many short sequences, such as the frames of each place: queries, keys and values of a head
//! are gathered from their tokens, and its products are loops over what lies in the first cache. (A matrix
//! product's own preparations take longer than a sequence of 16 tokens.)

#[cfg(feature = "autodiff")]
use super::super::{forward::contiguous, passes};
use super::{
    super::forward::{tensor, values},
    Heads, Place, Weights,
};
use crate::{
    attention::{of_samples, softmax_here},
    host::vectorized,
};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

/// The longest of them: queries, keys and values of a head of 72 take 55 KB.
const LONGEST: usize = 64;

impl Heads {
    /// Whether these are.
    pub(super) fn is_short(&self) -> bool {
        self.is_self() && self.queries.place.tokens <= LONGEST
    }

    /// [`attention`](Self::attention), and the softmax where it is to be kept: `[B, G, H, N, M]`.
    pub(super) fn attention_of_short(
        &self,
        bias: Option<&[f32]>,
        keep: bool,
    ) -> (FlexTensor, Option<Weights>) {
        let Place { batch, groups, heads, tokens, dim, .. } = self.queries.place;
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|of| values(&of.tensor));
        let scores = heads * tokens * tokens;
        let mut kept = vec![0.0; if keep { batch * groups * scores } else { 0 }];
        let mut out = vec![0.0; self.shape.num_elements()];
        let mut rows = self.queries.place.part(0, 1).rows_of_sequences(&mut out);
        let mut kept_of: Vec<_> = kept.chunks_mut(scores).map(Some).collect();
        kept_of.resize_with(batch * groups, || None);
        let sequences = rows.par_chunks_mut(tokens).zip(kept_of);
        sequences.enumerate().for_each(|(sequence, (out, kept))| {
            let (sample, group) = (sequence / groups, sequence % groups);
            let bias = bias.map(|bias| of_samples(bias, tokens, sample, 1));
            let mut own = vec![0.0; if kept.is_some() { 0 } else { tokens * tokens }];
            let mut kept = kept.map(|kept| kept.chunks_mut(tokens * tokens));
            vectorized(
                #[inline(always)]
                || {
                    let mut seen = vec![0.0; tokens * dim];
                    for head in 0..heads {
                        let at = [sample, group, head];
                        let scores = kept.as_mut().and_then(Iterator::next).unwrap_or(&mut own);
                        let queries = self.queries.place.gathered(q, at);
                        let keys = turned(&self.keys.place.gathered(k, at), dim);
                        multiply(&queries, &keys, tokens, scores);
                        softmax_here(scores, tokens, self.scale(), bias);
                        multiply(scores, &self.values.place.gathered(v, at), dim, &mut seen);
                        write(&seen, dim, out, head * dim);
                    }
                },
            );
        });
        let kept = keep.then(|| tensor(kept, [batch, groups, heads, tokens, tokens]));
        (tensor(out, self.shape.clone()), kept)
    }

    /// The gradient of `qkv`, where `dy` is the output's.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward_of_short(&self, weights: &Weights, dy: FlexTensor) -> FlexTensor {
        let place @ Place { groups, heads, tokens, dim, .. } = self.queries.place;
        let source = &self.queries.tensor;
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|of| values(&of.tensor));
        let dy = contiguous(dy);
        let (dy, of_dy) = (values(&dy), place.part(0, 1));
        let mut out = vec![0.0; source.layout().num_elements()];
        let mut rows = place.rows_of_sequences(&mut out);
        let sequences = rows.par_chunks_mut(tokens);
        let sequences = sequences.zip(values(weights).par_chunks(heads * tokens * tokens));
        sequences.enumerate().for_each(|(sequence, (out, weights))| {
            let (sample, group) = (sequence / groups, sequence % groups);
            vectorized(
                #[inline(always)]
                || {
                    let mut d_scores = vec![0.0; tokens * tokens];
                    let mut found = vec![0.0; tokens * dim];
                    for (head, weights) in weights.chunks(tokens * tokens).enumerate() {
                        let at = [sample, group, head];
                        let first = |of: Place| of.first + head * dim;
                        let dy = of_dy.gathered(dy, at);
                        multiply(&turned(weights, tokens), &dy, dim, &mut found);
                        write(&found, dim, out, first(self.values.place));
                        let values = turned(&self.values.place.gathered(v, at), dim);
                        multiply(&dy, &values, tokens, &mut d_scores);
                        passes::softmax_backward_here(tokens, &mut d_scores, weights, self.scale());
                        multiply(&d_scores, &self.keys.place.gathered(k, at), dim, &mut found);
                        write(&found, dim, out, first(place));
                        let d_scores = turned(&d_scores, tokens);
                        multiply(&d_scores, &place.gathered(q, at), dim, &mut found);
                        write(&found, dim, out, first(self.keys.place));
                    }
                },
            );
        });
        tensor(out, source.layout().shape().clone())
    }
}

impl Place {
    /// The values of one head of a sequence, `[N, D]`.
    #[inline(always)]
    fn gathered(self, x: &[f32], at: [usize; 3]) -> Vec<f32> {
        let mut gathered = Vec::with_capacity(self.tokens * self.dim);
        let first = self.first_value(at, 0);
        for token in 0..self.tokens {
            let values = &x[first + token * self.strides[1] * self.width..][..self.dim];
            gathered.extend_from_slice(values);
        }
        gathered
    }

    /// The tokens of `out`, sequence by sequence.
    fn rows_of_sequences(self, out: &mut [f32]) -> Vec<&mut [f32]> {
        let mut rows: Vec<_> = out.chunks_mut(self.width).map(Some).collect();
        let mut ordered = Vec::with_capacity(rows.len());
        for sample in 0..self.batch {
            for group in 0..self.groups {
                for token in 0..self.tokens {
                    ordered.extend(rows[self.token([sample, group], token)].take());
                }
            }
        }
        ordered
    }
}

/// Writes rows of `width` to each row of `out`, from `first` on.
#[inline(always)]
fn write(rows: &[f32], width: usize, out: &mut [&mut [f32]], first: usize) {
    for (out, row) in out.iter_mut().zip(rows.chunks(width)) {
        out[first..][..width].copy_from_slice(row);
    }
}

/// The columns of rows of `width`, one after the other.
#[inline(always)]
fn turned(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let mut turned = vec![0.0; x.len()];
    for (row, x) in x.chunks(width).enumerate() {
        for (column, x) in x.iter().enumerate() {
            turned[column * rows + row] = *x;
        }
    }
    turned
}

/// `left right` into `out`; `right` has rows of `width`.
#[inline(always)]
fn multiply(left: &[f32], right: &[f32], width: usize, out: &mut [f32]) {
    let depth = right.len() / width;
    let mut left = left.chunks_exact(4 * depth);
    let mut out = out.chunks_mut(4 * width);
    for (left, out) in left.by_ref().zip(&mut out) {
        multiply_rows::<4>(left, right, width, out);
    }
    for (left, out) in left.remainder().chunks(depth).zip(out.flat_map(|out| out.chunks_mut(width)))
    {
        multiply_rows::<1>(left, right, width, out);
    }
}

/// `R` rows of a product, sixteen columns at once, then eight, then single ones.
#[inline(always)]
fn multiply_rows<const R: usize>(left: &[f32], right: &[f32], width: usize, out: &mut [f32]) {
    let mut column = 0;
    while column + 16 <= width {
        multiply_columns::<R, 16>(left, right, width, column, out);
        column += 16;
    }
    if column + 8 <= width {
        multiply_columns::<R, 8>(left, right, width, column, out);
        column += 8;
    }
    while column < width {
        multiply_columns::<R, 1>(left, right, width, column, out);
        column += 1;
    }
}

/// `L` columns of `R` rows of a product, whose sums stay in registers.
#[inline(always)]
fn multiply_columns<const R: usize, const L: usize>(
    left: &[f32],
    right: &[f32],
    width: usize,
    column: usize,
    out: &mut [f32],
) {
    let depth = left.len() / R;
    let mut sums = [[0.0; L]; R];
    for (d, right) in right.chunks_exact(width).enumerate() {
        let right: &[f32; L] = right[column..].first_chunk().expect("columns that there are");
        for r in 0..R {
            let left = left[r * depth + d];
            for l in 0..L {
                sums[r][l] += left * right[l];
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        out[r * width + column..][..L].copy_from_slice(sums);
    }
}
