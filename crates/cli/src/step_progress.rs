//! A data step on the terminal: its progress, its end by a signal, its summary.

use crate::{
    output::{self, OutputError},
    progress::Progress,
    stop,
};
use opensora::prepare::{
    Advanced, Observer, StageFinished, StageStarted, Summary, assemble::failed_path,
};
use serde_json::json;
use std::{ops::ControlFlow, path::Path};

/// Shows the progress of a step; a signal ends the step after its current rows.
pub(crate) struct StepProgress {
    progress: Progress,
    stage: String,
}

impl StepProgress {
    /// Returns the progress of a step that is shown as `stage`, such as "splitting", and catches signals
    /// from now on ([`stop::listen`]).
    pub(crate) fn new(quiet: bool, stage: &str) -> Self {
        stop::listen();
        Self { progress: Progress::new(quiet), stage: stage.into() }
    }

    /// Prints a line that stays, unless quiet.
    pub(crate) fn line(&mut self, text: &str) {
        self.progress.line(text);
    }

    /// Removes the bar.
    pub(crate) fn finish(&mut self) {
        self.progress.finish();
    }
}

impl Observer for StepProgress {
    fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
        self.progress.advance(&self.stage, event.done, event.total);
        stop::flow()
    }

    fn stage_started(&mut self, event: &StageStarted<'_>) {
        let StageStarted { name, number, total, .. } = event;
        self.stage = (*name).into();
        self.progress.line(&format!("{name} ({number} of {total})"));
    }

    fn stage_finished(&mut self, event: &StageFinished<'_>) {
        self.progress.finish();
        if event.was_complete {
            self.progress.line(&format!("{}: was complete already", event.name));
        }
    }
}

/// Prints what a step did.
///
/// # Errors
/// Returns an error if standard output cannot be written; the step's files are complete by then.
pub(crate) fn print_summary(
    summary: &Summary,
    what: &str,
    out: &Path,
    as_json: bool,
) -> Result<(), OutputError> {
    let Summary { input, output: made, failed } = *summary;
    let list = (failed > 0).then(|| failed_path(out));
    if as_json {
        return output::json(&json!({
            "rows": input, what: made, "failed": failed, "out": output::path(out),
            "failed_out": list.map(output::path),
        }));
    }
    output::line(format_args!("{made} {what} of {input} rows: {}", out.display()))?;
    if let Some(list) = list {
        let list = list.display();
        output::line(format_args!("{failed} rows could not be used, with reasons: {list}"))?;
    }
    Ok(())
}
