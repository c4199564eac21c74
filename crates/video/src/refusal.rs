//! Reasons why the decoders in this process give up on a file.

use crate::VideoError;
use std::{fmt, io, path::Path};

/// The files that are decoded without the `ffmpeg` program.
const IN_PROCESS: &str = "progressive 8-bit 4:2:0 H.264 in an unfragmented MP4, or GIF";

/// Why a file is not decoded in this process.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The operating system refused.
    Io(io::Error),
    /// The file uses something that the decoders in this process lack: what was found.
    Unsupported(String),
    /// The file contradicts itself, ends early or holds no video: what was found.
    Unusable(String),
}

impl Refusal {
    /// A feature that the decoders in this process lack.
    pub(crate) fn unsupported(found: impl Into<String>) -> Self {
        Self::Unsupported(found.into())
    }

    /// A file that holds no video that could be decoded by anyone in full.
    pub(crate) fn unusable(found: impl Into<String>) -> Self {
        Self::Unusable(found.into())
    }

    /// The error of a file.
    pub(crate) fn of(self, path: &Path) -> VideoError {
        let path = path.into();
        match self {
            Self::Io(source) => VideoError::Io { path, source },
            Self::Unusable(reason) => VideoError::Decode { path, reason },
            Self::Unsupported(found) => {
                let reason = format!("expected {IN_PROCESS}");
                VideoError::NeedsFfmpeg { path, found, reason }
            }
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Unsupported(found) => write!(f, "found {found}, expected {IN_PROCESS}"),
            Self::Unusable(found) => f.write_str(found),
        }
    }
}
