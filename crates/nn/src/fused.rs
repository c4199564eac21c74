//! Layers that are one operation of burn's flex backend each, with gradients of their own.
//!
//! On flex a layer that is written with burn's operations is one pass over its values for each
//! operation, mostly on one core, and autodiff keeps what each of them needs and goes back through all
//! of them. What a transformer spends its time with is made whole here: a pass over all cores forward,
//! another one backward, by burn's extension point for operations of one's own
//! ([`burn::backend::backend_extension`]).
//!
//! - [`passes`]: one pass over values.
//! - [`heads`]: attention over heads where they lie.
//! - [`forward`]: the operations on flex.
//! - [`backward`]: their gradients.
//!
//! Who uses them asks [`takes`] first and has burn's operations for other backends and types.

#[cfg(feature = "autodiff")]
mod backward;
mod forward;
mod heads;
mod passes;

use burn::{
    backend::{Backend, backend_extension, tensor::FloatTensor},
    tensor::{DType, Tensor},
};

/// The operations. Tensors are f32 and may be views; a weight's may not be flipped.
#[backend_extension(Flex, Autodiff: cfg(feature = "autodiff"))]
pub(crate) trait Fused: Backend {
    /// `x weight + bias`; `x` `[.., I]`, `weight` `[I, O]`, `bias` `[O]`; returns `[.., O]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// GELU (tanh) of [`fused_linear`](Self::fused_linear).
    fn fused_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `norm(x) * (1 + scale) + shift`, the norm over the last axis; `x` `[B, N, C]`, `scale` and `shift`
    /// `[B, 1, C]`; returns `[B, N, C]`.
    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;

    /// `x + gate * y`; `x` and `y` `[B, N, C]`, `gate` `[B, 1, C]`; returns `[B, N, C]`.
    fn fused_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Multi-head attention of `query` `[B, N, C]` to `key_value` `[B, M, 2 C]`, with `bias` `[1 or B, M]`
    /// added to the scores; returns `[B, N, C]`. The bias is a constant: no gradient goes to it.
    fn fused_cross_attention(
        query: FloatTensor<Self>,
        key_value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;

    /// Multi-head attention of tokens to those along one axis of theirs: 1 or 2 of `qkv`
    /// `[B, T, S, 3 C]`; returns `[B, T, S, C]`.
    fn fused_self_attention(qkv: FloatTensor<Self>, axis: usize, heads: usize)
    -> FloatTensor<Self>;
}

/// Whether the operations take this tensor: f32 on flex, and not empty.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    let autodiff = device.is_autodiff();
    x.dtype() == DType::F32
        && x.dims().iter().all(|&side| side > 0)
        && (cfg!(feature = "autodiff") || !autodiff)
        && crate::device::is_host(&if autodiff { device.inner() } else { device })
}
