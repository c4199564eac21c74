//! Progress on the terminal: bars where someone watches, plain lines elsewhere.

use crate::{output, stop};
use indicatif::{ProgressBar, ProgressStyle};
use opensora::{Observer, checkpoint::ImportReport};
use std::{
    io::IsTerminal,
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Between two plain lines of one stage.
pub(crate) const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the pipeline's progress on standard error.
pub(crate) struct Progress {
    mode: Mode,
    bar: Option<ProgressBar>,
    stage_started: Instant,
    last_line: Option<Instant>,
}

/// How progress is shown.
#[derive(PartialEq)]
pub(crate) enum Mode {
    Quiet,
    Plain,
    Bars,
}

impl Mode {
    /// Returns bars for a terminal, plain lines for anything else, nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bars,
            (false, false) => Self::Plain,
        }
    }
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { mode: Mode::new(quiet), bar: None, stage_started: Instant::now(), last_line: None }
    }

    /// A line that stays, unless quiet.
    pub(crate) fn line(&mut self, text: &str) {
        self.finish();
        if self.mode != Mode::Quiet {
            output::message(text);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.last_line = None;
    }

    /// Shows that `done` of `total` parts of a stage are done.
    pub(crate) fn advance(&mut self, stage: &str, done: usize, total: usize) {
        match self.mode {
            Mode::Quiet => {}
            Mode::Bars => {
                let bar = self.bar.get_or_insert_with(|| new_bar(stage, total));
                bar.set_position(done as u64);
            }
            Mode::Plain => {
                let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
                if done == total || due {
                    let elapsed = self.stage_started.elapsed();
                    let remaining = elapsed.mul_f64((total - done) as f64 / done.max(1) as f64);
                    output::message(format_args!(
                        "{stage} {done}/{total}, {:.1} s, {:.0} s left",
                        elapsed.as_secs_f64(),
                        remaining.as_secs_f64()
                    ));
                    self.last_line = Some(Instant::now());
                }
            }
        }
        if done == total {
            self.finish();
        }
    }
}

fn new_bar(stage: &str, total: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>9} [{bar:32}] {pos}/{len}  {per_sec}  {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style).with_prefix(stage.to_string())
}

impl Observer for Progress {
    fn loading(&mut self, what: &str) {
        self.line(&format!("loading the {what}"));
    }

    fn loaded(&mut self, report: &ImportReport) {
        self.line(&format!("  {report}"));
        self.stage_started = Instant::now();
    }

    fn sampled(
        &mut self,
        step: usize,
        steps: usize,
        batch: usize,
        batches: usize,
    ) -> ControlFlow<()> {
        self.advance("sampling", batch * steps + step, batches * steps);
        stop::flow()
    }

    fn decoded(&mut self, frames: usize, total: usize) {
        self.advance("decoding", frames, total);
    }
}
