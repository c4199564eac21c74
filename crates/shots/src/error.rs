//! Errors of shot detection.

use opensora_video::VideoError;
use std::path::PathBuf;

/// Why the shots of a video could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShotsError {
    /// A setting has an invalid value.
    #[error("{field} = {found}: expected {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// Valid values.
        expected: &'static str,
    },
    /// A frame is empty or differs in size from the first one.
    #[error(
        "frame {frame} has {}x{} pixels, expected {}x{} as the first one, at least 1x1",
        found.0, found.1, expected.0, expected.1
    )]
    FrameSize {
        /// The frame, counted from 0.
        frame: usize,
        /// Its width and height.
        found: (usize, usize),
        /// Width and height of the first frame.
        expected: (usize, usize),
    },
    /// A video file cannot be opened or decoded.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// A video file has no usable frames.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// Path of the file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}
