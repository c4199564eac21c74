//! The observer of a step: its progress as typed events, and a way to stop it.

use crate::Summary;
use std::ops::ControlFlow;

/// Event: rows of a step are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Advanced {
    /// Rows that are done, with success or without.
    pub done: usize,
    /// The rows among them that could not be used.
    pub failed: usize,
    /// All rows that the step processes.
    pub total: usize,
}

/// Event: a stage of a pipeline starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageStarted<'a> {
    /// Name of the stage.
    pub name: &'a str,
    /// Number of the stage, from 1.
    pub number: usize,
    /// Number of stages.
    pub total: usize,
}

/// Event: a stage of a pipeline is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageFinished<'a> {
    /// Name of the stage.
    pub name: &'a str,
    /// Row counts of the stage.
    pub summary: &'a Summary,
    /// True if an earlier run completed the stage, and nothing was done now.
    pub was_complete: bool,
}

/// Receives the events of steps and pipelines. `()` ignores them.
///
/// ```
/// use opensora_prepare::{Advanced, Observer};
/// use std::ops::ControlFlow;
///
/// /// Stops a step after ten rows.
/// struct FirstTen;
///
/// impl Observer for FirstTen {
///     fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
///         eprintln!("{} of {} rows", event.done, event.total);
///         if event.done < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
///     }
/// }
/// ```
pub trait Observer {
    /// Called at the start and when rows are done. [`ControlFlow::Break`] stops the step: no further rows are
    /// started, and rows in progress are finished and recorded, except captions that wait for a retry.
    fn advanced(&mut self, _event: &Advanced) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A stage of a pipeline starts.
    fn stage_started(&mut self, _event: &StageStarted<'_>) {}

    /// A stage of a pipeline is complete.
    fn stage_finished(&mut self, _event: &StageFinished<'_>) {}
}

impl Observer for () {}
