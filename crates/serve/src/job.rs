//! Jobs and their status.

use crate::request::JobRequest;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// Status of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// The job waits for the worker.
    Queued,
    /// The worker computes the video.
    InProgress,
    /// The video can be fetched.
    Completed,
    /// The job has an error instead of a video.
    Failed,
    /// A client cancelled the job before it was completed.
    Cancelled,
}

impl JobStatus {
    /// All values.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::InProgress, Self::Completed, Self::Failed, Self::Cancelled];

    /// Returns the name in requests and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns true if the status is final.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// Kind of the error, for programs; [`OPENAPI`](crate::OPENAPI) lists all kinds.
    pub code: String,
    /// The error on one line.
    pub message: String,
}

impl JobError {
    /// Returns an error of a kind with a message.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// The constant part of a job; `request.json` in its folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Name of the job and of its folder.
    pub id: String,
    /// Place in the order of arrival.
    pub sequence: u64,
    /// Time of arrival in seconds since 1970.
    pub created_at: u64,
    /// Parameters of the video.
    pub request: JobRequest,
}

/// The variable part of a job; `state.json` in its folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobState {
    /// The status.
    pub status: JobStatus,
    /// Number of times that the worker has started the job, without those that ended with a graceful stop of
    /// the server.
    pub attempts: u32,
    /// When the worker began the last attempt, in seconds since 1970.
    pub started_at: Option<u64>,
    /// When the status became final, in seconds since 1970.
    pub completed_at: Option<u64>,
    /// Seconds that the last attempt took.
    pub seconds_taken: Option<f64>,
    /// Why the job failed.
    pub error: Option<JobError>,
    /// Name of the file with the video or image.
    pub output: Option<String>,
}

impl Default for JobState {
    fn default() -> Self {
        Self {
            status: JobStatus::Queued,
            attempts: 0,
            started_at: None,
            completed_at: None,
            seconds_taken: None,
            error: None,
            output: None,
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The constant part.
    pub spec: JobSpec,
    /// The variable part.
    pub state: JobState,
    /// Bytes of its folder.
    pub bytes: u64,
}

/// Returns the seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Prefix of every id.
const ID_PREFIX: &str = "video_";

/// Random hexadecimal digits of an id.
const ID_DIGITS: usize = 32;

/// Returns a new id, which cannot be guessed.
///
/// # Errors
/// Returns an error if the operating system has no random bytes.
pub(crate) fn new_id() -> std::io::Result<String> {
    let mut bytes = [0; ID_DIGITS / 2];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(format!("{ID_PREFIX}{}", opensora_files::hex(&bytes)))
}

/// Returns true if `text` has the form of an id.
pub(crate) fn is_id(text: &str) -> bool {
    text.strip_prefix(ID_PREFIX).is_some_and(|digits| {
        digits.len() == ID_DIGITS
            && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_recognized_and_paths_are_not() {
        let id = new_id().unwrap();
        assert!(is_id(&id), "{id}");
        assert_ne!(id, new_id().unwrap());
        for other in ["", "video_", "..", "video_../../../../../../../etc/passwd00", &id[1..]] {
            assert!(!is_id(other), "{other}");
        }
        assert!(!is_id(&id.to_uppercase()));
    }

    #[test]
    fn names_of_statuses_are_those_of_their_json() {
        for status in JobStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        }
    }
}
