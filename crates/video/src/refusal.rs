//! Reasons why the decoders in this process reject a file.

use crate::{VideoError, error::Cause};
use std::{io, path::Path};

/// The files that are decoded without the `ffmpeg` program.
const IN_PROCESS: &str = "progressive 8-bit 4:2:0 H.264 in an unfragmented MP4, or GIF";

/// Why a file is not decoded in this process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The operating system could not read the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file uses a feature that the decoders in this process lack.
    #[error("found {0}, expected {IN_PROCESS}")]
    Unsupported(String),
    /// The file contradicts itself, ends early or holds no video.
    #[error(transparent)]
    Unusable(Cause),
}

impl Refusal {
    /// Returns the refusal of a feature that the decoders in this process lack.
    pub(crate) fn unsupported(found: impl Into<String>) -> Self {
        Self::Unsupported(found.into())
    }

    /// Returns the refusal of a file that no decoder could decode completely.
    pub(crate) fn unusable(found: impl Into<Cause>) -> Self {
        Self::Unusable(found.into())
    }

    /// Returns the error of a file.
    pub(crate) fn of(self, path: &Path) -> VideoError {
        let path = path.into();
        match self {
            Self::Io(source) => VideoError::Io { path, source },
            Self::Unusable(source) => VideoError::Decode { path, source },
            Self::Unsupported(found) => {
                let reason = format!("expected {IN_PROCESS}");
                VideoError::NeedsFfmpeg { path, found, reason }
            }
        }
    }
}
