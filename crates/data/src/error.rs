//! What can go wrong between a manifest and a batch; one line each.

use opensora_manifest::ManifestError;
use opensora_nn::read::ReadError;
use std::path::PathBuf;

/// Why training data could not be read or written.
///
/// Rows count from 0 in fields, as indices do, and from 1 in messages, as people do; a header is
/// no row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A manifest, or a list beside it, cannot be read or written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A row's image or video cannot be used.
    #[error("row {}: {}: {reason}", row + 1, path.display())]
    Row {
        /// The row.
        row: usize,
        /// Its image or video.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A data set without rows.
    #[error("the data has no rows")]
    Empty,
    /// A data set in which no row can be used.
    #[error("all {rows} rows are bad")]
    AllBad {
        /// Rows that the data set has.
        rows: usize,
    },
    /// More bad rows than may be left out.
    #[error("more than the {allowed} bad rows that are allowed: {source}")]
    TooManyBad {
        /// Rows that may be left out.
        allowed: usize,
        /// Error of the first row beyond.
        source: Box<DataError>,
    },
    /// A row that the data set does not have.
    #[error("row {} was asked for, but there are {len}", row + 1)]
    NoSuchRow {
        /// The row.
        row: usize,
        /// Rows there are.
        len: usize,
    },
    /// A setting that cannot be.
    #[error("{field} = {found}: expected {expected}")]
    Spec {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A cache is damaged, or was made from something else.
    #[error("{}: {reason}", path.display())]
    Cache {
        /// The cache, or the file in it.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A VAE that cannot be loaded.
    #[error(transparent)]
    Vae(#[from] opensora_vae::LoadError),
    /// A text encoder that cannot be loaded.
    #[error(transparent)]
    Text(#[from] opensora_t5::LoadError),
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// A model refused to encode.
    #[error("cannot encode {what}: {reason}")]
    Encode {
        /// The row or rows.
        what: String,
        /// The model's words.
        reason: String,
    },
    /// The observer of a long job stopped it; what is written is complete.
    #[error("stopped with {done} of {total} rows done; started again, it resumes there")]
    Stopped {
        /// Rows that are done.
        done: usize,
        /// All rows.
        total: usize,
    },
    /// A thread that reads ahead ended without an answer.
    #[error("reading ahead stopped: {reason}")]
    Worker {
        /// What it was doing.
        reason: String,
    },
}
