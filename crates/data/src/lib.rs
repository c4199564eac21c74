//! Captioned clips for training, from a [`Manifest`] to batches.
//!
//! A [`Source`] has rows and reads each as a sample: a manifest's clips ([`ClipDataset`]), or a
//! cache of their latents and prompt states ([`cache::LatentCache`]). A [`loader::Loader`] shuffles
//! the rows, reads ahead in worker threads and yields batches, in an order that does not depend on
//! the threads and can be resumed at any batch.
//!
//! ```
//! use opensora_data::{
//!     DataError, Source,
//!     loader::{Loader, LoaderConfig},
//! };
//! use std::sync::Arc;
//!
//! struct Squares;
//!
//! impl Source for Squares {
//!     type Item = usize;
//!
//!     fn len(&self) -> usize {
//!         10
//!     }
//!
//!     fn read(&self, row: usize, _epoch: u64) -> Result<usize, DataError> {
//!         Ok(row * row)
//!     }
//!
//!     fn describe(&self, row: usize) -> String {
//!         format!("square {row}")
//!     }
//! }
//!
//! let config = LoaderConfig { batch_size: 5, ..LoaderConfig::default() };
//! let batches: Vec<_> =
//!     Loader::new(Arc::new(Squares), config, 0)?.take(2).collect::<Result<_, _>>()?;
//! // Two batches of five are one epoch.
//! let mut rows: Vec<usize> = batches.iter().flat_map(|batch| batch.rows.clone()).collect();
//! rows.sort();
//! assert_eq!(rows, (0..10).collect::<Vec<_>>());
//! # Ok::<(), DataError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`window`] | the frames that become a clip, and whether they are mirrored |
//! | [`transform`] | resizing, cropping and normalising of pixels |
//! | [`dataset`] | the trait [`Source`]; a manifest's rows as clips |
//! | [`order`], [`loader`] | batches: shuffled, read ahead, with errors that name bad rows |
//! | [`encode`] | clips and captions encoded by VAE and text encoder |
//! | [`cache`] | encoded clips and captions on disk |

pub mod cache;
pub mod dataset;
pub mod encode;
mod error;
pub mod loader;
mod observer;
pub mod order;
pub mod transform;
pub mod window;

pub use dataset::{ClipDataset, ClipSample, Source};
pub use error::{DataError, SettingError};
pub use observer::{Observer, RowsDone};
pub use opensora_manifest::{Manifest, Row};
pub use window::{ClipSpec, Draw, DrawKey};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
