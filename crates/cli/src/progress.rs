//! Progress on standard error: bars on a terminal, plain lines elsewhere.

use crate::{output, stop};
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use opensora::{
    Observer,
    nn::device,
    pipeline::{Decoded, Loaded, Part, SamplerStep, UnknownWords},
};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Time between two plain lines of one stage.
pub(crate) const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Message while a device compiles its kernels.
const WARM_UP: &str = if cfg!(feature = "autotune") {
    "warming up (kernels are compiled and tuned at their first use)"
} else {
    "warming up (kernels are compiled at their first use)"
};

/// Returns the message for the first step on a device, if that step takes far longer than others.
pub(crate) fn warm_up(device: &Device) -> Option<&'static str> {
    device::compiles_kernels(device).then_some(WARM_UP)
}

/// Shows the pipeline's progress on standard error.
pub(crate) struct Progress {
    mode: Mode,
    bar: Option<ProgressBar>,
    /// Name of the stage, known from its first step on.
    stage: Option<String>,
    stage_started: Instant,
    last_line: Option<Instant>,
    /// Message before a stage's first step, on devices that compile kernels.
    warm_up: Option<&'static str>,
    /// True until the first step of a stage ends, if that step is a warm-up.
    cold: bool,
    /// Steps that the estimate of the time left leaves out: the warm-up, and those of earlier batches.
    uncounted: usize,
    /// True if a signal stops the decoding.
    stops_decoding: bool,
}

/// Display of progress: none, plain lines or bars.
#[derive(PartialEq)]
pub(crate) enum Mode {
    Quiet,
    Plain,
    Bars,
}

impl Mode {
    /// Returns bars for a terminal that can draw them (not with `TERM=dumb`), plain lines for anything else, nothing if
    /// `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        match (quiet, ProgressDrawTarget::stderr().is_hidden()) {
            (true, _) => Self::Quiet,
            (false, false) => Self::Bars,
            (false, true) => Self::Plain,
        }
    }
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            mode: Mode::new(quiet),
            bar: None,
            stage: None,
            stage_started: Instant::now(),
            last_line: None,
            warm_up: None,
            cold: false,
            uncounted: 0,
            stops_decoding: false,
        }
    }

    /// Lets a signal stop the decoding from now on: of clips that are not results.
    pub(crate) fn stop_in_decoding(&mut self) {
        self.stops_decoding = true;
    }

    /// Reports the warm-up of each stage from now on, if `device` compiles its kernels at first use.
    pub(crate) fn on(mut self, device: &Device) -> Self {
        self.warm_up = warm_up(device);
        self
    }

    /// Begins a stage, whose first step may be a warm-up.
    pub(crate) fn begin_stage(&mut self) {
        self.stage = None;
        self.stage_started = Instant::now();
        self.uncounted = 0;
        self.cold = self.warm_up.is_some();
        if let Some(text) = self.warm_up {
            self.line(&format!("  {text}"));
        }
    }

    /// Prints a line, unless quiet.
    pub(crate) fn line(&mut self, text: &str) {
        self.finish();
        if self.mode != Mode::Quiet {
            output::message(text);
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.last_line = None;
    }

    /// Shows that `done` of `total` parts of a stage are done.
    pub(crate) fn advance(&mut self, stage: &str, done: usize, total: usize) {
        let warmed_up = std::mem::take(&mut self.cold).then(|| self.stage_started.elapsed());
        if let Some(took) = warmed_up {
            if done < total {
                self.line(&format!("  warmed up in {:.1} s", took.as_secs_f64()));
            }
            self.stage_started = Instant::now();
            self.uncounted = done;
        }
        // With several batches, sampling and decoding take turns.
        let changed = self.stage.as_deref() != Some(stage);
        if changed && self.stage.replace(stage.into()).is_some() {
            self.finish();
            self.stage_started = Instant::now();
            self.uncounted = done;
        }
        match self.mode {
            Mode::Quiet => {}
            Mode::Bars => {
                let bar = self.bar.get_or_insert_with(|| new_bar(stage, total));
                bar.set_position(done as u64);
                if changed || warmed_up.is_some() {
                    bar.reset_eta();
                }
            }
            Mode::Plain => {
                let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
                if done == total || due {
                    let elapsed = self.stage_started.elapsed();
                    let counted = done.saturating_sub(self.uncounted);
                    output::message(plain_line(stage, done, total, counted, elapsed));
                    self.last_line = Some(Instant::now());
                }
            }
        }
        if done == total {
            self.finish();
        }
    }
}

/// Returns a line of progress. The time left is estimated from `counted` steps in `elapsed`, and left
/// out if there are none.
fn plain_line(stage: &str, done: usize, total: usize, counted: usize, elapsed: Duration) -> String {
    let line = format!("{stage} {done}/{total}, {:.1} s", elapsed.as_secs_f64());
    if counted == 0 && done < total {
        return line;
    }
    let left = elapsed.mul_f64(total.saturating_sub(done) as f64 / counted.max(1) as f64);
    format!("{line}, {:.0} s left", left.as_secs_f64())
}

fn new_bar(stage: &str, total: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>9} [{bar:32}] {pos}/{len}  {per_sec}  {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style).with_prefix(stage.to_string())
}

impl Observer for Progress {
    fn loading(&mut self, part: Part) {
        self.line(&format!("loading the {part}"));
    }

    fn loaded(&mut self, event: &Loaded<'_>) {
        self.line(&format!("  {}", event.report));
        self.begin_stage();
    }

    fn unknown_words(&mut self, event: &UnknownWords<'_>) {
        let UnknownWords { prompt, words, .. } = event;
        let plural = if words.len() == 1 { "" } else { "s" };
        let words = words.join(", ");
        self.line(&format!("warning: word{plural} unknown to the model in \"{prompt}\": {words}"));
    }

    fn sampler_step(&mut self, event: &SamplerStep<'_>) -> ControlFlow<()> {
        let done = event.batch * event.steps + event.step + 1;
        self.advance("sampling", done, event.batches * event.steps);
        stop::flow()
    }

    /// Shows the progress. Stops the decoding only after [`Progress::stop_in_decoding`]: a clip that was sampled is worth
    /// its decoding.
    fn decoded(&mut self, event: &Decoded) -> ControlFlow<()> {
        self.advance("decoding", event.frames, event.total);
        if self.stops_decoding { stop::flow() } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_is_left_out_of_the_pace() {
        let seconds = Duration::from_secs;
        let line = |done, counted, elapsed| plain_line("sampling", done, 10, counted, elapsed);
        assert_eq!(line(4, 4, seconds(8)), "sampling 4/10, 8.0 s, 12 s left");
        assert_eq!(line(1, 0, seconds(0)), "sampling 1/10, 0.0 s");
        assert_eq!(line(3, 2, seconds(4)), "sampling 3/10, 4.0 s, 14 s left");
        assert_eq!(line(10, 0, seconds(0)), "sampling 10/10, 0.0 s, 0 s left");
    }

    #[test]
    fn the_first_step_of_a_stage_is_the_warm_up() {
        let mut progress = Progress::new(true);
        progress.warm_up = Some(WARM_UP);
        progress.begin_stage();
        assert!(progress.cold);
        progress.advance("sampling", 1, 10);
        assert_eq!((progress.cold, progress.uncounted), (false, 1));
        progress.advance("sampling", 2, 10);
        assert_eq!(progress.uncounted, 1);
        // The next model has other kernels.
        progress.begin_stage();
        assert_eq!((progress.cold, progress.uncounted), (true, 0));
    }

    #[test]
    fn stages_that_take_turns_have_their_own_pace() {
        let mut progress = Progress::new(true);
        progress.begin_stage();
        progress.advance("sampling", 1, 4);
        assert_eq!(progress.uncounted, 0);
        progress.advance("sampling", 2, 4);
        progress.advance("decoding", 8, 16);
        assert_eq!(progress.uncounted, 8);
        progress.advance("sampling", 3, 4);
        progress.advance("sampling", 4, 4);
        assert_eq!(progress.uncounted, 3);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn flex_does_not_warm_up() {
        let mut progress = Progress::new(true).on(&Device::flex());
        progress.begin_stage();
        assert!(!progress.cold);
    }
}
