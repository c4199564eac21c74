//! The denoisers of Open-Sora 1.0, on shared blocks: [`StDit`] for video, [`PixArt`] and [`PixArtMs`]
//! for images, [`Dit`] and [`Latte`] for images and clips of a class.
//!
//! A latent clip `[B, C, T, H, W]` is cut into patches, one token each, ordered `(t, h, w)`;
//! position tables are added; the blocks mix tokens by attention and see the prompt by cross
//! attention; the timestep steers every block through "adaLN-single" (six vectors a block); the
//! final layer turns each token back into a patch of `2 C` channels: the predicted noise `eps`
//! and the interpolation of the variance.
//!
//! | module | thought |
//! |---|---|
//! | [`config`], [`class_config`] | sizes of the published models, checks of a clip's size |
//! | [`embed`] | what enters the blocks: patches, prompt, timestep |
//! | [`block`] | the two kinds of block and their attentions |
//! | [`stdit`], [`pixart`], [`pixart_ms`] | the models that follow a prompt |
//! | [`adaln`] | the blocks of the models that follow a label |
//! | [`dit`], [`latte`] | those models |
//! | [`streamed`] | STDiT whose blocks stay in their file until they are needed |
//! | [`final_layer`] | tokens back to latents |
//! | [`reuse`] | attention outputs used again in later sampling steps |
//! | [`work`] | floating point operations, by the formula |
//! | [`keys`] | published key names |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/{stdit/stdit.py, pixart/pixart.py,
//! dit/dit.py, latte/latte.py, layers/blocks.py}`. Deviations: position tables are computed for the
//! size of each call instead of being buffers of one size; prompt tokens are masked by an additive
//! bias instead of being packed (padded tokens get a weight of exactly zero either way); timesteps
//! stay in f32; drop path, dropout of captions and labels, and sequence parallelism are not part of
//! the models.

pub mod adaln;
pub mod attention;
pub mod block;
pub mod cache;
pub mod class_config;
pub mod config;
pub mod dit;
pub mod embed;
pub mod final_layer;
pub mod hooks;
pub mod keys;
pub mod latte;
pub mod model;
pub mod modulation;
pub mod pixart;
pub mod pixart_ms;
pub mod reuse;
pub mod stdit;
pub mod streamed;
pub mod work;

pub use cache::AttentionCache;
pub use class_config::{ClassConfig, LabelCondition};
pub use config::{DenoiserConfig, PositionScales, SizeError};
pub use dit::Dit;
pub use latte::Latte;
pub use model::{ClassModel, LoadError, PromptModel};
pub use pixart::PixArt;
pub use pixart_ms::{ImageSize, PixArtMs, SizedPixArt};
pub use reuse::AttentionReuse;
pub use stdit::StDit;
pub use streamed::StreamedStDit;
pub use work::DenoiserWork;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
