//! Data preparation: turns raw videos into a training set.
//!
//! Each step reads a table ([`opensora_manifest::Table`]) and writes another one with added columns.
//! Rows that the step cannot use are listed in a second table with the reason. A journal beside the
//! output records every finished row, so that an interrupted step resumes where it stopped, with the
//! same result.
//!
//! All steps have the same form: a module with a `Job`, the options of the step with defaults, and
//! `run(&job, &input, &out, &mut observer)`. An [`Observer`] receives the progress and can stop the step;
//! `()` ignores it.
//!
//! ```
//! use opensora_manifest::{Table, table::{PATH, TEXT}};
//! use opensora_prepare::clean::{self, Job};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = |name: &str| folder.path().join(name);
//! std::fs::write(path("fox.mp4"), "frames")?;
//! std::fs::write(path("captioned.csv"), "path,text\nfox.mp4,The video shows a fox.\n")?;
//!
//! let input = Table::read(&path("captioned.csv"))?;
//! let report = clean::run(&Job::default(), &input, &path("train.csv"), &mut ())?;
//! assert_eq!((report.written, report.openings), (1, 1));
//! assert_eq!(Table::read(&path("train.csv"))?.get(0, TEXT), Some("A fox."));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! From a folder of videos to clips of 256 pixels:
//!
//! ```no_run
//! use opensora_manifest::Table;
//! use opensora_prepare::{RunOptions, scan, split};
//! use std::path::Path;
//!
//! let options = RunOptions { workers: 4, ..RunOptions::default() };
//! let job = scan::Job { options, ..scan::Job::default() };
//! let found = scan::Found::walk(&["videos".into()], job.walk)?;
//! scan::run(&job, &found, Path::new("videos.csv"), &mut ())?;
//!
//! let settings = split::Settings { shorter_side: 256, ..split::Settings::default() };
//! let job = split::Job { settings, options, ..split::Job::default() };
//! let videos = Table::read(Path::new("videos.csv"))?;
//! let summary = split::run(&job, &videos, Path::new("clips.csv"), &mut ())?;
//! println!("{} clips", summary.output);
//! # Ok::<(), opensora_prepare::PrepareError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`scan`] | lists the videos of folders in a table |
//! | [`shots`] | shot detection: the crate `opensora-shots` |
//! | [`split`] | cuts videos at their shots into clips |
//! | [`filter`] | selects clips by measurements, bounds and near-duplicates |
//! | [`clean`] | cleans captions and paths, counts frames |
//! | [`arrange`] | merges and splits tables |
//! | [`stats`] | statistics of a table |
//! | [`preview`] | contact sheets of clips and captions |
//! | [`pipeline`] | runs steps one after another |
//! | [`step`] | the loop of a step: parallel, journalled, sharded, resumable |
//! | [`assemble`] | tables from the outcomes of rows, names of a step's files |
#![cfg_attr(feature = "caption", doc = "| [`caption`] | captions by a vision model on a server |")]
#![cfg_attr(feature = "download", doc = "| [`download`] | downloads the videos of public lists |")]
#![cfg_attr(
    any(feature = "caption", feature = "download"),
    doc = "| [`retry`] | retries with growing waits |"
)]
//!
//! | feature | adds |
//! |---|---|
//! | `caption` | `caption`; an HTTP client |
//! | `download` | `download`; an HTTP client |
//! | `onnx` | scores by the user's ONNX models in [`filter`] |
//!
//! All features are off by default.

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
mod observer;
mod open;
mod output;
pub mod pipeline;
mod pool;
pub mod preview;
mod ranges;
#[cfg(any(feature = "caption", feature = "download"))]
pub mod retry;
mod row_error;
pub mod scan;
mod source;
pub mod split;
pub mod stats;
pub mod step;
mod text;

pub use assemble::Summary;
pub use error::{JournalError, PrepareError};
pub use observer::{Advanced, Observer, StageFinished, StageStarted};
pub use opensora_shots as shots;
pub use row_error::RowError;
pub use step::{RunOptions, Shard};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
