//! Captioned clips for training, from a [`Manifest`] to batches.
//!
//! | module | thought |
//! |---|---|
//! | [`window`] | which frames become a clip, and whether they are mirrored |
//! | [`transform`] | pixels resized, cut about their centre, in [-1, 1] |
//! | [`dataset`] | rows read as clips |
//! | [`order`], [`loader`] | rows in batches: shuffled, read ahead, bad ones named |
//! | [`encode`] | clips and captions behind VAE and text encoder |
//! | [`cache`] | the same, computed once and kept |

pub mod cache;
pub mod dataset;
pub mod encode;
mod error;
pub mod loader;
pub mod order;
pub mod transform;
pub mod window;

pub use dataset::{ClipDataset, ClipSample, Source};
pub use error::DataError;
pub use opensora_manifest::{Manifest, Row};
pub use window::{ClipSpec, Draw};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
