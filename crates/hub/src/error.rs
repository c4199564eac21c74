//! The error type of the crate.

use opensora_files::one_line;
use std::{io, path::PathBuf, time::Duration};

/// An error of fetching or checking a file of the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// An environment variable is invalid.
    #[error("{name}: {reason}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// The problem and the expected value.
        reason: String,
    },
    /// A name is invalid for a repository, revision or file.
    #[error("'{}': {reason}", one_line(name))]
    Name {
        /// The name.
        name: String,
        /// The expected form.
        reason: &'static str,
    },
    /// The file is not in the cache, and the hub is in offline mode.
    #[error(
        "{repository}: '{}' is not in the cache ({}) and HF_HUB_OFFLINE is set: unset it, or fetch the \
         file where there is a network",
        one_line(file),
        cache.display()
    )]
    Offline {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The repository requires users to accept its terms.
    #[error(
        "{repository} is gated: accept its terms at {endpoint}/{repository}, then {}",
        if *has_token {
            "use a token of that account (HF_TOKEN)"
        } else {
            "set HF_TOKEN to a token of that account (or log in with `hf auth login`)"
        }
    )]
    Gated {
        /// The repository.
        repository: String,
        /// The hub.
        endpoint: String,
        /// A token was sent.
        has_token: bool,
    },
    /// The hub rejects the access token, for public repositories as well.
    #[error(
        "{endpoint}: the access token is invalid or has expired: replace it (HF_TOKEN, or log in \
         with `hf auth login`)"
    )]
    InvalidToken {
        /// The hub.
        endpoint: String,
    },
    /// The repository does not exist or is private.
    #[error(
        "{repository}: no such repository at {endpoint}, or a private one{}",
        if *has_token { " that this token may not read" } else { ": those need HF_TOKEN" }
    )]
    RepositoryNotFound {
        /// The repository.
        repository: String,
        /// The hub.
        endpoint: String,
        /// A token was sent.
        has_token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no revision '{}'", one_line(revision))]
    RevisionNotFound {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
    },
    /// The repository has no such file.
    #[error("{repository} has no file '{}' at revision {}", one_line(file), one_line(revision))]
    FileNotFound {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// The server limits the rate of requests, and all retries failed.
    #[error("{url}: too many requests{}", waits(*wait))]
    RateLimited {
        /// The address, without its query.
        url: String,
        /// Wait that the server requested last.
        wait: Option<Duration>,
    },
    /// The server answered with an error status.
    #[error("{url}: the server answers {status}{}", message(text))]
    Status {
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// Message of the server; may be empty.
        text: String,
    },
    /// The server cannot be reached, or the connection broke.
    #[error("{url}: connection failed")]
    Connection {
        /// The address, without its query.
        url: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer or file that is not JSON of the expected form.
    #[error("{place}: expected {expected}")]
    Json {
        /// The address, without its query, or the path.
        place: String,
        /// The expected contents.
        expected: &'static str,
        /// Why the text could not be parsed.
        source: serde_json::Error,
    },
    /// The answer is malformed.
    #[error("{url}: {}", one_line(reason))]
    Answer {
        /// The address, without its query.
        url: String,
        /// The problem and the expected form.
        reason: String,
    },
    /// The download ended early.
    #[error("{}: the download ended after {found} of {expected} bytes", one_line(file))]
    Truncated {
        /// The file.
        file: String,
        /// Bytes received.
        found: u64,
        /// Size of the file in bytes.
        expected: u64,
    },
    /// The checksum of a download is wrong. The bytes were removed.
    #[error(
        "{}: its checksum is {found}, the hub says {expected}: the damaged file was removed, fetch it \
         again",
        one_line(file)
    )]
    Checksum {
        /// The file.
        file: String,
        /// Checksum of the bytes.
        found: String,
        /// Checksum that the hub states.
        expected: String,
    },
    /// The disk has too little free space. Nothing was downloaded.
    #[error(
        "{}: {needed} bytes are needed, {available} are free: name another place with HF_HOME or \
         HF_HUB_CACHE",
        folder.display()
    )]
    Space {
        /// Folder of the download.
        folder: PathBuf,
        /// Bytes to download.
        needed: u64,
        /// Free bytes.
        available: u64,
    },
    /// A file of the cache cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The observer stopped the work. Downloaded bytes are kept, and a later call resumes.
    #[error("stopped: a later call resumes the download")]
    Stopped,
}

impl HubError {
    /// Returns true if the hub is unreachable, so that a cached copy can be used.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connection { .. })
            || matches!(self, Self::Status { status, .. } if *status >= 500)
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

fn waits(wait: Option<Duration>) -> String {
    match wait {
        Some(wait) => format!(": it asks to wait {} s", wait.as_secs()),
        None => String::new(),
    }
}

fn message(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {}", one_line(text)) }
}
