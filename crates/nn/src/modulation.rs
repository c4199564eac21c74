//! Conditioning of tokens on the timestep: adaptive norms and gates, as in DiT.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`, `t2i_modulate`.

use crate::{kernels, norm::layer_norm};
use burn::tensor::Tensor;

/// Returns `norm(x) * (1 + scale) + shift`, the norm over the last axis; `x` `[B, N, C]`, `scale` and `shift`
/// `[B, 1, C]`; returns `[B, N, C]`.
pub fn norm_and_modulate(
    x: Tensor<3>,
    scale: Tensor<3>,
    shift: Tensor<3>,
    epsilon: f64,
) -> Tensor<3> {
    kernels::norm_and_modulate(x, scale, shift, epsilon)
        .unwrap_or_else(|[x, scale, shift]| layer_norm(x, epsilon) * (scale + 1.0) + shift)
}

/// Returns `x + gate * y`; `x` and `y` `[B, N, C]`, `gate` `[B, 1, C]`; returns `[B, N, C]`.
pub fn gated_sum(x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    kernels::gated_sum(x, gate, y).unwrap_or_else(|[x, gate, y]| x + gate * y)
}

#[cfg(all(test, feature = "autodiff"))]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_agree, waves};

    #[test]
    fn an_adaptive_norm_equals_burn_operations() {
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
    fn a_gated_sum_equals_burn_operations() {
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

#[cfg(test)]
mod fallback_tests {
    use super::*;
    use crate::testing::waves;
    use burn::tensor::FloatDType;

    fn assert_near_in_half(found: Tensor<3>, expected: Tensor<3>) {
        let distance = (found.cast(FloatDType::F32) - expected).abs().max().into_scalar::<f32>();
        // bf16 has 8 bits; values are below 4.
        assert!(distance < 0.05, "{distance}");
    }

    #[test]
    fn half_precision_without_kernels_equals_the_kernels() {
        let (x, y) = (waves([2, 9, 8], 0.0), waves([2, 9, 8], 1.0));
        let (scale, shift) = (waves([2, 1, 8], 2.0), waves([2, 1, 8], 3.0));
        let half = |x: &Tensor<3>| x.clone().cast(FloatDType::BF16);
        let expected = norm_and_modulate(x.clone(), scale.clone(), shift.clone(), 1e-6);
        let found = norm_and_modulate(half(&x), half(&scale), half(&shift), 1e-6);
        assert_near_in_half(found, expected);
        let found = gated_sum(half(&x), half(&scale), half(&y));
        assert_near_in_half(found, gated_sum(x, scale, y));
    }
}
