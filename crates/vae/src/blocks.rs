//! Residual and attention blocks over `[N, C, H, W]`.
//!
//! Source: huggingface/diffusers, `models/resnet.py` (`ResnetBlock2D`), `models/attention_processor.py`
//! (`Attention` as the VAE's middle block configures it) and `models/unets/unet_2d_blocks.py`
//! (`UNetMidBlock2D`).

use crate::VaeConfig;
use burn::{
    module::Module,
    nn::{
        GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor},
};
use opensora_nn::{
    attention::attention,
    conv::conv2d,
    norm::{group_norm, group_norm_silu},
};

/// Epsilon of every GroupNorm of the VAE, which differs from burn's default.
const NORM_EPSILON: f64 = 1e-6;

/// Returns a 3x3 convolution of `from` to `to` channels that keeps height and width.
pub(crate) fn conv3x3(from: usize, to: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(device)
}

/// Returns a 1x1 convolution of `from` to `to` channels.
pub(crate) fn conv1x1(from: usize, to: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [1, 1]).init(device)
}

pub(crate) fn norm(channels: usize, config: &VaeConfig, device: &Device) -> GroupNorm {
    GroupNormConfig::new(config.norm_num_groups, channels).with_epsilon(NORM_EPSILON).init(device)
}

/// Two convolutions, each after norm and SiLU, added to a shortcut.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    pub(crate) norm1: GroupNorm,
    pub(crate) conv1: Conv2d,
    pub(crate) norm2: GroupNorm,
    pub(crate) conv2: Conv2d,
    /// 1x1 convolution if the number of channels changes.
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Returns a fresh block from one number of channels to another, with the configuration's groups.
    pub fn new(from: usize, to: usize, config: &VaeConfig, device: &Device) -> Self {
        Self {
            norm1: norm(from, config, device),
            conv1: conv3x3(from, to, device),
            norm2: norm(to, config, device),
            conv2: conv3x3(to, to, device),
            conv_shortcut: (from != to).then(|| conv1x1(from, to, device)),
        }
    }

    /// Applies the block, `[N, C_in, H, W] -> [N, C_out, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = conv2d(&self.conv1, group_norm_silu(&self.norm1, x.clone()));
        let y = conv2d(&self.conv2, group_norm_silu(&self.norm2, y));
        self.shortcut(x) + y
    }

    /// Applies the shortcut: `[N, C_in, H, W] -> [N, C_out, H, W]`.
    pub(crate) fn shortcut(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        }
    }
}

/// Self-attention over all pixels with one head.
#[derive(Module, Debug)]
pub struct AttentionBlock {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl AttentionBlock {
    fn new(channels: usize, config: &VaeConfig, device: &Device) -> Self {
        let linear = || LinearConfig::new(channels, channels).init(device);
        Self {
            group_norm: norm(channels, config, device),
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            to_out: linear(),
        }
    }

    /// Applies the block, `[N, C, H, W] -> [N, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        // [N, C, H, W] -> [N, C, HW] -> [N, HW, C]
        let tokens = group_norm(&self.group_norm, x.clone()).flatten::<3>(2, 3).swap_dims(1, 2);
        // One head: [N, HW, C] -> [N, 1, HW, C]
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v]
            .map(|layer| layer.forward(tokens.clone()).unsqueeze_dim::<4>(1));
        let y = attention(q, k, v, None, None).squeeze_dim::<3>(1);
        let y = self.to_out.forward(y).swap_dims(1, 2);
        x + y.reshape([batch, channels, height, width])
    }
}

/// The middle level, at the latents' resolution: residual, attention, residual.
#[derive(Module, Debug)]
pub struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attention: AttentionBlock,
}

impl MidBlock {
    /// Returns a fresh level with one number of channels.
    pub fn new(channels: usize, config: &VaeConfig, device: &Device) -> Self {
        let resnet = || ResnetBlock::new(channels, channels, config, device);
        Self {
            resnets: vec![resnet(), resnet()],
            attention: AttentionBlock::new(channels, config, device),
        }
    }

    /// Applies the level, `[N, C, H, W] -> [N, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets[0].forward(x);
        let x = self.attention.forward(x);
        self.resnets[1].forward(x)
    }
}
