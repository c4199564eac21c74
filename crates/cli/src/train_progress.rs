//! Progress of a training run: a bar on a terminal, a line every ten seconds otherwise.

use crate::{
    output,
    progress::{Mode, PLAIN_INTERVAL},
    stop,
};
use indicatif::{ProgressBar, ProgressStyle};
use opensora::train::{
    Observer,
    metrics::Record,
    observer::{
        CacheDoubted, CheckpointDamaged, DescriptionOmitted, RemovalFailed, Resumed, RowsMissing,
        StepDone, Update,
    },
};
use std::{
    fmt::Display,
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Shows a run's progress on standard error.
pub(crate) struct TrainProgress {
    mode: Mode,
    bar: Option<ProgressBar>,
    /// Time and number of the first reported step.
    first: Option<(Instant, u64)>,
    last_line: Option<Instant>,
    /// True if the parameters were updated since the pace was measured.
    is_updated: bool,
    /// A time, and the steps that were done in it.
    pace: Option<(Duration, u64)>,
}

impl TrainProgress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            mode: Mode::new(quiet),
            bar: None,
            first: None,
            last_line: None,
            is_updated: true,
            pace: None,
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.last_line = None;
    }

    /// Prints a line of text, above the bar if there is one; nothing if quiet.
    pub(crate) fn message(&mut self, text: impl Display) {
        match (&self.mode, &self.bar) {
            (Mode::Quiet, _) => {}
            (_, Some(bar)) => bar.println(text.to_string()),
            _ => output::message(text),
        }
    }

    /// Returns the estimated remaining time. It counts from the end of the first step, which
    /// compiles kernels and waits for its data, and includes checkpoints and samples.
    fn remaining(&mut self, step: u64, total_steps: u64) -> Option<Duration> {
        // The numbers of several steps can arrive at once: then only the first tells the time.
        if std::mem::take(&mut self.is_updated) {
            let (began, first) = *self.first.get_or_insert_with(|| (Instant::now(), step));
            self.pace = Some((began.elapsed(), step.saturating_sub(first)));
        }
        let (elapsed, done) = self.pace?;
        remaining(elapsed, done, total_steps.saturating_sub(step))
    }
}

impl Observer for TrainProgress {
    fn step(&mut self, event: &StepDone<'_>) {
        let (record, total_steps) = (event.record, event.total_steps);
        if self.mode == Mode::Quiet {
            return;
        }
        let remaining = self.remaining(record.step, total_steps);
        match self.mode {
            Mode::Quiet => {}
            Mode::Bars => {
                let bar = self.bar.get_or_insert_with(|| new_bar(total_steps));
                bar.set_position(record.step);
                bar.set_message(numbers(record, remaining));
            }
            Mode::Plain => {
                let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
                if due || record.step == total_steps {
                    let numbers = numbers(record, remaining);
                    output::message(format_args!("step {}/{total_steps}, {numbers}", record.step));
                    self.last_line = Some(Instant::now());
                }
            }
        }
    }

    fn update(&mut self, _event: &Update) -> ControlFlow<()> {
        self.is_updated = true;
        stop::flow()
    }

    fn resumed(&mut self, event: &Resumed) {
        self.message(event);
    }

    fn checkpoint_damaged(&mut self, event: &CheckpointDamaged<'_>) {
        self.message(event);
    }

    fn cache_doubted(&mut self, event: &CacheDoubted<'_>) {
        self.message(event);
    }

    fn removal_failed(&mut self, event: &RemovalFailed<'_>) {
        self.message(event);
    }

    fn rows_missing(&mut self, event: &RowsMissing) {
        self.message(event);
    }

    fn description_omitted(&mut self, event: &DescriptionOmitted) {
        self.message(event);
    }
}

fn new_bar(total_steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("training [{bar:24}] {pos}/{len}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total_steps).with_style(style)
}

/// Returns the numbers of a step on one line.
fn numbers(record: &Record, remaining: Option<Duration>) -> String {
    let mut line = format!(
        "loss {:.4}, {} samples/s, {} tokens/s",
        record.loss,
        short(record.samples_per_second),
        short(record.tokens_per_second)
    );
    if let Some(mfu) = record.mfu {
        line += &format!(", MFU {:.1} %", 100.0 * mfu);
    }
    if let Some(share) = record.communication {
        line += &format!(", {:.0} % in collectives", 100.0 * share);
    }
    if let Some(remaining) = remaining {
        line += &format!(", {} left", clock(remaining));
    }
    line
}

/// Returns a number with three digits and the unit k, M or G.
fn short(number: f64) -> String {
    let (number, unit) = match number {
        number if number >= 1e9 => (number / 1e9, "G"),
        number if number >= 1e6 => (number / 1e6, "M"),
        number if number >= 1e3 => (number / 1e3, "k"),
        number => (number, ""),
    };
    let digits = match number {
        number if number >= 100.0 => 0,
        number if number >= 10.0 => 1,
        _ => 2,
    };
    format!("{number:.digits$}{unit}")
}

/// Returns the time of `left` steps at the speed of `done` steps in `elapsed`, or `None` for no steps.
fn remaining(elapsed: Duration, done: u64, left: u64) -> Option<Duration> {
    let seconds = elapsed.as_secs_f64() * left as f64 / done as f64;
    (done > 0).then_some(())?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Returns a duration as `12 s`, `3 min`, `5 h 10 min` or `2 d 3 h`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if minutes == 0 => format!("{seconds} s"),
        () if hours == 0 => format!("{minutes} min"),
        () if days == 0 => format!("{hours} h {} min", minutes % 60),
        () => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_loss_speed_and_time() {
        let record = Record {
            loss: 0.12345,
            samples_per_second: 7.0,
            tokens_per_second: 28_672.0,
            mfu: Some(0.357),
            ..Record::default()
        };
        assert_eq!(
            numbers(&record, Some(Duration::from_secs(7300))),
            "loss 0.1235, 7.00 samples/s, 28.7k tokens/s, MFU 35.7 %, 2 h 1 min left"
        );
        let line = numbers(&Record { mfu: None, ..record.clone() }, None);
        assert_eq!(line, "loss 0.1235, 7.00 samples/s, 28.7k tokens/s");
        let line = numbers(&Record { mfu: None, communication: Some(0.126), ..record }, None);
        assert_eq!(line, "loss 0.1235, 7.00 samples/s, 28.7k tokens/s, 13 % in collectives");
    }

    #[test]
    fn steps_whose_numbers_arrive_at_once_are_not_fast() {
        let mut progress = TrainProgress::new(true);
        assert!((1..=8).all(|step| progress.remaining(step, 108).is_none()));
        progress.is_updated = true;
        std::thread::sleep(Duration::from_millis(80));
        // 8 steps in at least 80 ms, and 99 are left.
        let left: Vec<_> = (9..=16).map(|step| progress.remaining(step, 108).unwrap()).collect();
        assert!(left[0] >= Duration::from_millis(990), "{left:?}");
        assert!(
            left.is_sorted_by(|a, b| a > b) && left[7] >= Duration::from_millis(920),
            "{left:?}"
        );
    }

    #[test]
    fn remaining_time_needs_a_step() {
        let second = Duration::from_secs(1);
        assert_eq!(remaining(second, 0, 10), None);
        assert_eq!(remaining(second * 20, 10, 5), Some(second * 10));
        assert_eq!(remaining(second, 1, u64::MAX), None, "more than can be said");
        let text: Vec<String> =
            [12, 200, 18_600, 183_600].map(|s| clock(Duration::from_secs(s))).into();
        assert_eq!(text, ["12 s", "3 min", "5 h 10 min", "2 d 3 h"]);
    }
}
