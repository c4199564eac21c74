//! What the models of `opensora` share and burn does not have.
//!
//! | module | thought |
//! |---|---|
//! | [`device`] | the one table of backends: parse `--device`, list what is compiled and present |
//! | [`read`] | copies of tensors on the host, made at once; how often a device was waited for |
//! | [`dtype`] | the float types that weights can be held in |
//! | [`random`] | random numbers drawn on the host, by key |
//! | [`noise`] | Gaussian noise from it, the same on every backend |
//! | [`attention`] | multi-head attention over `[B, N, C]` with an additive bias |
//! | [`linear`] | linear layers with a transformer's initial weights |
//! | [`mask`] | which tokens of a prompt count |
//! | [`modulation`] | adaptive norms and gates |
//! | [`norm`] | LayerNorm without affine parameters, T5's RMS norm |
//! | [`activation`] | tanh-GELU |
//! | [`pointwise`] | changes to several tensors at once in one pass |
//! | [`conv`] | 3x3 convolutions and upsampling of pictures |
//! | [`timestep`] | sinusoidal timestep embedding |
//! | [`sincos`] | sine-cosine position tables |
//!
//! On burn's flex backend, whose tensors lie in this process's memory, several of these layers run as
//! one pass over it on every core (`host`), those of the denoiser with gradients of their own (`fused`),
//! and large products on the processor's matrix unit or on its wide vectors. On `tch` some are one operation
//! of libtorch (`torch`); everywhere else, operations of burn.
//!
//! Nothing here knows a model, a file or a diffusion process.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod device;
pub mod dtype;
#[cfg(feature = "flex")]
mod fused;
mod host;
pub mod linear;
pub mod mask;
pub mod modulation;
pub mod noise;
pub mod norm;
pub mod pointwise;
pub mod random;
pub mod read;
pub mod sincos;
#[cfg(all(test, feature = "autodiff"))]
mod testing;
pub mod timestep;
#[cfg(feature = "tch")]
#[allow(deprecated, reason = "burn plans to retire tch; 0.22 has it")]
mod torch;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
