//! The decoder: latents to frames.
//!
//! Source: huggingface/diffusers, `models/autoencoders/vae.py`, class `Decoder`.

use crate::{
    VaeConfig,
    blocks::{MidBlock, ResnetBlock, conv3x3, norm},
    tiles::Tiles,
};
use burn::{
    module::Module,
    nn::{GroupNorm, conv::Conv2d},
    tensor::{Device, Tensor},
};
use opensora_nn::{
    conv::{conv2d, upsample_nearest},
    norm::group_norm_silu,
};

/// Doubles height and width by repeating pixels, then applies a convolution.
#[derive(Module, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        conv2d(&self.conv, upsample_nearest(x))
    }
}

/// One level of the decoder.
#[derive(Module, Debug)]
pub struct UpBlock {
    resnets: Vec<ResnetBlock>,
    /// `None` in the last level.
    upsampler: Option<Upsample>,
}

/// The decoder, `[N, latent_channels, h, w] -> [N, 3, h f, w f]`.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(crate) fn new(config: &VaeConfig, device: &Device) -> Self {
        let widths = &config.block_out_channels;
        let (narrow, wide) = (widths[0], widths[widths.len() - 1]);
        let mut from = wide;
        // Levels from the latents to the frames, each with one residual block more than the encoder's.
        let up_blocks = widths.iter().rev().enumerate().map(|(level, &to)| {
            let resnets = (0..=config.layers_per_block)
                .map(|layer| {
                    ResnetBlock::new(if layer == 0 { from } else { to }, to, config, device)
                })
                .collect();
            from = to;
            let is_last = level + 1 == widths.len();
            let upsampler = (!is_last).then(|| Upsample { conv: conv3x3(to, to, device) });
            UpBlock { resnets, upsampler }
        });
        Self {
            conv_in: conv3x3(config.latent_channels, wide, device),
            mid_block: MidBlock::new(wide, config, device),
            up_blocks: up_blocks.collect(),
            conv_norm_out: norm(narrow, config, device),
            conv_out: conv3x3(narrow, config.out_channels, device),
        }
    }

    /// Decodes latents (after `post_quant_conv`) to frames, which are not clamped.
    pub fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut x = self.mid_block.forward(self.conv_in.forward(latents));
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(x);
            }
            if let Some(upsampler) = &block.upsampler {
                x = upsampler.forward(x);
            }
        }
        conv2d(&self.conv_out, group_norm_silu(&self.conv_norm_out, x))
    }

    /// Decodes as [`forward`](Self::forward) does, in tiles of about `rows` rows at every level after the
    /// middle. The frames are equal within rounding and take less memory.
    pub fn forward_in_tiles(&self, latents: Tensor<4>, rows: usize) -> Tensor<4> {
        let x = self.mid_block.forward(self.conv_in.forward(latents));
        let mut x = Tiles::new(x, rows);
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = x.resnet(resnet);
            }
            if let Some(upsampler) = &block.upsampler {
                x = x.upsample(&upsampler.conv);
            }
        }
        x.norm_silu_conv(&self.conv_norm_out, &self.conv_out).join()
    }
}
