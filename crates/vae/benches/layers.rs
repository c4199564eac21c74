//! What costs most in the VAE: its residual blocks, and the attention between them.
//!
//! ```sh
//! cargo bench -p opensora-vae                       # levels of a 64x64 frame
//! OPENSORA_BENCH=published cargo bench -p opensora-vae  # of a 256x256 frame
//! ```

use burn::tensor::{Device, Tensor};
use criterion::Criterion;
use opensora_nn::noise::{Purpose, normal_batch};
use opensora_vae::{
    VaeConfig,
    blocks::{MidBlock, ResnetBlock},
};
use std::hint::black_box;

fn normal(channels: usize, side: usize) -> Tensor<4> {
    normal_batch(0, Purpose::Weights, 0, 0, [1, channels, side, side], &Device::flex())
}

fn main() {
    let published = std::env::var("OPENSORA_BENCH").is_ok_and(|size| size == "published");
    let side = if published { 256 } else { 64 };
    let (config, device) = (VaeConfig::default(), Device::flex());
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();

    // The decoder's levels from the finest up, each half as fine and with its own width.
    for (level, &width) in config.block_out_channels.iter().enumerate() {
        let block = ResnetBlock::new(width, width, &config, &device);
        let x = normal(width, side >> level);
        let name = format!("resnet/{width}x{0}x{0}", side >> level);
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| black_box(block.forward(x.clone())));
        });
    }
    let narrowest = side / config.downsample_factor();
    if let Some(&width) = config.block_out_channels.last() {
        let middle = MidBlock::new(width, &config, &device);
        let x = normal(width, narrowest);
        criterion.bench_function("middle", |bencher| {
            bencher.iter(|| black_box(middle.forward(x.clone())));
        });
    }
    criterion.final_summary();
}
