//! The denoisers of Open-Sora 1.0 on shared blocks: [`StDit`] for video, [`PixArt`] and [`PixArtMs`] for images,
//! [`Dit`] and [`Latte`] for images and clips of a class.
//!
//! A latent clip `[B, C, T, H, W]` is split into patches, one token each, ordered `(t, h, w)`, and position
//! tables are added. The blocks mix tokens by self-attention and attend to the prompt by cross attention. The
//! timestep modulates every block ("adaLN-single": six vectors per block). The final layer maps each token to a
//! patch of `2 C` channels: the predicted noise `eps` and the interpolation of the variance.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use opensora_stdit::{DenoiserConfig, StDit};
//!
//! let config = DenoiserConfig {
//!     hidden_size: 32,
//!     depth: 2,
//!     num_heads: 4,
//!     caption_channels: 16,
//!     model_max_length: 8,
//!     ..DenoiserConfig::xl_2()
//! };
//! let device = Device::flex();
//! let model: StDit = config.init(&device)?;
//! let latents = Tensor::<5>::zeros([1, 4, 3, 8, 8], &device); // [B, C, T, H, W]
//! let prompt = Tensor::<3>::zeros([1, 8, 16], &device); // [B, L, caption_channels]
//! let prediction = model.forward(latents, &[500.0], prompt, None);
//! assert_eq!(prediction.dims(), [1, 8, 3, 8, 8]);
//! # Ok::<(), opensora_stdit::SizeError>(())
//! ```
//!
//! Published weights are loaded with [`PublishedModel::load`](opensora_checkpoint::PublishedModel::load).
//!
//! | module | contents |
//! |---|---|
//! | [`config`], [`class_config`] | sizes of the models, checks of a clip's size and of labels |
//! | [`model`] | the traits [`PromptModel`] and [`ClassModel`], and the error of loading |
//! | [`stdit`], [`pixart`], [`pixart_ms`] | the models with a prompt |
//! | [`dit`], [`latte`] | the models with a class label |
//! | [`deepen`] | a deeper STDiT from a trained one |
//! | [`streamed`] | STDiT with its blocks streamed from the checkpoint |
//! | [`block`] | the blocks of STDiT and PixArt-alpha, as equations |
//! | [`adaln`] | the block and final layer of DiT and Latte, and the label embedding |
//! | [`attention`], [`modulation`] | the layers of the blocks |
//! | [`embed`], [`final_layer`] | latents, timestep and prompt to tokens; tokens to latents |
//! | [`hooks`] | hooks around the attention branches of a forward pass, for caches and counters |
//! | [`layout`] | the tokens of a clip in one process, or divided by frames among ranks |
//! | [`reuse`], [`cache`] | attention outputs that are reused in later sampling steps: settings and store |
//! | [`work`] | floating point operations |
//! | [`keys`] | published key names |
//!
//! Every linear layer of a block is applied by `opensora_nn::linear::forward`, the place to extend for low-rank
//! adapters. Tokens mix only in [`attention`]; [`layout`] divides those of a clip among ranks.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/{stdit/stdit.py, pixart/pixart.py, dit/dit.py,
//! latte/latte.py, layers/blocks.py}`. Deviations: position tables are computed for the size of each call
//! instead of being buffers of one size; prompt tokens are masked by an additive bias instead of being packed (the
//! weight of a padded token is zero, or at most 1.6e-38 on flex: see `opensora_nn::mask::TokenMask::bias`); timesteps
//! stay in f32; drop path and dropout of captions and labels are not ported.

pub mod adaln;
pub mod attention;
pub mod block;
pub mod cache;
pub mod class_config;
pub mod config;
pub mod deepen;
pub mod dit;
pub mod embed;
pub mod final_layer;
pub mod hooks;
pub mod keys;
pub mod latte;
pub mod layout;
pub mod model;
pub mod modulation;
pub mod pixart;
pub mod pixart_ms;
pub mod reuse;
mod sharded;
pub mod stdit;
pub mod streamed;
pub mod work;

pub use cache::AttentionCache;
pub use class_config::{ClassConfig, LabelCondition};
pub use config::{DenoiserConfig, PositionScales, SizeError};
pub use dit::Dit;
pub use latte::Latte;
pub use layout::{FrameShards, TokenLayout};
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
