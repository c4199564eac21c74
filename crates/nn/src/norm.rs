//! Normalisations that burn lacks in this form.

use crate::activation::silu;
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
    #[cfg(feature = "flex")]
    let x = match on_host::group_norm(norm, x, |y| y) {
        Ok(y) => return y,
        Err(x) => x,
    };
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

/// SiLU of [`group_norm`], as it stands before every convolution of a residual block.
pub fn group_norm_silu(norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    let x = match on_host::group_norm(norm, x, |y| y * crate::host::sigmoid(y)) {
        Ok(y) => return y,
        Err(x) => x,
    };
    silu(group_norm(norm, x))
}

/// Mean and variance of each group of a [`GroupNorm`], of a picture that is seen part by part.
#[derive(Debug, Clone)]
pub struct GroupMoments {
    /// Values of a group.
    count: f64,
    /// `[B, G]`
    mean: Tensor<2>,
    /// Biased, as norms use it; `[B, G]`
    variance: Tensor<2>,
}

impl GroupMoments {
    /// Those of `norm`'s groups in `x` `[B, C, H, W]`, which comes back: what only one owner holds
    /// is read without a copy.
    pub fn of(norm: &GroupNorm, x: Tensor<4>) -> (Self, Tensor<4>) {
        let [batch, channels, height, width] = x.dims();
        let groups = norm.num_groups;
        let count = (channels / groups * height * width) as f64;
        #[cfg(feature = "flex")]
        let x = match on_host::group_moments(groups, x) {
            Ok(([mean, variance], x)) => return (Self { count, mean, variance }, x),
            Err(x) => x,
        };
        let rows = x.clone().reshape([batch, groups, channels / groups * height * width]);
        let (variance, mean) = rows.cast(FloatDType::F32).var_mean_bias(2);
        (Self { count, mean: mean.squeeze_dim(2), variance: variance.squeeze_dim(2) }, x)
    }

    /// Those of two parts of a picture together.
    ///
    /// Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for
    /// Computing Sample Variances".
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let (here, there) = (self.count / count, other.count / count);
        let apart = other.mean - self.mean.clone();
        Self {
            count,
            mean: self.mean + apart.clone() * there,
            variance: self.variance * here
                + other.variance * there
                + apart.clone() * apart * (here * there),
        }
    }

    /// SiLU of the group norm of `x` `[B, C, H, W]`, a part of the picture that these belong to.
    pub fn normalize_silu(&self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, ..] = x.dims();
        let per_group = channels / norm.num_groups;
        // [B, G] -> [B, C]
        let of_channels = |of_groups: Tensor<2>| {
            let of_groups = of_groups.unsqueeze_dim::<3>(2);
            of_groups.expand([batch, norm.num_groups, per_group]).reshape([batch, channels])
        };
        let mut gain = of_channels((self.variance.clone() + norm.epsilon).sqrt().recip());
        if let Some(gamma) = &norm.gamma {
            gain = gain * gamma.val().cast(FloatDType::F32).unsqueeze();
        }
        let mut shift = -of_channels(self.mean.clone()) * gain.clone();
        if let Some(beta) = &norm.beta {
            shift = shift + beta.val().cast(FloatDType::F32).unsqueeze();
        }
        #[cfg(feature = "flex")]
        let x = match on_host::affine(x, [&gain, &shift], |y| y * crate::host::sigmoid(y)) {
            Ok(y) => return y,
            Err(x) => x,
        };
        let planes = |of_channels: Tensor<2>| of_channels.reshape([batch, channels, 1, 1]);
        let dtype = x.dtype();
        silu((x.cast(FloatDType::F32) * planes(gain) + planes(shift)).cast(dtype))
    }
}

/// The kernels for tensors in this process's memory.
#[cfg(feature = "flex")]
mod on_host {
    use super::*;
    use crate::host::{Values, map, vectorized};
    use rayon::prelude::*;

    /// `f` of the group norm of `x`, in place, one group a task; `x` back where it cannot be taken.
    #[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
    pub(super) fn group_norm(
        norm: &GroupNorm,
        x: Tensor<4>,
        f: impl Fn(f32) -> f32 + Sync,
    ) -> Result<Tensor<4>, Tensor<4>> {
        let parameters = [&norm.gamma, &norm.beta].map(|p| p.as_ref().map(Param::val));
        if !parameters.iter().flatten().all(Values::can_take) {
            return Err(x);
        }
        let [_, channels, height, width] = x.dims();
        let mut x = Values::take(x)?;
        let [gamma, beta] = parameters.map(|p| p.and_then(|p| Values::take(p).ok()));

        let (per_group, pixels) = (channels / norm.num_groups, height * width);
        x.get_mut().par_chunks_mut(per_group * pixels).enumerate().for_each(|(row, group)| {
            let first = row % norm.num_groups * per_group;
            let (mean, variance) = moments(group);
            let inverse = 1.0 / (variance + norm.epsilon).sqrt();
            for (channel, plane) in (first..).zip(group.chunks_mut(pixels)) {
                let of = |p: &Option<Values<1>>| p.as_ref().map(|p| f64::from(p.get()[channel]));
                let gain = inverse * of(&gamma).unwrap_or(1.0);
                let shift = of(&beta).unwrap_or(0.0) - mean * gain;
                let (f, gain, shift) = (&f, gain as f32, shift as f32);
                map(
                    plane,
                    #[inline(always)]
                    move |x| f(x * gain + shift),
                );
            }
        });
        Ok(x.put())
    }

    /// Mean and variance of each of `groups` groups, `[B, G]`, and `x`; only `x` where it cannot be
    /// taken.
    #[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
    #[allow(clippy::type_complexity, reason = "two tensors and the input")]
    pub(super) fn group_moments(
        groups: usize,
        x: Tensor<4>,
    ) -> Result<([Tensor<2>; 2], Tensor<4>), Tensor<4>> {
        let [batch, channels, height, width] = x.dims();
        let x = Values::take(x)?;
        let shape = [batch, groups];
        let [mut mean, mut variance] = [0, 1].map(|_| Values::zeros(shape, x.device()));
        let rows = x.get().par_chunks(channels / groups * height * width);
        let found = mean.get_mut().par_iter_mut().zip(variance.get_mut());
        found.zip(rows).for_each(|((mean, variance), row)| {
            let (m, v) = moments(row);
            (*mean, *variance) = (m as f32, v as f32);
        });
        Ok(([mean.put(), variance.put()], x.put()))
    }

    /// `f` of `x * gain + shift` with `gain` and `shift` `[B, C]`, in place; `x` back where it cannot
    /// be taken.
    #[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
    pub(super) fn affine(
        x: Tensor<4>,
        [gain, shift]: [&Tensor<2>; 2],
        f: impl Fn(f32) -> f32 + Sync,
    ) -> Result<Tensor<4>, Tensor<4>> {
        let [_, _, height, width] = x.dims();
        let mut x = Values::take(x)?;
        let [gain, shift] = [gain, shift].map(|t| Values::take(t.clone()));
        let (Ok(gain), Ok(shift)) = (gain, shift) else { return Err(x.put()) };
        let planes = x.get_mut().par_chunks_mut(height * width);
        planes.zip(gain.get()).zip(shift.get()).for_each(|((plane, gain), shift)| {
            let (f, gain, shift) = (&f, *gain, *shift);
            map(
                plane,
                #[inline(always)]
                move |x| f(x * gain + shift),
            );
        });
        Ok(x.put())
    }

    /// Mean and (biased) variance.
    fn moments(values: &[f32]) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = sum(
            values,
            #[inline(always)]
            |x| x,
        ) / count;
        // Around the mean, since the mean of squares minus its square cancels.
        let centre = mean as f32;
        let square = sum(
            values,
            #[inline(always)]
            move |x| (x - centre) * (x - centre),
        ) / count;
        (mean, square - (mean - f64::from(centre)).powi(2))
    }

    /// The sum of `f` over `values`: in f32 over short runs of sixteen sums side by side, which
    /// compilers vectorise, and in f64 over the runs.
    fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
        const LANES: usize = 16;
        const RUN: usize = 64 * LANES;
        vectorized(
            #[inline(always)]
            || {
                let mut total = 0.0;
                for run in values.chunks(RUN) {
                    let (rows, rest) = run.as_chunks::<LANES>();
                    let mut sums = [0.0f32; LANES];
                    for row in rows {
                        for (sum, &x) in sums.iter_mut().zip(row) {
                            *sum += f(x);
                        }
                    }
                    total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
                    total += rest.iter().map(|&x| f64::from(f(x))).sum::<f64>();
                }
                total
            },
        )
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
    fn a_picture_in_parts_is_normalised_as_the_whole() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let norm = burn::nn::GroupNormConfig::new(2, 4).with_epsilon(1e-6).init(&device);
            let beta = Tensor::<1>::from_floats([1.0, 2.0, 3.0, 4.0], &device);
            let norm = GroupNorm { beta: Some(Param::from_tensor(beta)), ..norm };
            let values = crate::noise::normal(1, crate::noise::Purpose::Weights, 0, 0, 2 * 4 * 63);
            let x = Tensor::<1>::from_floats(values.as_slice(), &device) * 3.0 + 40.0;
            let x = x.reshape([2, 4, 9, 7]);
            let want = group_norm_silu(&norm, x.clone());
            // Parts of different heights.
            let parts = [(0, 2), (2, 2), (4, 5)].map(|(row, rows)| x.clone().narrow(2, row, rows));
            let [a, b, c] = parts.clone().map(|part| GroupMoments::of(&norm, part).0);
            let moments = a.merge(b).merge(c);
            let parts = parts.map(|part| moments.normalize_silu(&norm, part));
            let got = Tensor::cat(parts.to_vec(), 2);
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
    }
}
