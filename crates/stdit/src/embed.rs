//! The embeddings of patches, prompt and timestep.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`, classes `PatchEmbed3D`,
//! `CaptionEmbedder`; `stdit.py`, `STDiT.t_block`.

use crate::{DenoiserConfig, SizeError};
use burn::{
    module::{Initializer, Module, Param},
    nn::{
        Linear,
        conv::{Conv3d, Conv3dConfig},
    },
    tensor::{Device, Tensor, activation::silu},
};
use opensora_nn::{
    activation::gelu_tanh,
    linear::{NORMAL_02, XAVIER, linear},
    mask::TokenMask,
    timestep::TimestepEmbedder,
};

/// Maps latents to tokens by a convolution whose stride is the patch size.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// Kernel `[hidden, C, pt, ph, pw]`.
    pub proj: Conv3d,
}

impl PatchEmbed {
    pub(crate) fn new(
        in_channels: usize,
        hidden: usize,
        patch_size: [usize; 3],
        device: &Device,
    ) -> Self {
        let mut proj = Conv3dConfig::new([in_channels, hidden], patch_size)
            .with_stride(patch_size)
            .init(device);
        // Initialised as a linear layer over the patch, not as a convolution.
        let [t, h, w] = patch_size;
        let shape = [hidden, in_channels, t, h, w];
        let (fan_in, fan_out) = (in_channels * t * h * w, hidden);
        proj.weight = XAVIER.init_with(shape, Some(fan_in), Some(fan_out), device);
        Self { proj }
    }

    /// Maps latents to tokens ordered (t, h, w): `[B, C, T, H, W] -> [B, N, hidden]`.
    pub fn forward(&self, latents: Tensor<5>) -> Tensor<3> {
        // [B, hidden, T', H', W'] -> [B, hidden, N] -> [B, N, hidden]
        self.proj.forward(latents).flatten::<3>(2, 4).swap_dims(1, 2)
    }
}

/// Maps prompt states to the width of the blocks; holds the learnt null prompt.
#[derive(Module, Debug)]
pub struct CaptionEmbedder {
    /// The null prompt of guidance, `[L, caption_channels]`: row `k` is the state at position `k`. A buffer in
    /// the reference: loaded, never optimised.
    pub y_embedding: Param<Tensor<2>>,
    /// First layer of the MLP.
    pub fc1: Linear,
    /// Second layer of the MLP.
    pub fc2: Linear,
}

impl CaptionEmbedder {
    fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let (states, hidden) = (config.caption_channels, config.hidden_size);
        let std = 1.0 / (states as f64).sqrt();
        Self {
            y_embedding: Initializer::Normal { mean: 0.0, std }
                .init([config.model_max_length, states], device),
            fc1: linear(states, hidden, true, NORMAL_02, device),
            fc2: linear(hidden, hidden, true, NORMAL_02, device),
        }
    }

    /// `[B, L, caption_channels] -> [B, L, hidden]`.
    pub fn forward(&self, states: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(gelu_tanh(self.fc1.forward(states)))
    }
}

/// The embeddings of STDiT and PixArt-alpha.
#[derive(Module, Debug)]
pub struct Embeddings {
    /// Maps latents to tokens.
    pub x_embedder: PatchEmbed,
    /// Maps timesteps to vectors.
    pub t_embedder: TimestepEmbedder,
    /// Maps a timestep vector to the six vectors of adaLN-single.
    pub t_block: Linear,
    /// Maps prompt states to the width of the blocks.
    pub y_embedder: CaptionEmbedder,
}

/// The embedded timestep and prompt, the inputs that all blocks of a forward pass share.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// Timestep embedding before `t_block`, for the final layer: `[B, C]`.
    pub t: Tensor<2>,
    /// Six vectors for adaLN-single: `[B, 6, C]`.
    pub t6: Tensor<3>,
    /// Prompt tokens: `[B, L, C]`.
    pub prompt: Tensor<3>,
    /// Additive attention bias of the prompt tokens `[B, 1, 1, L]`; `None` if no token is masked.
    pub prompt_bias: Option<Tensor<4>>,
}

impl Embeddings {
    pub(crate) fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            x_embedder: PatchEmbed::new(config.in_channels, hidden, config.patch_size, device),
            t_embedder: TimestepEmbedder::new(hidden, device),
            t_block: linear(hidden, 6 * hidden, true, NORMAL_02, device),
            y_embedder: CaptionEmbedder::new(config, device),
        }
    }

    /// Embeds timestep and prompt: `timesteps` `[B]`, `states` `[B, L, caption_channels]`. `extra` `[B, C]`
    /// is added to the timestep embedding. A mask of fewer rows is repeated over the batch, as guidance
    /// needs it.
    pub(crate) fn condition(
        &self,
        timesteps: &[f32],
        states: Tensor<3>,
        mask: Option<&TokenMask>,
        extra: Option<Tensor<2>>,
    ) -> Conditioning {
        let dtype = states.dtype();
        let device = states.device();
        let [batch, tokens, _] = states.dims();

        let t = self.t_embedder.forward(timesteps, dtype); // [B, C]
        let t = match extra {
            Some(extra) => t + extra,
            None => t,
        };
        let hidden = t.dims()[1];
        let t6 = self.t_block.forward(silu(t.clone())).reshape([batch, 6, hidden]);

        // Columns that are masked in every prompt are dropped before any work is done on them.
        let mask = mask.map_or_else(|| TokenMask::all(batch, tokens), |mask| mask.repeat_to(batch));
        let mask = mask.trim();
        let prompt = self.y_embedder.forward(states.narrow(1, 0, mask.len()));
        Conditioning { t, t6, prompt, prompt_bias: mask.bias(dtype, &device) }
    }
}

/// Returns the tokens along (t, h, w) of latents `[B, C, T, H, W]`, as `grid_of` computes them from
/// `[T, H, W]`.
///
/// # Panics
/// Panics if the size does not fit the model or there is not one timestep for each sample.
pub(crate) fn latent_grid(
    latents: &Tensor<5>,
    timesteps: &[f32],
    grid_of: impl FnOnce([usize; 3]) -> Result<[usize; 3], SizeError>,
) -> [usize; 3] {
    let [batch, _, frames, height, width] = latents.dims();
    assert_eq!(batch, timesteps.len(), "one timestep a sample");
    match grid_of([frames, height, width]) {
        Ok(grid) => grid,
        Err(error) => panic!("{error}"),
    }
}

/// Adds a spatial position table `[S, C]` to tokens `[B, T*S, C]`.
pub(crate) fn add_space(x: Tensor<3>, space: Tensor<2>) -> Tensor<3> {
    let [batch, tokens, channels] = x.dims();
    let [positions, _] = space.dims();
    // [B, T*S, C] -> [B, T, S, C] + [1, 1, S, C] -> [B, T*S, C]
    let x = x.reshape([batch, tokens / positions, positions, channels]) + space.unsqueeze::<4>();
    x.reshape([batch, tokens, channels])
}

/// Adds a temporal position table `[T, C]`, if there is one, to tokens `[B, T*S, C]`.
pub(crate) fn add_time(x: Tensor<3>, time: Option<Tensor<2>>) -> Tensor<3> {
    let Some(time) = time else { return x };
    let [batch, tokens, channels] = x.dims();
    let [frames, _] = time.dims();
    // [B, T*S, C] -> [B, T, S, C] + [1, T, 1, C] -> [B, T*S, C]
    let x = x.reshape([batch, frames, tokens / frames, channels]);
    (x + time.reshape([1, frames, 1, channels])).reshape([batch, tokens, channels])
}
