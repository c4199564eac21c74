//! The blocks of PixArt-alpha and STDiT.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/stdit/stdit.py`, class `STDiTBlock`;
//! `pixart/pixart.py`, class `PixArtBlock`.

use crate::{
    DenoiserConfig,
    attention::{
        Axis::{Space, Time},
        CrossAttention, Mlp, SelfAttention, TokenGrid,
    },
    embed::{Conditioning, add_time},
    hooks::{BlockHooks, PassHooks},
    layout::TokenLayout,
    modulation::Modulation,
};
use burn::{
    module::{Initializer, Module, Param},
    tensor::{Device, Tensor},
};
use opensora_nn::linear::XAVIER;

/// A block of PixArt-alpha: self-attention, attention to the prompt, MLP, with adaLN-single.
#[derive(Module, Debug)]
pub struct PixArtBlock {
    /// Added to the timestep's six vectors: shift, scale and gate of the attention, then of the
    /// MLP; `[6, C]`.
    pub scale_shift_table: Param<Tensor<2>>,
    /// Self-attention; within each frame in STDiT.
    pub attn: SelfAttention,
    /// Attention to the prompt.
    pub cross_attn: CrossAttention,
    /// The MLP.
    pub mlp: Mlp,
}

impl PixArtBlock {
    pub(crate) fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let DenoiserConfig { hidden_size, num_heads, .. } = *config;
        Self {
            scale_shift_table: scale_shift_table(6, hidden_size, device),
            attn: SelfAttention::new(hidden_size, num_heads, XAVIER, device),
            cross_attn: CrossAttention::new(hidden_size, num_heads, device),
            mlp: Mlp::new(hidden_size, config.mlp_size(), device),
        }
    }

    /// Applies the block to `x` `[B, N, C]`, where all tokens attend to each other; returns `[B, N, C]`.
    pub fn forward(
        &self,
        x: Tensor<3>,
        c: &Conditioning,
        hooks: &mut BlockHooks<'_, impl PassHooks>,
    ) -> Tensor<3> {
        let Self { attn, cross_attn, mlp, .. } = self;
        let [msa, ff] = self.modulation(c);
        let (prompt, bias) = (c.prompt.clone(), c.prompt_bias.clone());

        // x + gate * attn(modulate(norm(x)))
        let y = hooks.spatial(|| &msa.gate * attn.forward(msa.modulate_norm(x.clone())));
        let x = x + y;
        // x + attn(x, prompt)
        let y = hooks.cross(|| cross_attn.forward(x.clone(), prompt, bias));
        let x = x + y;
        // x + gate * mlp(modulate(norm(x)))
        let y = &ff.gate * mlp.forward(ff.modulate_norm(x.clone()));
        x + y
    }

    /// The modulations of the attention and of the MLP.
    fn modulation(&self, c: &Conditioning) -> [Modulation; 2] {
        // [6, C] + [B, 6, C]
        Modulation::split(&(self.scale_shift_table.val().unsqueeze::<3>() + c.t6.clone()))
    }
}

/// A block of STDiT: the block of PixArt-alpha, with attention over time after attention over space.
#[derive(Module, Debug)]
pub struct StDitBlock {
    /// The layers of the block of PixArt-alpha.
    pub base: PixArtBlock,
    /// Attention over the frames at each spatial position.
    pub attn_temp: SelfAttention,
}

impl StDitBlock {
    pub(crate) fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let DenoiserConfig { hidden_size, num_heads, .. } = *config;
        Self {
            base: PixArtBlock::new(config, device),
            // Zero: a fresh STDiT treats its frames as independent images.
            attn_temp: SelfAttention::new(hidden_size, num_heads, Initializer::Zeros, device),
        }
    }

    /// Applies the block to `x` `[B, T*S, C]`; `time` `[T, C]` are the temporal positions, which only the
    /// first block gets. Returns `[B, T*S, C]`. The tokens are those that this process holds in `layout`.
    ///
    /// Quirk of the reference, kept: the temporal branch sees `x` without norm and without
    /// modulation, and shares the gate of the spatial branch.
    pub fn forward(
        &self,
        x: Tensor<3>,
        c: &Conditioning,
        grid: TokenGrid,
        time: Option<Tensor<2>>,
        layout: &impl TokenLayout,
        hooks: &mut BlockHooks<'_, impl PassHooks>,
    ) -> Tensor<3> {
        let Self { base: PixArtBlock { attn, cross_attn, mlp, .. }, attn_temp } = self;
        let [msa, ff] = self.base.modulation(c);
        let (prompt, bias) = (c.prompt.clone(), c.prompt_bias.clone());

        // x + gate * attn(modulate(norm(x))), within each frame
        let y = hooks.spatial(|| &msa.gate * attn.along(Space, grid, msa.modulate_norm(x.clone())));
        let x = x + y;
        // x + gate * attn(x + time), over the frames at each position
        let attn = |grid, x| attn_temp.along(Time, grid, x);
        let y =
            hooks.temporal(|| &msa.gate * layout.over_time(grid, add_time(x.clone(), time), attn));
        let x = x + y;
        // x + attn(x, prompt)
        let y = hooks.cross(|| cross_attn.forward(x.clone(), prompt, bias));
        let x = x + y;
        // x + gate * mlp(modulate(norm(x)))
        let y = &ff.gate * mlp.forward(ff.modulate_norm(x.clone()));
        x + y
    }
}

/// Returns a fresh `scale_shift_table`, normal with deviation `1 / sqrt(C)`.
pub(crate) fn scale_shift_table(rows: usize, hidden: usize, device: &Device) -> Param<Tensor<2>> {
    let std = 1.0 / (hidden as f64).sqrt();
    Initializer::Normal { mean: 0.0, std }.init([rows, hidden], device)
}
