//! What can go wrong with a chart; one line each.

use opensora_video::VideoError;
use std::path::PathBuf;

/// Why a chart cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChartError {
    /// A style or a number of panels that cannot be.
    #[error("{0}")]
    Style(String),
    /// An ending that stands for no format.
    #[error("{}: unknown format, expected .svg or .png", path.display())]
    Format {
        /// The path.
        path: PathBuf,
    },
    /// No curve has a value that can be shown.
    #[error("{title}: no values to show{}", if *log { " on a logarithmic axis" } else { "" })]
    Empty {
        /// The panel's title.
        title: String,
        /// Whether only positive values count.
        log: bool,
    },
    /// The drawing library failed.
    #[error("{title}: cannot draw: {reason}")]
    Draw {
        /// The panel's title.
        title: String,
        /// The library's words.
        reason: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The image cannot be written.
    #[error(transparent)]
    Image(#[from] VideoError),
}
