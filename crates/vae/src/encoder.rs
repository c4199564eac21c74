//! The encoder: frames to the moments of their latents.
//!
//! Source: huggingface/diffusers, `models/autoencoders/vae.py`, class `Encoder`.

use crate::{
    VaeConfig,
    blocks::{MidBlock, ResnetBlock, conv3x3, norm},
};
use burn::{
    module::Module,
    nn::{
        GroupNorm, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor},
};
use opensora_nn::{conv::conv2d, norm::group_norm_silu};

/// Halves height and width, after padding one row below and one column to the right, as published.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    fn new(channels: usize, device: &Device) -> Self {
        let conv = Conv2dConfig::new([channels, channels], [3, 3])
            .with_stride([2, 2])
            .with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1))
            .init(device);
        Self { conv }
    }
}

/// One level of the encoder.
#[derive(Module, Debug)]
pub struct DownBlock {
    resnets: Vec<ResnetBlock>,
    /// `None` in the last level.
    downsampler: Option<Downsample>,
}

/// The encoder, `[N, 3, H, W] -> [N, 2 * latent_channels, H/f, W/f]`.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(crate) fn new(config: &VaeConfig, device: &Device) -> Self {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut from = first;
        let down_blocks = widths.iter().enumerate().map(|(level, &to)| {
            let resnets = (0..config.layers_per_block)
                .map(|layer| {
                    ResnetBlock::new(if layer == 0 { from } else { to }, to, config, device)
                })
                .collect();
            from = to;
            let is_last = level + 1 == widths.len();
            DownBlock { resnets, downsampler: (!is_last).then(|| Downsample::new(to, device)) }
        });
        Self {
            conv_in: conv3x3(config.in_channels, first, device),
            down_blocks: down_blocks.collect(),
            mid_block: MidBlock::new(last, config, device),
            conv_norm_out: norm(last, config, device),
            conv_out: conv3x3(last, 2 * config.latent_channels, device),
        }
    }

    /// Encodes frames in [-1, 1] to raw moments.
    pub fn forward(&self, frames: Tensor<4>) -> Tensor<4> {
        let mut x = self.conv_in.forward(frames);
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(x);
            }
            if let Some(downsampler) = &block.downsampler {
                x = downsampler.conv.forward(x);
            }
        }
        let x = self.mid_block.forward(x);
        conv2d(&self.conv_out, group_norm_silu(&self.conv_norm_out, x))
    }
}
