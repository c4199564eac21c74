//! Bounds of requests, of the queue and of the disk.

use serde::Serialize;

/// Longest prompt that a request may have, in characters. Text encoders see 120 tokens of it.
pub const MAX_PROMPT_CHARS: usize = 2000;

/// Largest body of a request in bytes: two prompts whose characters are all JSON escapes of 12 bytes, and
/// the other fields.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Largest seed: integers up to this one are exact in JSON of all languages.
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// Bounds of what clients may ask for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limits {
    /// Jobs that may wait.
    pub max_queued: usize,
    /// Jobs in all, finished ones included; memory holds their parameters.
    pub max_jobs: usize,
    /// Bytes of all jobs on disk.
    pub max_disk_bytes: u64,
    /// What happens to a new job if the disk limit or the number of jobs is reached.
    #[serde(skip)]
    pub when_full: WhenFull,
    /// Pixels of a side.
    pub max_side: usize,
    /// Frames of a video.
    pub max_frames: usize,
    /// Pixels of all frames of a video together.
    pub max_pixels: usize,
    /// Steps of the sampler.
    pub max_steps: usize,
}

impl Default for Limits {
    /// 100 waiting jobs, 10,000 jobs in 10 GiB, sides of 1,024 pixels, 64 frames, 16 frames of 1024x1024 pixels,
    /// 250 steps.
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
    /// It is rejected until a client deletes finished jobs.
    #[default]
    Reject,
    /// The oldest finished jobs are deleted.
    DeleteOldest,
}
