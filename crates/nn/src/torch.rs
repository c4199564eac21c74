//! Layers that libtorch has as one operation and burn makes of several, on the backend `tch` without
//! autodiff: in half precision the passes after the products would take as long as these.

use burn::{
    backend::{Backend, LibTorch, backend_extension, libtorch::TchTensor, tensor::FloatTensor},
    tensor::Tensor,
};

/// The operations. All tensors have one type.
#[backend_extension(LibTorch)]
pub(crate) trait Torch: Backend {
    /// `x weight + bias`; `x` `[.., I]`, `weight` `[I, O]`, `bias` `[O]`; returns `[.., O]`.
    fn torch_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// GELU (tanh) of [`torch_linear`](Self::torch_linear).
    fn torch_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `norm(x) * (1 + scale) + shift`, the norm over the last axis; `x` `[B, N, C]`, `scale` and `shift`
    /// `[B, 1, C]`; returns `[B, N, C]`.
    fn torch_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;

    /// `x + gate * y`; `x` and `y` `[B, N, C]`, `gate` `[B, 1, C]`; returns `[B, N, C]`.
    fn torch_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl Torch for LibTorch {
    fn torch_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        // libtorch's weights are [O, I].
        TchTensor::new(x.tensor.linear(&weight.tensor.tr(), Some(bias.tensor)))
    }

    fn torch_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let mut y = x.tensor.linear(&weight.tensor.tr(), Some(bias.tensor));
        TchTensor::new(y.gelu_("tanh"))
    }

    fn torch_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let [x, scale, shift] = [x, scale, shift].map(|of| of.tensor);
        let channels = *x.size().last().expect("an axis of channels");
        // Half precision is summed in f32 in there.
        let normed = x.layer_norm([channels], none_of(&x), none_of(&x), epsilon, true);
        TchTensor::new(shift.addcmul(&normed, &(scale + 1.0)))
    }

    fn torch_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        TchTensor::new(x.tensor.addcmul(&gate.tensor, &y.tensor))
    }
}

/// No tensor, of the type that libtorch's operations ask for.
fn none_of<T>(_: &T) -> Option<&T> {
    None
}

/// Whether the operations take this tensor.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    crate::device::is_torch(&x.device())
}
