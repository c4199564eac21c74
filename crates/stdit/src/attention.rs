//! The layers of a block: self-attention, attention to the prompt, and MLP.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`, classes `Attention` and
//! `MultiHeadCrossAttention`.

use burn::{
    module::{Initializer, Module},
    nn::Linear,
    tensor::{Device, Tensor},
};
use opensora_nn::{
    activation::linear_gelu_tanh,
    attention::{cross_attention, reads_any_axis, self_attention},
    linear::{self, XAVIER, linear},
};

/// The grid `[T, S]` of a clip's tokens: frames and the spatial positions of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Number of frames, T.
    pub frames: usize,
    /// Spatial positions of a frame, S.
    pub positions: usize,
}

impl TokenGrid {
    /// Returns a grid of one row, on which attention along [`Axis::Space`] is attention over all tokens.
    pub fn flat(tokens: usize) -> Self {
        Self { frames: 1, positions: tokens }
    }

    /// Returns the grid of tokens along (t, h, w).
    pub fn new([t, h, w]: [usize; 3]) -> Self {
        Self { frames: t, positions: h * w }
    }
}

/// The axis of a [`TokenGrid`] along which tokens attend to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// The frames at each spatial position.
    Time,
    /// The spatial positions within each frame.
    Space,
}

/// Self-attention over the tokens of a clip.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries, keys and values in one layer, `C -> 3 C`.
    pub qkv: Linear,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

impl SelfAttention {
    /// Returns attention of width `hidden` with fresh weights; `proj` initialises the output projection.
    pub(crate) fn new(hidden: usize, heads: usize, proj: Initializer, device: &Device) -> Self {
        Self {
            qkv: linear(hidden, 3 * hidden, true, XAVIER, device),
            proj: linear(hidden, hidden, true, proj, device),
            heads,
        }
    }

    /// Attention over all tokens: `[B, N, C] -> [B, N, C]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, tokens, _] = x.dims();
        self.along(Axis::Space, TokenGrid::flat(tokens), x)
    }

    /// Attention along one axis of the grid: `[B, T*S, C] -> [B, T*S, C]`.
    pub fn along(&self, axis: Axis, grid: TokenGrid, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let TokenGrid { frames, positions } = grid;
        if axis == Axis::Time && !reads_any_axis(&x) {
            // [B, T*S, C] -> [B, T, S, C] -> [B, S, T, C] -> [B, S*T, C], and back.
            let transposed = |x: Tensor<3>, [rows, columns]: [usize; 2]| {
                let x = x.reshape([batch, rows, columns, channels]).swap_dims(1, 2);
                x.reshape([batch, tokens, channels])
            };
            let transposed_grid = TokenGrid { frames: positions, positions: frames };
            let x = transposed(x, [frames, positions]);
            return transposed(self.along(Axis::Space, transposed_grid, x), [positions, frames]);
        }
        let dimension = match axis {
            Axis::Time => 1,
            Axis::Space => 2,
        };
        let qkv = linear::forward(&self.qkv, x); // [B, T*S, 3C]
        let qkv = qkv.reshape([batch, frames, positions, 3 * channels]);
        let attended = self_attention(qkv, dimension, self.heads); // [B, T, S, C]
        linear::forward(&self.proj, attended.reshape([batch, tokens, channels]))
    }
}

/// Attention from the clip's tokens to the prompt's tokens.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Queries, from the clip.
    pub q_linear: Linear,
    /// Keys and values, from the prompt.
    pub kv_linear: Linear,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

impl CrossAttention {
    pub(crate) fn new(hidden: usize, heads: usize, device: &Device) -> Self {
        Self {
            q_linear: linear(hidden, hidden, true, XAVIER, device),
            kv_linear: linear(hidden, 2 * hidden, true, XAVIER, device),
            // Zero: a fresh block ignores the prompt.
            proj: linear(hidden, hidden, true, Initializer::Zeros, device),
            heads,
        }
    }

    /// Attends from `x` `[B, N, C]` to `prompt` `[B, L, C]`; `bias` `[B, 1, 1, L]` is added to the scores.
    /// Returns `[B, N, C]`.
    pub fn forward(&self, x: Tensor<3>, prompt: Tensor<3>, bias: Option<Tensor<4>>) -> Tensor<3> {
        let q = linear::forward(&self.q_linear, x); // [B, N, C]
        let kv = linear::forward(&self.kv_linear, prompt); // [B, L, 2C]
        linear::forward(&self.proj, cross_attention(q, kv, bias, self.heads))
    }
}

/// The MLP of a block: tanh-GELU between two layers.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `C -> mlp_ratio C`.
    pub fc1: Linear,
    /// `mlp_ratio C -> C`.
    pub fc2: Linear,
}

impl Mlp {
    pub(crate) fn new(hidden: usize, inner: usize, device: &Device) -> Self {
        Self {
            fc1: linear(hidden, inner, true, XAVIER, device),
            fc2: linear(inner, hidden, true, XAVIER, device),
        }
    }

    /// `[B, N, C] -> [B, N, C]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        linear::forward(&self.fc2, linear_gelu_tanh(&self.fc1, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{module::Param, tensor::FloatDType};

    /// In f64, flex runs burn's operations, as other backends do, and transposes the tokens for attention over
    /// frames. In f32 it runs this workspace's kernels.
    #[test]
    fn attention_equals_the_composition_of_burns_operations() {
        let device = Device::flex();
        let (hidden, heads) = (12, 3);
        let layer = |input, output| linear(input, output, true, XAVIER, &device);
        let attention =
            SelfAttention { qkv: layer(hidden, 3 * hidden), proj: layer(hidden, hidden), heads };
        let in_f64 = |layer: &Linear| Linear {
            weight: Param::from_tensor(layer.weight.val().cast(FloatDType::F64)),
            bias: layer.bias.as_ref().map(|b| Param::from_tensor(b.val().cast(FloatDType::F64))),
        };
        let wide =
            SelfAttention { qkv: in_f64(&attention.qkv), proj: in_f64(&attention.proj), heads };
        let (frames, positions) = (5, 4);
        let values: Vec<f32> = (0..2 * 20 * hidden).map(|i| (i as f32 * 1.7).sin()).collect();
        let x = Tensor::<1>::from_floats(values.as_slice(), &device);
        let x = x.reshape([2, frames * positions, hidden]);
        let grid = TokenGrid { frames, positions };
        for axis in [Axis::Time, Axis::Space] {
            let got = attention.along(axis, grid, x.clone());
            let want = wide.along(axis, grid, x.clone().cast(FloatDType::F64));
            let distance = (got - want.cast(FloatDType::F32)).abs().max().into_scalar::<f32>();
            assert!(distance < 1e-5, "{axis:?}: {distance}");
        }

        let cross = CrossAttention {
            q_linear: layer(hidden, hidden),
            kv_linear: layer(hidden, 2 * hidden),
            proj: layer(hidden, hidden),
            heads,
        };
        let wide = CrossAttention {
            q_linear: in_f64(&cross.q_linear),
            kv_linear: in_f64(&cross.kv_linear),
            proj: in_f64(&cross.proj),
            heads,
        };
        let prompt = x.clone().narrow(1, 3, 4) * 0.5;
        let bias = Tensor::<4>::from_floats([[[[0.0, -1.0, 2.0, -1e9]]]], &device);
        let got = cross.forward(x.clone(), prompt.clone(), Some(bias.clone()));
        let [x, prompt] = [x, prompt].map(|x| x.cast(FloatDType::F64));
        let want = wide.forward(x, prompt, Some(bias.cast(FloatDType::F64)));
        let distance = (got - want.cast(FloatDType::F32)).abs().max().into_scalar::<f32>();
        assert!(distance < 1e-5, "{distance}");
    }
}
