//! The error type of the crate.

use opensora_video::VideoError;
use std::path::PathBuf;

/// An error of drawing or writing a chart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChartError {
    /// A setting is outside its range, or there are too few or too many panels.
    #[error("{0}")]
    Style(String),
    /// The path's extension is unknown.
    #[error("{}: unknown format, expected .svg or .png", path.display())]
    Format {
        /// The path.
        path: PathBuf,
    },
    /// No curve has a value that can be drawn.
    #[error("{title}: no values to show{}", if *log { " on a logarithmic axis" } else { "" })]
    Empty {
        /// Title of the panel.
        title: String,
        /// True for a logarithmic axis, which shows positive values only.
        log: bool,
    },
    /// The drawing library failed.
    #[error("{title}: cannot draw")]
    Draw {
        /// Title of the panel.
        title: String,
        /// The library's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The operating system could not write the file.
    #[error("{}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The image cannot be written.
    #[error(transparent)]
    Image(#[from] VideoError),
}

impl ChartError {
    /// Returns a function that wraps an error of the drawing library.
    pub(crate) fn draw<E>(title: &str) -> impl Fn(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |error| Self::Draw { title: title.into(), source: error.into() }
    }
}
