//! The numbers of each step, and the files that hold them.
//!
//! ```text
//! RUN/metrics.csv                  one row for each step, one column for each number
//! RUN/events.out.tfevents.*        the same for TensorBoard, one file for each start of the run
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`table`] | writer and reader of `metrics.csv` |
//! | [`events`] | writer of TensorBoard's event files |
//! | [`flops`] | FLOPs of a step, peak FLOP/s of a device |

pub mod events;
pub mod flops;
pub mod table;

pub use table::{Gap, Table};

use events::EventWriter;
use std::path::{Path, PathBuf};
use table::TableWriter;

/// Name of the table of metrics in a run's folder.
pub const TABLE: &str = "metrics.csv";

/// Metrics of one training step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// Steps done, this one included.
    pub step: u64,
    /// Samples so far, over all resumes.
    pub samples: u64,
    /// Passes through the data, with fraction.
    pub epoch: f64,
    /// Mean loss of the step's samples.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Samples per second.
    pub samples_per_second: f64,
    /// Tokens of the model per second.
    pub tokens_per_second: f64,
    /// Model FLOPs utilisation: the model's FLOP/s divided by the highest known FLOP/s of the
    /// machine (see [`Ceiling`](flops::Ceiling)), 0 to 1.
    pub mfu: Option<f64>,
    /// Seconds of training, over all resumes.
    pub seconds: f64,
    /// Share of the time that rank 0 spends in collectives, 0 to 1, with waiting for slower ranks; `None` for a single
    /// rank.
    pub communication: Option<f64>,
    /// Terms of the loss (`mse`, `vb`) and other numbers of the task. Steps can have different parts.
    pub parts: Vec<(&'static str, f64)>,
}

/// Columns that every record has, in the table's order. The parts follow.
pub const COLUMNS: [&str; 11] = [
    "step",
    "samples",
    "epoch",
    "loss",
    "gradient_norm",
    "learning_rate",
    "samples_per_second",
    "tokens_per_second",
    "mfu",
    "seconds",
    "communication",
];

impl Record {
    /// Returns the text of a column of [`COLUMNS`] or of a part.
    fn cell(&self, column: &str) -> String {
        let optional =
            |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let number = match column {
            "step" => return self.step.to_string(),
            "samples" => return self.samples.to_string(),
            "epoch" => self.epoch,
            "loss" => self.loss,
            "gradient_norm" => self.gradient_norm,
            "learning_rate" => self.learning_rate,
            "samples_per_second" => self.samples_per_second,
            "tokens_per_second" => self.tokens_per_second,
            "mfu" => return optional(self.mfu),
            "seconds" => self.seconds,
            "communication" => return optional(self.communication),
            part => match self.parts.iter().find(|(name, _)| *name == part) {
                Some(&(_, value)) => value,
                None => return String::new(),
            },
        };
        number.to_string()
    }

    /// Returns tags and values of TensorBoard's curves.
    fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars: Vec<(String, f64)> = [
            ("train/loss", self.loss),
            ("train/gradient_norm", self.gradient_norm),
            ("train/learning_rate", self.learning_rate),
            ("train/epoch", self.epoch),
            ("speed/samples_per_second", self.samples_per_second),
            ("speed/tokens_per_second", self.tokens_per_second),
        ]
        .map(|(tag, value)| (tag.to_string(), value))
        .into();
        scalars.extend(self.mfu.map(|mfu| ("speed/mfu".to_string(), mfu)));
        scalars.extend(self.communication.map(|share| ("speed/communication".to_string(), share)));
        scalars.extend(self.parts.iter().map(|(name, value)| (format!("train/{name}"), *value)));
        scalars
    }
}

/// Error of writing or reading metrics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The operating system reports an error, such as a full disk.
    #[error("{}: I/O error", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not a table of a run.
    #[error("{}, line {line}: {reason}", path.display())]
    Table {
        /// Path of the file.
        path: PathBuf,
        /// The line, counted from 1; the header is line 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
        /// The error of the CSV parser, if it is the cause.
        source: Option<csv::Error>,
    },
}

impl MetricsError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }
}

/// Writes the metrics of a run. Every record is written at once, so that a killed process loses none.
#[derive(Debug)]
pub struct MetricsWriter {
    table: TableWriter,
    events: EventWriter,
}

impl MetricsWriter {
    /// Opens the metrics in `run_dir`, which must exist, after `resume_at_step` steps (0 for a new
    /// run). Removes the records of later steps, which an earlier start of the run wrote.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or written, or the table is damaged before its last row.
    pub fn open(run_dir: &Path, resume_at_step: u64) -> Result<Self, MetricsError> {
        let table = TableWriter::open(&run_dir.join(TABLE), resume_at_step)?;
        Ok(Self { table, events: EventWriter::create(run_dir, resume_at_step + 1)? })
    }

    /// Returns the missing rows of steps before the resume. After a power failure, a checkpoint can exist
    /// without the rows before it.
    pub fn gaps(&self) -> &[Gap] {
        self.table.gaps()
    }

    /// Appends a record.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written. The table then holds whole rows, and the run
    /// can resume from a checkpoint.
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        self.table.append(record)?;
        self.events.scalars(record.step, &record.scalars())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_a_value() {
        let record = Record {
            step: 1,
            samples: 2,
            epoch: 3.5,
            loss: 4.5,
            gradient_norm: 5.5,
            learning_rate: 6e-5,
            samples_per_second: 7.5,
            tokens_per_second: 8.5,
            mfu: Some(0.25),
            seconds: 9.5,
            communication: Some(0.125),
            parts: vec![("mse", 4.25)],
        };
        let cells = COLUMNS.map(|column| record.cell(column));
        let expected =
            ["1", "2", "3.5", "4.5", "5.5", "0.00006", "7.5", "8.5", "0.25", "9.5", "0.125"];
        assert_eq!(cells, expected);
        assert_eq!((record.cell("mse"), record.cell("vb")), ("4.25".into(), String::new()));
        let tags: Vec<String> = record.scalars().into_iter().map(|(tag, _)| tag).collect();
        assert!(tags.contains(&"speed/mfu".into()) && tags.contains(&"train/mse".into()));
    }

    #[test]
    fn a_resumed_run_continues_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let record = |step| Record { step, loss: step as f64, ..Record::default() };
        for (resume, steps) in [(0, 1..=5), (3, 4..=6)] {
            let mut writer = MetricsWriter::open(folder.path(), resume).unwrap();
            for step in steps {
                writer.write(&record(step)).unwrap();
            }
        }
        let table = Table::read(&folder.path().join(TABLE)).unwrap();
        assert_eq!(table.column("step"), Some(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        assert_eq!(table.gaps(), []);
        let writer = MetricsWriter::open(folder.path(), 9).unwrap();
        assert_eq!(writer.gaps(), [Gap { first: 7, last: 9 }]);
    }
}
