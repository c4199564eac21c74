//! The trait of samplers, and the built-in samplers by name.

use std::{
    fmt::{self, Debug},
    str::FromStr,
};

use burn::tensor::Tensor;
use thiserror::Error;

use crate::{
    ddim::Ddim,
    denoiser::Denoiser,
    dpm_solver::{DpmSolver, DpmSolverError},
    guidance::Guidance,
    iddpm::Iddpm,
    step::{Observer, SampleError},
    tables::TablesError,
};

/// A built-in sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SamplerKind {
    /// [`Iddpm`], the sampler of the published Open-Sora recipes.
    #[default]
    Iddpm,
    /// [`Ddim`] without noise. The reference has no recipe for it, so its defaults are those of IDDPM.
    Ddim,
    /// [`DpmSolver`], with a fifth of the steps.
    DpmSolver,
}

/// An algorithm that turns noise into clean latents, set up for a number of steps.
///
/// The built-in samplers are [`Iddpm`], [`Ddim`] and [`DpmSolver`]; [`SamplerKind::build`] makes them by
/// name. Other algorithms implement this trait: [`Guidance::predict`] calls the model with and without its
/// prompt and returns the guided noise, and [`StepInfo::report`](crate::StepInfo::report) passes the state after a step to the
/// observer. Euler's method on the noise level `sigma = sqrt(1 - a_t) / sqrt(a_t)`:
///
/// ```
/// use burn::tensor::Tensor;
/// use opensora_diffusion::{
///     Denoiser, DiffusionTables, GaussianDiffusion, Guidance, Observer, Respacing, SampleError, Sampler,
///     StepInfo,
/// };
///
/// #[derive(Debug)]
/// struct Euler(GaussianDiffusion);
///
/// impl Sampler for Euler {
///     fn name(&self) -> &str {
///         "euler"
///     }
///
///     fn steps(&self) -> usize {
///         self.0.num_timesteps()
///     }
///
///     fn sample(
///         &self,
///         model: &dyn Denoiser,
///         guidance: &Guidance,
///         latents: Tensor<5>,
///         _noise: &mut dyn FnMut(usize) -> Tensor<5>,
///         observer: &mut dyn Observer,
///     ) -> Result<Tensor<5>, SampleError> {
///         guidance.check()?;
///         let DiffusionTables { alphas_cumprod, alphas_cumprod_prev, timestep_map, .. } = self.0.tables();
///         let sigma = |a: f64| ((1.0 - a) / a).sqrt();
///         let (channels, total) = (latents.dims()[1], self.steps());
///         let mut x = latents; // [B, C, T, H, W]
///         for (step, t) in (0..total).rev().enumerate() {
///             let timestep = timestep_map[t] as f32;
///             let eps = guidance.predict(model, &x, timestep, channels)?;
///             let (a, next) = (alphas_cumprod[t], alphas_cumprod_prev[t]);
///             x = x.div_scalar(a.sqrt()) + eps.mul_scalar(sigma(next) - sigma(a));
///             x = x.mul_scalar(next.sqrt());
///             StepInfo::new(step, total, timestep, &x).report(observer)?;
///         }
///         Ok(x)
///     }
/// }
///
/// let euler = Euler(GaussianDiffusion::published(&Respacing::steps(30))?);
/// assert_eq!((euler.name(), euler.steps()), ("euler", 30));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Sampler: Debug + Send + Sync {
    /// Returns the sampler's name, such as `iddpm`.
    fn name(&self) -> &str;

    /// Returns the number of steps.
    fn steps(&self) -> usize;

    /// Returns guidance of this scale on the channels that the sampler's published recipe guides: all by
    /// default.
    fn guidance(&self, guidance_scale: f64) -> Guidance {
        Guidance::all_channels(guidance_scale)
    }

    /// Samples clean latents from `latents` `[B, C, T, H, W]` (standard normal noise, f32) of the same
    /// shape.
    ///
    /// - `noise(step)` returns standard normal noise of that shape for step `step`, counted from 0 in the
    ///   order of sampling; samplers that need none do not call it.
    /// - `observer` sees the state after each step and may stop the run; `&mut ()` ignores it.
    ///
    /// # Errors
    /// Returns [`SampleError::Interrupted`] if the observer stops the run, [`SampleError::Denoiser`] if the
    /// model fails, and an error if a model output or the noise does not fit the latents or the guidance
    /// scale is not finite.
    fn sample(
        &self,
        model: &dyn Denoiser,
        guidance: &Guidance,
        latents: Tensor<5>,
        noise: &mut dyn FnMut(usize) -> Tensor<5>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, SampleError>;
}

/// Error for a sampler that cannot be set up.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// An unknown sampler.
    #[error("unknown sampler {found:?}, expected \"iddpm\", \"ddim\" or \"dpm-solver\"")]
    Name {
        /// The name.
        found: String,
    },
    /// An invalid number of steps for IDDPM or DDIM.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// An invalid number of steps for DPM-Solver.
    #[error(transparent)]
    DpmSolver(#[from] DpmSolverError),
}

impl SamplerKind {
    /// All built-in samplers.
    pub const ALL: [Self; 3] = [Self::Iddpm, Self::Ddim, Self::DpmSolver];

    /// Returns the name in configurations: `iddpm`, `ddim` or `dpm-solver`, as in the reference.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iddpm => "iddpm",
            Self::Ddim => "ddim",
            Self::DpmSolver => "dpm-solver",
        }
    }

    /// Returns the number of steps of the published recipes: 100, or 20 for DPM-Solver.
    pub fn default_steps(self) -> usize {
        match self {
            Self::Iddpm | Self::Ddim => Iddpm::PUBLISHED_STEPS,
            Self::DpmSolver => DpmSolver::PUBLISHED_STEPS,
        }
    }

    /// Returns guidance of this scale on the channels that the published sampler guides.
    pub fn guidance(self, guidance_scale: f64) -> Guidance {
        match self {
            Self::Iddpm | Self::Ddim => Guidance::first_three_channels(guidance_scale),
            Self::DpmSolver => Guidance::all_channels(guidance_scale),
        }
    }

    /// Returns the sampler with `steps` steps of the published process.
    ///
    /// # Errors
    /// Returns an error for 0 (DPM-Solver: fewer than 2) or more than 1000 steps.
    pub fn build(self, steps: usize) -> Result<Box<dyn Sampler>, SamplerError> {
        Ok(match self {
            Self::Iddpm => Box::new(Iddpm::with_steps(steps)?),
            Self::Ddim => Box::new(Ddim::with_steps(steps)?),
            Self::DpmSolver => Box::new(DpmSolver::with_steps(steps)?),
        })
    }

    /// Returns the guidance of the published recipes: scale 7.0.
    pub fn default_guidance(self) -> Guidance {
        self.guidance(Guidance::PUBLISHED_SCALE)
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = SamplerError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| SamplerError::Name { found: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        denoiser::{Condition, DenoiseError},
        process::ProcessError,
        step::StepInfo,
        testing::{Affine, GaussianData, ramp, values},
    };
    use std::{cell::Cell, io, ops::ControlFlow};

    #[test]
    fn samplers_are_displayed_by_their_name() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.to_string(), kind.name());
            assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
            assert_eq!(format!("{kind:14}").len(), 14);
        }
    }

    #[test]
    fn defaults_are_the_published_ones() {
        let defaults = SamplerKind::ALL.map(|kind| (kind.default_steps(), kind.default_guidance()));
        let three = Guidance { guidance_scale: 7.0, guided_channels: Some(3) };
        let all = Guidance { guidance_scale: 7.0, guided_channels: None };
        assert_eq!(defaults, [(100, three), (100, three), (20, all)]);
    }

    #[test]
    fn samplers_are_built_by_name() {
        let latents = ramp([2, 4, 2, 2, 2], 0.1);
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
            let sampler = kind.build(5).unwrap();
            assert_eq!((sampler.name(), sampler.steps()), (kind.name(), 5));
            assert_eq!(sampler.guidance(7.0), kind.default_guidance());
            let mut steps = Vec::new();
            let found = sampler
                .sample(
                    &Affine::new(),
                    &kind.default_guidance(),
                    latents.clone(),
                    &mut |_| latents.clone(),
                    &mut |info: &StepInfo<'_>| {
                        steps.push(info.step);
                        ControlFlow::Continue(())
                    },
                )
                .unwrap();
            assert_eq!((found.dims(), steps), (latents.dims(), vec![0, 1, 2, 3, 4]));
        }
    }

    /// After the last step, the latents are those that the model predicted in it. (DPM-Solver keeps a noise of 0.01 and
    /// uses the step before.)
    #[test]
    fn steps_give_the_predicted_clean_latents() {
        let start = ramp([1, 4, 1, 2, 2], 0.1);
        for (kind, tolerance) in SamplerKind::ALL.into_iter().zip([1e-5, 1e-5, 0.1]) {
            let mut clean = Vec::new();
            let found = kind
                .build(20)
                .unwrap()
                .sample(
                    &Affine::new(),
                    &kind.guidance(2.0),
                    start.clone(),
                    &mut |_| start.zeros_like(),
                    &mut |info: &StepInfo<'_>| {
                        clean.push(values(info.clean.unwrap().clone()));
                        ControlFlow::Continue(())
                    },
                )
                .unwrap();
            assert_eq!(clean.len(), 20);
            let (found, last) = (values(found), &clean[19]);
            let scale = found.iter().fold(1.0f32, |max, x| max.max(x.abs()));
            for (found, clean) in found.iter().zip(last) {
                assert!((found - clean).abs() <= tolerance * scale, "{kind}: {found} {clean}");
            }
            assert_ne!(clean[0], clean[19], "{kind}");
        }
    }

    /// A run that starts with the latents from the middle of another run ends with the same latents. (DPM-Solver
    /// uses the step before, so its result is only close.)
    #[test]
    fn a_later_start_continues_the_path() {
        let (start, noise) = (ramp([1, 4, 1, 2, 2], 0.1), ramp([1, 4, 1, 2, 2], 0.7));
        let model = Affine::new();
        let run = |sampler: &dyn Sampler, latents: Tensor<5>| {
            let mut seen = Vec::new();
            let guidance = sampler.guidance(2.0);
            let noise = &mut |step: usize| noise.clone() / (step + 1) as f32;
            let last = sampler
                .sample(&model, &guidance, latents, noise, &mut |info: &StepInfo<'_>| {
                    seen.push((info.step, values(info.latents.clone())));
                    ControlFlow::Continue(())
                })
                .unwrap();
            (values(last), seen)
        };
        let whole: [Box<dyn Sampler>; 3] = SamplerKind::ALL.map(|kind| kind.build(20).unwrap());
        let later: [Box<dyn Sampler>; 3] = [
            Box::new(Iddpm::with_steps(20).unwrap().starting_at(12)),
            Box::new(Ddim::with_steps(20).unwrap().starting_at(12)),
            Box::new(DpmSolver::with_steps(20).unwrap().starting_at(12)),
        ];
        for ((whole, later), exact) in whole.iter().zip(&later).zip([true, true, false]) {
            let (expected, path) = run(&**whole, start.clone());
            let middle = Tensor::<1>::from_data(path[11].1.as_slice(), &start.device());
            let (found, rest) = run(&**later, middle.reshape(start.dims()));
            let steps: Vec<usize> = rest.iter().map(|(step, _)| *step).collect();
            assert_eq!(steps, (12..20).collect::<Vec<_>>(), "{}", whole.name());
            let scale = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let tolerance = if exact { 0.0 } else { 0.05 * scale };
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{}: {found} {expected}",
                    whole.name()
                );
            }
        }
    }

    #[test]
    fn a_clean_clip_is_noised_to_the_first_step() {
        let (clean, noise) = (ramp([2, 4, 1, 2, 2], 0.1), ramp([2, 4, 1, 2, 2], 0.7));
        let iddpm = Iddpm::with_steps(10).unwrap().starting_at(6);
        let ddim = Ddim::with_steps(10).unwrap().starting_at(6);
        let solver = DpmSolver::with_steps(10).unwrap().starting_at(6);
        let of = |found: Result<Tensor<5>, ProcessError>| values(found.unwrap());
        let by_iddpm = of(iddpm.noised(clean.clone(), noise.clone()));
        assert_eq!(of(ddim.noised(clean.clone(), noise.clone())), by_iddpm);
        let by_solver = of(solver.noised(clean.clone(), noise.clone()));
        // Timestep 333 of evenly spread steps, 399.6 of uniform time.
        let level = |timestep: f64| GaussianData::alphas_cumprod(timestep);
        for (found, timestep) in [(by_iddpm, 333.0), (by_solver, 399.6)] {
            let a = level(timestep);
            let parts = values(clean.clone()).into_iter().zip(values(noise.clone()));
            for (found, (clean, noise)) in found.into_iter().zip(parts) {
                let expected = a.sqrt() * f64::from(clean) + (1.0 - a).sqrt() * f64::from(noise);
                assert!(
                    (f64::from(found) - expected).abs() < 1e-4,
                    "{timestep}: {found} {expected}"
                );
            }
        }
        assert!(iddpm.noised(clean.clone(), noise.clone().narrow(0, 0, 1)).is_err());
        assert!(solver.noised(clean, noise.narrow(0, 0, 1)).is_err());
    }

    /// A model that fails after a number of predictions.
    struct FailsAfter(Cell<usize>);

    impl Denoiser for FailsAfter {
        fn denoise(
            &self,
            latents: Tensor<5>,
            timestep: f32,
            condition: Condition,
        ) -> Result<Tensor<5>, DenoiseError> {
            let left = self.0.get().checked_sub(1).ok_or(io::Error::other("no answer left"))?;
            self.0.set(left);
            Affine::new().denoise(latents, timestep, condition)
        }
    }

    #[test]
    fn an_error_of_the_model_stops_the_run() {
        let latents = ramp([1, 4, 2, 2, 2], 0.1);
        for kind in SamplerKind::ALL {
            let sampler = kind.build(5).unwrap();
            for (scale, steps_done) in [(1.0, 3), (7.0, 1)] {
                let mut steps = 0;
                let stopped = sampler.sample(
                    &FailsAfter(Cell::new(3)),
                    &kind.guidance(scale),
                    latents.clone(),
                    &mut |_| latents.clone(),
                    &mut |_: &StepInfo<'_>| {
                        steps += 1;
                        ControlFlow::Continue(())
                    },
                );
                let SampleError::Denoiser(error) = stopped.unwrap_err() else { panic!("{kind}") };
                assert_eq!(error.to_string(), "no answer left");
                assert!(error.is::<io::Error>());
                assert_eq!(steps, steps_done, "{kind}");
            }
        }
    }

    #[test]
    fn unknown_names_and_invalid_step_counts_are_rejected() {
        let message = "euler".parse::<SamplerKind>().unwrap_err().to_string();
        assert_eq!(
            message,
            "unknown sampler \"euler\", expected \"iddpm\", \"ddim\" or \"dpm-solver\""
        );
        for kind in SamplerKind::ALL {
            assert!(kind.build(0).is_err() && kind.build(1001).is_err());
        }
        let message = SamplerKind::DpmSolver.build(1).unwrap_err().to_string();
        assert_eq!(message, "DPM-Solver with 1 steps is not possible, expected 2 to 1000");
    }
}
