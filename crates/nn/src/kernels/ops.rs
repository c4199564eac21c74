//! The extension trait of the kernels.

#![cfg_attr(
    not(any(feature = "flex", feature = "tch")),
    allow(unused_variables, reason = "the macro's functions pass their arguments to no backend")
)]

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

/// Name of an operation of [`FusedOps`], to ask whether a backend supports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Linear,
    LinearGelu,
    NormAndModulate,
    GatedSum,
    SelfAttention,
    CrossAttention,
    Attention,
    Gelu,
    Silu,
    GroupNorm,
    GroupNormSilu,
    GroupMoments,
    AffineSilu,
    Conv3x3,
    UpsampleNearest,
}

/// The fused operations. The default bodies panic and are never called: [`supported`](super::supported) returns
/// false for operations that a backend does not override.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    LibTorch: cfg(feature = "tch"),
    Autodiff: cfg(feature = "autodiff")
)]
#[allow(unused_variables, reason = "default bodies are never called")]
pub(crate) trait FusedOps: Backend {
    /// Computes `x weight + bias`; `x` `[.., I]`, `weight` `[I, O]` with strides that are not negative,
    /// `bias` `[O]`; returns `[.., O]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unsupported(Operation::Linear)
    }

    /// Returns GELU (tanh) of [`fused_linear`](Self::fused_linear).
    fn fused_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unsupported(Operation::LinearGelu)
    }

    /// Computes `norm(x) * (1 + scale) + shift`, where `norm` is layer norm over the last axis without weights; `x`
    /// `[B, N, C]`, `scale` and `shift` `[B, 1, C]`; returns `[B, N, C]`.
    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        unsupported(Operation::NormAndModulate)
    }

    /// Computes `x + gate * y`; `x` and `y` `[B, N, C]`, `gate` `[B, 1, C]`; returns `[B, N, C]`.
    fn fused_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unsupported(Operation::GatedSum)
    }

    /// Computes multi-head self-attention along `axis` 1 or 2 of `qkv` `[B, T, S, 3 C]`; returns `[B, T,
    /// S, C]`.
    fn fused_self_attention(
        qkv: FloatTensor<Self>,
        axis: usize,
        heads: usize,
    ) -> FloatTensor<Self> {
        unsupported(Operation::SelfAttention)
    }

    /// Computes multi-head attention of `query` `[B, N, C]` to `key_value` `[B, M, 2 C]`, with `bias`
    /// `[1 or B, M]` added to the scores; returns `[B, N, C]`. The bias has no gradient.
    fn fused_cross_attention(
        query: FloatTensor<Self>,
        key_value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        unsupported(Operation::CrossAttention)
    }

    /// Computes `softmax(q kᵀ * scale + bias) v`; `query` `[B, H, N, D]`, `key` `[B, H, M, D]`, `value`
    /// `[B, H, M, V]`, `bias` `[1 or B, M]`; returns `[B, H, N, V]`.
    fn fused_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        unsupported(Operation::Attention)
    }

    /// Returns GELU (tanh) of each element.
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        unsupported(Operation::Gelu)
    }

    /// Returns SiLU of each element.
    fn fused_silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        unsupported(Operation::Silu)
    }

    /// Computes the group norm of `x` `[B, C, H, W]` with `gamma` and `beta` `[C]`; returns the same
    /// shape.
    fn fused_group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        unsupported(Operation::GroupNorm)
    }

    /// Returns SiLU of [`fused_group_norm`](Self::fused_group_norm).
    fn fused_group_norm_silu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        unsupported(Operation::GroupNormSilu)
    }

    /// Returns mean and biased variance of each group of `x` `[B, C, H, W]`, `[B, groups]` each, and `x` in
    /// row-major order.
    fn fused_group_moments(
        x: FloatTensor<Self>,
        groups: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unsupported(Operation::GroupMoments)
    }

    /// Computes SiLU of `x * gain + shift`; `x` `[B, C, H, W]`, `gain` and `shift` `[B, C]`; returns the
    /// shape of `x`.
    fn fused_affine_silu(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unsupported(Operation::AffineSilu)
    }

    /// Computes a 3x3 convolution with stride 1 and padding 1; `x` `[B, I, H, W]` with even height and
    /// width, `weight` `[O, I, 3, 3]`, `bias` `[O]`; returns `[B, O, H, W]`.
    fn fused_conv3x3(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unsupported(Operation::Conv3x3)
    }

    /// Repeats each pixel twice along height and width, `[B, C, H, W] -> [B, C, 2 H, 2 W]`.
    fn fused_upsample_nearest(x: FloatTensor<Self>) -> FloatTensor<Self> {
        unsupported(Operation::UpsampleNearest)
    }
}

fn unsupported(operation: Operation) -> ! {
    unreachable!("{operation:?} was called without `supported`")
}
