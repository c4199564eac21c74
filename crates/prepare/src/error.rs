//! Errors of steps as a whole.

use crate::filter::FilterError;
use std::{error::Error, io, path::PathBuf, sync::Arc};

/// Error of a step as a whole. Errors of single rows are [`RowError`](crate::RowError)s: a step
/// lists them and continues.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// A file or folder cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A chart or a sheet cannot be drawn or written.
    #[error(transparent)]
    Chart(#[from] opensora_chart::ChartError),
    /// A journal cannot be used.
    #[error("{}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The cause.
        source: JournalError,
    },
    /// A settings file is malformed or has an invalid value.
    #[error("{}: line {line}: {reason}", path.display())]
    Config {
        /// Path of the file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file needs a feature of this crate that was not compiled in.
    #[error(
        "{}: {what} needs the feature \"{feature}\" of opensora-prepare, which this program was \
         built without",
        path.display()
    )]
    Feature {
        /// Path of the file.
        path: PathBuf,
        /// The part that needs the feature, such as a section of a settings file.
        what: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// A table cannot be read or written.
    #[error(transparent)]
    Manifest(#[from] opensora_manifest::ManifestError),
    /// A table cannot be filtered.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The download cannot start.
    #[cfg(feature = "download")]
    #[error(transparent)]
    Download(#[from] crate::download::DownloadError),
    /// The settings of shot detection are invalid.
    #[error(transparent)]
    Shots(#[from] opensora_shots::ShotsError),
    /// A setting has an invalid value.
    #[error("{field} = {found}: expected {expected}")]
    Spec {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// Valid values.
        expected: &'static str,
    },
    /// Tables have several rows of one file or address.
    #[error("duplicate {key} in {first} and {second} ({count} duplicate rows in total)")]
    Duplicates {
        /// The first file, or the first address of rows without files.
        key: String,
        /// Row and table of its first occurrence.
        first: String,
        /// Row and table of its second occurrence.
        second: String,
        /// Number of rows whose file or address occurred before.
        count: usize,
    },
    /// A list of failed rows was given where a manifest is expected.
    #[error(
        "{name}: it is a list of failures (it has a column \"reason\"), expected a manifest; run the \
         step again with failures retried"
    )]
    FailureList {
        /// Name of the table.
        name: String,
    },
    /// A scanned folder has clips of the step `split` and no videos.
    #[error(
        "found {count} clips of data split and no other videos: to list clips, name their own folder"
    )]
    OnlyClips {
        /// Number of clips.
        count: usize,
    },
    /// The output of a step, or a list beside it, is the table that it reads, which would lose rows.
    #[error("{}: it is the table that is read, expected another file", path.display())]
    SameFile {
        /// The output or the list.
        path: PathBuf,
    },
    /// Two rows have the same key.
    #[error("rows {} and {} are both {key}", first + 1, second + 1)]
    SameKey {
        /// The first row, counted from 0; messages count from 1.
        first: usize,
        /// The second row.
        second: usize,
        /// Their key.
        key: String,
    },
    /// An error that affects every row, such as a rejected API key. Rows that are done are kept.
    #[error("stopped with {done} of {total} rows done (run again to resume)")]
    Halted {
        /// The error.
        source: Arc<dyn Error + Send + Sync>,
        /// Rows that are done.
        done: usize,
        /// All rows.
        total: usize,
    },
    /// The observer stopped the step. Rows that are done are kept.
    #[error("stopped with {done} of {total} rows done (run again to resume)")]
    Stopped {
        /// Rows that are done.
        done: usize,
        /// All rows.
        total: usize,
    },
    /// The observer stopped a step that keeps nothing before its end.
    #[error("stopped with {done} of {total} files read; nothing was written")]
    Interrupted {
        /// Files that were read.
        done: usize,
        /// All files.
        total: usize,
    },
}

impl PrepareError {
    /// Returns a function that adds `path` to an error of the operating system.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Error of opening or reading a journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another process writes to the journal, or it is not text.
    #[error(transparent)]
    Open(io::Error),
    /// The first line is not a settings record.
    #[error("its first line holds no settings")]
    Settings(#[source] serde_json::Error),
    /// The journal is of a run with other settings.
    #[error(
        "it was written with other settings ({found}, now {expected}): move it away, or write elsewhere"
    )]
    OtherSettings {
        /// The settings in the journal.
        found: String,
        /// The settings of this run.
        expected: String,
    },
    /// A line is not a record of a row.
    #[error("line {line} is not a record")]
    Record {
        /// The line, counted from 1.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
}
