//! A data step on the terminal: its progress, its end by a signal, its summary.

use crate::{
    output::{self, OutputError},
    progress::Progress,
    stop,
};
use opensora::prepare::{
    assemble::{Summary, failed_path},
    pipeline::Observer,
    step::Watch,
};
use serde_json::json;
use std::{ops::ControlFlow, path::Path};

/// Shows the progress of a step; a signal ends the step after its current rows.
pub(crate) struct StepProgress {
    progress: Progress,
    stage: String,
}

impl StepProgress {
    /// For a step that does `stage`, such as "splitting".
    pub(crate) fn new(quiet: bool, stage: &str) -> Self {
        stop::listen();
        Self { progress: Progress::new(quiet), stage: stage.into() }
    }

    /// A line that stays, unless quiet.
    pub(crate) fn line(&mut self, text: &str) {
        self.progress.line(text);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        self.progress.finish();
    }
}

impl Watch for StepProgress {
    fn advanced(&mut self, done: usize, _: usize, total: usize) -> ControlFlow<()> {
        self.progress.advance(&self.stage, done, total);
        stop::flow()
    }
}

impl Observer for StepProgress {
    fn began(&mut self, stage: &str, number: usize, total: usize) {
        self.stage = stage.into();
        self.progress.line(&format!("{stage} ({number} of {total})"));
    }

    fn ended(&mut self, stage: &str, _: &Summary, was_done: bool) {
        self.progress.finish();
        if was_done {
            self.progress.line(&format!("{stage}: was complete already"));
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
            "rows": input, what: made, "failed": failed, "out": out, "failed_out": list,
        }));
    }
    output::line(format_args!("{made} {what} of {input} rows: {}", out.display()))?;
    if let Some(list) = list {
        let list = list.display();
        output::line(format_args!("{failed} rows could not be used, with reasons: {list}"))?;
    }
    Ok(())
}
