//! The diffusion process of Open-Sora 1.0: noise schedules, samplers, guidance and training losses.
//!
//! A clean latent `x_0` is drowned in Gaussian noise over 1000 steps, `x_t = sqrt(a_t) x_0 +
//! sqrt(1 - a_t) noise` (`a_t` is `alphas_cumprod`). A denoiser learns to predict that noise, and a
//! sampler walks back from pure noise to a clip. Models are known here only as a [`Denoiser`]:
//! anything that can name the noise in `[B, C, T, H, W]` at a timestep can be sampled.
//!
//! | module | thought |
//! |---|---|
//! | [`schedule`] | how much noise each of the training steps adds |
//! | [`respace`] | which of those steps a shorter process keeps |
//! | [`tables`] | every coefficient of a process, in f64 |
//! | [`process`] | noising, and what a model output says about the step before |
//! | [`denoiser`], [`guidance`] | what a sampler asks of a model, and how the prompt is amplified |
//! | [`iddpm`], [`ddim`], [`dpm_solver`] | the samplers |
//! | [`sampler`] | the trait that all samplers have, and the built-in ones by name |
//! | [`guard`] | the first step whose latents are not finite |
//! | [`losses`] | the training loss |
//! | [`prediction`] | models that name the velocity instead of the noise |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/schedulers/iddpm/` (itself from DiT, ADM and
//! improved-diffusion) and `opensora/schedulers/dpms/` (from PixArt-alpha and dpm-solver). Ported is
//! what the published recipes use: linear betas, noise prediction, learned-range variance,
//! DPM-Solver++ multistep of order 2 on uniform time. Not ported: x_0 and mean prediction, fixed
//! variances, classifier guidance, the single-step and adaptive DPM solvers.
//!
//! Coefficients live in f64 on the host and are rounded to f32 when they meet a tensor. A sampling
//! step never reads a tensor back, so a device is free to run behind the host.

pub mod ddim;
pub mod denoiser;
pub mod dpm_solver;
pub mod guard;
pub mod guidance;
pub mod iddpm;
pub mod losses;
pub mod prediction;
pub mod process;
pub mod respace;
pub mod sampler;
pub mod schedule;
pub mod step;
pub mod tables;

mod gather;
#[cfg(test)]
mod testing;
mod walk;

pub use ddim::Ddim;
pub use denoiser::{Condition, DenoiseError, Denoiser};
pub use dpm_solver::DpmSolver;
pub use guard::FiniteGuard;
pub use guidance::Guidance;
pub use iddpm::Iddpm;
pub use losses::{LossKind, Losses};
pub use prediction::PredictionType;
pub use process::{GaussianDiffusion, MeanVariance, ProcessError};
pub use respace::{RespaceError, Respacing, space_timesteps};
pub use sampler::{Sampler, SamplerKind};
pub use schedule::{MAX_TIMESTEPS, NoiseSchedule, ScheduleError, TRAINING_TIMESTEPS};
pub use step::{Observer, SampleError, StepInfo};
pub use tables::{DiffusionTables, TablesError};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
