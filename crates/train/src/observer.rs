//! The observer of a run, and the events that it receives.

use crate::{
    error::TrainError,
    metrics::{Gap, Record},
};
use opensora_files::error_line;
use std::{
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Receives the events of a run. Every method has a default that ignores its event; `()` ignores all.
///
/// Events other than steps show as a line of text by [`Display`](fmt::Display).
pub trait Observer {
    /// Called after every step, when its numbers are known. For devices other than the host, the
    /// numbers of several steps are read at once.
    fn step(&mut self, event: &StepDone<'_>) {
        let _ = event;
    }

    /// Called after every update of the parameters, which the device may still be computing. `Break` ends
    /// the run with a checkpoint.
    fn update(&mut self, event: &Update) -> ControlFlow<()> {
        let _ = event;
        ControlFlow::Continue(())
    }

    /// Called when the run resumes from a checkpoint.
    fn resumed(&mut self, event: &Resumed) {
        let _ = event;
    }

    /// Called after a checkpoint was written.
    fn checkpoint_saved(&mut self, event: &CheckpointSaved) {
        let _ = event;
    }

    /// Called when a resume skipped and renamed a damaged checkpoint.
    fn checkpoint_damaged(&mut self, event: &CheckpointDamaged<'_>) {
        let _ = event;
    }

    /// Called at the start of a run whose cache of latents may not be the intended one.
    fn cache_doubted(&mut self, event: &CacheDoubted<'_>) {
        let _ = event;
    }

    /// Called when an old or unfinished checkpoint cannot be removed.
    fn removal_failed(&mut self, event: &RemovalFailed<'_>) {
        let _ = event;
    }

    /// Called at a resume for rows that are missing in the table of metrics.
    fn rows_missing(&mut self, event: &RowsMissing) {
        let _ = event;
    }

    /// Called when a finished run has no `model.json`.
    fn description_omitted(&mut self, event: &DescriptionOmitted) {
        let _ = event;
    }
}

impl Observer for () {}

/// Event: a step is done.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StepDone<'a> {
    /// Numbers of the step.
    pub record: &'a Record,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl<'a> StepDone<'a> {
    /// Returns the event of a step, for tests of observers.
    pub fn new(record: &'a Record, total_steps: u64) -> Self {
        Self { record, total_steps }
    }
}

/// Event: the parameters were updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Update {
    /// Number of updates so far.
    pub step: u64,
}

/// Event: the run resumes from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resumed {
    /// Steps of the checkpoint.
    pub step: u64,
}

impl fmt::Display for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resuming from step {}", self.step)
    }
}

/// Event: a checkpoint was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointSaved {
    /// Steps of the checkpoint.
    pub step: u64,
    /// Folder of the checkpoint.
    pub path: PathBuf,
}

impl fmt::Display for CheckpointSaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint of step {}: {}", self.step, self.path.display())
    }
}

/// Event: a damaged checkpoint was skipped and renamed.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CheckpointDamaged<'a> {
    /// The error of loading the checkpoint.
    pub error: &'a TrainError,
    /// New folder of the checkpoint.
    pub moved_to: &'a Path,
}

impl fmt::Display for CheckpointDamaged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved_to = self.moved_to.display();
        write!(f, "checkpoint skipped: {}; renamed to {moved_to}", error_line(self.error))
    }
}

/// Event: the cache of latents may be of another VAE or text encoder than the recipe names, or may have cut prompts. The run
/// continues.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CacheDoubted<'a> {
    /// What differs.
    pub error: &'a TrainError,
}

impl fmt::Display for CacheDoubted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "warning: {}", error_line(self.error))
    }
}

/// Event: an old or unfinished checkpoint cannot be removed. The run continues, and its next checkpoint retries the
/// removal.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RemovalFailed<'a> {
    /// The error of the removal.
    pub error: &'a TrainError,
}

impl fmt::Display for RemovalFailed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = error_line(self.error);
        write!(
            f,
            "warning: old or unfinished checkpoint not removed: {error}; the next checkpoint tries again"
        )
    }
}

/// Rows are missing in the table of metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowsMissing {
    /// The table.
    pub path: PathBuf,
    /// The missing rows.
    pub gap: Gap,
}

impl fmt::Display for RowsMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.gap)
    }
}

/// A finished run has no `model.json`, since it was given no text encoder or no VAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DescriptionOmitted;

impl fmt::Display for DescriptionOmitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no model.json was written, since the run was given no text encoder and VAE; \
             sample with --t5 and --vae",
        )
    }
}
