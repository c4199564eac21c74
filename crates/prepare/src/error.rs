//! What can go wrong between a raw video and a training set; one line each.

use crate::filter::FilterError;
use std::path::PathBuf;

/// Why a step could not do its work. What is wrong with single rows is no error: a step lists them
/// with their reasons and goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A chart or a sheet that cannot be drawn or written.
    #[error(transparent)]
    Chart(#[from] opensora_chart::ChartError),
    /// A journal of another run, or a damaged one.
    #[error("{}: {reason}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file of settings that says what cannot be.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected, and where.
        reason: String,
    },
    /// A file needs a part of this crate that was not compiled in.
    #[error(
        "{}: {what} needs the feature \"{feature}\" of opensora-prepare, which this program was \
         built without",
        path.display()
    )]
    Feature {
        /// The file.
        path: PathBuf,
        /// What was asked for, such as a section of a file of settings.
        what: &'static str,
        /// The feature that it needs.
        feature: &'static str,
    },
    /// A table that cannot be read or written.
    #[error(transparent)]
    Manifest(#[from] opensora_manifest::ManifestError),
    /// What clips cannot be filtered by.
    #[error(transparent)]
    Filter(#[from] Box<FilterError>),
    /// Shots cannot be found with these settings.
    #[error(transparent)]
    Shots(#[from] opensora_shots::ShotsError),
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
    /// Tables that name the same file more than once.
    #[error("{key}: {first} and {second} are both of it, and {count} rows in all come again")]
    Again {
        /// The first file, or the first address where there are no files.
        key: String,
        /// Where it stands first.
        first: String,
        /// Where it stands again.
        second: String,
        /// Rows of something that was there before.
        count: usize,
    },
    /// A list of rows that a step could not use, where a manifest is expected.
    #[error(
        "{name}: it is a list of failures (it has a column \"reason\"), expected a manifest; run the step \
         again with failures retried"
    )]
    FailureList {
        /// What the table is called.
        name: String,
    },
    /// Two rows that a step could not tell apart.
    #[error("rows {} and {} are both {key}", first + 1, second + 1)]
    Twice {
        /// The first of them, counted from 0; messages count from 1.
        first: usize,
        /// The second.
        second: usize,
        /// What both are.
        key: String,
    },
    /// Something that would meet every row alike. What the step did so far is kept.
    #[error("{reason}: stopped with {done} of {total} rows done; started again, it goes on there")]
    Halted {
        /// What was found, one line.
        reason: String,
        /// Rows that are done.
        done: usize,
        /// Rows there are.
        total: usize,
    },
    /// Someone asked the step to stop. What it did so far is kept.
    #[error("stopped with {done} of {total} rows done; started again, it goes on there")]
    Stopped {
        /// Rows that are done.
        done: usize,
        /// Rows there are.
        total: usize,
    },
}
