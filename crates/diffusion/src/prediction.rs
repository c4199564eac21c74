//! The prediction target of a model: the noise or the velocity.
//!
//! The published models predict the noise. At large timesteps, where `x_t` is almost all noise, a prediction
//! of the noise determines the clean latents badly: at timestep 750 a squared error of 0.003 in the noise is as
//! large as the signal. The velocity `v = sqrt(a_t) noise - sqrt(1 - a_t) x_0` determines them equally well
//! at every timestep. Layout and motion are decided at large timesteps, so a small model learns them in a
//! fraction of the training steps.
//!
//! Samplers and the variational bound are written for the noise, which follows from the velocity and `x_t`.
//! [`Guidance::predict`](crate::Guidance::predict) and the training loss do the conversion.
//!
//! Source: Salimans and Ho 2022 (arXiv 2202.00512), appendix D; the names are those of diffusers'
//! `prediction_type`. Not in the reference.

use std::sync::LazyLock;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    gather::split_output,
    process::{GaussianDiffusion, ProcessError},
    respace::Respacing,
    tables::DiffusionTables,
};

/// The prediction target, which is in the first `C` channels of a model's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise, as in the published models.
    #[default]
    Epsilon,
    /// The velocity.
    VPrediction,
}

impl PredictionType {
    /// The key of the prediction target in the metadata of weights.
    pub const NOTE: &str = "prediction_type";

    /// Returns the name of the target in diffusers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::VPrediction => "v_prediction",
        }
    }

    /// Returns the target with this name; `None` if it is unknown.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Epsilon, Self::VPrediction].into_iter().find(|kind| kind.name() == name)
    }
}

impl GaussianDiffusion {
    /// Converts the first half of a model's output `[B, 2C, T, H, W]` for `x_t` at `t` to noise.
    ///
    /// # Errors
    /// Returns an error if shapes, batch size or timesteps do not fit.
    pub fn output_as_noise(
        &self,
        prediction_type: PredictionType,
        output: Tensor<5>,
        x_t: &Tensor<5>,
        t: &[usize],
    ) -> Result<Tensor<5>, ProcessError> {
        if prediction_type == PredictionType::Epsilon {
            return Ok(output);
        }
        self.check(x_t, t)?;
        let (velocity, range) = split_output(output, x_t)?;
        let tables = self.tables();
        let eps = self.gather(&tables.sqrt_alphas_cumprod, t, x_t).times(velocity)
            + self.gather(&tables.sqrt_one_minus_alphas_cumprod, t, x_t).times(x_t.clone());
        Ok(Tensor::cat(vec![eps, range], 1))
    }
}

/// Converts a prediction of the published process to noise: `output` `[B, C, ...]` or `[B, 2C, ...]` of a
/// model that was called with `latents` `[B, C, ...]` at `timestep`, which may be fractional. Channels after
/// the first `C` are returned unchanged.
pub(crate) fn output_to_noise(
    prediction_type: PredictionType,
    output: Tensor<5>,
    latents: &Tensor<5>,
    timestep: f32,
) -> Tensor<5> {
    let channels = latents.dims()[1];
    let all = output.dims()[1];
    // An output with too few channels is rejected by the caller, which knows the expected shape.
    if prediction_type == PredictionType::Epsilon || all < channels {
        return output;
    }
    let log_alpha_cumprod = interpolate(&LOG_ALPHAS_CUMPROD, f64::from(timestep));
    let (alpha, sigma) = ((0.5 * log_alpha_cumprod).exp(), (-log_alpha_cumprod.exp_m1()).sqrt());
    let output = output.cast(latents.dtype());
    // [B, C, T, H, W]
    let eps = output.clone().narrow(1, 0, channels) * alpha + latents.clone() * sigma;
    if all == channels {
        return eps;
    }
    Tensor::cat(vec![eps, output.narrow(1, channels, all - channels)], 1)
}

/// `ln(alphas_cumprod)` of the published process.
static LOG_ALPHAS_CUMPROD: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let tables = DiffusionTables::published(&Respacing::All);
    let alphas_cumprod = tables.expect("published betas are valid").alphas_cumprod;
    alphas_cumprod.into_iter().map(f64::ln).collect()
});

/// Interpolates linearly between the entries of a table.
fn interpolate(table: &[f64], at: f64) -> f64 {
    let last = table.len() - 1;
    let at = at.clamp(0.0, last as f64);
    let left = (at as usize).min(last - 1);
    table[left] + (at - left as f64) * (table[left + 1] - table[left])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        denoiser::{Condition, DenoiseError, Denoiser},
        guidance::Guidance,
        testing::{GaussianData, ramp, values},
    };

    /// A model that predicts the velocity of the same data.
    struct Velocity(GaussianData);

    impl Denoiser for Velocity {
        fn denoise(
            &self,
            latents: Tensor<5>,
            timestep: f32,
            condition: Condition,
        ) -> Result<Tensor<5>, DenoiseError> {
            let eps = self.0.denoise(latents.clone(), timestep, condition)?;
            let channels = latents.dims()[1];
            let range = eps.clone().narrow(1, channels, channels);
            let a = GaussianData::alphas_cumprod(f64::from(timestep));
            let eps = eps.narrow(1, 0, channels);
            // v = (eps - sqrt(1 - a) x_t) / sqrt(a)
            let velocity = (eps - latents * (1.0 - a).sqrt()) / a.sqrt();
            Ok(Tensor::cat(vec![velocity, range], 1))
        }

        fn prediction_type(&self) -> PredictionType {
            PredictionType::VPrediction
        }
    }

    #[test]
    fn outputs_with_and_without_variance_are_converted_alike() {
        let latents = ramp([1, 4, 2, 2, 2], 0.3);
        let output = ramp([1, 8, 2, 2, 2], 0.7);
        let convert =
            |output| values(output_to_noise(PredictionType::VPrediction, output, &latents, 250.5));
        let (both, alone) = (convert(output.clone()), convert(output.clone().narrow(1, 0, 4)));
        assert_eq!(both[..alone.len()], alone[..]);
        assert_eq!(both[alone.len()..], values(output.clone())[alone.len()..]);
        assert_ne!(alone[..], values(output.clone())[..alone.len()]);
        // Too few channels are left as they are: the caller rejects them.
        let few = output.narrow(1, 0, 3);
        assert_eq!(convert(few.clone()), values(few));
    }

    #[test]
    fn targets_have_the_names_of_diffusers() {
        for (name, target) in [
            ("epsilon", Some(PredictionType::Epsilon)),
            ("v_prediction", Some(PredictionType::VPrediction)),
            ("sample", None),
        ] {
            assert_eq!(PredictionType::from_name(name), target);
            assert!(target.is_none_or(|target| target.name() == name));
        }
        // A reference to a model has the model's target.
        let model = Velocity(GaussianData { deviation: 0.7 });
        let target = <&Velocity as Denoiser>::prediction_type(&&model);
        assert_eq!(target, PredictionType::VPrediction);
    }

    #[test]
    fn guidance_predicts_the_noise_of_a_velocity() {
        let data = || GaussianData { deviation: 0.7 };
        let model = Velocity(data());
        let latents = ramp([1, 4, 2, 2, 2], 0.3);
        for timestep in [0.0, 0.5, 250.25, 750.0, 999.0] {
            let expected = data().denoise(latents.clone(), timestep, Condition::Prompt).unwrap();
            let expected = values(expected);
            // At a scale of 1 one prediction, otherwise two that are equal here.
            for scale in [1.0, 4.0] {
                let guidance = Guidance::all_channels(scale);
                let found = values(guidance.predict(&model, &latents, timestep, 8).unwrap());
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 2e-5, "{timestep}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn a_prediction_of_noise_is_unchanged() {
        let data = GaussianData { deviation: 0.7 };
        let latents = ramp([1, 4, 2, 2, 2], 0.3);
        let output = data.denoise(latents.clone(), 300.0, Condition::Null).unwrap();
        let found = output_to_noise(PredictionType::Epsilon, output.clone(), &latents, 300.0);
        assert_eq!(values(found), values(output));
    }

    /// The true velocity of a batch is converted to the noise that was added.
    #[test]
    fn the_process_converts_the_velocity_of_each_sample() {
        let process = GaussianDiffusion::published(&Respacing::All).unwrap();
        let (x, noise) = (ramp([2, 4, 1, 2, 2], 0.1), ramp([2, 4, 1, 2, 2], 0.5));
        let t = [40, 900];
        let x_t = process.q_sample(x.clone(), &t, noise.clone()).unwrap();
        let velocity: Vec<Tensor<5>> = t
            .iter()
            .enumerate()
            .map(|(row, &t)| {
                let a = process.tables().alphas_cumprod[t];
                noise.clone().narrow(0, row, 1) * a.sqrt()
                    - x.clone().narrow(0, row, 1) * (1.0 - a).sqrt()
            })
            .collect();
        let range = ramp([2, 4, 1, 2, 2], 0.9);
        let output = Tensor::cat(vec![Tensor::cat(velocity, 0), range.clone()], 1);
        let as_noise = |kind, t: &[usize]| process.output_as_noise(kind, output.clone(), &x_t, t);
        let found = as_noise(PredictionType::VPrediction, &t).unwrap();
        let expected = values(Tensor::cat(vec![noise.clone(), range.clone()], 1));
        for (found, expected) in values(found).iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let same = as_noise(PredictionType::Epsilon, &t).unwrap();
        assert_eq!(values(same), values(output.clone()));
        let rejected = as_noise(PredictionType::VPrediction, &[40]).unwrap_err();
        assert!(matches!(rejected, ProcessError::BatchSize { .. }));
    }
}
