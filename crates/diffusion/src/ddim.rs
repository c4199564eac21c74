//! DDIM: sampling of the same process with less noise, or none.
//!
//! Source: `opensora/schedulers/iddpm/gaussian_diffusion.py`, `ddim_sample_loop_progressive` and
//! `ddim_sample` (Song et al. 2020, equation 12). The learned variance is not used.
//!
//! Deviation: the coefficients of a step are computed in f64 and then rounded to f32; the reference
//! rounds `alphas_cumprod` first, which loses digits of `1 - alphas_cumprod` near the end.

use burn::tensor::Tensor;
use thiserror::Error;

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

/// The DDIM sampler over a (respaced) process.
#[derive(Debug, Clone, PartialEq)]
pub struct Ddim {
    process: GaussianDiffusion,
    eta: f64,
    /// First step to run, from 0.
    first_step: usize,
    /// If true, the predicted clean latents are clamped to -1..1 at each step. IDDPM's recipes: false.
    pub clip_denoised: bool,
}

/// Error for a noise level out of range.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("DDIM's eta is {found}, expected 0 (no noise) to 1 (as much as DDPM)")]
pub struct EtaError {
    /// The given level.
    pub found: f64,
}

impl Ddim {
    /// Returns the deterministic sampler over `process`.
    pub fn new(process: GaussianDiffusion) -> Self {
        Self { process, eta: 0.0, first_step: 0, clip_denoised: false }
    }

    /// Returns the sampler with `steps` evenly spaced steps of the published process. For DDIM's integer
    /// stride, pass a process with [`Respacing::Ddim`] to [`Self::new`].
    ///
    /// # Errors
    /// Returns an error for 0 or more than 1000 steps.
    pub fn with_steps(steps: usize) -> Result<Self, TablesError> {
        Ok(Self::new(GaussianDiffusion::published(&Respacing::steps(steps))?))
    }

    /// Returns the sampler with noise added at each step: none for an `eta` of 0, as much as DDPM for 1.
    ///
    /// # Errors
    /// Returns an error if `eta` is not in 0..=1.
    pub fn with_eta(self, eta: f64) -> Result<Self, EtaError> {
        if (0.0..=1.0).contains(&eta) {
            Ok(Self { eta, ..self })
        } else {
            Err(EtaError { found: eta })
        }
    }

    /// Returns the sampler without the steps before `first_step`; see [`crate::Iddpm::starting_at`].
    pub fn starting_at(self, first_step: usize) -> Self {
        Self { first_step: first_step.min(self.process.num_timesteps() - 1), ..self }
    }

    /// Returns the latents that the first step expects; see [`crate::Iddpm::noised`].
    ///
    /// # Errors
    /// Returns an error if the shapes differ.
    pub fn noised(&self, clean: Tensor<5>, noise: Tensor<5>) -> Result<Tensor<5>, ProcessError> {
        noised_before(&self.process, self.first_step, clean, noise)
    }

    /// Returns the process that is sampled.
    pub fn process(&self) -> &GaussianDiffusion {
        &self.process
    }
}

impl Sampler for Ddim {
    fn name(&self) -> &str {
        SamplerKind::Ddim.name()
    }

    fn steps(&self) -> usize {
        self.process.num_timesteps()
    }

    fn guidance(&self, guidance_scale: f64) -> Guidance {
        SamplerKind::Ddim.guidance(guidance_scale)
    }

    /// Samples as [`Sampler::sample`] says. The model's output must have `2C` channels; `noise` is called
    /// only if eta is above 0, and not for the last step.
    fn sample(
        &self,
        model: &dyn Denoiser,
        guidance: &Guidance,
        latents: Tensor<5>,
        noise: &mut dyn FnMut(usize) -> Tensor<5>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, SampleError> {
        let Self { process, eta, first_step, clip_denoised } = self;
        let [batch, ..] = latents.dims();
        let tables = process.tables();
        let walk = Walk { process, first_step: *first_step, clip_denoised: *clip_denoised };
        walk.run(model, guidance, latents, observer, |state| {
            let (t, clean) = (state.t, state.out.pred_xstart);
            // From the clean latents, because they may have been clipped.
            let eps = process.predict_eps_from_xstart(state.x_t, &vec![t; batch], clean.clone())?;
            let (a, a_prev) = (tables.alphas_cumprod[t], tables.alphas_cumprod_prev[t]);
            let sigma = eta * ((1.0 - a_prev) / (1.0 - a)).sqrt() * (1.0 - a / a_prev).sqrt();
            // With eta 1, rounding can make the argument of the root negative.
            let direction = (1.0 - a_prev - sigma * sigma).max(0.0).sqrt();
            let mean = clean.mul_scalar(a_prev.sqrt() as f32) + eps.mul_scalar(direction as f32);
            if t == 0 || sigma == 0.0 {
                return Ok(mean);
            }
            let noise = noise(state.step);
            check_shape("noise", &noise, mean.dims())?;
            Ok(mean + noise.mul_scalar(sigma as f32))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Affine, GaussianData, ramp, values};

    fn run(sampler: &Ddim, model: &dyn Denoiser, start: Tensor<5>, noise: Option<f32>) -> Vec<f32> {
        let noise = &mut |_| match noise {
            Some(value) => start.full_like(value),
            None => panic!("no noise at eta 0"),
        };
        let guidance = Guidance::first_three_channels(4.0);
        values(sampler.sample(model, &guidance, start.clone(), noise, &mut ()).unwrap())
    }

    /// If the data are normal with standard deviation s, `x_t / sqrt(a_t s^2 + 1 - a_t)` is constant along the
    /// exact path, so `x_0 = s x_T / sqrt(a_T s^2 + 1 - a_T)`.
    #[test]
    fn converges_to_the_known_solution() {
        let model = GaussianData { deviation: 0.5 };
        let start = ramp([1, 4, 1, 2, 2], 0.1);
        let error_of = |steps: usize| {
            let found = run(&Ddim::with_steps(steps).unwrap(), &model, start.clone(), None);
            let scale = model.deviation / model.spread(999.0);
            let wanted = values(start.clone()).into_iter().map(|x| f64::from(x) * scale);
            found
                .iter()
                .zip(wanted)
                .map(|(&x, want)| (f64::from(x) - want).abs())
                .fold(0., f64::max)
        };
        let (few, many) = (error_of(20), error_of(200));
        // First order: ten times the steps, a tenth of the error.
        assert!((8.0..12.0).contains(&(few / many)), "{few} {many}");
    }

    #[test]
    fn eta_adds_noise_except_at_the_last_step() {
        let start = ramp([1, 4, 1, 1, 1], 0.1);
        // Steps 0 and 500: from 999 the clean latents would be 157 times larger, and so the rounding.
        let still = Ddim::new(GaussianDiffusion::published(&Respacing::Ddim(2)).unwrap());
        let noisy = still.clone().with_eta(1.0).unwrap();
        let model = Affine { slope: 0.0, time: 0.0, ..Affine::new() };
        // The model predicts the same noise everywhere, so the second step only scales the noise that the
        // first step adds.
        let tables = still.process().tables();
        let (a, a_prev) = (tables.alphas_cumprod[1], tables.alphas_cumprod_prev[1]);
        let sigma = ((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev)).sqrt();
        let kept = (1.0 - a_prev - sigma * sigma).sqrt() - (1.0 - a_prev).sqrt();
        let quiet = run(&still, &model, start.clone(), None);
        let loud = run(&noisy, &model, start, Some(1.0));
        for (channel, (quiet, loud)) in quiet.iter().zip(&loud).enumerate() {
            let eps =
                if channel < 3 { model.guided(0.0, 0.0, 4.0) } else { model.eps(0.0, 0.0, true) };
            let expected = (sigma + kept * eps) / a_prev.sqrt();
            let found = f64::from(loud - quiet);
            assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
        }
    }

    /// Every step by equation 12 of Song, Meng and Ermon 2020, "Denoising Diffusion Implicit Models" (arXiv
    /// 2010.02502), with noise of ones.
    #[test]
    fn each_step_follows_the_paper_at_every_eta() {
        let start = ramp([1, 4, 1, 1, 1], 0.1);
        let model = Affine { slope: 0.0, time: 0.0, ..Affine::new() };
        for eta in [0.3, 1.0] {
            // Steps 750, 500, 250, 0.
            let sampler = Ddim::new(GaussianDiffusion::published(&Respacing::Ddim(4)).unwrap());
            let sampler = sampler.with_eta(eta).unwrap();
            let tables = sampler.process().tables();
            let found = run(&sampler, &model, start.clone(), Some(1.0));
            for (channel, (found, start)) in found.iter().zip(values(start.clone())).enumerate() {
                let guided = channel < 3;
                let eps =
                    if guided { model.guided(0.0, 0.0, 4.0) } else { model.eps(0.0, 0.0, true) };
                let mut x = f64::from(start);
                for t in (0..4).rev() {
                    let (a, a_prev) = (tables.alphas_cumprod[t], tables.alphas_cumprod_prev[t]);
                    let clean = (x - (1.0 - a).sqrt() * eps) / a.sqrt();
                    let sigma =
                        eta * ((1.0 - a_prev) / (1.0 - a)).sqrt() * (1.0 - a / a_prev).sqrt();
                    let direction = (1.0 - a_prev - sigma.powi(2)).max(0.0).sqrt();
                    x = a_prev.sqrt() * clean + direction * eps + sigma;
                }
                assert!((f64::from(*found) - x).abs() < 1e-4, "{eta}: {found} instead of {x}");
            }
        }
    }

    #[test]
    fn the_first_step_is_at_most_the_last_one() {
        let sampler = Ddim::with_steps(10).unwrap();
        assert_eq!(sampler.clone().starting_at(3).first_step, 3);
        assert_eq!(sampler.starting_at(100).first_step, 9);
    }

    #[test]
    fn eta_out_of_range_is_rejected() {
        let sampler = Ddim::with_steps(10).unwrap();
        for eta in [-0.1, 1.1, f64::NAN] {
            assert!(sampler.clone().with_eta(eta).is_err(), "{eta}");
        }
    }
}
