//! The loop that IDDPM and DDIM share: a process from its last step to its first.

use burn::tensor::Tensor;

use crate::{
    denoiser::Denoiser,
    guidance::Guidance,
    process::{GaussianDiffusion, MeanVariance, ProcessError},
    step::{Observer, SampleError, StepInfo},
};

/// A process to walk from its last step to its first.
pub(crate) struct Walk<'a> {
    pub(crate) process: &'a GaussianDiffusion,
    /// Sampling step to begin with, from 0.
    pub(crate) first_step: usize,
    /// If true, the predicted clean latents are clamped to -1..1 at each step.
    pub(crate) clip_denoised: bool,
}

/// The state before a sampling step, with the model's prediction.
pub(crate) struct WalkState {
    /// The step in the order of sampling, from 0.
    pub(crate) step: usize,
    /// The step of the process, falling to 0.
    pub(crate) t: usize,
    /// The latents before the step.
    pub(crate) x_t: Tensor<5>,
    /// The guided prediction.
    pub(crate) out: MeanVariance,
}

impl Walk<'_> {
    /// Runs the steps from `latents` on and returns the last latents; `advance` returns the latents
    /// after a step.
    pub(crate) fn run(
        &self,
        model: &dyn Denoiser,
        guidance: &Guidance,
        mut latents: Tensor<5>,
        observer: &mut dyn Observer,
        mut advance: impl FnMut(WalkState) -> Result<Tensor<5>, ProcessError>,
    ) -> Result<Tensor<5>, SampleError> {
        guidance.check()?;
        let Self { process, first_step, clip_denoised } = *self;
        let [batch, channels, ..] = latents.dims();
        let total = process.num_timesteps();
        for (step, t) in (0..total).rev().enumerate().skip(first_step) {
            let timestep = process.tables().timestep_map[t] as f32;
            let output = guidance.predict(model, &latents, timestep, 2 * channels)?;
            let out =
                process.p_mean_variance(output, latents.clone(), &vec![t; batch], clip_denoised)?;
            let clean = out.pred_xstart.clone();
            latents = advance(WalkState { step, t, x_t: latents, out })?;
            StepInfo::new(step, total, timestep, &latents).with_clean(&clean).report(observer)?;
        }
        Ok(latents)
    }
}

/// Returns the latents of a clean clip before sampling step `step`.
pub(crate) fn noised_before(
    process: &GaussianDiffusion,
    step: usize,
    clean: Tensor<5>,
    noise: Tensor<5>,
) -> Result<Tensor<5>, ProcessError> {
    let t = process.num_timesteps() - 1 - step;
    let [batch, ..] = clean.dims();
    process.q_sample(clean, &vec![t; batch], noise)
}
