//! Why a file could not be fetched, each in one line.

use opensora_files::one_line;
use std::{io, path::PathBuf, time::Duration};

/// Why a file of the hub could not be fetched or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A setting of the environment that cannot be used.
    #[error("{name}: {reason}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What was found and what is expected.
        reason: String,
    },
    /// A name that no repository, revision or file can have.
    #[error("'{}': {reason}", one_line(name))]
    Name {
        /// The name.
        name: String,
        /// What is expected.
        reason: &'static str,
    },
    /// The file is not in the cache, and the hub may not be asked.
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
    /// The authors ask readers to accept their terms first.
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
    /// The hub shows no such repository.
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
    /// The server asked to wait, again and again.
    #[error("{url}: too many requests{}", waits(*wait))]
    RateLimited {
        /// The address, without its query.
        url: String,
        /// How long the server asked to wait the last time.
        wait: Option<Duration>,
    },
    /// Another answer without the file.
    #[error("{url}: the server answers {status}{}", message(text))]
    Status {
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// The server's own reason, if it gave one.
        text: String,
    },
    /// The server cannot be reached, or the connection broke.
    #[error("{url}: connection failed")]
    Connection {
        /// The address, without its query.
        url: String,
        /// What happened.
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
    /// An answer that cannot be understood.
    #[error("{url}: {}", one_line(reason))]
    Answer {
        /// The address, without its query.
        url: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The bytes ended early.
    #[error("{}: it ended after {found} of {expected} bytes", one_line(file))]
    Truncated {
        /// The file.
        file: String,
        /// Bytes that came.
        found: u64,
        /// Its size.
        expected: u64,
    },
    /// The bytes are others than the hub says; they were removed.
    #[error(
        "{}: its checksum is {found}, the hub says {expected}: the damaged file was removed, fetch it \
         again",
        one_line(file)
    )]
    Checksum {
        /// The file.
        file: String,
        /// What the bytes have.
        found: String,
        /// What the hub says.
        expected: String,
    },
    /// The disk has too little space; nothing was downloaded.
    #[error(
        "{}: {needed} bytes are needed, {available} are free: name another place with HF_HOME or \
         HF_HUB_CACHE",
        folder.display()
    )]
    Space {
        /// The cache.
        folder: PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// A file of the cache cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The observer asked for an end. The bytes that came are kept, and a later call resumes.
    #[error("stopped: a later call resumes the download")]
    Stopped,
}

impl HubError {
    /// Returns true if the hub could not be asked at all, so that a cached copy may stand in.
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
