//! Prompts to states: caption cleaning, tokenizer and encoder of T5 v1.1.
//!
//! | module | thought |
//! |---|---|
//! | [`caption`] | the reference's cleaning of a caption, both passes |
//! | [`tokenizer`] | cleaned captions to token ids, from `spiece.model` or `tokenizer.json` |
//! | [`tokenizer::fit`] | a small tokenizer fitted to captions |
//! | [`config`] | sizes of the encoder, from `config.json` |
//! | [`position`] | buckets of relative positions |
//! | [`encoder`] | token ids to states |
//! | [`keys`] | published key names |
//! | [`streamed`] | the same with one block in memory at a time |
//! | [`text_encoder`] | all of it: prompts to states and mask |
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
