//! One entry for all samplers, by name.

use std::{fmt, ops::ControlFlow, str::FromStr};

use burn::tensor::Tensor;
use thiserror::Error;

use crate::{
    ddim::Ddim,
    denoiser::Denoiser,
    dpm_solver::{DpmSolver, DpmSolverError},
    guidance::Guidance,
    iddpm::Iddpm,
    step::{SampleError, StepInfo},
    tables::TablesError,
};

/// Which sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SamplerKind {
    /// [`Iddpm`], the one of the published Open-Sora recipes.
    #[default]
    Iddpm,
    /// [`Ddim`] without noise. The reference has the sampler but no recipe for it, so the defaults
    /// are IDDPM's.
    Ddim,
    /// [`DpmSolver`]: a fifth of the steps.
    DpmSolver,
}

/// A sampler, set up.
#[derive(Debug, Clone, PartialEq)]
pub enum Sampler {
    /// IDDPM.
    Iddpm(Iddpm),
    /// DDIM.
    Ddim(Ddim),
    /// DPM-Solver++.
    DpmSolver(DpmSolver),
}

/// Why a sampler cannot be set up.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// No sampler has this name.
    #[error("unknown sampler {found:?}, expected \"iddpm\", \"ddim\" or \"dpm-solver\"")]
    Name {
        /// The name.
        found: String,
    },
    /// IDDPM or DDIM cannot have so many steps.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// DPM-Solver cannot have so many steps.
    #[error(transparent)]
    DpmSolver(#[from] DpmSolverError),
}

impl SamplerKind {
    /// Every sampler.
    pub const ALL: [Self; 3] = [Self::Iddpm, Self::Ddim, Self::DpmSolver];

    /// Its name in configurations, the reference's own: `iddpm`, `ddim`, `dpm-solver`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iddpm => "iddpm",
            Self::Ddim => "ddim",
            Self::DpmSolver => "dpm-solver",
        }
    }

    /// Steps of the published recipes: 100, or 20 for DPM-Solver.
    pub fn default_steps(self) -> usize {
        match self {
            Self::Iddpm | Self::Ddim => Iddpm::PUBLISHED_STEPS,
            Self::DpmSolver => DpmSolver::PUBLISHED_STEPS,
        }
    }

    /// Guidance of this scale on the channels that the published sampler guides.
    pub fn guidance(self, guidance_scale: f64) -> Guidance {
        match self {
            Self::Iddpm | Self::Ddim => Guidance::first_three_channels(guidance_scale),
            Self::DpmSolver => Guidance::all_channels(guidance_scale),
        }
    }

    /// Guidance of the published recipes: scale 7.0.
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

impl Sampler {
    /// The sampler with so many steps over the published process.
    ///
    /// # Errors
    /// For 0 (DPM-Solver: fewer than 2) or more than 1000 steps.
    pub fn new(kind: SamplerKind, steps: usize) -> Result<Self, SamplerError> {
        Ok(match kind {
            SamplerKind::Iddpm => Self::Iddpm(Iddpm::with_steps(steps)?),
            SamplerKind::Ddim => Self::Ddim(Ddim::with_steps(steps)?),
            SamplerKind::DpmSolver => Self::DpmSolver(DpmSolver::with_steps(steps)?),
        })
    }

    /// Which one it is.
    pub fn kind(&self) -> SamplerKind {
        match self {
            Self::Iddpm(_) => SamplerKind::Iddpm,
            Self::Ddim(_) => SamplerKind::Ddim,
            Self::DpmSolver(_) => SamplerKind::DpmSolver,
        }
    }

    /// How many steps it takes, each with one call of the model (two with guidance).
    pub fn steps(&self) -> usize {
        match self {
            Self::Iddpm(sampler) => sampler.process().num_timesteps(),
            Self::Ddim(sampler) => sampler.process().num_timesteps(),
            Self::DpmSolver(sampler) => sampler.steps(),
        }
    }

    /// Walks from `latents` `[B, C, T, H, W]` (standard normal noise, f32) to clean latents of the
    /// same shape.
    ///
    /// - `noise(step)` gives standard normal noise of that shape; only samplers that need it ask
    ///   ([`Iddpm`] at every step but the last).
    /// - `on_step` sees the state after each step and may stop the run.
    ///
    /// # Errors
    /// [`SampleError::Interrupted`] where `on_step` breaks; [`SampleError::Denoiser`] where the model
    /// gives no answer; where a model output or the noise does not fit; for a guidance scale that is
    /// not finite.
    pub fn sample<D: Denoiser + ?Sized>(
        &self,
        model: &D,
        guidance: &Guidance,
        latents: Tensor<5>,
        noise: impl FnMut(usize) -> Tensor<5>,
        on_step: impl FnMut(StepInfo<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, SampleError> {
        match self {
            Self::Iddpm(sampler) => sampler.sample(model, guidance, latents, noise, on_step),
            Self::Ddim(sampler) => sampler.sample(model, guidance, latents, noise, on_step),
            Self::DpmSolver(sampler) => sampler.sample(model, guidance, latents, on_step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        denoiser::{Condition, DenoiseError},
        testing::{Affine, ramp},
    };
    use std::{cell::Cell, io};

    #[test]
    fn published_defaults() {
        let defaults = SamplerKind::ALL.map(|kind| (kind.default_steps(), kind.default_guidance()));
        let three = Guidance { guidance_scale: 7.0, guided_channels: Some(3) };
        let all = Guidance { guidance_scale: 7.0, guided_channels: None };
        assert_eq!(defaults, [(100, three), (100, three), (20, all)]);
    }

    #[test]
    fn every_sampler_by_its_name() {
        let latents = ramp([2, 4, 2, 2, 2], 0.1);
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
            let sampler = Sampler::new(kind, 5).unwrap();
            assert_eq!((sampler.kind(), sampler.steps()), (kind, 5));
            let mut steps = Vec::new();
            let found = sampler
                .sample(
                    &Affine::new(),
                    &kind.default_guidance(),
                    latents.clone(),
                    |_| latents.clone(),
                    |info| {
                        steps.push(info.step);
                        ControlFlow::Continue(())
                    },
                )
                .unwrap();
            assert_eq!((found.dims(), steps), (latents.dims(), vec![0, 1, 2, 3, 4]));
        }
    }

    /// Answers so often and no more.
    struct Tired(Cell<usize>);

    impl Denoiser for Tired {
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
    fn a_models_own_error_ends_the_run() {
        let latents = ramp([1, 4, 2, 2, 2], 0.1);
        for kind in SamplerKind::ALL {
            let sampler = Sampler::new(kind, 5).unwrap();
            for (scale, steps_done) in [(1.0, 3), (7.0, 1)] {
                let mut steps = 0;
                let stopped = sampler.sample(
                    &Tired(Cell::new(3)),
                    &kind.guidance(scale),
                    latents.clone(),
                    |_| latents.clone(),
                    |_| {
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
    fn what_is_not_there_is_refused() {
        let message = "euler".parse::<SamplerKind>().unwrap_err().to_string();
        assert_eq!(
            message,
            "unknown sampler \"euler\", expected \"iddpm\", \"ddim\" or \"dpm-solver\""
        );
        for kind in SamplerKind::ALL {
            assert!(Sampler::new(kind, 0).is_err() && Sampler::new(kind, 1001).is_err());
        }
        let message = Sampler::new(SamplerKind::DpmSolver, 1).unwrap_err().to_string();
        assert_eq!(message, "DPM-Solver with 1 steps is not possible, expected 2 to 1000");
    }
}
