//! The diffusion process of Open-Sora 1.0: noise schedules, samplers, guidance and training losses.
//!
//! The process adds Gaussian noise to clean latents `x_0` over 1000 steps: `x_t = sqrt(a_t) x_0 +
//! sqrt(1 - a_t) noise`, where `a_t` is `alphas_cumprod`. A model learns to predict the noise, and a sampler
//! starts from pure noise and removes it step by step. The crate knows models only as a [`Denoiser`]: anything
//! that predicts the noise in latents `[B, C, T, H, W]` at a timestep can be sampled.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use opensora_diffusion::{Condition, DenoiseError, Denoiser, SamplerKind, StepInfo};
//! use std::ops::ControlFlow;
//!
//! /// Predicts that the latents are all noise.
//! struct AllNoise;
//!
//! impl Denoiser for AllNoise {
//!     fn denoise(
//!         &self,
//!         latents: Tensor<5>,
//!         _timestep: f32,
//!         _condition: Condition,
//!     ) -> Result<Tensor<5>, DenoiseError> {
//!         Ok(latents)
//!     }
//! }
//!
//! let device = Device::default();
//! let kind = SamplerKind::DpmSolver;
//! let sampler = kind.build(20)?;
//! let mut normal = || Tensor::random([1, 4, 1, 8, 8], Distribution::Normal(0.0, 1.0), &device);
//! let latents = sampler.sample(
//!     &AllNoise,
//!     &kind.default_guidance(),
//!     normal(),
//!     &mut |_step| normal(),
//!     &mut |step: &StepInfo<'_>| {
//!         println!("{}/{}", step.step + 1, step.total);
//!         ControlFlow::Continue(())
//!     },
//! )?;
//! assert_eq!(latents.dims(), [1, 4, 1, 8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`schedule`] | the noise that each training step adds |
//! | [`respace`] | the training steps that a shorter process keeps |
//! | [`tables`] | the coefficients of a process, in f64 |
//! | [`process`] | noising, and the distribution of the previous step |
//! | [`denoiser`] | the trait of models |
//! | [`prediction`] | the prediction target of a model: noise or velocity |
//! | [`guidance`] | classifier-free guidance |
//! | [`sampler`] | the trait of samplers, and the built-in samplers by name |
//! | [`iddpm`], [`ddim`], [`dpm_solver`] | the built-in samplers |
//! | [`step`] | the event after each step, and its observer |
//! | [`guard`] | the detection of latents that are not finite |
//! | [`losses`] | the training loss |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/schedulers/iddpm/` (itself from DiT, ADM and
//! improved-diffusion) and `opensora/schedulers/dpms/` (from PixArt-alpha and dpm-solver). Ported are the parts
//! that the published recipes use: linear betas, noise prediction, learnt-range variance, DPM-Solver++
//! multistep of order 2 on uniform time. Not ported: x_0 and mean prediction, fixed variances, classifier
//! guidance, the single-step and adaptive DPM solvers.
//!
//! Coefficients are f64 on the host and are rounded to f32 when they are applied to a tensor. A sampling step
//! never copies a tensor to the host, so a device can run behind the host.

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
pub use losses::{LossInputs, LossKind, Losses};
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
