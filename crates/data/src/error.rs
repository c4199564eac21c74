//! Errors between a manifest and a batch.

use opensora_checkpoint::BoxedError;
use opensora_manifest::ManifestError;
use opensora_nn::read::ReadError;
use std::path::PathBuf;

/// Error of reading or writing training data.
///
/// Rows count from 0 in fields, as indices do, and from 1 in messages; a manifest's header is not a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system reports an error.
    #[error("{}: I/O error", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A manifest cannot be read or written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A line of a list of bad rows cannot be read.
    #[error("{}: line {line}: {reason}", path.display())]
    SkipList {
        /// The list.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
        /// The error of the CSV parser, if it is the cause.
        source: Option<csv::Error>,
    },
    /// The image, video or caption of a row cannot be used.
    #[error("row {}: {}: {reason}", row + 1, path.display())]
    Row {
        /// The row.
        row: usize,
        /// Its image or video.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
        /// The error of decoding or encoding, if one is the cause.
        source: Option<BoxedError>,
    },
    /// A data set without rows.
    #[error("the data has no rows")]
    Empty,
    /// A data set in which every row is bad.
    #[error("all {rows} rows are bad")]
    AllBad {
        /// Number of rows.
        rows: usize,
    },
    /// More bad rows than allowed.
    #[error("more than the {allowed} bad rows that are allowed")]
    TooManyBad {
        /// Number of bad rows that may be left out.
        allowed: usize,
        /// Error of the first row beyond that number.
        source: Box<DataError>,
    },
    /// A row index beyond the data set.
    #[error("row {} was requested, but there are {len}", row + 1)]
    NoSuchRow {
        /// The row.
        row: usize,
        /// Number of rows.
        len: usize,
    },
    /// A setting is out of range.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A cache is damaged, or was made from other data or settings.
    #[error("{}: {reason}", path.display())]
    Cache {
        /// The cache, or the file in it.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
        /// The error of reading or parsing, if one is the cause.
        source: Option<BoxedError>,
    },
    /// A VAE cannot be loaded.
    #[error(transparent)]
    Vae(#[from] opensora_vae::LoadError),
    /// A text encoder cannot be loaded.
    #[error(transparent)]
    Text(#[from] opensora_t5::LoadError),
    /// Weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] opensora_checkpoint::CheckpointError),
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// A model cannot encode a clip or a caption.
    #[error("cannot encode {what}")]
    Encode {
        /// The clip or caption.
        what: String,
        /// The model's error.
        source: BoxedError,
    },
    /// The observer stopped the work; what is written is complete.
    #[error("stopped with {done} of {total} rows done; started again, it resumes there")]
    Stopped {
        /// Number of rows that are done.
        done: usize,
        /// Number of all rows.
        total: usize,
    },
    /// A thread that reads ahead cannot be started.
    #[error("cannot start a thread that reads ahead")]
    Thread {
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another rank of the run failed, with an error that does not concern a row.
    #[error("rank {rank}: {message}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error on one line.
        message: String,
    },
    /// The ranks of a run read different data.
    #[error(
        "found {found} rows, expected {expected} as on rank 0: all ranks must read the same data"
    )]
    OtherData {
        /// Number of rows on this rank.
        found: usize,
        /// Number of rows on rank 0.
        expected: usize,
    },
    /// The ranks of a run read as many rows, but not the same ones.
    #[error("the {rows} rows differ from those of rank 0: all ranks must read the same data")]
    OtherRows {
        /// Number of rows on all ranks.
        rows: usize,
    },
    /// The threads that read ahead ended before the requested sample was read.
    #[error("the threads that read ahead have ended")]
    ThreadsEnded,
}

impl DataError {
    /// Returns a [`Row`](Self::Row) error without a source. A [`Source`](crate::Source) returns it
    /// for rows that [`Loader`](crate::loader::Loader) can skip.
    pub fn row(row: usize, path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Row { row, path: path.into(), reason: reason.into(), source: None }
    }
}

/// A setting that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
#[non_exhaustive]
pub struct SettingError {
    /// Name of the setting.
    pub field: &'static str,
    /// Its value.
    pub found: String,
    /// The values that are allowed.
    pub expected: &'static str,
}

impl SettingError {
    pub(crate) fn new(field: &'static str, found: impl ToString, expected: &'static str) -> Self {
        Self { field, found: found.to_string(), expected }
    }
}
