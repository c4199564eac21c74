//! LayerNorm without parameters, group norm (also over tiles), and T5's RMS norm.

use crate::{activation::silu, kernels};
use burn::{
    module::{Module, Param},
    nn::GroupNorm,
    tensor::{DType, Device, FloatDType, Tensor, module::layer_norm as fused_layer_norm},
};

/// Returns the LayerNorm of `x` `[.., C]` over the last axis, without affine parameters.
///
/// Source: `torch.nn.LayerNorm(C, eps, elementwise_affine=False)` as used by DiT, PixArt and STDiT.
/// Statistics are computed in f32 for every dtype, as in PyTorch's kernel.
pub fn layer_norm<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let channels = x.dims()[D - 1];
    in_f32(x, |x| {
        // burn's fused kernel requires a gain.
        let gain = Tensor::ones([channels], (&x.device(), DType::F32));
        fused_layer_norm(x, gain, None, epsilon)
    })
}

/// Returns the group norm of `x` `[B, C, H, W]` with the parameters of `norm`; same shape.
///
/// burn's `GroupNorm::forward` makes seven passes over the tensor. Here a group is a row of the fused layer
/// norm, which makes two passes.
pub fn group_norm(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    kernels::group_norm(norm, x).unwrap_or_else(|x| {
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
    })
}

/// Returns SiLU of [`group_norm`], the input of every convolution of a residual block.
pub fn group_norm_silu(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    kernels::group_norm_silu(norm, x).unwrap_or_else(|x| silu(group_norm(norm, x)))
}

/// Mean and variance of each group of a [`GroupNorm`], for images that are processed in tiles.
#[derive(Debug, Clone)]
pub struct GroupMoments {
    /// Number of elements of a group.
    count: f64,
    /// `[B, G]`
    mean: Tensor<2>,
    /// Biased, as in norms; `[B, G]`
    variance: Tensor<2>,
}

impl GroupMoments {
    /// Returns the moments of `norm`'s groups in `x` `[B, C, H, W]`, and `x`.
    pub fn of(norm: &GroupNorm, x: Tensor<4>) -> (Self, Tensor<4>) {
        let [batch, channels, height, width] = x.dims();
        let groups = norm.num_groups;
        let count = (channels / groups * height * width) as f64;
        let x = match kernels::group_moments(x, groups) {
            Ok(([mean, variance], x)) => return (Self { count, mean, variance }, x),
            Err(x) => x,
        };
        let rows = x.clone().reshape([batch, groups, channels / groups * height * width]);
        let (variance, mean) = rows.cast(FloatDType::F32).var_mean_bias(2);
        (Self { count, mean: mean.squeeze_dim(2), variance: variance.squeeze_dim(2) }, x)
    }

    /// Returns the moments of two tiles together.
    ///
    /// Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for
    /// Computing Sample Variances".
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let (weight, other_weight) = (self.count / count, other.count / count);
        let difference = other.mean - self.mean.clone();
        Self {
            count,
            mean: self.mean + difference.clone() * other_weight,
            variance: self.variance * weight
                + other.variance * other_weight
                + difference.clone() * difference * (weight * other_weight),
        }
    }

    /// Returns SiLU of the group norm of `x` `[B, C, H, W]`, a tile of the image that has these moments.
    pub fn normalize_silu(&self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, ..] = x.dims();
        let per_group = channels / norm.num_groups;
        // [B, G] -> [B, C]
        let per_channel = |x: Tensor<2>| {
            let x = x.unsqueeze_dim::<3>(2).expand([batch, norm.num_groups, per_group]);
            x.reshape([batch, channels])
        };
        let mut gain = per_channel((self.variance.clone() + norm.epsilon).sqrt().recip());
        if let Some(gamma) = &norm.gamma {
            gain = gain * gamma.val().cast(FloatDType::F32).unsqueeze();
        }
        let mut shift = -per_channel(self.mean.clone()) * gain.clone();
        if let Some(beta) = &norm.beta {
            shift = shift + beta.val().cast(FloatDType::F32).unsqueeze();
        }
        kernels::affine_silu(x, &gain, &shift).unwrap_or_else(|x| {
            let planes = |x: Tensor<2>| x.reshape([batch, channels, 1, 1]);
            let dtype = x.dtype();
            silu((x.cast(FloatDType::F32) * planes(gain) + planes(shift)).cast(dtype))
        })
    }
}

/// T5's layer norm: the mean is not subtracted, and there is no bias.
///
/// Source: transformers, `models/t5/modeling_t5.py`, class `T5LayerNorm`, which also divides in f32. burn's
/// `RmsNorm` is the same in f32, but in half precision it rounds the root before the division.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Weight, `[C]`.
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    /// Returns an RMS norm over `channels` with weight 1.
    pub fn new(channels: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: burn::nn::Initializer::Ones.init([channels], device), epsilon }
    }

    /// Returns `x / sqrt(mean(x^2) + eps) * weight` over the last axis; `[.., C] -> [.., C]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let normed = in_f32(x, |x| {
            let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
            x / (mean_square + self.epsilon).sqrt()
        });
        normed * self.weight.val().unsqueeze::<D>()
    }
}

/// Returns `f` of `x`, computed in f32, in the dtype of `x`.
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
    fn group_norm_equals_that_of_burn() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let ones = |shift| Tensor::<1>::from_floats([1., 2., 3., 4., 5., 6.], &device) + shift;
            let norm = burn::nn::GroupNormConfig::new(3, 6).with_epsilon(1e-6).init(&device);
            let norm = GroupNorm {
                gamma: Some(Param::from_tensor(ones(0.0))),
                beta: Some(Param::from_tensor(ones(-4.0))),
                ..norm
            };
            let values = crate::noise::normal(1, crate::noise::Purpose::Weights, 0, 0, 2 * 6 * 450);
            let x = Tensor::<1>::from_floats(values.as_slice(), &device) * 3.0 + 40.0;
            let x = x.reshape([2, 6, 25, 18]);
            let want = norm.forward(x.clone());
            let close = |got: Tensor<4>, want: Tensor<4>| {
                let [got, want] = [got, want].map(|t| t.into_data().try_to_vec::<f32>().unwrap());
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "{got} {want}");
                }
            };
            close(group_norm(&norm, x.clone()), want.clone());
            close(group_norm_silu(&norm, x), burn::tensor::activation::silu(want));
        }
    }

    #[test]
    fn normalising_tiles_equals_normalising_the_image() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let norm = burn::nn::GroupNormConfig::new(2, 4).with_epsilon(0.5).init(&device);
            let beta = Tensor::<1>::from_floats([1.0, 2.0, 3.0, 4.0], &device);
            let gamma = Tensor::<1>::from_floats([0.5, 2.0, 3.0, -1.5], &device);
            let norm = GroupNorm {
                gamma: Some(Param::from_tensor(gamma)),
                beta: Some(Param::from_tensor(beta)),
                ..norm
            };
            let values = crate::noise::normal(1, crate::noise::Purpose::Weights, 0, 0, 2 * 4 * 63);
            let x = Tensor::<1>::from_floats(values.as_slice(), &device) * 3.0 + 40.0;
            let x = x.reshape([2, 4, 9, 7]);
            let want = group_norm_silu(&norm, x.clone());
            // Tiles of different heights.
            let tiles = [(0, 2), (2, 2), (4, 5)].map(|(row, rows)| x.clone().narrow(2, row, rows));
            let [a, b, c] = tiles.clone().map(|tile| GroupMoments::of(&norm, tile).0);
            let moments = a.merge(b).merge(c);
            let tiles = tiles.map(|tile| moments.normalize_silu(&norm, tile));
            let got = Tensor::cat(tiles.to_vec(), 2);
            let difference = (got - want).abs().max().into_scalar::<f32>();
            assert!(difference < 2e-5, "{difference}");
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
        // sqrt(12.5 + 3.5) is 4.
        let weight = Param::from_tensor(Tensor::<1>::from_floats([2.0, 0.5], &device));
        let norm = RmsNorm { weight, epsilon: 3.5 };
        let y = norm.forward(Tensor::<2>::from_floats([[3.0, 4.0]], &device));
        assert_eq!(y.into_data().try_to_vec::<f32>().unwrap(), [1.5, 0.5]);
    }
}
