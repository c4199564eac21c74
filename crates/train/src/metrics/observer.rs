//! Who watches a run.

use super::Record;

/// Told about every step of a run.
pub trait TrainObserver {
    /// A step is done; the run ends after `total_steps`.
    fn step(&mut self, record: &Record, total_steps: u64);

    /// Something else that a person may want to know: a checkpoint, a row that was left out.
    fn message(&mut self, text: &str);

    /// Asked after every step: `true` ends the run with a checkpoint.
    fn should_stop(&mut self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl TrainObserver for Quiet {
    fn step(&mut self, _record: &Record, _total_steps: u64) {}

    fn message(&mut self, _text: &str) {}
}
