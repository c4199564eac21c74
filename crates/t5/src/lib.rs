//! The text encoder of Open-Sora 1.0: caption cleaning, tokenizer and encoder of T5 v1.1.
//!
//! [`TextEncoder`] combines the three: it loads a published folder and encodes prompts to states
//! `[B, L, d_model]` and a mask. Each can also be used alone:
//!
//! ```
//! use burn::tensor::Device;
//! use opensora_t5::{T5Config, T5Encoder, caption::text_preprocessing};
//!
//! let caption = text_preprocessing("A red fox and a bear, see https://example.com");
//! assert_eq!(caption, "a red fox and a bear, see");
//!
//! let config = T5Config {
//!     vocab_size: 100,
//!     d_model: 32,
//!     d_kv: 8,
//!     d_ff: 64,
//!     num_layers: 2,
//!     num_heads: 4,
//!     ..T5Config::default()
//! };
//! let encoder: T5Encoder = config.init(&Device::flex())?;
//! let states = encoder.forward(&[vec![5, 17, 1]], None);
//! assert_eq!(states.dims(), [1, 3, 32]); // [B, L, d_model]
//! # Ok::<(), opensora_t5::T5ConfigError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`text_encoder`] | prompts to states and mask |
//! | [`caption`] | the reference's caption cleaning, both passes |
//! | [`tokenizer`] | cleaned captions to token ids, from `spiece.model` or `tokenizer.json` |
//! | [`tokenizer::fit`] | a small tokenizer fitted to captions |
//! | [`config`] | sizes of the encoder, from `config.json` |
//! | [`encoder`] | token ids to states |
//! | [`streamed`] | the encoder with its blocks streamed from the checkpoint |
//! | [`position`] | buckets of relative positions |
//! | [`keys`] | published key names |
//!
//! Sources: hpcaitech/Open-Sora v1.0.0, `opensora/models/text_encoder/t5.py`, class `T5Embedder`;
//! transformers, `models/t5`.

pub mod caption;
pub mod config;
pub mod encoder;
pub mod keys;
pub mod position;
pub mod streamed;
pub mod text_encoder;
pub mod tokenizer;

pub use config::{T5Config, T5ConfigError};
pub use encoder::{LoadError, T5Encoder, T5Model};
pub use streamed::StreamedT5Encoder;
pub use text_encoder::{PromptStates, TextEncodeError, TextEncoder};
pub use tokenizer::{
    T5Tokenizer, TokenIds, TokenizerError,
    fit::{FitError, FittedTokenizer, fit_tokenizer},
};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
