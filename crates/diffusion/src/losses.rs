//! The training loss: squared error of the noise, plus the variational bound for the variance.
//!
//! Source: `opensora/schedulers/iddpm/gaussian_diffusion.py`, `training_losses` and
//! `_vb_terms_bpd`, and `diffusion_utils.py`.
//!
//! Quirks kept: the bound is in bits per dimension without a further weight, and the noise prediction is
//! detached in it, so that it trains the variance only. At `t == 0` it is the negative
//! log likelihood of the clean latents in bins of 2/255, as if they were pixels; far in the tails
//! that is ill-conditioned in f32.

use burn::tensor::{Bool, Tensor, TensorData};

use crate::{
    gather::{check_shape, split_output},
    process::{GaussianDiffusion, ProcessError},
    schedule::TRAINING_TIMESTEPS,
};

/// The kind of training loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossKind {
    /// `mse + vb`: the published recipes.
    #[default]
    Mse,
    /// `mse + vb * num_timesteps / 1000`, the reference's `rescale_learned_sigmas`.
    RescaledMse,
}

/// Losses of each sample, `[B]`.
#[derive(Debug, Clone)]
pub struct Losses {
    /// The value to minimise: `mse + vb`.
    pub loss: Tensor<1>,
    /// Mean squared error of the predicted noise.
    pub mse: Tensor<1>,
    /// Variational bound in bits per dimension, rescaled for [`LossKind::RescaledMse`].
    pub vb: Tensor<1>,
}

/// The tensors of a training step.
#[derive(Debug, Clone)]
pub struct LossInputs<'a> {
    /// Output of the model for `x_t`, `[B, 2C, T, H, W]`: noise, then the variance interpolation.
    pub model_output: Tensor<5>,
    /// Clean latents, `[B, C, T, H, W]`.
    pub x_start: Tensor<5>,
    /// The latents after [`GaussianDiffusion::q_sample`], `[B, C, T, H, W]`.
    pub x_t: Tensor<5>,
    /// The noise that was added, `[B, C, T, H, W]`.
    pub noise: Tensor<5>,
    /// One step per sample, in `0..num_timesteps`.
    pub t: &'a [usize],
}

impl GaussianDiffusion {
    /// Returns the losses of a model that was called with `x_t` and [`Self::model_timesteps`] of `t`.
    ///
    /// Differentiable in `model_output`: `mse` through the first half only, `vb` through the second.
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn training_losses(
        &self,
        inputs: LossInputs<'_>,
        kind: LossKind,
    ) -> Result<Losses, ProcessError> {
        let LossInputs { model_output, x_start, x_t, noise, t } = inputs;
        check_shape("noise", &noise, x_t.dims())?;
        let (eps, range) = split_output(model_output, &x_t)?;
        let vb = self.variational_bound(eps.clone().detach(), range, x_start, x_t, t)?;
        let vb = match kind {
            LossKind::Mse => vb,
            LossKind::RescaledMse => {
                vb.mul_scalar(self.num_timesteps() as f32 / TRAINING_TIMESTEPS as f32)
            }
        };
        let mse = mean_flat((noise - eps).square());
        Ok(Losses { loss: mse.clone() + vb.clone(), mse, vb })
    }

    /// Returns one term of the variational bound for each sample, `[B]`, in bits per dimension: the decoder's
    /// negative log likelihood if `t == 0`, else KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)).
    fn variational_bound(
        &self,
        eps: Tensor<5>,
        range: Tensor<5>,
        x_start: Tensor<5>,
        x_t: Tensor<5>,
        t: &[usize],
    ) -> Result<Tensor<1>, ProcessError> {
        let true_mean = self.q_posterior_mean(x_start.clone(), x_t.clone(), t)?;
        let model = self.mean_variance(eps, range, x_t.clone(), t, false)?;

        // The difference of the log variances, model minus truth.
        let log_ratio = self
            .gather(&self.tables().posterior_log_variance_clipped, t, &x_t)
            .subtracted_from(model.log_variance.clone());
        let distance =
            (true_mean - model.mean.clone()).square() * (-model.log_variance.clone()).exp();
        let kl = (log_ratio.clone() - 1.0 + (-log_ratio).exp() + distance) * 0.5;
        let kl = bits(kl);

        // One sample in a thousand has t == 0.
        if !t.contains(&0) {
            return Ok(kl);
        }
        let log_likelihood =
            discretized_gaussian_log_likelihood(x_start, model.mean, model.log_variance * 0.5);
        let nll = bits(-log_likelihood);
        let first: Vec<bool> = t.iter().map(|&t| t == 0).collect();
        let first = TensorData::new(first, [t.len()]);
        let first = Tensor::<1, Bool>::from_data(first, &kl.device());
        Ok(kl.mask_where(first, nll))
    }
}

/// Converts nats `[B, C, T, H, W]` to bits per dimension `[B]`.
fn bits(nats: Tensor<5>) -> Tensor<1> {
    mean_flat(nats) / std::f32::consts::LN_2
}

/// Returns the mean over all axes but the batch, `[B, C, T, H, W] -> [B]`.
fn mean_flat(x: Tensor<5>) -> Tensor<1> {
    x.flatten::<2>(1, 4).mean_dim(1).squeeze_dim::<1>(1)
}

/// Returns the tanh approximation of the standard normal distribution function.
fn approx_standard_normal_cdf(x: Tensor<5>) -> Tensor<5> {
    let cubed = x.clone() * x.clone() * x.clone();
    let scale = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
    (((x + cubed * 0.044715) * scale).tanh() + 1.0) * 0.5
}

/// Returns the log likelihood (nats) under a normal distribution of a bin of 2/255 around `x`. Bins beyond
/// +-0.999 are open towards the outside. All `[B, C, T, H, W]`; `log_scales` are log standard deviations.
fn discretized_gaussian_log_likelihood(
    x: Tensor<5>,
    means: Tensor<5>,
    log_scales: Tensor<5>,
) -> Tensor<5> {
    // The logarithm of a smaller number would be out of range.
    let safe_log = |p: Tensor<5>| p.clamp_min(1e-12).log();
    let centred = x.clone() - means;
    let inverse = (-log_scales).exp();
    let above = approx_standard_normal_cdf(inverse.clone() * (centred.clone() + 1.0 / 255.0));
    let below = approx_standard_normal_cdf(inverse * (centred - 1.0 / 255.0));
    let within = safe_log(above.clone() - below.clone());
    within
        .mask_where(x.clone().greater_elem(0.999), safe_log(-below + 1.0))
        .mask_where(x.lower_elem(-0.999), safe_log(above))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        respace::Respacing,
        testing::{Golden, constant, ramp, values},
    };

    #[test]
    fn losses_equal_the_reference() {
        let golden = Golden::open("iddpm-losses");
        let process = GaussianDiffusion::published(&Respacing::All).unwrap();
        let t = golden.input_indices("t");
        assert!(t.contains(&0), "the case has the decoder's term");
        let losses = |kind| {
            let (x_start, noise) = (golden.input("x_start"), golden.input("noise"));
            let x_t = process.q_sample(x_start.clone(), &t, noise.clone()).unwrap();
            let model_output = golden.input("model_output");
            let inputs = LossInputs { model_output, x_start, x_t, noise, t: &t };
            process.training_losses(inputs, kind).unwrap()
        };
        let plain = losses(LossKind::Mse);
        golden.assert_close("mse", plain.mse);
        golden.assert_close("vb", plain.vb);
        golden.assert_close("loss", plain.loss);
        let rescaled = losses(LossKind::RescaledMse);
        golden.assert_close("rescaled_mse.vb", rescaled.vb);
        golden.assert_close("rescaled_mse.loss", rescaled.loss);
    }

    #[test]
    fn a_shorter_process_rescales_the_bound() {
        let process = GaussianDiffusion::published(&Respacing::steps(100)).unwrap();
        let (x, noise) = (ramp([2, 4, 1, 2, 2], 0.1), ramp([2, 4, 1, 2, 2], 0.5));
        let x_t = process.q_sample(x.clone(), &[3, 50], noise.clone()).unwrap();
        let vb = |kind| {
            let inputs = LossInputs {
                model_output: ramp([2, 8, 1, 2, 2], 0.2),
                x_start: x.clone(),
                x_t: x_t.clone(),
                noise: noise.clone(),
                t: &[3, 50],
            };
            let losses = process.training_losses(inputs, kind).unwrap();
            (values(losses.vb), values(losses.loss), values(losses.mse))
        };
        let ((plain, ..), (rescaled, loss, mse)) = (vb(LossKind::Mse), vb(LossKind::RescaledMse));
        for sample in 0..2 {
            assert!(plain[sample] > 0.0);
            assert!((rescaled[sample] - 0.1 * plain[sample]).abs() < 1e-6 * plain[sample]);
            assert!((loss[sample] - mse[sample] - rescaled[sample]).abs() < 1e-6 * loss[sample]);
        }
    }

    /// The model predicts the true noise and the true variance.
    #[test]
    fn a_perfect_model_has_no_loss() {
        let process = GaussianDiffusion::published(&Respacing::All).unwrap();
        let (x, noise) = (ramp([2, 4, 1, 2, 2], 0.1), ramp([2, 4, 1, 2, 2], 0.5));
        let t = [300, 900];
        let x_t = process.q_sample(x.clone(), &t, noise.clone()).unwrap();
        let truth = noise.clone().full_like(-1.0);
        let model_output = Tensor::cat(vec![noise.clone(), truth], 1);
        let inputs = LossInputs { model_output, x_start: x, x_t, noise, t: &t };
        let losses = process.training_losses(inputs, LossKind::Mse).unwrap();
        assert_eq!(values(losses.mse), [0.0, 0.0]);
        assert!(values(losses.vb).into_iter().all(|vb| vb.abs() < 1e-4));
    }

    #[test]
    fn probabilities_of_the_decoders_bins_add_up_to_one() {
        // Over all 256 pixel values the probabilities of the bins add up to one.
        let x: Vec<f32> = (0..256).map(|i| i as f32 / 127.5 - 1.0).collect();
        let data = TensorData::new(x, [256, 1, 1, 1, 1]);
        let x = Tensor::<5>::from_data(data, &Default::default());
        for (mean, log_scale) in [(0.2, -1.0), (-0.9, 0.5), (0.0, -4.0)] {
            let log_likelihood = discretized_gaussian_log_likelihood(
                x.clone(),
                x.full_like(mean),
                x.full_like(log_scale),
            );
            let total: f32 = values(log_likelihood.exp()).iter().sum();
            assert!((total - 1.0).abs() < 1e-4, "{total}");
        }
    }

    #[test]
    fn inputs_that_do_not_fit_are_rejected() {
        let process = GaussianDiffusion::published(&Respacing::All).unwrap();
        let x = || ramp([2, 4, 1, 2, 2], 0.1);
        let output = || ramp([2, 8, 1, 2, 2], 0.1);
        let rejected = |model_output: Tensor<5>, noise: Tensor<5>, t: &[usize]| {
            let inputs = LossInputs { model_output, x_start: x(), x_t: x(), noise, t };
            process.training_losses(inputs, LossKind::Mse).unwrap_err()
        };
        let wrong = rejected(output(), constant([2, 4, 1, 2, 1], 0.0), &[0, 0]);
        assert!(matches!(wrong, ProcessError::Shape { what: "noise", .. }));
        let wrong = rejected(x(), x(), &[0, 0]);
        assert!(matches!(wrong, ProcessError::Shape { what: "model output", .. }));
        assert!(matches!(rejected(output(), x(), &[0, 1000]), ProcessError::Timestep { .. }));
        assert!(matches!(rejected(output(), x(), &[0]), ProcessError::BatchSize { .. }));
    }
}
