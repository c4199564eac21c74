//! Classifier-free guidance: extrapolates from the prediction without the prompt past the one with it.
//!
//! Source: `opensora/schedulers/iddpm/__init__.py`, `forward_with_cfg`, and
//! `opensora/schedulers/dpms/dpm_solver.py`, `model_wrapper`.
//!
//! Quirk kept: IDDPM and DDIM guide only the first **three** of four latent channels, as published with DiT.
//! The fourth channel, and the variance, are those of the prediction with the prompt. DPM-Solver guides all
//! channels.

use burn::tensor::Tensor;

use crate::{
    denoiser::{Condition, Denoiser},
    gather::check_shape,
    prediction::output_to_noise,
    process::ProcessError,
    step::SampleError,
};

/// Scale and channels of the guidance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// 0 ignores the prompt in the guided channels, 1 is the model's own prediction, larger values follow the
    /// prompt more strongly. Published: 7.0.
    pub guidance_scale: f64,
    /// Number of guided latent channels, from the first. `None`, or more than the latents have: all.
    pub guided_channels: Option<usize>,
}

impl Guidance {
    /// The scale of the published sampling recipes.
    pub const PUBLISHED_SCALE: f64 = 7.0;

    /// Returns guidance of the first three channels, as in the published IDDPM.
    pub fn first_three_channels(guidance_scale: f64) -> Self {
        Self { guidance_scale, guided_channels: Some(3) }
    }

    /// Returns guidance of all channels, as in the published DPM-Solver.
    pub fn all_channels(guidance_scale: f64) -> Self {
        Self { guidance_scale, guided_channels: None }
    }

    /// Returns true if the prediction without a prompt is needed. It is not needed at a scale of exactly 1,
    /// and samplers do not compute it then. (The reference does so in DPM-Solver; its IDDPM computes
    /// `null + 1 * (prompt - null)`, which is equal except for rounding.)
    pub fn needs_null(&self) -> bool {
        self.guidance_scale != 1.0 && self.guided_channels != Some(0)
    }

    /// Combines the predictions with and without a prompt, for latents of `latent_channels`.
    ///
    /// `prompt` and `null` have one shape, `[B, C, T, H, W]` or `[B, 2C, T, H, W]`. The guided channels
    /// are `null + guidance_scale * (prompt - null)`, all others those of `prompt`.
    ///
    /// The reference works on a batch of `[prompt, null]` and returns both halves; its second half
    /// has the same guided channels and all others from `null`, and is never used.
    ///
    /// # Errors
    /// Returns [`ProcessError::Shape`] if the shapes differ.
    pub fn combine(
        &self,
        prompt: Tensor<5>,
        null: Tensor<5>,
        latent_channels: usize,
    ) -> Result<Tensor<5>, ProcessError> {
        check_shape("prediction without prompt", &null, prompt.dims())?;
        let channels = prompt.dims()[1];
        let guided =
            self.guided_channels.unwrap_or(latent_channels).min(latent_channels).min(channels);
        if guided == 0 {
            return Ok(prompt);
        }
        let null = null.narrow(1, 0, guided);
        let towards = (prompt.clone().narrow(1, 0, guided) - null.clone())
            .mul_scalar(self.guidance_scale as f32);
        let eps = null + towards;
        if guided == channels {
            return Ok(eps);
        }
        // [B, guided, ...] and [B, channels - guided, ...] -> [B, channels, ...]
        Ok(Tensor::cat(vec![eps, prompt.narrow(1, guided, channels - guided)], 1))
    }

    /// Returns the guided noise prediction of `model`, in the dtype of `latents`, with `wanted` channels:
    /// `2C` for samplers that need the variance, `C` for those that only need the noise. Models that predict
    /// another target are converted.
    ///
    /// # Errors
    /// Returns an error if the model fails or its output does not fit `latents`.
    pub fn predict(
        &self,
        model: &dyn Denoiser,
        latents: &Tensor<5>,
        timestep: f32,
        wanted: usize,
    ) -> Result<Tensor<5>, SampleError> {
        let [batch, channels, frames, height, width] = latents.dims();
        let noise = |output: Tensor<5>| -> Result<Tensor<5>, ProcessError> {
            let output = output_to_noise(model.prediction_type(), output, latents, timestep);
            let found = output.dims()[1];
            let expected = if found == 2 * channels { found } else { wanted };
            check_shape("model output", &output, [batch, expected, frames, height, width])?;
            let output = output.cast(latents.dtype());
            Ok(if found > wanted { output.narrow(1, 0, wanted) } else { output })
        };
        if !self.needs_null() {
            return Ok(noise(model.denoise(latents.clone(), timestep, Condition::Prompt)?)?);
        }
        let (prompt, null) = model.denoise_both(latents.clone(), timestep)?;
        Ok(self.combine(noise(prompt)?, noise(null)?, channels)?)
    }

    /// Checks that the scale is a number; samplers do so before their first step.
    ///
    /// # Errors
    /// Returns [`SampleError::GuidanceScale`] if the scale is NaN or infinite.
    pub fn check(&self) -> Result<(), SampleError> {
        if self.guidance_scale.is_finite() {
            Ok(())
        } else {
            Err(SampleError::GuidanceScale { found: self.guidance_scale })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{constant, values};

    #[test]
    fn only_the_first_three_channels_by_default() {
        let (prompt, null) = (constant([1, 8, 1, 1, 1], 3.0), constant([1, 8, 1, 1, 1], 1.0));
        let combined =
            |guidance: Guidance| values(guidance.combine(prompt.clone(), null.clone(), 4).unwrap());
        let quirk = combined(Guidance::first_three_channels(4.0));
        assert_eq!(quirk, [9.0, 9.0, 9.0, 3.0, 3.0, 3.0, 3.0, 3.0]);
        // The variance half is never guided.
        let all = combined(Guidance::all_channels(4.0));
        assert_eq!(all, [9.0, 9.0, 9.0, 9.0, 3.0, 3.0, 3.0, 3.0]);
        let beyond = Guidance { guidance_scale: 4.0, guided_channels: Some(100) };
        assert_eq!(combined(beyond), all);
        let none = Guidance { guidance_scale: 4.0, guided_channels: Some(0) };
        assert_eq!(combined(none), [3.0; 8]);
        assert_eq!(combined(Guidance::all_channels(0.0))[..4], [1.0; 4]);
    }

    #[test]
    fn predictions_of_different_shapes_are_rejected() {
        let (prompt, null) = (constant([1, 8, 1, 1, 1], 3.0), constant([1, 4, 1, 1, 1], 1.0));
        let rejected = Guidance::all_channels(4.0).combine(prompt, null, 4).unwrap_err();
        assert!(matches!(rejected, ProcessError::Shape { what: "prediction without prompt", .. }));
    }

    #[test]
    fn a_scale_of_one_does_not_need_the_null_caption() {
        assert!(!Guidance::all_channels(1.0).needs_null());
        assert!(!Guidance { guidance_scale: 4.0, guided_channels: Some(0) }.needs_null());
        assert!(Guidance::first_three_channels(1.5).needs_null());
        assert!(Guidance::all_channels(f64::NAN).check().is_err());
    }
}
