//! Kernels of the `tch` backend: layers that are one operation of libtorch, but several of burn. In half
//! precision the elementwise operations after a matrix product would take as long as the product.
//!
//! They have no gradients.

use super::{FusedOps, Operation};
#[cfg(feature = "autodiff")]
use burn::backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy};
use burn::backend::{LibTorch, libtorch::TchTensor, tensor::FloatTensor};

/// Returns true if `operation` is implemented here: those below, without gradients.
pub(super) fn supports(operation: Operation, autodiff: bool) -> bool {
    use Operation::*;
    !autodiff && matches!(operation, Linear | LinearGelu | NormAndModulate | GatedSum)
}

impl FusedOps for LibTorch {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        // libtorch's weights are [O, I].
        TchTensor::new(x.tensor.linear(&weight.tensor.tr(), Some(bias.tensor)))
    }

    fn fused_linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let mut y = x.tensor.linear(&weight.tensor.tr(), Some(bias.tensor));
        TchTensor::new(y.gelu_("tanh"))
    }

    fn fused_norm_and_modulate(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let [x, scale, shift] = [x, scale, shift].map(|x| x.tensor);
        let channels = *x.size().last().expect("an axis of channels");
        // libtorch computes the statistics of half precision in f32.
        let normed = x.layer_norm([channels], none_like(&x), none_like(&x), epsilon, true);
        TchTensor::new(shift.addcmul(&normed, &(scale + 1.0)))
    }

    fn fused_gated_sum(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        TchTensor::new(x.tensor.addcmul(&gate.tensor, &y.tensor))
    }
}

#[cfg(feature = "autodiff")]
impl<C: CheckpointStrategy> FusedOps for Autodiff<LibTorch, C> {}

/// Returns `None`, of the tensor type that libtorch's operations take.
fn none_like<T>(_: &T) -> Option<&T> {
    None
}
