//! The blocks and their attentions.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/stdit/stdit.py`, class `STDiTBlock`;
//! `pixart/pixart.py`, class `PixArtBlock`; `layers/blocks.py`, classes `Attention` and
//! `MultiHeadCrossAttention`.

use crate::{
    DenoiserConfig,
    embed::Conditioning,
    reuse::{AttentionKind, BlockAttentions},
};
use burn::{
    module::{Initializer, Module, Param},
    nn::Linear,
    tensor::{Device, Tensor},
};
use opensora_nn::{
    activation::linear_gelu_tanh,
    attention::{cross_attention, reads_any_axis, self_attention},
    linear::{self, XAVIER, linear},
    modulation::{gated_sum, norm_and_modulate},
};

/// Epsilon of every LayerNorm in these models.
pub(crate) const NORM_EPSILON: f64 = 1e-6;

/// Self-attention over `[B, N, C]`.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries, keys and values in one layer, `C -> 3 C`.
    pub qkv: Linear,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

impl SelfAttention {
    fn new(config: &DenoiserConfig, proj: Initializer, device: &Device) -> Self {
        Self::with_heads(config.hidden_size, config.num_heads, proj, device)
    }

    /// Fresh attention of width `hidden`, whose output projection starts from `proj`.
    pub(crate) fn with_heads(
        hidden: usize,
        heads: usize,
        proj: Initializer,
        device: &Device,
    ) -> Self {
        Self {
            qkv: linear(hidden, 3 * hidden, true, XAVIER, device),
            proj: linear(hidden, hidden, true, proj, device),
            heads,
        }
    }

    /// `[B, N, C] -> [B, N, C]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, tokens, _] = x.dims();
        self.along(x, [1, tokens], 2)
    }

    /// `[B, T*S, C] -> [B, T*S, C]`: tokens of a `[T, S]` grid attend to those along one axis of it, 1 for
    /// T or 2 for S.
    pub(crate) fn along(&self, x: Tensor<3>, grid: [usize; 2], axis: usize) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let [frames, places] = grid;
        if axis == 1 && !reads_any_axis(&x) {
            // [B, T*S, C] -> [B, T, S, C] -> [B, S, T, C] -> [B, S*T, C], and back.
            let turned = |x: Tensor<3>, [rows, columns]: [usize; 2]| {
                let x = x.reshape([batch, rows, columns, channels]).swap_dims(1, 2);
                x.reshape([batch, tokens, channels])
            };
            let x = self.along(turned(x, [frames, places]), [places, frames], 2);
            return turned(x, [places, frames]);
        }
        let qkv = linear::forward(&self.qkv, x); // [B, T*S, 3C]
        let qkv = qkv.reshape([batch, frames, places, 3 * channels]);
        let attended = self_attention(qkv, axis, self.heads);
        linear::forward(&self.proj, attended.reshape([batch, tokens, channels]))
    }
}

/// Attention from the clip's tokens to the prompt's.
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
    fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            q_linear: linear(hidden, hidden, true, XAVIER, device),
            kv_linear: linear(hidden, 2 * hidden, true, XAVIER, device),
            // Zero: a fresh block does not listen to the prompt yet.
            proj: linear(hidden, hidden, true, Initializer::Zeros, device),
            heads: config.num_heads,
        }
    }

    /// `x` `[B, N, C]`, `prompt` `[B, L, C]`, `bias` `[B, 1, 1, L]`; returns `[B, N, C]`.
    pub fn forward(&self, x: Tensor<3>, prompt: Tensor<3>, bias: Option<Tensor<4>>) -> Tensor<3> {
        let q = linear::forward(&self.q_linear, x);
        let kv = linear::forward(&self.kv_linear, prompt); // [B, L, 2C]
        linear::forward(&self.proj, cross_attention(q, kv, bias, self.heads))
    }
}

/// The MLP of a block, tanh-GELU between two layers.
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

/// What both kinds of block have: spatial attention, cross attention, MLP, adaLN-single.
#[derive(Module, Debug)]
pub struct PixArtBlock {
    /// Added to the timestep's six vectors: shift, scale and gate of the attention, then of the
    /// MLP; `[6, C]`.
    pub scale_shift_table: Param<Tensor<2>>,
    /// Self-attention; over one frame in STDiT.
    pub attn: SelfAttention,
    /// Attention to the prompt.
    pub cross_attn: CrossAttention,
    /// The MLP.
    pub mlp: Mlp,
}

/// Shift, scale and gate of one branch, each `[B, 1, C]`.
struct Modulation {
    shift: Tensor<3>,
    scale: Tensor<3>,
    gate: Tensor<3>,
}

impl Modulation {
    /// `norm(x) * (1 + scale) + shift`.
    fn norm_and_modulate(&self, x: Tensor<3>) -> Tensor<3> {
        norm_and_modulate(x, self.scale.clone(), self.shift.clone(), NORM_EPSILON)
    }
}

impl PixArtBlock {
    pub(crate) fn new(config: &DenoiserConfig, device: &Device) -> Self {
        Self {
            scale_shift_table: scale_shift_table(6, config.hidden_size, device),
            attn: SelfAttention::new(config, XAVIER, device),
            cross_attn: CrossAttention::new(config, device),
            mlp: Mlp::new(config.hidden_size, config.mlp_size(), device),
        }
    }

    /// `[B, N, C] -> [B, N, C]`.
    pub fn forward(&self, x: Tensor<3>, c: &Conditioning) -> Tensor<3> {
        let [msa, mlp] = self.modulation(c);
        let attended = self.attn.forward(msa.norm_and_modulate(x.clone()));
        let x = gated_sum(x, msa.gate, attended);
        self.cross_attention_and_mlp(x, c, mlp, &mut BlockAttentions::computed())
    }

    /// The modulation of the attention branch and of the MLP branch.
    fn modulation(&self, c: &Conditioning) -> [Modulation; 2] {
        let table = self.scale_shift_table.val().unsqueeze::<3>() + c.t6.clone(); // [B, 6, C]
        [0, 3].map(|first| {
            let row = |i: usize| table.clone().narrow(1, first + i, 1);
            Modulation { shift: row(0), scale: row(1), gate: row(2) }
        })
    }

    /// Cross attention has neither norm nor gate.
    fn cross_attention_and_mlp(
        &self,
        x: Tensor<3>,
        c: &Conditioning,
        mlp: Modulation,
        attentions: &mut BlockAttentions<'_>,
    ) -> Tensor<3> {
        let x = attentions.add(AttentionKind::Cross, x, None, |x| {
            self.cross_attn.forward(x, c.prompt.clone(), c.prompt_bias.clone())
        });
        let y = self.mlp.forward(mlp.norm_and_modulate(x.clone()));
        gated_sum(x, mlp.gate, y)
    }
}

/// A block of STDiT: PixArt's, with attention over time after the attention over space.
#[derive(Module, Debug)]
pub struct StDitBlock {
    /// The parts shared with PixArt.
    pub base: PixArtBlock,
    /// Attention over the frames of one place.
    pub attn_temp: SelfAttention,
}

impl StDitBlock {
    pub(crate) fn new(config: &DenoiserConfig, device: &Device) -> Self {
        Self {
            base: PixArtBlock::new(config, device),
            // Zero: a fresh STDiT treats its frames as independent images.
            attn_temp: SelfAttention::new(config, Initializer::Zeros, device),
        }
    }

    /// `x` `[B, T*S, C]` with `frames` = T; `temporal_positions` `[T, C]` in the first block only.
    ///
    /// Quirk of the reference, kept: the temporal branch sees `x` without norm and without
    /// modulation, and shares the gate of the spatial branch.
    pub fn forward(
        &self,
        x: Tensor<3>,
        c: &Conditioning,
        frames: usize,
        temporal_positions: Option<Tensor<2>>,
    ) -> Tensor<3> {
        self.forward_with(x, c, frames, temporal_positions, &mut BlockAttentions::computed())
    }

    /// [`forward`](Self::forward), where `attentions` may give earlier outputs.
    pub(crate) fn forward_with(
        &self,
        x: Tensor<3>,
        c: &Conditioning,
        frames: usize,
        temporal_positions: Option<Tensor<2>>,
        attentions: &mut BlockAttentions<'_>,
    ) -> Tensor<3> {
        let [msa, mlp] = self.base.modulation(c);
        let x = attentions.add(AttentionKind::Spatial, x, Some(&msa.gate), |x| {
            self.spatial(msa.norm_and_modulate(x), frames)
        });
        let x = attentions.add(AttentionKind::Temporal, x, Some(&msa.gate), |x| {
            self.temporal(x, frames, temporal_positions)
        });
        self.base.cross_attention_and_mlp(x, c, mlp, attentions)
    }

    /// Attention within each frame, `[B, T*S, C] -> [B, T*S, C]`.
    fn spatial(&self, x: Tensor<3>, frames: usize) -> Tensor<3> {
        let places = x.dims()[1] / frames;
        self.base.attn.along(x, [frames, places], 2)
    }

    /// Attention over the frames of each place, `[B, T*S, C] -> [B, T*S, C]`; `positions` `[T, C]`.
    fn temporal(&self, x: Tensor<3>, frames: usize, positions: Option<Tensor<2>>) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let places = tokens / frames;
        let x = match positions {
            Some(table) => {
                // [B, T*S, C] -> [B, T, S, C] + [T, 1, C] -> [B, T*S, C]
                let table = table.unsqueeze_dim::<3>(1).unsqueeze::<4>();
                let x = x.reshape([batch, frames, places, channels]) + table;
                x.reshape([batch, tokens, channels])
            }
            None => x,
        };
        self.attn_temp.along(x, [frames, places], 1)
    }
}

/// A fresh `scale_shift_table`, normal with deviation `1 / sqrt(C)`.
pub(crate) fn scale_shift_table(rows: usize, hidden: usize, device: &Device) -> Param<Tensor<2>> {
    let std = 1.0 / (hidden as f64).sqrt();
    Initializer::Normal { mean: 0.0, std }.init([rows, hidden], device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::FloatDType;

    /// In f64 flex runs burn's operations, as other backends do, and turns the tokens for an attention
    /// over frames; in f32 its own.
    #[test]
    fn attentions_are_the_same_on_operations_of_burn() {
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
        let (frames, places) = (5, 4);
        let values: Vec<f32> = (0..2 * 20 * hidden).map(|i| (i as f32 * 1.7).sin()).collect();
        let x = Tensor::<1>::from_floats(values.as_slice(), &device);
        let x = x.reshape([2, frames * places, hidden]);
        for axis in [1, 2] {
            let got = attention.along(x.clone(), [frames, places], axis);
            let want = wide.along(x.clone().cast(FloatDType::F64), [frames, places], axis);
            let distance = (got - want.cast(FloatDType::F32)).abs().max().into_scalar::<f32>();
            assert!(distance < 1e-5, "{axis}: {distance}");
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
