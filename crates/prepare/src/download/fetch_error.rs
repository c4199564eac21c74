//! Errors of single downloads.

use super::{reach::NotPublic, secrets::shown_in};
use std::{fmt, io, path::PathBuf};

/// Error of downloading a video. Messages hold addresses without passwords, tokens and signatures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file cannot be created, written or renamed, or another process is downloading it.
    #[error("it cannot be written")]
    Write(#[source] io::Error),
    /// A redirect leads from HTTPS to HTTP.
    #[error("it redirects from HTTPS to HTTP")]
    InsecureRedirect,
    /// The host is not public, and private hosts are not allowed.
    #[error(transparent)]
    NotPublic(#[from] NotPublic),
    /// The server did not answer in time.
    #[error("no answer in time ({0})")]
    Timeout(
        /// The timeout that passed.
        String,
    ),
    /// The connection was interrupted.
    #[error("the connection broke")]
    Connection(#[source] io::Error),
    /// The request failed in another way.
    #[error(transparent)]
    Http(HttpError),
    /// The server answered with an error status.
    #[error("the server answers {0}")]
    Status(
        /// The status, such as "404 Not Found".
        String,
    ),
    /// The answer is not an image or video, or does not continue the partial file.
    #[error("{0}")]
    Answer(
        /// Description of the answer.
        String,
    ),
    /// The body ended before its stated length.
    #[error("it ended after {length} of {total} bytes")]
    Truncated {
        /// Bytes that were received.
        length: u64,
        /// Bytes that were stated.
        total: u64,
    },
    /// The file is empty.
    #[error("it is empty")]
    Empty,
    /// The file is larger than allowed.
    #[error("it is larger than {0} bytes")]
    TooLarge(
        /// Maximum size in bytes.
        u64,
    ),
    /// The file's SHA-256 is not that of the list.
    #[error("its SHA-256 is {found}, the list says {expected}")]
    Digest {
        /// SHA-256 of the file.
        found: String,
        /// SHA-256 in the list.
        expected: String,
    },
    /// The program `yt-dlp` is missing, cannot be started, or fails.
    #[error("{reason}")]
    YtDlp {
        /// The failure.
        reason: String,
        /// The operating system's reason, if it is one.
        source: Option<io::Error>,
    },
}

impl FetchError {
    /// Returns true if the file cannot be written: then its bytes are worth keeping.
    pub(super) fn is_of_output(&self) -> bool {
        matches!(self, Self::Write(_))
    }

    /// Returns the error of an answer that cannot be used. Addresses in its headers are shown without
    /// secrets.
    pub(super) fn answer(reason: impl AsRef<str>) -> Self {
        Self::Answer(shown_in(reason.as_ref()))
    }

    /// Returns an error of `yt-dlp` without a cause. Addresses in it are shown without secrets.
    pub(super) fn yt_dlp(reason: impl AsRef<str>) -> Self {
        Self::YtDlp { reason: shown_in(reason.as_ref()), source: None }
    }
}

/// An error of the HTTP client, shown without the secrets of addresses.
pub struct HttpError(ureq::Error);

impl From<ureq::Error> for HttpError {
    fn from(error: ureq::Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown_in(&self.0.to_string()))
    }
}

impl fmt::Debug for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpError({self})")
    }
}

// No source: the causes could hold secrets, and the message has their text already.
impl std::error::Error for HttpError {}
