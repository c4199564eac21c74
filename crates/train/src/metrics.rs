//! What a run tells about each step, and the files that keep it.
//!
//! ```text
//! RUN/metrics.csv                  one row a step, one column a number
//! RUN/events.out.tfevents.*        the same for TensorBoard, one file for each start of the run
//! ```
//!
//! | module | thought |
//! |---|---|
//! | [`table`] | `metrics.csv`: appended, cut back at a resume, read |
//! | [`events`] | TensorBoard's event files |
//! | [`flops`] | what a step costs, and what a machine can do |
//! | [`observer`] | who watches a run |

pub mod events;
pub mod flops;
pub mod observer;
pub mod table;

pub use observer::{Quiet, TrainObserver};
pub use table::{Gap, Table};

use events::EventWriter;
use std::path::{Path, PathBuf};
use table::TableWriter;

/// Name of the table in a run's folder.
pub const TABLE: &str = "metrics.csv";

/// Numbers of one step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// Steps done, this one included.
    pub step: u64,
    /// Samples seen, over all resumes.
    pub samples: u64,
    /// Passes through the data, with fraction.
    pub epoch: f64,
    /// Mean loss of the step's samples.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Speed in samples.
    pub samples_per_second: f64,
    /// Speed in tokens that the model works on.
    pub tokens_per_second: f64,
    /// Model FLOPs utilisation: the model's FLOP/s over the best that the machine was seen to do
    /// (see [`Ceiling`](flops::Ceiling)), 0 to 1.
    pub mfu: Option<f64>,
    /// Seconds of work since the run's first start, over all resumes.
    pub seconds: f64,
    /// What the loss is made of (`mse`, `vb`), and whatever else a task reports. A step may leave
    /// out what others have.
    pub parts: Vec<(&'static str, f64)>,
}

/// Columns that every record has, in the table's order; parts come behind them.
pub const COLUMNS: [&str; 10] = [
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
];

impl Record {
    /// The value in a column of [`COLUMNS`] or of a part, as it stands in the table.
    fn cell(&self, column: &str) -> String {
        let number = match column {
            "step" => return self.step.to_string(),
            "samples" => return self.samples.to_string(),
            "epoch" => self.epoch,
            "loss" => self.loss,
            "gradient_norm" => self.gradient_norm,
            "learning_rate" => self.learning_rate,
            "samples_per_second" => self.samples_per_second,
            "tokens_per_second" => self.tokens_per_second,
            "mfu" => return self.mfu.map(|value| value.to_string()).unwrap_or_default(),
            "seconds" => self.seconds,
            part => match self.parts.iter().find(|(name, _)| *name == part) {
                Some(&(_, value)) => value,
                None => return String::new(),
            },
        };
        number.to_string()
    }

    /// TensorBoard's curves: tag and value.
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
        scalars.extend(self.parts.iter().map(|(name, value)| (format!("train/{name}"), *value)));
        scalars
    }
}

/// Why metrics cannot be written or read; one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The operating system refused, for a full disk above all.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A table that is not one of a run.
    #[error("{}, line {line}: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1; the header is line 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
}

impl MetricsError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }
}

/// Writes the metrics of a run, each record at once: what was written stays when the process is
/// killed.
#[derive(Debug)]
pub struct MetricsWriter {
    table: TableWriter,
    events: EventWriter,
}

impl MetricsWriter {
    /// Goes on in `run_dir`, which exists, from a checkpoint of step `resume_at_step`, 0 for a
    /// fresh run: what an earlier start of the run wrote about later steps is dropped.
    ///
    /// # Errors
    /// Where files cannot be read or written, or the table is damaged in its middle.
    pub fn open(run_dir: &Path, resume_at_step: u64) -> Result<Self, MetricsError> {
        let table = TableWriter::open(&run_dir.join(TABLE), resume_at_step)?;
        Ok(Self { table, events: EventWriter::create(run_dir, resume_at_step + 1)? })
    }

    /// Returns the steps before the one that the run resumes at that have no row: a machine that
    /// lost its power may have kept a checkpoint and lost the rows before it.
    pub fn gaps(&self) -> &[Gap] {
        self.table.gaps()
    }

    /// Appends a record.
    ///
    /// # Errors
    /// Where a file cannot be written. The table holds whole rows then, and the run can go on from
    /// a checkpoint once the cause is gone.
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        self.table.append(record)?;
        self.events.scalars(record.step, &record.scalars())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_what_a_record_has() {
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
            parts: vec![("mse", 4.25)],
        };
        let cells = COLUMNS.map(|column| record.cell(column));
        assert_eq!(cells, ["1", "2", "3.5", "4.5", "5.5", "0.00006", "7.5", "8.5", "0.25", "9.5"]);
        assert_eq!((record.cell("mse"), record.cell("vb")), ("4.25".into(), String::new()));
        let tags: Vec<String> = record.scalars().into_iter().map(|(tag, _)| tag).collect();
        assert!(tags.contains(&"speed/mfu".into()) && tags.contains(&"train/mse".into()));
    }

    #[test]
    fn a_resumed_run_goes_on_in_both_files() {
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
