//! A block of STDiT-XL/2, whole and branch by branch.

use opensora_benches::{criterion, device, normal, published_sizes};
use opensora_stdit::{DenoiserConfig, SizeError, StDit};
use std::hint::black_box;

fn main() -> Result<(), SizeError> {
    let published = published_sizes();
    let (frames, side) = if published { (16, 16) } else { (4, 8) };
    let (places, tokens) = (side * side, frames * side * side);
    // The second block represents all later ones: only the first adds the temporal positions.
    let config = DenoiserConfig { depth: 2, ..DenoiserConfig::xl_2() };
    let (channels, caption) = (config.hidden_size, config.model_max_length);
    let model = config.init::<StDit>(&device())?;
    let latents = normal([1, config.in_channels, frames, 2 * side, 2 * side]);
    let states = normal([1, caption, config.caption_channels]);
    let (x, conditioning) = model.embed(latents, &[500.0], states, None);
    let mut criterion = criterion();

    criterion.bench_function("block", |bencher| {
        bencher.iter(|| black_box(model.block(1, x.clone(), &conditioning)));
    });
    let block = &model.blocks[1];
    let spatial = normal([frames, places, channels]);
    criterion.bench_function("block/spatial", |bencher| {
        bencher.iter(|| black_box(block.base.attn.forward(spatial.clone())));
    });
    let temporal = normal([places, frames, channels]);
    criterion.bench_function("block/temporal", |bencher| {
        bencher.iter(|| black_box(block.attn_temp.forward(temporal.clone())));
    });
    let (clip, prompt) = (normal([1, tokens, channels]), normal([1, caption, channels]));
    criterion.bench_function("block/cross", |bencher| {
        bencher
            .iter(|| black_box(block.base.cross_attn.forward(clip.clone(), prompt.clone(), None)));
    });
    criterion.bench_function("block/mlp", |bencher| {
        bencher.iter(|| black_box(block.base.mlp.forward(clip.clone())));
    });
    criterion.final_summary();
    Ok(())
}
