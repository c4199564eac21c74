//! From raw videos to a training set.
//!
//! Each step reads a manifest ([`opensora_manifest::Table`]) and writes another one, with columns
//! of its own added; rows that it could not use are listed apart with the reason. A step keeps a
//! journal beside what it writes: interrupted anywhere and started again, it goes on where it was
//! and the result is the same.
//!
//! | module | contents |
//! |---|---|
//! | [`step`] | work row by row: in parallel, journalled, sharded, restartable |
//! | [`assemble`] | from outcomes back to tables |
//! | `retry` | attempts and growing waits (with `caption` or `download`) |
//! | `download` | fetches the videos of public lists (feature `download`) |
//! | [`scan`] | a folder of videos as a table |
//! | [`shots`] | shot detection: the crate `opensora-shots` |
//! | [`split`] | cuts videos at their shots into clips |
//! | [`filter`] | selects clips: measures, bounds, near-duplicates |
//! | `caption` | captions by a vision model behind an HTTP server (feature `caption`) |
//! | [`clean`] | cleans captions, drops unusable rows, counts frames |
//! | [`arrange`] | merges and splits manifests |
//! | [`stats`] | statistics of a manifest |
//! | [`preview`] | contact sheets of clips and captions |
//! | [`pipeline`] | steps one after another |
//!
//! The features `download` and `caption` bring an HTTP client and are off by default.

pub mod arrange;
pub mod assemble;
#[cfg(feature = "caption")]
pub mod caption;
pub mod clean;
#[cfg(feature = "download")]
pub mod download;
mod error;
pub mod filter;
mod look;
mod open;
pub mod pipeline;
mod pool;
pub mod preview;
#[cfg(any(feature = "caption", feature = "download"))]
pub mod retry;
pub mod scan;
mod source;
pub mod split;
pub mod stats;
pub mod step;
mod text;

pub use error::PrepareError;
pub use opensora_shots as shots;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
