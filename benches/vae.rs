//! The most expensive parts of the VAE: residual blocks and the attention between them.

use opensora_benches::{criterion, device, normal, published_sizes};
use opensora_vae::{
    VaeConfig,
    blocks::{MidBlock, ResnetBlock},
};
use std::hint::black_box;

fn main() {
    let published = published_sizes();
    let side = if published { 256 } else { 64 };
    let (config, device) = (VaeConfig::default(), device());
    let mut criterion = criterion();

    // The decoder's levels from the finest to the coarsest, each with half the resolution and its width.
    for (level, &width) in config.block_out_channels.iter().enumerate() {
        let block = ResnetBlock::new(width, width, &config, &device);
        let x = normal([1, width, side >> level, side >> level]);
        let name = format!("resnet/{width}x{0}x{0}", side >> level);
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| black_box(block.forward(x.clone())));
        });
    }
    let narrowest = side / config.downsample_factor();
    if let Some(&width) = config.block_out_channels.last() {
        let middle = MidBlock::new(width, &config, &device);
        let x = normal([1, width, narrowest, narrowest]);
        criterion.bench_function("middle", |bencher| {
            bencher.iter(|| black_box(middle.forward(x.clone())));
        });
    }
    criterion.final_summary();
}
