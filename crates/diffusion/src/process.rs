//! The diffusion process: noising, and the distribution of the previous step given a model output.
//!
//! Source: `opensora/schedulers/iddpm/gaussian_diffusion.py`, `GaussianDiffusion` with
//! `ModelMeanType.EPSILON` and `ModelVarType.LEARNED_RANGE`.
//!
//! Indices `t` count the steps of *this* process (`0..num_timesteps`); the model is called with the
//! corresponding timestep of the training process ([`GaussianDiffusion::model_timesteps`]).

use burn::tensor::Tensor;
use thiserror::Error;

use crate::{
    gather::{Gathered, check_shape, check_timesteps, split_output},
    respace::Respacing,
    tables::{DiffusionTables, TablesError},
};

/// Error for tensors or timesteps that do not fit each other or the process.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// A timestep beyond the process.
    #[error(
        "timestep {found} of sample {sample} is not one of the process's {num_timesteps} steps"
    )]
    Timestep {
        /// The sample in the batch.
        sample: usize,
        /// Its timestep.
        found: usize,
        /// Steps of the process.
        num_timesteps: usize,
    },
    /// A number of timesteps that differs from the batch size.
    #[error("{found} timesteps for a batch of {expected} samples")]
    BatchSize {
        /// Number of timesteps.
        found: usize,
        /// Samples in the batch.
        expected: usize,
    },
    /// A tensor of the wrong shape.
    #[error("{what} has the shape {found:?}, expected {expected:?} ([B, C, T, H, W])")]
    Shape {
        /// The tensor's name.
        what: &'static str,
        /// Its shape.
        found: [usize; 5],
        /// The expected shape.
        expected: [usize; 5],
    },
}

/// The distribution `p(x_{t-1} | x_t)` that a model predicts; every tensor is `[B, C, T, H, W]`.
#[derive(Debug, Clone)]
pub struct MeanVariance {
    /// Mean of `x_{t-1}`.
    pub mean: Tensor<5>,
    /// Variance of `x_{t-1}`.
    pub variance: Tensor<5>,
    /// The logarithm of the variance.
    pub log_variance: Tensor<5>,
    /// The predicted clean latents, from which the mean is computed.
    pub pred_xstart: Tensor<5>,
}

/// A Gaussian diffusion process whose model predicts the noise and a variance in a learnt range.
#[derive(Debug, Clone, PartialEq)]
pub struct GaussianDiffusion {
    tables: DiffusionTables,
}

impl GaussianDiffusion {
    /// Returns the process with these tables.
    pub fn new(tables: DiffusionTables) -> Self {
        Self { tables }
    }

    /// Returns the published process (linear betas over 1000 steps), respaced. Training uses
    /// [`Respacing::All`].
    ///
    /// # Errors
    /// Returns an error if the respacing does not fit 1000 steps.
    pub fn published(respacing: &Respacing) -> Result<Self, TablesError> {
        Ok(Self::new(DiffusionTables::published(respacing)?))
    }

    /// Returns the coefficients.
    pub fn tables(&self) -> &DiffusionTables {
        &self.tables
    }

    /// Returns the number of steps of the process.
    pub fn num_timesteps(&self) -> usize {
        self.tables.num_timesteps()
    }

    /// Returns the timesteps that the model is called with, on the scale of the training process.
    ///
    /// # Errors
    /// Returns [`ProcessError::Timestep`] if a step is beyond the process.
    pub fn model_timesteps(&self, t: &[usize]) -> Result<Vec<f32>, ProcessError> {
        check_timesteps(t, t.len(), self.num_timesteps())?;
        Ok(t.iter().map(|&t| self.tables.timestep_map[t] as f32).collect())
    }

    /// Returns a sample of `q(x_t | x_0)`: `x_start` `[B, C, T, H, W]`, mixed with `noise` of the same shape
    /// according to step `t` of each sample.
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn q_sample(
        &self,
        x_start: Tensor<5>,
        t: &[usize],
        noise: Tensor<5>,
    ) -> Result<Tensor<5>, ProcessError> {
        self.check(&x_start, t)?;
        check_shape("noise", &noise, x_start.dims())?;
        let noise =
            self.gather(&self.tables.sqrt_one_minus_alphas_cumprod, t, &x_start).times(noise);
        Ok(self.gather(&self.tables.sqrt_alphas_cumprod, t, &x_start).times(x_start) + noise)
    }

    /// Returns the mean of `q(x_{t-1} | x_t, x_0)`, `[B, C, T, H, W]`. The variance is one number per step:
    /// [`DiffusionTables::posterior_variance`].
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn q_posterior_mean(
        &self,
        x_start: Tensor<5>,
        x_t: Tensor<5>,
        t: &[usize],
    ) -> Result<Tensor<5>, ProcessError> {
        self.check(&x_t, t)?;
        check_shape("x_start", &x_start, x_t.dims())?;
        let from_start = self.gather(&self.tables.posterior_mean_coef1, t, &x_t).times(x_start);
        Ok(from_start + self.gather(&self.tables.posterior_mean_coef2, t, &x_t).times(x_t))
    }

    /// Returns `p(x_{t-1} | x_t)` for the output of the model.
    ///
    /// - `model_output` `[B, 2C, T, H, W]`: noise, then the variance interpolation.
    /// - `x_t` `[B, C, T, H, W]`; `t`: one step per sample.
    /// - `clip_denoised`: clamps the predicted clean latents to -1..1. Sampling and training do not clamp,
    ///   since latents are not bounded.
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn p_mean_variance(
        &self,
        model_output: Tensor<5>,
        x_t: Tensor<5>,
        t: &[usize],
        clip_denoised: bool,
    ) -> Result<MeanVariance, ProcessError> {
        let (eps, range) = split_output(model_output, &x_t)?;
        self.mean_variance(eps, range, x_t, t, clip_denoised)
    }

    /// [`Self::p_mean_variance`] for the two halves of the model output, both shaped as `x_t`.
    pub(crate) fn mean_variance(
        &self,
        eps: Tensor<5>,
        range: Tensor<5>,
        x_t: Tensor<5>,
        t: &[usize],
        clip_denoised: bool,
    ) -> Result<MeanVariance, ProcessError> {
        self.check(&x_t, t)?;
        // -1..1 maps to 0..1 between the smallest and the largest sensible log variance. The model can
        // predict values outside that range.
        let frac = (range + 1.0) / 2.0;
        let min_log = self.gather(&self.tables.posterior_log_variance_clipped, t, &x_t);
        let max_log = self.gather(&self.tables.log_betas, t, &x_t);
        let log_variance = max_log.times(frac.clone()) + min_log.times(-frac + 1.0);

        let mut pred_xstart = self.predict_xstart_from_eps(x_t.clone(), t, eps)?;
        if clip_denoised {
            pred_xstart = pred_xstart.clamp(-1.0, 1.0);
        }
        let mean = self.q_posterior_mean(pred_xstart.clone(), x_t, t)?;
        Ok(MeanVariance { mean, variance: log_variance.clone().exp(), log_variance, pred_xstart })
    }

    /// Returns the clean latents: `x_t` without the noise `eps`.
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn predict_xstart_from_eps(
        &self,
        x_t: Tensor<5>,
        t: &[usize],
        eps: Tensor<5>,
    ) -> Result<Tensor<5>, ProcessError> {
        self.check(&x_t, t)?;
        check_shape("eps", &eps, x_t.dims())?;
        let eps = self.gather(&self.tables.sqrt_recipm1_alphas_cumprod, t, &x_t).times(eps);
        Ok(self.gather(&self.tables.sqrt_recip_alphas_cumprod, t, &x_t).times(x_t) - eps)
    }

    /// Returns the noise that was added to the clean latents `pred_xstart` to get `x_t`.
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn predict_eps_from_xstart(
        &self,
        x_t: Tensor<5>,
        t: &[usize],
        pred_xstart: Tensor<5>,
    ) -> Result<Tensor<5>, ProcessError> {
        self.check(&x_t, t)?;
        check_shape("pred_xstart", &pred_xstart, x_t.dims())?;
        let scale = self.gather(&self.tables.sqrt_recipm1_alphas_cumprod, t, &x_t);
        let scaled = self.gather(&self.tables.sqrt_recip_alphas_cumprod, t, &x_t).times(x_t);
        Ok(scale.divides(scaled - pred_xstart))
    }

    pub(crate) fn gather(&self, table: &[f64], t: &[usize], like: &Tensor<5>) -> Gathered {
        Gathered::new(table, t, like)
    }

    pub(crate) fn check(&self, x: &Tensor<5>, t: &[usize]) -> Result<(), ProcessError> {
        check_timesteps(t, x.dims()[0], self.num_timesteps())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Golden, ramp};

    #[test]
    fn mean_and_variance_of_the_reference() {
        let golden = Golden::open("iddpm-losses");
        let full = GaussianDiffusion::published(&Respacing::All).unwrap();
        let spaced = GaussianDiffusion::published(&Respacing::steps(100)).unwrap();
        let x_t = full
            .q_sample(golden.input("x_start"), &golden.input_indices("t"), golden.input("noise"))
            .unwrap();
        golden.assert_close("x_t", x_t.clone());

        let check = |prefix: &str, found: MeanVariance| {
            golden.assert_close(&format!("{prefix}.mean"), found.mean);
            golden.assert_close(&format!("{prefix}.variance"), found.variance);
            golden.assert_close(&format!("{prefix}.log_variance"), found.log_variance);
            golden.assert_close(&format!("{prefix}.pred_xstart"), found.pred_xstart);
        };
        let t = golden.input_indices("t");
        for (prefix, clip) in [("full.clip0", false), ("full.clip1", true)] {
            let output = golden.input("model_output");
            check(prefix, full.p_mean_variance(output, x_t.clone(), &t, clip).unwrap());
        }
        let t = golden.input_indices("spaced.t");
        let (x, output) = (golden.input("spaced.x"), golden.input("spaced.model_output"));
        check("spaced", spaced.p_mean_variance(output, x, &t, false).unwrap());
        let told: Vec<usize> =
            spaced.model_timesteps(&t).unwrap().iter().map(|&t| t as usize).collect();
        assert_eq!(told, golden.expected_indices("spaced.model_timestep"));
    }

    #[test]
    fn shared_and_separate_timesteps_agree() {
        let process = GaussianDiffusion::published(&Respacing::All).unwrap();
        let (x, noise) = (ramp([2, 4, 1, 2, 2], 0.0), ramp([2, 4, 1, 2, 2], 0.3));
        let mixed = process.q_sample(x.clone(), &[7, 900], noise.clone()).unwrap();
        for (row, t) in [(0, 7), (1, 900)] {
            let alone = process.q_sample(x.clone(), &[t, t], noise.clone()).unwrap();
            let difference = (mixed.clone() - alone).narrow(0, row, 1).abs().max();
            assert_eq!(difference.into_scalar::<f32>(), 0.0);
        }
    }

    #[test]
    fn noise_and_clean_latents_are_each_others_inverse() {
        let process = GaussianDiffusion::published(&Respacing::steps(10)).unwrap();
        let (x, noise) = (ramp([2, 4, 1, 2, 2], 0.0), ramp([2, 4, 1, 2, 2], 0.3));
        let t = [3, 6];
        let x_t = process.q_sample(x.clone(), &t, noise.clone()).unwrap();
        let eps = process.predict_eps_from_xstart(x_t.clone(), &t, x.clone()).unwrap();
        assert!((eps.clone() - noise).abs().max().into_scalar::<f32>() < 1e-5);
        let back = process.predict_xstart_from_eps(x_t, &t, eps).unwrap();
        assert!((back - x).abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let process = GaussianDiffusion::published(&Respacing::steps(10)).unwrap();
        let x = ramp([2, 4, 1, 2, 2], 0.0);
        let refused = process.q_sample(x.clone(), &[0, 10], x.clone()).unwrap_err();
        assert_eq!(refused, ProcessError::Timestep { sample: 1, found: 10, num_timesteps: 10 });
        let refused = process.q_sample(x.clone(), &[0], x.clone()).unwrap_err();
        assert_eq!(refused, ProcessError::BatchSize { found: 1, expected: 2 });
        let refused = process.p_mean_variance(x.clone(), x, &[0, 0], false).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "model output has the shape [2, 4, 1, 2, 2], expected [2, 8, 1, 2, 2] ([B, C, T, H, W])"
        );
    }
}
