//! The Stable Diffusion VAE: frames to latents an eighth of their size, and back.
//!
//! | module | thought |
//! |---|---|
//! | [`config`] | sizes, read from the published `config.json` |
//! | [`blocks`] | residual and attention blocks |
//! | [`encoder`], [`decoder`] | the two halves |
//! | [`posterior`] | mean, log variance and samples |
//! | [`autoencoder`] | the whole, over clips `[B, 3, T, H, W]` in micro-batches of frames |
//! | `tiles` | the decoder's wide levels tile by tile |
//! | `units` | other units for the latents of a trained VAE |
//! | [`keys`] | the three published layouts of key names |
//!
//! Source: huggingface/diffusers, `models/autoencoders/autoencoder_kl.py`, class `AutoencoderKL`,
//! as hpcaitech/Open-Sora v1.0.0 `opensora/models/vae/vae.py`, class `VideoAutoencoderKL`, applies
//! it to each frame. Quirk, kept: latents are scaled by 0.18215 whatever the config says.

pub mod autoencoder;
pub mod blocks;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod keys;
pub mod posterior;
mod tiles;
mod units;

pub use autoencoder::{AutoencoderKl, LoadError, SCALING_FACTOR};
pub use config::{VaeConfig, VaeConfigError};
pub use posterior::Posterior;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
