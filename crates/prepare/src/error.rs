//! What can go wrong between a raw video and a training set; one line each.

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
    /// A journal of another run, or a damaged one.
    #[error("{}: {reason}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
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
