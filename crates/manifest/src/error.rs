//! The error type of the crate.

use crate::text::TextError;
use std::path::PathBuf;

/// An error of reading or writing a table or prompt file.
///
/// Rows count from 0 in fields, as indices do, and from 1 in messages; a header is not a row. Lines
/// count from 1 everywhere, as in text editors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The operating system could not read or write the file.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not text in UTF-8.
    #[error("{}", path.display())]
    Text {
        /// Path of the file.
        path: PathBuf,
        /// The problem and its position.
        source: TextError,
    },
    /// The file is damaged or not Parquet.
    #[error("{}: damaged or not Parquet", path.display())]
    Parquet {
        /// Path of the file.
        path: PathBuf,
        /// The problem, as the Parquet reader describes it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file as a whole is malformed.
    #[error("{}: {reason}", path.display())]
    Whole {
        /// Path of the file.
        path: PathBuf,
        /// The problem, with the expected form.
        reason: String,
    },
    /// A line of the file is malformed.
    #[error("{}: line {line}: {reason}", path.display())]
    Line {
        /// Path of the file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The problem, with the expected form.
        reason: String,
    },
    /// A row of a table is malformed.
    #[error("{}: row {}{}: {reason}", path.display(), row + 1, at_line(*line))]
    Row {
        /// The table.
        path: PathBuf,
        /// The row, counted from 0.
        row: usize,
        /// The line on which the row starts, counted from 1; `None` for formats without lines.
        line: Option<u64>,
        /// The problem, with the expected form.
        reason: String,
    },
}

fn at_line(line: Option<u64>) -> String {
    line.map(|line| format!(" (line {line})")).unwrap_or_default()
}
