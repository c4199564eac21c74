//! The block, final layer and label embedding of DiT ("adaLN-Zero").
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/dit/dit.py`, class `DiTBlock`;
//! `layers/blocks.py`, classes `FinalLayer` and `LabelEmbedder`. Deviation: no label
//! dropout, which the reference applies in training.

use crate::{
    ClassConfig,
    attention::{Axis, Mlp, SelfAttention, TokenGrid},
    modulation::{Modulation, NORM_EPSILON},
};
use burn::{
    module::{Initializer, Module},
    nn::{Embedding, Linear},
    tensor::{Device, Int, Tensor, TensorData},
};
use opensora_nn::{
    linear::{self, XAVIER, linear},
    modulation::norm_and_modulate,
};

/// Embedding table of class labels.
#[derive(Module, Debug)]
pub struct LabelEmbedder {
    /// One row for each class, then that of the null class if the model has one.
    pub embedding_table: Embedding,
}

impl LabelEmbedder {
    pub(crate) fn new(config: &ClassConfig, device: &Device) -> Self {
        // Standard normal, as in the reference.
        let initializer = Initializer::Normal { mean: 0.0, std: 1.0 };
        let weight = initializer.init([config.label_rows(), config.hidden_size], device);
        Self { embedding_table: Embedding { weight } }
    }

    /// Returns the vectors of labels: `[B] -> [B, C]`.
    ///
    /// # Panics
    /// Panics if a label has no row (ask [`ClassConfig::check_labels`] first).
    pub fn forward(&self, labels: &[usize]) -> Tensor<2> {
        let table = self.embedding_table.weight.val();
        let [rows, _] = table.dims();
        assert!(labels.iter().all(|&label| label < rows), "labels {labels:?}, rows {rows}");
        let indices: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
        let indices = TensorData::new(indices, [labels.len()]);
        table.clone().select(0, Tensor::<1, Int>::from_data(indices, &table.device()))
    }
}

/// A block of DiT: self-attention and MLP, each with norm, modulation and gate.
#[derive(Module, Debug)]
pub struct AdaLnBlock {
    /// Self-attention.
    pub attn: SelfAttention,
    /// The MLP.
    pub mlp: Mlp,
    /// `C -> 6 C`: shift, scale and gate of the attention, then of the MLP.
    pub adaln_modulation: Linear,
}

impl AdaLnBlock {
    pub(crate) fn new(config: &ClassConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            attn: SelfAttention::new(hidden, config.num_heads, XAVIER, device),
            mlp: Mlp::new(hidden, config.mlp_size(), device),
            // Zero: a fresh block is the identity.
            adaln_modulation: linear(hidden, 6 * hidden, true, Initializer::Zeros, device),
        }
    }

    /// Applies the block to `x` `[B, T*S, C]` with `c` `[B, C]` after SiLU. Tokens attend along `axis` of
    /// the grid. Returns `[B, T*S, C]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        c: Tensor<2>,
        axis: Axis,
        grid: TokenGrid,
    ) -> Tensor<3> {
        let Self { attn, mlp, .. } = self;
        let [batch, _, channels] = x.dims();
        // [B, C] -> [B, 6C] -> [B, 6, C]
        let six = linear::forward(&self.adaln_modulation, c).reshape([batch, 6, channels]);
        let [msa, ff] = Modulation::split(&six);

        let x = x.clone() + &msa.gate * attn.along(axis, grid, msa.modulate_norm(x));
        x.clone() + &ff.gate * mlp.forward(ff.modulate_norm(x))
    }
}

/// The final layer of DiT: norm, its own modulation, and one linear layer.
#[derive(Module, Debug)]
pub struct AdaLnFinalLayer {
    /// `C -> 2 C`: shift and scale.
    pub adaln_modulation: Linear,
    /// `C -> pt * ph * pw * out_channels`.
    pub linear: Linear,
}

impl AdaLnFinalLayer {
    pub(crate) fn new(config: &ClassConfig, device: &Device) -> Self {
        let patch: usize = config.patch_size.iter().product();
        let hidden = config.hidden_size;
        let zero = |to| linear(hidden, to, true, Initializer::Zeros, device);
        Self { adaln_modulation: zero(2 * hidden), linear: zero(patch * config.out_channels()) }
    }

    /// Applies the layer to `x` `[B, N, C]` with `c` `[B, C]` after SiLU; returns
    /// `[B, N, pt * ph * pw * C_out]`.
    pub fn forward(&self, x: Tensor<3>, c: Tensor<2>) -> Tensor<3> {
        let [batch, _, hidden] = x.dims();
        let two = linear::forward(&self.adaln_modulation, c).reshape([batch, 2, hidden]);
        let (shift, scale) = (two.clone().narrow(1, 0, 1), two.narrow(1, 1, 1));
        self.linear.forward(norm_and_modulate(x, scale, shift, NORM_EPSILON))
    }
}
