//! IDDPM, the sampler of the published recipes: ancestral sampling with the learnt variance.
//!
//! Source: `opensora/schedulers/iddpm/gaussian_diffusion.py`, `p_sample_loop_progressive`, and
//! `__init__.py`, `IDDPM.sample`.
//!
//! Deviation: the caller provides the noise. None is needed at the last step, where the reference draws noise
//! and multiplies it by 0.

use burn::tensor::Tensor;

use crate::{
    denoiser::Denoiser,
    gather::check_shape,
    guidance::Guidance,
    process::{GaussianDiffusion, ProcessError},
    respace::Respacing,
    sampler::{Sampler, SamplerKind},
    step::{Observer, SampleError},
    tables::TablesError,
    walk::{Walk, noised_before},
};

/// The IDDPM sampler over a (respaced) process.
#[derive(Debug, Clone, PartialEq)]
pub struct Iddpm {
    process: GaussianDiffusion,
    /// First step to run, from 0.
    first_step: usize,
    /// If true, the predicted clean latents are clamped to -1..1 at each step. Published: false.
    pub clip_denoised: bool,
}

impl Iddpm {
    /// Steps of the published recipes.
    pub const PUBLISHED_STEPS: usize = 100;

    /// Returns the sampler over `process`.
    pub fn new(process: GaussianDiffusion) -> Self {
        Self { process, first_step: 0, clip_denoised: false }
    }

    /// Returns the sampler with `steps` evenly spaced steps of the published process.
    ///
    /// Quirk: one step calls the model at timestep 0, where it expects almost clean latents.
    ///
    /// # Errors
    /// Returns an error for 0 or more than 1000 steps.
    pub fn with_steps(steps: usize) -> Result<Self, TablesError> {
        Ok(Self::new(GaussianDiffusion::published(&Respacing::steps(steps))?))
    }

    /// Returns the process that is sampled.
    pub fn process(&self) -> &GaussianDiffusion {
        &self.process
    }

    /// Returns the sampler without the steps before `first_step` (from 0; at most the last one). It starts from
    /// the latents that [`noised`](Self::noised) returns for a clean clip, and its result resembles that clip.
    pub fn starting_at(self, first_step: usize) -> Self {
        Self { first_step: first_step.min(self.process.num_timesteps() - 1), ..self }
    }

    /// Returns the latents that the first step expects of a clean clip and standard normal `noise`, all
    /// `[B, C, T, H, W]`.
    ///
    /// # Errors
    /// Returns an error if the shapes differ.
    pub fn noised(&self, clean: Tensor<5>, noise: Tensor<5>) -> Result<Tensor<5>, ProcessError> {
        noised_before(&self.process, self.first_step, clean, noise)
    }
}

impl Sampler for Iddpm {
    fn name(&self) -> &str {
        SamplerKind::Iddpm.name()
    }

    fn steps(&self) -> usize {
        self.process.num_timesteps()
    }

    fn guidance(&self, guidance_scale: f64) -> Guidance {
        SamplerKind::Iddpm.guidance(guidance_scale)
    }

    /// Samples as [`Sampler::sample`] says. The model's output must have `2C` channels; `noise` is not called
    /// for the last step.
    fn sample(
        &self,
        model: &dyn Denoiser,
        guidance: &Guidance,
        latents: Tensor<5>,
        noise: &mut dyn FnMut(usize) -> Tensor<5>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, SampleError> {
        let Self { process, first_step, clip_denoised } = self;
        let walk = Walk { process, first_step: *first_step, clip_denoised: *clip_denoised };
        walk.run(model, guidance, latents, observer, |state| {
            let out = state.out;
            if state.t == 0 {
                return Ok(out.mean);
            }
            let noise = noise(state.step);
            check_shape("noise", &noise, out.mean.dims())?;
            Ok(out.mean + (out.log_variance * 0.5).exp() * noise)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        step::StepInfo,
        testing::{Affine, constant, ramp, values},
    };
    use std::ops::ControlFlow;

    #[test]
    fn the_first_step_is_at_most_the_last_one() {
        let sampler = Iddpm::with_steps(10).unwrap();
        assert_eq!(sampler.clone().starting_at(3).first_step, 3);
        assert_eq!(sampler.starting_at(100).first_step, 9);
    }

    /// The published formulas for each number in f64.
    fn by_hand(
        sampler: &Iddpm,
        model: &Affine,
        scale: f64,
        start: &[f64],
        noise: &[f64],
    ) -> Vec<f64> {
        let tables = sampler.process().tables();
        let mut x = start.to_vec();
        for t in (0..tables.num_timesteps()).rev() {
            for (i, x) in x.iter_mut().enumerate() {
                // One sample of [1, 4, 1, 1, 1]: the index is the channel.
                let timestep = tables.timestep_map[t] as f64;
                let prompt = model.eps(*x, timestep, true);
                let null = model.eps(*x, timestep, false);
                let eps = if i < 3 { null + scale * (prompt - null) } else { prompt };
                let frac = (model.range + 1.0) / 2.0;
                let log_variance = frac * tables.betas[t].ln()
                    + (1.0 - frac) * tables.posterior_log_variance_clipped[t];
                let clean = tables.sqrt_recip_alphas_cumprod[t] * *x
                    - tables.sqrt_recipm1_alphas_cumprod[t] * eps;
                let mean =
                    tables.posterior_mean_coef1[t] * clean + tables.posterior_mean_coef2[t] * *x;
                let step = tables.num_timesteps() - 1 - t;
                let noise = if t == 0 { 0.0 } else { noise[i] / (step + 1) as f64 };
                *x = mean + (0.5 * log_variance).exp() * noise;
            }
        }
        x
    }

    #[test]
    fn equals_the_published_formulas() {
        let sampler = Iddpm::with_steps(10).unwrap();
        let model = Affine::new();
        let (start, noise) = (ramp([1, 4, 1, 1, 1], 0.1), ramp([1, 4, 1, 1, 1], 0.7));
        let mut asked = Vec::new();
        let mut told = Vec::new();
        let found = sampler
            .sample(
                &model,
                &Guidance::first_three_channels(4.0),
                start.clone(),
                &mut |step| {
                    asked.push(step);
                    noise.clone() / (step + 1) as f32
                },
                &mut |info: &StepInfo<'_>| {
                    assert_eq!((info.total, info.latents.dims()), (10, [1, 4, 1, 1, 1]));
                    told.push((info.step, info.timestep));
                    ControlFlow::Continue(())
                },
            )
            .unwrap();
        assert_eq!(asked, (0..9).collect::<Vec<_>>());
        let timesteps = [999.0, 888.0, 777.0, 666.0, 555.0, 444.0, 333.0, 222.0, 111.0, 0.0];
        assert_eq!(told, timesteps.into_iter().enumerate().collect::<Vec<_>>());

        let wide = |x: Tensor<5>| values(x).into_iter().map(f64::from).collect::<Vec<_>>();
        let expected = by_hand(&sampler, &model, 4.0, &wide(start), &wide(noise));
        for (got, want) in wide(found).into_iter().zip(expected) {
            // f32 against f64 over ten steps that each scale by up to 14.
            assert!((got - want).abs() <= 1e-4 * want.abs().max(1.0), "{got} instead of {want}");
        }
    }

    #[test]
    fn the_observer_stops_the_run() {
        let sampler = Iddpm::with_steps(10).unwrap();
        let start = ramp([2, 4, 1, 2, 2], 0.1);
        for stop_after in [1, 4, 10] {
            let mut seen = 0;
            let stopped = sampler.sample(
                &Affine::new(),
                &Guidance::first_three_channels(4.0),
                start.clone(),
                &mut |_| start.clone(),
                &mut |info: &StepInfo<'_>| {
                    seen += 1;
                    if info.step + 1 == stop_after {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            );
            assert!(matches!(
                stopped.unwrap_err(),
                SampleError::Interrupted { completed, total: 10 } if completed == stop_after
            ));
            assert_eq!(seen, stop_after);
        }
    }

    #[test]
    fn one_step_returns_the_predicted_clean_latents() {
        let sampler = Iddpm::with_steps(1).unwrap();
        let start = constant([1, 4, 1, 1, 1], 0.5);
        let model = Affine::new();
        let found = sampler
            .sample(
                &model,
                &Guidance::all_channels(1.0),
                start,
                &mut |_| panic!("the last step has no noise"),
                &mut (),
            )
            .unwrap();
        let tables = sampler.process().tables();
        let eps = model.eps(0.5, 0.0, true);
        let expected =
            tables.sqrt_recip_alphas_cumprod[0] * 0.5 - tables.sqrt_recipm1_alphas_cumprod[0] * eps;
        assert!(values(found).iter().all(|&x| (f64::from(x) - expected).abs() < 1e-6));
    }

    #[test]
    fn inputs_that_do_not_fit_are_rejected() {
        let sampler = Iddpm::with_steps(4).unwrap();
        let start = ramp([2, 4, 1, 2, 2], 0.1);
        let run = |model: &dyn Denoiser, scale, noise: Tensor<5>| {
            let guidance = Guidance::first_three_channels(scale);
            let latents = start.clone();
            sampler.sample(model, &guidance, latents, &mut |_| noise.clone(), &mut ()).unwrap_err()
        };
        let what = |error: SampleError| match error {
            SampleError::Process(ProcessError::Shape { what, .. }) => what,
            other => panic!("{other}"),
        };
        let whole = Affine::new();
        assert_eq!(what(run(&whole, 4.0, constant([1, 4, 1, 2, 2], 0.0))), "noise");
        // Half an output is not enough for a learned variance.
        let half = Affine { with_variance: false, ..Affine::new() };
        assert_eq!(what(run(&half, 4.0, start.clone())), "model output");
        assert_eq!(what(run(&half, 1.0, start.clone())), "model output");
        let rejected = run(&whole, f64::INFINITY, start.clone());
        assert!(matches!(rejected, SampleError::GuidanceScale { found: f64::INFINITY }));
        assert!(Iddpm::with_steps(0).is_err() && Iddpm::with_steps(1001).is_err());
    }
}
