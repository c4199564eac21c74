//! The Stable Diffusion VAE: frames to latents an eighth of their height and width, and back.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use opensora_vae::{AutoencoderKl, VaeConfig};
//!
//! let config = VaeConfig {
//!     block_out_channels: vec![8, 16],
//!     norm_num_groups: 4,
//!     ..VaeConfig::default()
//! };
//! let device = Device::flex();
//! let vae: AutoencoderKl = config.init(&device)?;
//! let clip = Tensor::<5>::zeros([1, 3, 2, 16, 16], &device); // [B, 3, T, H, W] in [-1, 1]
//! let latents = vae.encode(clip, None).mean_latents();
//! // Two levels: half the height and width.
//! assert_eq!(latents.dims(), [1, 4, 2, 8, 8]);
//! assert_eq!(vae.decode(latents, None).dims(), [1, 3, 2, 16, 16]);
//! # Ok::<(), opensora_vae::VaeConfigError>(())
//! ```
//!
//! Published weights are loaded with [`PublishedModel::load`](opensora_checkpoint::PublishedModel::load).
//!
//! | module | contents |
//! |---|---|
//! | [`autoencoder`] | the VAE on clips `[B, 3, T, H, W]`, in micro-batches of frames |
//! | [`config`] | sizes, read from the published `config.json` |
//! | [`encoder`], [`decoder`] | the two halves |
//! | [`blocks`] | residual and attention blocks |
//! | [`posterior`] | mean, log variance and samples of the latents |
//! | `tiles` | the decoder's wide levels in tiles |
//! | `units` | latents of a trained VAE in other units |
//! | [`keys`] | the three published layouts of key names |
//!
//! Source: huggingface/diffusers, `models/autoencoders/autoencoder_kl.py`, class `AutoencoderKL`,
//! as hpcaitech/Open-Sora v1.0.0 `opensora/models/vae/vae.py`, class `VideoAutoencoderKL`, applies
//! it to each frame. Quirk, kept: latents are scaled by 0.18215 regardless of the config.

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
