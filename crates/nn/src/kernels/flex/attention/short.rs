//! Self-attention over many short sequences, such as the frames of each spatial position. Queries, keys and
//! values of a head are gathered, and its products are loops over arrays in the first cache: preparing a
//! general matrix product takes longer than a sequence of 16 tokens.

#[cfg(feature = "autodiff")]
use super::super::{contiguous, softmax::softmax_backward_single_threaded, values};
use super::{
    super::{
        elementwise::vectorized,
        softmax::{bias_of_samples, softmax_single_threaded},
        tensor,
    },
    Attention, TokenLayout,
};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

/// The most tokens of a sequence: queries, keys and values of a head of 72 channels take 55 KB.
const MAX_TOKENS: usize = 64;

impl Attention {
    /// Returns true for self-attention over at most 64 tokens.
    pub(super) fn fits_short(&self) -> bool {
        self.is_self() && self.query.layout.tokens <= MAX_TOKENS
    }

    /// Returns the output of [`forward`](Self::forward), and if `save` the softmax for backward, `[B, G,
    /// H, N, M]`. `bias` is `[1 or B, M]`.
    pub(super) fn forward_short(
        &self,
        bias: Option<&[f32]>,
        save: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let TokenLayout { batch, groups, heads, tokens, .. } = self.query.layout;
        let scores = heads * tokens * tokens;
        let mut saved = vec![0.0; if save { batch * groups * scores } else { 0 }];
        let mut out = vec![0.0; self.shape.num_elements()];
        let mut rows = self.output_layout().rows_by_sequence(&mut out);
        let mut saved_of_sequences: Vec<_> = saved.chunks_mut(scores).map(Some).collect();
        saved_of_sequences.resize_with(batch * groups, || None);
        let sequences = rows.par_chunks_mut(tokens).zip(saved_of_sequences);
        sequences.enumerate().for_each(|(sequence, (out, saved))| {
            self.forward_sequence([sequence / groups, sequence % groups], bias, out, saved);
        });
        let saved = save.then(|| tensor(saved, [batch, groups, heads, tokens, tokens]));
        (tensor(out, self.shape.clone()), saved)
    }

    /// Writes the output of a sequence to its rows, and its softmax to `saved` `[H, N, M]`.
    fn forward_sequence(
        &self,
        [sample, group]: [usize; 2],
        bias: Option<&[f32]>,
        out: &mut [&mut [f32]],
        saved: Option<&mut [f32]>,
    ) {
        let [query, key, value] = [&self.query, &self.key, &self.value];
        let [q, k, v] = [query.values(), key.values(), value.values()];
        let TokenLayout { heads, tokens, head_dim, .. } = query.layout;
        let bias = bias.map(|bias| bias_of_samples(bias, tokens, sample, 1));
        let mut workspace = vec![0.0; if saved.is_some() { 0 } else { tokens * tokens }];
        let mut saved = saved.map(|saved| saved.chunks_mut(tokens * tokens));
        vectorized(
            #[inline(always)]
            || {
                let mut output = vec![0.0; tokens * head_dim];
                for head in 0..heads {
                    let at = [sample, group, head];
                    let scores = saved.as_mut().and_then(Iterator::next).unwrap_or(&mut workspace);
                    let queries = query.layout.gather(q, at);
                    let keys = transposed(&key.layout.gather(k, at), head_dim);
                    multiply(&queries, &keys, tokens, scores);
                    softmax_single_threaded(scores, tokens, self.scale(), bias);
                    multiply(scores, &value.layout.gather(v, at), head_dim, &mut output);
                    write_columns(&output, head_dim, out, head * head_dim);
                }
            },
        );
    }

    /// Returns the gradient of `qkv`, given that of the output.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward_short(&self, weights: &FlexTensor, dy: FlexTensor) -> FlexTensor {
        let TokenLayout { groups, heads, tokens, .. } = self.query.layout;
        let qkv = self.query.tensor.layout();
        let (dy, weights) = (contiguous(dy), values(weights));
        let dy = values(&dy);
        let mut out = vec![0.0; qkv.num_elements()];
        let mut rows = self.query.layout.rows_by_sequence(&mut out);
        let sequences = rows.par_chunks_mut(tokens);
        let sequences = sequences.zip(weights.par_chunks(heads * tokens * tokens));
        sequences.enumerate().for_each(|(sequence, (out, weights))| {
            self.backward_sequence([sequence / groups, sequence % groups], dy, weights, out);
        });
        tensor(out, qkv.shape().clone())
    }

    /// Writes the gradient of a sequence of `qkv` to its rows.
    #[cfg(feature = "autodiff")]
    fn backward_sequence(
        &self,
        [sample, group]: [usize; 2],
        dy: &[f32],
        weights: &[f32],
        out: &mut [&mut [f32]],
    ) {
        let [query, key, value] = [&self.query, &self.key, &self.value];
        let [q, k, v] = [query.values(), key.values(), value.values()];
        let TokenLayout { tokens, head_dim, .. } = query.layout;
        vectorized(
            #[inline(always)]
            || {
                let mut d_scores = vec![0.0; tokens * tokens];
                let mut d_rows = vec![0.0; tokens * head_dim];
                for (head, weights) in weights.chunks(tokens * tokens).enumerate() {
                    let at = [sample, group, head];
                    let column = |layout: TokenLayout| layout.offset + head * head_dim;
                    let dy = self.output_layout().gather(dy, at);
                    // dV = Pᵀ dY
                    multiply(&transposed(weights, tokens), &dy, head_dim, &mut d_rows);
                    write_columns(&d_rows, head_dim, out, column(value.layout));
                    // dP = dY Vᵀ
                    let values = transposed(&value.layout.gather(v, at), head_dim);
                    multiply(&dy, &values, tokens, &mut d_scores);
                    let scale = self.scale();
                    softmax_backward_single_threaded(tokens, &mut d_scores, weights, scale);
                    // dQ = dS K
                    multiply(&d_scores, &key.layout.gather(k, at), head_dim, &mut d_rows);
                    write_columns(&d_rows, head_dim, out, column(query.layout));
                    // dK = dSᵀ Q
                    let d_scores = transposed(&d_scores, tokens);
                    multiply(&d_scores, &query.layout.gather(q, at), head_dim, &mut d_rows);
                    write_columns(&d_rows, head_dim, out, column(key.layout));
                }
            },
        );
    }
}

impl TokenLayout {
    /// Copies one head of a sequence, `[N, D]`; `at` is sample, group and head.
    #[inline(always)]
    fn gather(self, x: &[f32], at: [usize; 3]) -> Vec<f32> {
        let mut gathered = Vec::with_capacity(self.tokens * self.head_dim);
        let first = self.start_of(at, 0);
        for token in 0..self.tokens {
            let values = &x[first + token * self.token_stride * self.width..][..self.head_dim];
            gathered.extend_from_slice(values);
        }
        gathered
    }

    /// Returns the tokens of `x` in the order of sequences: all of one sequence, then all of the next.
    fn rows_by_sequence(self, x: &mut [f32]) -> Vec<&mut [f32]> {
        let mut rows: Vec<_> = x.chunks_mut(self.width).map(Some).collect();
        let mut ordered = Vec::with_capacity(rows.len());
        for sample in 0..self.batch {
            for group in 0..self.groups {
                for token in 0..self.tokens {
                    ordered.extend(rows[self.token_index([sample, group], token)].take());
                }
            }
        }
        ordered
    }
}

/// Writes rows of `width` elements to columns of the rows of `out`, from column `first` on.
#[inline(always)]
fn write_columns(rows: &[f32], width: usize, out: &mut [&mut [f32]], first: usize) {
    for (out, row) in out.iter_mut().zip(rows.chunks(width)) {
        out[first..][..width].copy_from_slice(row);
    }
}

/// Returns the transpose of a matrix with rows of `width` elements.
#[inline(always)]
fn transposed(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let mut transposed = vec![0.0; x.len()];
    for (row, x) in x.chunks(width).enumerate() {
        for (column, x) in x.iter().enumerate() {
            transposed[column * rows + row] = *x;
        }
    }
    transposed
}

/// Writes `a b` to `c`; `a` is m x k, `b` k x n.
#[inline(always)]
fn multiply(a: &[f32], b: &[f32], n: usize, c: &mut [f32]) {
    let k = b.len() / n;
    let mut a = a.chunks_exact(4 * k);
    let mut c = c.chunks_mut(4 * n);
    for (a, c) in a.by_ref().zip(&mut c) {
        multiply_rows::<4>(a, b, n, c);
    }
    for (a, c) in a.remainder().chunks(k).zip(c.flat_map(|c| c.chunks_mut(n))) {
        multiply_rows::<1>(a, b, n, c);
    }
}

/// Writes `M` rows of a product: 16 columns at a time, then 8, then single ones.
#[inline(always)]
fn multiply_rows<const M: usize>(a: &[f32], b: &[f32], n: usize, c: &mut [f32]) {
    let mut column = 0;
    while column + 16 <= n {
        multiply_columns::<M, 16>(a, b, n, column, c);
        column += 16;
    }
    if column + 8 <= n {
        multiply_columns::<M, 8>(a, b, n, column, c);
        column += 8;
    }
    while column < n {
        multiply_columns::<M, 1>(a, b, n, column, c);
        column += 1;
    }
}

/// Writes `N` columns of `M` rows of a product, whose sums stay in registers.
#[inline(always)]
fn multiply_columns<const M: usize, const N: usize>(
    a: &[f32],
    b: &[f32],
    n: usize,
    column: usize,
    c: &mut [f32],
) {
    let k = a.len() / M;
    let mut sums = [[0.0; N]; M];
    for (p, b) in b.chunks_exact(n).enumerate() {
        let b: &[f32; N] = b[column..].first_chunk().expect("columns of b");
        for row in 0..M {
            let a = a[row * k + p];
            for lane in 0..N {
                sums[row][lane] += a * b[lane];
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        c[row * n + column..][..N].copy_from_slice(sums);
    }
}
