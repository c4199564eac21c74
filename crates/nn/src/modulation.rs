//! What a timestep does to tokens: adaptive norms and gates, as in DiT.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`, `t2i_modulate`.

#[cfg(feature = "flex")]
use crate::fused::{self, Fused};
use crate::norm::layer_norm;
#[cfg(feature = "tch")]
use crate::torch::{self, Torch};
#[cfg(any(feature = "flex", feature = "tch"))]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// `norm(x) * (1 + scale) + shift`, the norm over the last axis; `x` `[B, N, C]`, `scale` and `shift`
/// `[B, 1, C]`; returns `[B, N, C]`.
pub fn norm_and_modulate(
    x: Tensor<3>,
    scale: Tensor<3>,
    shift: Tensor<3>,
    epsilon: f64,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if fits(&x, [&scale, &shift]) {
        let [x, scale, shift] = [x, scale, shift].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::fused_norm_and_modulate(x, scale, shift, epsilon));
    }
    #[cfg(feature = "tch")]
    if fits_torch(&x, [&scale, &shift]) {
        let [x, scale, shift] = [x, scale, shift].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::torch_norm_and_modulate(x, scale, shift, epsilon));
    }
    layer_norm(x, epsilon) * (scale + 1.0) + shift
}

/// `x + gate * y`; `x` and `y` `[B, N, C]`, `gate` `[B, 1, C]`; returns `[B, N, C]`.
pub fn gated_sum(x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if fits(&x, [&gate]) && fused::takes(&y) && y.dims() == x.dims() {
        let [x, gate, y] = [x, gate, y].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::fused_gated_sum(x, gate, y));
    }
    #[cfg(feature = "tch")]
    if fits_torch(&x, [&gate, &y]) {
        let [x, gate, y] = [x, gate, y].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::torch_gated_sum(x, gate, y));
    }
    x + gate * y
}

/// Whether libtorch takes them together.
#[cfg(feature = "tch")]
fn fits_torch(x: &Tensor<3>, others: [&Tensor<3>; 2]) -> bool {
    let dtype = x.dtype();
    torch::takes(x) && others.into_iter().all(|other| other.dtype() == dtype)
}

/// Whether `x` is taken, with one row for each sample of all `others`.
#[cfg(feature = "flex")]
fn fits<const N: usize>(x: &Tensor<3>, others: [&Tensor<3>; N]) -> bool {
    let [batch, _, channels] = x.dims();
    let one_row = |other: &Tensor<3>| other.dims() == [batch, 1, channels] && fused::takes(other);
    fused::takes(x) && others.into_iter().all(one_row)
}

#[cfg(all(test, feature = "autodiff"))]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_agree, waves};

    #[test]
    fn an_adaptive_norm_equals_its_operations() {
        for [batch, tokens, channels] in [[1, 1, 4], [2, 130, 37], [3, 64, 16]] {
            assert_gradients_agree(
                [
                    waves([batch, tokens, channels], 0.0) * 3.0 + 1.0,
                    waves([batch, 1, channels], 1.0),
                    waves([batch, 1, channels], 2.0),
                ],
                |[x, scale, shift]| norm_and_modulate(x, scale, shift, 1e-6),
                |[x, scale, shift]| layer_norm(x, 1e-6) * (scale + 1.0) + shift,
            );
        }
    }

    #[test]
    fn a_gated_sum_equals_its_operations() {
        for [batch, tokens, channels] in [[1, 1, 4], [2, 130, 37], [3, 64, 16]] {
            assert_gradients_agree(
                [
                    waves([batch, tokens, channels], 0.0),
                    waves([batch, 1, channels], 1.0),
                    waves([batch, tokens, channels], 2.0),
                ],
                |[x, gate, y]| gated_sum(x, gate, y),
                |[x, gate, y]| x + gate * y,
            );
        }
    }
}
