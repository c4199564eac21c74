//! What can go wrong with a manifest; one line each.

use std::path::PathBuf;

/// Why a manifest could not be read or written.
///
/// Rows count from 0 in fields, as indices do, and from 1 in messages, as people do; a header is
/// no row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A manifest as a whole is not of the format.
    #[error("{}: {reason}", path.display())]
    Whole {
        /// The manifest.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A row of a manifest is not of the format.
    #[error("{}: row {}: {reason}", path.display(), row + 1)]
    Row {
        /// The manifest.
        path: PathBuf,
        /// The row.
        row: usize,
        /// What was found and what was expected.
        reason: String,
    },
}
