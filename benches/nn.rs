//! The shared layers at the shapes of STDiT-XL/2: 16 heads of 72, an MLP of four times that width, captions of 120
//! tokens.

use burn::tensor::Tensor;
use opensora_benches::{criterion, normal, published_sizes};
use opensora_nn::{
    activation::gelu_tanh,
    attention::{attention, merge_heads, split_heads},
    norm::layer_norm,
};
use std::hint::black_box;

const HEADS: usize = 16;
const CHANNELS: usize = HEADS * 72;
const CAPTION: usize = 120;

/// Attention including splitting and merging heads, `[B, N, C]` to `[B, N, C]`.
fn heads(query: &Tensor<3>, key: &Tensor<3>) -> Tensor<3> {
    let [q, k] = [query, key].map(|x| split_heads(x.clone(), HEADS));
    merge_heads(attention(q, k.clone(), k, None, None))
}

fn main() {
    let published = published_sizes();
    let (frames, places) = if published { (16, 256) } else { (4, 64) };
    let tokens = frames * places;
    let mut criterion = criterion();

    let spatial = normal([frames, places, CHANNELS]);
    criterion.bench_function("attention/spatial", |bencher| {
        bencher.iter(|| black_box(heads(&spatial, &spatial)));
    });
    let temporal = normal([places, frames, CHANNELS]);
    criterion.bench_function("attention/temporal", |bencher| {
        bencher.iter(|| black_box(heads(&temporal, &temporal)));
    });
    let (clip, caption) = (normal([1, tokens, CHANNELS]), normal([1, CAPTION, CHANNELS]));
    criterion.bench_function("attention/cross", |bencher| {
        bencher.iter(|| black_box(heads(&clip, &caption)));
    });

    let inner = normal([1, tokens, 4 * CHANNELS]);
    criterion.bench_function("gelu_tanh", |bencher| {
        bencher.iter(|| black_box(gelu_tanh(inner.clone())));
    });
    let (scale, shift) = (normal([1, 1, CHANNELS]), normal([1, 1, CHANNELS]));
    criterion.bench_function("layer_norm/modulated", |bencher| {
        bencher.iter(|| black_box(layer_norm(clip.clone(), 1e-6) * scale.clone() + shift.clone()));
    });
    criterion.final_summary();
}
