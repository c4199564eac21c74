//! Errors of single rows, which steps record and list.

use crate::{open::without_path, output::is_unwritable};
use opensora_files::{error_line, one_line};
use opensora_shots::ShotsError;
use opensora_video::{FramesError, VideoError};
use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

/// Error for a row that a step rejects. A step records it ([`RowError::reason`]) and continues with the other
/// rows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// The row has no value in a column that the step needs.
    #[error("it has no {0}")]
    NoValue(String),
    /// The row is of the same file or address as an earlier one, and of the same clip range if it has one.
    #[error("its {what} is that of row {} as well", first + 1)]
    Repeated {
        /// The column, or `file` if different paths lead to one file; for clip ranges, such as `range of the
        /// file`.
        what: String,
        /// The earlier row, counted from 0.
        first: usize,
    },
    /// The clip range of the row is not a range in seconds.
    #[error("its clip range is {0}, expected seconds from 0 and a start before the end")]
    ClipRange(
        /// The range, such as "3 to 2".
        String,
    ),
    /// The path leads to something that is not a regular file.
    #[error("it is {0}, expected a file")]
    NotAFile(
        /// The kind of target, such as "a folder".
        &'static str,
    ),
    /// The file is empty.
    #[error("it is empty")]
    EmptyFile,
    /// The path is a symbolic link whose target cannot be read.
    #[error("it is a link to {}", one_line(target.display()))]
    Link {
        /// The target of the link.
        target: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The video or image cannot be decoded, or a clip cannot be encoded.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The frames have no valid shape.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// The shots of the video cannot be found.
    #[error(transparent)]
    Shots(#[from] ShotsError),
    /// An image cannot be encoded as JPEG.
    #[error(transparent)]
    Jpeg(#[from] image::ImageError),
    /// The file has no frames.
    #[error("it has no frames")]
    NoFrames,
    /// A frame differs in size from the first one.
    #[error("frame {} has another size than the first one", frame + 1)]
    FrameSize {
        /// The frame, counted from 0.
        frame: usize,
    },
    /// A part of the work on the row failed.
    #[error("{what}")]
    Part {
        /// The part, such as "its clip".
        what: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A video cannot be downloaded.
    #[cfg(feature = "download")]
    #[error(transparent)]
    Download(#[from] crate::retry::GaveUp<crate::download::FetchError>),
    /// A vision model gave no caption.
    #[cfg(feature = "caption")]
    #[error(transparent)]
    Caption(#[from] crate::retry::GaveUp<crate::caption::AskError>),
    /// The work on the row panicked.
    #[error("the program made a mistake on it (a panic)")]
    Panic,
    /// Any other problem, as text.
    #[error("{0}")]
    Unusable(String),
}

impl RowError {
    /// Returns a [`Part`](Self::Part) error; `what` names the part, such as `"its clip"`.
    pub fn part(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Part { what: what.into(), source: source.into() }
    }

    /// Returns true if the output of the row cannot be written for a reason that affects every row. The input's errors
    /// are no [`Part`](Self::Part).
    pub(crate) fn is_of_output(&self) -> bool {
        matches!(self, Self::Part { source, .. } if is_unwritable(&**source))
    }

    /// Returns the error and its causes on one line, as journals and lists of failures record it,
    /// without `path`, which the row has already.
    pub fn reason(&self, path: Option<&Path>) -> String {
        let line = error_line(self);
        one_line(path.map_or(line.clone(), |path| without_path(&line, path)))
    }
}

impl From<String> for RowError {
    fn from(reason: String) -> Self {
        Self::Unusable(reason)
    }
}

impl From<&str> for RowError {
    fn from(reason: &str) -> Self {
        Self::Unusable(reason.into())
    }
}
