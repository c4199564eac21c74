//! The denoisers of Open-Sora 1.0: [`StDit`] for video and [`PixArt`] for images, on shared blocks.
//!
//! A latent clip `[B, C, T, H, W]` is cut into patches, one token each, ordered `(t, h, w)`;
//! position tables are added; the blocks mix tokens by attention and see the prompt by cross
//! attention; the timestep steers every block through "adaLN-single" (six vectors a block); the
//! final layer turns each token back into a patch of `2 C` channels: the predicted noise `eps`
//! and the interpolation of the variance.
//!
//! | module | thought |
//! |---|---|
//! | [`config`] | sizes of the published models, checks of a clip's size |
//! | [`embed`] | what enters the blocks: patches, prompt, timestep |
//! | [`block`] | the two kinds of block and their attentions |
//! | [`stdit`], [`pixart`] | the two models |
//! | [`streamed`] | STDiT whose blocks stay in their file until they are needed |
//! | [`final_layer`] | tokens back to latents |
//! | [`reuse`] | attention outputs used again in later sampling steps |
//! | [`work`] | floating point operations, by the formula |
//! | [`keys`] | published key names |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/{stdit/stdit.py, pixart/pixart.py,
//! layers/blocks.py}`. Deviations: position tables are computed for the size of each call instead
//! of being buffers of one size; prompt tokens are masked by an additive bias instead of being
//! packed (padded tokens get a weight of exactly zero either way); timesteps stay in f32; drop
//! path, caption dropout and sequence parallelism are not part of the model.

pub mod block;
pub mod config;
pub mod embed;
pub mod final_layer;
pub mod keys;
pub mod pixart;
pub mod reuse;
pub mod stdit;
pub mod streamed;
pub mod work;

pub use config::{DenoiserConfig, PositionScales, SizeError};
pub use pixart::PixArt;
pub use reuse::{AttentionCache, AttentionReuse};
pub use stdit::StDit;
pub use streamed::StreamedStDit;
pub use work::DenoiserWork;
