//! The error type of the crate.

use crate::{
    FramesError,
    media::{IMAGES, VIDEOS},
};
use opensora_files::error_line;
use std::path::{Path, PathBuf};

/// A cause of an error: the problem as text, or the error of a library.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error of reading or writing an image or video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The operating system could not read or write the file.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The extension of an output path is unknown.
    #[error("{}: unknown format, expected .mp4, .gif, .png, or a folder for PNG frames", path.display())]
    Format {
        /// The path.
        path: PathBuf,
    },
    /// The extension of an input path is unknown.
    #[error(
        "{}: unknown format '{extension}', expected an image ({}), a video ({}) or a folder of frames",
        path.display(),
        IMAGES.join(", "),
        VIDEOS.join(", ")
    )]
    Media {
        /// The path.
        path: PathBuf,
        /// The extension.
        extension: String,
    },
    /// The format does not support the size, length or frame rate.
    #[error("{}: {reason}", path.display())]
    Spec {
        /// The path.
        path: PathBuf,
        /// What was requested and what is supported.
        reason: String,
    },
    /// The clip differs from the one that the output was opened for.
    #[error("{}: opened for {expected} (frames, height, width), got {found}", path.display())]
    OtherClip {
        /// The path.
        path: PathBuf,
        /// Shape that the output was opened for.
        expected: String,
        /// Shape of the clip.
        found: String,
    },
    /// The encoder or container writer failed.
    #[error("{}: cannot encode", path.display())]
    Encode {
        /// The path.
        path: PathBuf,
        /// The problem.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is damaged, is not a video or image, or is too large.
    #[error("{}: cannot decode", path.display())]
    Decode {
        /// The path.
        path: PathBuf,
        /// The problem.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file uses a feature that only the `ffmpeg` program decodes, and the program is excluded or not
    /// installed. The file need not be damaged.
    #[error("{}: needs the ffmpeg program: found {found}, {reason}", path.display())]
    NeedsFfmpeg {
        /// Path of the file.
        path: PathBuf,
        /// The feature.
        found: String,
        /// What the decoders in this process support, or why the program cannot be used.
        reason: String,
    },
    /// A program that decodes the file is not installed.
    #[error("{}: {}", path.display(), not_installed(program))]
    NotInstalled {
        /// Path of the file.
        path: PathBuf,
        /// The program.
        program: PathBuf,
    },
    /// A program that decodes the file cannot be started.
    #[error("{}: {}", path.display(), cannot_start(program))]
    Program {
        /// Path of the file.
        path: PathBuf,
        /// The program.
        program: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The decoded frames do not form a clip.
    #[error("{}", path.display())]
    Frames {
        /// The path.
        path: PathBuf,
        /// The problem.
        source: FramesError,
    },
}

impl VideoError {
    /// Returns the error and its causes on one line without `path`, for callers that name the path
    /// themselves. Files in a folder `path` keep their own names.
    ///
    /// ```
    /// use opensora_video::{Decoder, VideoReader};
    /// use std::path::Path;
    ///
    /// let path = Path::new("missing.mp4");
    /// let error = VideoReader::open(path, Decoder::Auto).err().ok_or("expected an error")?;
    /// assert!(error.line_without(path).starts_with("No such file"));
    /// # Ok::<(), &str>(())
    /// ```
    pub fn line_without(&self, path: &Path) -> String {
        let line = error_line(self);
        let rest = line.strip_prefix(&path.display().to_string()).unwrap_or(&line);
        rest.trim_start_matches([':', '/', '\\', ' ']).to_string()
    }

    pub(crate) fn decode(path: &Path, source: impl Into<Cause>) -> Self {
        Self::Decode { path: path.into(), source: source.into() }
    }
}

fn not_installed(program: &Path) -> String {
    format!("the program {}, which reads other kinds of video, is not installed", program.display())
}

fn cannot_start(program: &Path) -> String {
    format!("the program {} cannot be started", program.display())
}
