//! Normalisations that burn lacks in this form.

use burn::{
    module::{Module, Param},
    nn::GroupNorm,
    tensor::{DType, Device, FloatDType, Tensor, module::layer_norm as fused_layer_norm},
};

/// LayerNorm over the last axis without affine parameters; any shape `[.., C]`.
///
/// Source: `torch.nn.LayerNorm(C, eps, elementwise_affine=False)` as used by DiT, PixArt and STDiT.
/// Statistics are taken in f32 whatever the input's dtype, as PyTorch's kernel does.
pub fn layer_norm<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let channels = x.dims()[D - 1];
    in_f32(x, |x| {
        // burn's fused kernel wants a gain; ones leave the values as they are.
        let gain = Tensor::ones([channels], (&x.device(), DType::F32));
        fused_layer_norm(x, gain, None, epsilon)
    })
}

/// GroupNorm over `[B, C, H, W]` with `norm`'s parameters; returns the same shape.
///
/// burn's own forward pass makes seven passes over the tensor; a group is one row of the fused
/// layer norm, so this makes two.
pub fn group_norm(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let rows = [batch, norm.num_groups, channels / norm.num_groups * height * width];
    let x = layer_norm(x.reshape(rows), norm.epsilon).reshape([batch, channels, height, width]);
    let affine = |param: &Option<Param<Tensor<1>>>| {
        param.as_ref().map(|p| p.val().reshape([1, channels, 1, 1]))
    };
    let x = match affine(&norm.gamma) {
        Some(gamma) => x * gamma,
        None => x,
    };
    match affine(&norm.beta) {
        Some(beta) => x + beta,
        None => x,
    }
}

/// T5's layer norm: no mean is subtracted and there is no bias.
///
/// Source: transformers, `models/t5/modeling_t5.py`, class `T5LayerNorm`: the division, too, is done
/// in f32. burn's `RmsNorm` is the same in f32, but in half precision it rounds the root before it
/// divides.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Gain, `[C]`.
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    /// A norm over `channels` with gain one.
    pub fn new(channels: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: burn::nn::Initializer::Ones.init([channels], device), epsilon }
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last axis; `[.., C] -> [.., C]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let normed = in_f32(x, |x| {
            let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
            x / (mean_square + self.epsilon).sqrt()
        });
        normed * self.weight.val().unsqueeze::<D>()
    }
}

/// Runs `f` in f32 and returns to the dtype of `x`.
fn in_f32<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    if dtype == DType::F32 {
        return f(x);
    }
    f(x.cast(FloatDType::F32)).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_has_zero_mean_and_unit_variance() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[1.0, 2.0, 3.0, 6.0], [-1.0, 0.0, 0.5, 100.0]], &device);
        let rows = layer_norm(x, 1e-6).into_data().try_to_vec::<f32>().unwrap();
        for row in rows.chunks(4) {
            let mean: f32 = row.iter().sum::<f32>() / 4.0;
            let variance: f32 = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4.0;
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
        }
    }

    #[test]
    fn group_norm_equals_burns() {
        let device = Device::flex();
        let norm = burn::nn::GroupNormConfig::new(3, 6).with_epsilon(1e-6).init(&device);
        let norm = GroupNorm {
            gamma: Some(Param::from_tensor(Tensor::from_floats([1., 2., 3., 4., 5., 6.], &device))),
            ..norm
        };
        let values = crate::noise::normal(1, crate::noise::Purpose::Weights, 0, 0, 2 * 6 * 5 * 4);
        let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([2, 6, 5, 4]);
        let want = norm.forward(x.clone()).into_data().try_to_vec::<f32>().unwrap();
        let got = group_norm(&norm, x).into_data().try_to_vec::<f32>().unwrap();
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{got} {want}");
        }
    }

    #[test]
    fn rms_norm_divides_by_the_root_mean_square() {
        let device = Device::flex();
        let norm = RmsNorm::new(2, 1e-6, &device);
        let y = norm.forward(Tensor::<2>::from_floats([[3.0, 4.0]], &device));
        let rms = (12.5f32 + 1e-6).sqrt();
        let got = y.into_data().try_to_vec::<f32>().unwrap();
        assert!((got[0] - 3.0 / rms).abs() < 1e-6 && (got[1] - 4.0 / rms).abs() < 1e-6);
    }
}
