//! What can go wrong with a video file.

use crate::FramesError;
use std::path::PathBuf;

/// Why a file could not be written or read; one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// An ending that stands for no format.
    #[error("{}: unknown format, expected .mp4, .gif, .png, or a folder for PNG frames", path.display())]
    Format {
        /// The path.
        path: PathBuf,
    },
    /// A size, length or rate that the format cannot hold.
    #[error("{}: {reason}", path.display())]
    Spec {
        /// The path.
        path: PathBuf,
        /// What was asked for and what is possible.
        reason: String,
    },
    /// A clip that is not what the output was opened for.
    #[error("{}: opened for {expected} (frames, height, width), got {found}", path.display())]
    OtherClip {
        /// The path.
        path: PathBuf,
        /// What it was opened for.
        expected: String,
        /// What came.
        found: String,
    },
    /// The encoder or container writer failed.
    #[error("{}: cannot encode: {reason}", path.display())]
    Encode {
        /// The path.
        path: PathBuf,
        /// The library's words.
        reason: String,
    },
    /// The file is not what it should be, or uses what is not supported.
    #[error("{}: cannot decode: {reason}", path.display())]
    Decode {
        /// The path.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file uses something that only the `ffmpeg` program decodes, and the program was not to be
    /// used or is not installed. The file need not be damaged.
    #[error("{}: needs the ffmpeg program: found {found}, {reason}", path.display())]
    NeedsFfmpeg {
        /// The file.
        path: PathBuf,
        /// What the decoders in this process lack.
        found: String,
        /// What they read, or why the program cannot be used.
        reason: String,
    },
    /// A program that is needed for this file is not there, or cannot be started.
    #[error("{}: {reason}", path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// Which program, what for, and what happened.
        reason: String,
    },
    /// The decoded pictures cannot be held.
    #[error("{}: {source}", path.display())]
    Frames {
        /// The path.
        path: PathBuf,
        /// Why.
        source: FramesError,
    },
}
