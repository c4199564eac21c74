//! Limits of requests, queue and disk.

use serde::Serialize;

/// Maximum length of a prompt in characters. Text encoders use the first 120 tokens.
pub const MAX_PROMPT_CHARS: usize = 2000;

/// Largest body of a request in bytes: two prompts whose characters are all JSON escapes of 12 bytes, and
/// the other fields.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Largest seed: JSON parsers of all languages read integers up to this one exactly.
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// Limits of requests, queue and disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limits {
    /// Maximum number of queued jobs.
    pub max_queued: usize,
    /// Maximum number of jobs, including finished ones; their parameters are in memory.
    pub max_jobs: usize,
    /// Maximum bytes of all jobs on disk.
    pub max_disk_bytes: u64,
    /// What happens to a new job if the disk limit or the number of jobs is reached.
    #[serde(skip)]
    pub when_full: WhenFull,
    /// Maximum width and height in pixels.
    pub max_side: usize,
    /// Maximum number of frames of a video.
    pub max_frames: usize,
    /// Maximum number of pixels of all frames of a video.
    pub max_pixels: usize,
    /// Maximum number of sampler steps.
    pub max_steps: usize,
}

impl Default for Limits {
    /// Returns the defaults: 100 waiting jobs, 10,000 jobs in 10 GiB, sides of 1,024 pixels, 64 frames,
    /// 16 frames of 1024x1024 pixels, 250 steps.
    fn default() -> Self {
        Self {
            max_queued: 100,
            max_jobs: 10_000,
            max_disk_bytes: 10 << 30,
            when_full: WhenFull::default(),
            max_side: 1024,
            max_frames: 64,
            max_pixels: 16 << 20,
            max_steps: 250,
        }
    }
}

/// What happens to a new job if the disk limit or the number of jobs is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The new job is rejected. Clients have to delete finished jobs.
    #[default]
    Reject,
    /// The oldest finished jobs are deleted.
    DeleteOldest,
}
