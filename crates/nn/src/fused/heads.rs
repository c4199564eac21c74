//! Attention over heads where they lie: queries, keys and values beside each other at every token, and
//! sequences that go along any axis of the tokens. Nothing is copied before products that read views, and
//! results are put together in one pass.
//!
//! - [`products`]: by burn's matrix products.
//! - [`long`]: long sequences, by products of our own.
//! - [`short`]: many short sequences, each at hand as a whole.

mod long;
mod products;
mod short;

use super::forward::contiguous;
use crate::attention::SCORES_AT_HAND;
use burn::{
    backend::flex::{FlexTensor, Layout},
    tensor::Shape,
};
use opensora_gemm::MatRef;

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

    /// One head of `count` tokens from `token` of a sequence on, `[count, D]`.
    fn head(self, x: &[f32], at: [usize; 3], token: usize, count: usize) -> MatRef<'_> {
        let values = &x[self.first_value(at, token)..];
        MatRef::with_strides(values, [count, self.dim], [self.strides[1] * self.width, 1])
    }

    /// Where the values of a head of a token begin.
    fn first_value(self, [sample, group, head]: [usize; 3], token: usize) -> usize {
        self.token([sample, group], token) * self.width + self.first + head * self.dim
    }

    /// Which of all tokens is this one of a sequence.
    fn token(self, [sample, group]: [usize; 2], token: usize) -> usize {
        let [of_group, of_token] = self.strides;
        sample * self.groups * self.tokens + group * of_group + token * of_token
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

/// What the backward pass needs beside the heads: the softmax, in the order of the way it was made by.
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

    /// Whether tokens attend to each other, so that queries, keys and values lie in one tensor.
    fn is_self(&self) -> bool {
        self.queries.place.width == self.keys.place.width
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.queries.place.dim as f64).sqrt()) as f32
    }

    /// `softmax(q kᵀ / sqrt(D) + bias) v` with `bias` `[1 or B, M]`; `[.., C]`.
    pub(super) fn attention(&self, bias: Option<&[f32]>) -> FlexTensor {
        match self.way() {
            Way::Long => self.attention_of_long(bias, false).0,
            Way::Short => self.attention_of_short(bias, false).0,
            Way::Products => self.attention_by_products(bias, SCORES_AT_HAND).0,
        }
    }

    /// [`attention`](Self::attention), and the softmax.
    #[cfg(feature = "autodiff")]
    pub(super) fn attention_keeping(&self, bias: Option<&[f32]>) -> (FlexTensor, Weights) {
        let (output, weights) = match self.way() {
            Way::Long => self.attention_of_long(bias, true),
            Way::Short => self.attention_of_short(bias, true),
            Way::Products => self.attention_by_products(bias, usize::MAX),
        };
        (output, weights.expect("kept"))
    }

    /// The gradient of `qkv`, where `dy` is the output's.
    #[cfg(feature = "autodiff")]
    pub(super) fn self_backward(&self, weights: &Weights, dy: FlexTensor) -> FlexTensor {
        match self.way() {
            Way::Long => self.self_backward_of_long(weights, dy),
            Way::Short => self.self_backward_of_short(weights, dy),
            Way::Products => self.self_backward_by_products(weights, dy),
        }
    }

    /// The gradients of `query` and `key_value`.
    #[cfg(feature = "autodiff")]
    pub(super) fn cross_backward(&self, weights: &Weights, dy: FlexTensor) -> [FlexTensor; 2] {
        match self.way() {
            Way::Long => self.cross_backward_of_long(weights, dy),
            Way::Short => unreachable!("of tokens to each other"),
            Way::Products => self.cross_backward_by_products(weights, dy),
        }
    }

    /// The way that these are attended by, forward and back.
    fn way(&self) -> Way {
        if self.is_long() {
            Way::Long
        } else if self.is_short() {
            Way::Short
        } else {
            Way::Products
        }
    }
}

/// Ways to attend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Long,
    Short,
    Products,
}
