//! Work on the rows of a table: in parallel, journalled, sharded, resumable.
//!
//! A step gives each row a key that stays the same from run to run (a path, a URL) and a function
//! that computes the row's record. Records are appended to a journal and synced to the disk before
//! their rows count as done. The first line of the journal holds the step's settings, so that records
//! of other settings are never mixed in. Failures are recorded as well and are final, unless
//! [`RunOptions::retry_failed`] is set, or another process was working on the row. Errors that would
//! affect every row (such as a rejected API key) abort the step and are not recorded against rows
//! ([`Fault::Step`]).
//!
//! Records of files carry the file's size and time. A file that has changed or reappeared is
//! processed again; the record of a success stays valid after its file is deleted ([`run_on_files`],
//! [`Trust`]).
//!
//! ```
//! use opensora_prepare::step::{self, Fault, Outcome, Run, RunOptions};
//!
//! # let folder = tempfile::tempdir()?;
//! let run = Run {
//!     journal: folder.path().join("lengths.jsonl"),
//!     settings: serde_json::json!({"step": "lengths"}),
//!     options: RunOptions { workers: 2, ..RunOptions::default() },
//! };
//! let keys = ["a.mp4".to_string(), "fox.mp4".to_string()];
//! let length = |row: usize| Ok::<_, Fault>(keys[row].len());
//! let outcomes = step::run(&run, &keys, length, &mut ())?;
//! assert_eq!(outcomes, [Some(Outcome::Done(5)), Some(Outcome::Done(7))]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod options;
mod rows;
mod trust;

pub use options::{RunOptions, Shard};
pub use trust::{State, Trust};

use crate::{JournalError, Observer, PrepareError, RowError, open};
use opensora_files::Journal;
use rows::Rows;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::HashMap,
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The journal, settings and options of a run.
#[derive(Debug, Clone)]
pub struct Run {
    /// The journal's file.
    pub journal: PathBuf,
    /// The step's name and everything that its records depend on besides the rows.
    pub settings: Value,
    /// Workers, shard, and retries of failed rows.
    pub options: RunOptions,
}

/// The outcome of a row, as journals record it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// The row has a record.
    Done(T),
    /// The row cannot be used: one line with the reason ([`RowError::reason`]).
    Failed(String),
}

/// Error of a row: a reason to record for the row, or an error that ends the step.
#[derive(Debug)]
pub enum Fault {
    /// The row cannot be used. The reason is recorded.
    Row(RowError),
    /// An error that affects every row. The step ends, nothing is recorded for the row, and the next
    /// run processes it again.
    Step(Arc<dyn Error + Send + Sync>),
}

impl<E: Into<RowError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Row(error.into())
    }
}

/// Endings of the reasons of rows that another process was working on: a download of the same file, and an open
/// [`Journal`] of the same video.
const BUSY: [&str; 2] =
    ["another process is downloading it", "another process is writing to this journal"];

/// Returns true if a row failed because another process was working on it. The next run processes it again.
pub(crate) fn is_busy(reason: &str) -> bool {
    BUSY.iter().any(|ending| reason.ends_with(ending))
}

/// A line of a journal, for reading.
#[derive(Deserialize)]
struct Entry<T> {
    key: String,
    #[serde(default)]
    state: State,
    #[serde(flatten)]
    outcome: Outcome<T>,
}

/// A line of a journal, for writing.
#[derive(Serialize)]
struct Line<'a, T> {
    key: &'a str,
    #[serde(skip_serializing_if = "State::is_unknown")]
    state: &'a State,
    #[serde(flatten)]
    outcome: &'a Outcome<T>,
}

/// Processes the rows with these keys that have no record yet, and returns the outcome of every row;
/// `None` for rows of other shards.
///
/// `work` gets the index of a row and is called on several threads at once. A panic in it is a failure
/// of that row. After a [`Fault::Step`], rows in progress are finished and recorded, and no others are
/// started.
///
/// # Errors
/// Returns an error if two rows have the same key, the journal cannot be used, `work` returns a
/// [`Fault::Step`], or the observer stops the step.
pub fn run<T>(
    run: &Run,
    keys: &[String],
    work: impl Fn(usize) -> Result<T, Fault> + Sync,
    observer: &mut dyn Observer,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    run_checked(run, keys, &Trust::ALL, work, observer)
}

/// Processes rows as [`run()`] does; the outcome of a row is computed from the file `path(row)`. An outcome
/// is discarded if the file's size or modification time has changed. A success stays valid after the
/// file is deleted.
///
/// # Errors
/// Returns an error if [`run()`] would.
pub fn run_on_files<'p, T>(
    run: &Run,
    keys: &[String],
    path: impl Fn(usize) -> &'p Path + Sync,
    work: impl Fn(usize) -> Result<T, Fault> + Sync,
    observer: &mut dyn Observer,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    let (state, path) = (|row| open::state(path(row)), |row| Some(path(row)));
    let trust = Trust { state: &state, path: &path, holds: &|_, _| true };
    run_checked(run, keys, &trust, work, observer)
}

/// Processes rows as [`run()`] does, after checking the outcomes of earlier runs with `trust`.
///
/// # Errors
/// Returns an error if [`run()`] would.
pub fn run_checked<T>(
    run: &Run,
    keys: &[String],
    trust: &Trust<'_, T>,
    work: impl Fn(usize) -> Result<T, Fault> + Sync,
    observer: &mut dyn Observer,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    let index = index(keys)?;
    let (journal, known) = open_run(run)?;
    let outcomes = valid_records(run, &index, known, trust, keys.len());
    Rows { run, keys, trust, journal, outcomes }.process(work, observer)
}

/// Returns the row of each key.
fn index(keys: &[String]) -> Result<HashMap<&str, usize>, PrepareError> {
    let mut rows = HashMap::new();
    for (second, key) in keys.iter().enumerate() {
        if let Some(first) = rows.insert(key.as_str(), second) {
            return Err(PrepareError::SameKey { first, second, key: key.clone() });
        }
    }
    Ok(rows)
}

/// Returns the outcomes of an earlier run that are still valid, by row.
fn valid_records<T>(
    run: &Run,
    rows: &HashMap<&str, usize>,
    known: Vec<Entry<T>>,
    trust: &Trust<'_, T>,
    count: usize,
) -> Vec<Option<Outcome<T>>> {
    let mut outcomes: Vec<Option<Outcome<T>>> = (0..count).map(|_| None).collect();
    let mut states = vec![State::Unknown; count];
    for Entry { key, state, outcome } in known {
        let Some(&row) = rows.get(key.as_str()) else { continue };
        let is_retried = match &outcome {
            Outcome::Done(_) => false,
            Outcome::Failed(reason) => run.options.retry_failed || is_busy(reason),
        };
        if run.options.shard.holds(row) {
            // Later lines replace earlier ones: a retry's outcome comes after the failure's.
            (outcomes[row], states[row]) = ((!is_retried).then_some(outcome), state);
        }
    }
    for (row, state) in states.into_iter().enumerate() {
        let is_valid = match &outcomes[row] {
            None => continue,
            Some(Outcome::Done(record)) => {
                // `holds` is called in any case: it may remember the files of the record.
                (trust.holds)(row, record) && !state.is_outdated(|| (trust.state)(row), true)
            }
            Some(Outcome::Failed(_)) => !state.is_outdated(|| (trust.state)(row), false),
        };
        if !is_valid {
            outcomes[row] = None;
        }
    }
    outcomes
}

/// Opens or creates a journal; returns it and its lines.
pub(crate) fn open_journal(path: &Path) -> Result<(Journal, Vec<String>), PrepareError> {
    Journal::open(path).map_err(|source| match source.kind() {
        // The journal is in use or not text: not a failure of the operating system.
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::InvalidData => {
            PrepareError::Journal { path: path.into(), source: JournalError::Open(source) }
        }
        _ => PrepareError::Io { path: path.into(), source },
    })
}

/// Opens the journal, checks or writes its first line (the step's settings), and reads its records.
fn open_run<T: DeserializeOwned>(run: &Run) -> Result<(Journal, Vec<Entry<T>>), PrepareError> {
    let path: &Path = &run.journal;
    let fail = |source| PrepareError::Journal { path: path.into(), source };
    let (mut journal, lines) = open_journal(path)?;
    let Some((first, lines)) = lines.split_first() else {
        journal.append([run.settings.to_string().as_str()]).map_err(PrepareError::io(path))?;
        return Ok((journal, vec![]));
    };
    let settings: Value =
        serde_json::from_str(first).map_err(|error| fail(JournalError::Settings(error)))?;
    if settings != run.settings {
        let (found, expected) = (settings.to_string(), run.settings.to_string());
        return Err(fail(JournalError::OtherSettings { found, expected }));
    }
    let entries = lines.iter().enumerate().map(|(index, line)| {
        serde_json::from_str(line)
            .map_err(|source| fail(JournalError::Record { line: index + 2, source }))
    });
    Ok((journal, entries.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Advanced;
    use opensora_files::error_line;
    use serde_json::json;
    use std::{
        ops::ControlFlow,
        sync::{
            Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
    };

    /// Succeeds on every row.
    fn all(row: usize) -> Result<usize, Fault> {
        Ok(row)
    }

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|row| format!("clip \"{row}\".mp4")).collect()
    }

    fn at(folder: &Path) -> Run {
        Run {
            journal: folder.join("steps.jsonl"),
            settings: json!({"step": "test", "limit": 3}),
            options: RunOptions { workers: 3, ..RunOptions::default() },
        }
    }

    #[test]
    fn settings_are_read_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        // As an f64, it has 17 digits.
        let run_of = Run { settings: json!({"mean": 0.457_827_5_f32}), ..at(folder.path()) };
        for _ in 0..2 {
            assert_eq!(run(&run_of, &keys(2), all, &mut ()).unwrap().len(), 2);
        }
    }

    /// Stops after this many rows, and sets a flag.
    struct StopAt<'a>(usize, &'a AtomicBool);

    impl Observer for StopAt<'_> {
        fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
            if event.done < self.0 {
                return ControlFlow::Continue(());
            }
            self.1.store(true, Ordering::Relaxed);
            ControlFlow::Break(())
        }
    }

    #[test]
    fn a_step_resumes_where_it_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, worked) = (keys(40), Mutex::new(vec![0; 40]));
        let stopped = AtomicBool::new(false);
        let work = |row: usize| {
            // The last rows wait until the step is stopped.
            while row >= 35 && !stopped.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            worked.lock().unwrap()[row] += 1;
            // Slower than the journal: otherwise all rows are done before the stop.
            std::thread::sleep(std::time::Duration::from_millis(1));
            if row % 7 == 3 { Err(format!("bad\nrow {row}").into()) } else { Ok(row * row) }
        };
        for stop in [0, 5, 17] {
            stopped.store(false, Ordering::Relaxed);
            let mut observer = StopAt(stop, &stopped);
            let error = run(&at(folder.path()), &keys, work, &mut observer).unwrap_err();
            assert!(matches!(error, PrepareError::Stopped { total: 40, .. }), "{error}");
        }
        // A crash in the middle of a line.
        let journal = at(folder.path()).journal;
        let bytes = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, &bytes[..bytes.len() - 3]).unwrap();
        let outcomes = run(&at(folder.path()), &keys, work, &mut ()).unwrap();
        for (row, outcome) in outcomes.into_iter().enumerate() {
            let expected = match row % 7 {
                3 => Outcome::Failed(format!("bad row {row}")),
                _ => Outcome::Done(row * row),
            };
            assert_eq!(outcome, Some(expected));
        }
        // Only the row of the incomplete line was processed twice.
        let worked = worked.into_inner().unwrap();
        assert_eq!(worked.iter().sum::<i32>(), 41, "{worked:?}");
    }

    #[test]
    fn failures_are_final_until_they_are_retried() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(4);
        let first = run(
            &at(folder.path()),
            &keys,
            |row| if row == 2 { panic!("on purpose") } else { Ok(1) },
            &mut (),
        );
        assert!(
            matches!(&first.unwrap()[2], Some(Outcome::Failed(reason)) if reason.contains("panic"))
        );
        let again = run(&at(folder.path()), &keys, |_| Ok(2), &mut ()).unwrap();
        assert!(matches!(again[2], Some(Outcome::Failed(_))));
        let mut retry = at(folder.path());
        retry.options.retry_failed = true;
        let retried = run(&retry, &keys, |_| Ok(2), &mut ()).unwrap();
        let numbers: Vec<_> = retried.into_iter().flatten().collect();
        assert_eq!(numbers, [1, 1, 2, 1].map(Outcome::Done));
        let last = run(&at(folder.path()), &keys, |_| Ok(3), &mut ()).unwrap();
        assert_eq!(last[2], Some(Outcome::Done(2)));
    }

    #[test]
    fn a_row_that_another_process_works_on_is_not_failed_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress.jsonl");
        let other = Journal::open(&path).unwrap();
        let keys = keys(3);
        let work = |row: usize| -> Result<usize, Fault> {
            if row == 1 {
                Journal::open(&path).map_err(|error| RowError::part("its progress", error))?;
            }
            Ok(row)
        };
        for _ in 0..2 {
            let outcomes = run(&at(folder.path()), &keys, work, &mut ()).unwrap();
            let reason = "its progress: another process is writing to this journal";
            assert_eq!(outcomes[1], Some(Outcome::Failed(reason.into())));
        }
        drop(other);
        let outcomes = run(&at(folder.path()), &keys, work, &mut ()).unwrap();
        assert_eq!(outcomes[1], Some(Outcome::Done(1)));
    }

    #[test]
    fn errors_that_affect_every_row_end_the_step_and_are_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(20);
        let mut serial = at(folder.path());
        serial.options.workers = 1;
        let refuse = |row| match row {
            2 => Err("no picture".into()),
            5.. => Err(Fault::Step(Arc::new(std::io::Error::other("unknown\nkey")))),
            _ => Ok(row),
        };
        let halted = run(&serial, &keys, refuse, &mut ()).unwrap_err();
        assert!(matches!(halted, PrepareError::Halted { done: 5, total: 20, .. }), "{halted}");
        assert!(error_line(&halted).ends_with(": unknown key"), "{halted}");
        let outcomes = run(&serial, &keys, all, &mut ()).unwrap();
        for (row, outcome) in outcomes.into_iter().enumerate() {
            let failed = Outcome::Failed("no picture".into());
            assert_eq!(outcome, Some(if row == 2 { failed } else { Outcome::Done(row) }));
        }
    }

    #[test]
    fn rows_of_changed_files_and_lost_results_are_processed_again() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, worked) = (keys(6), AtomicUsize::new(0));
        // A record of an earlier version has no state.
        let old = json!({"key": keys[5], "done": 50});
        let settings = at(folder.path()).settings;
        std::fs::write(at(folder.path()).journal, format!("{settings}\n{old}\n")).unwrap();
        let run = |states: [&str; 6], lost: Option<usize>| {
            worked.store(0, Ordering::Relaxed);
            let state = |row: usize| match states[row] {
                "gone" => State::Gone,
                "?" => State::Unknown,
                state => State::Known(state.into()),
            };
            let holds = |row: usize, _: &usize| Some(row) != lost;
            let work = |row: usize| {
                worked.fetch_add(1, Ordering::Relaxed);
                if row == 3 { Err("torn".into()) } else { Ok(row) }
            };
            let trust = Trust { state: &state, path: &|_| None, holds: &holds };
            let outcomes = run_checked(&at(folder.path()), &keys, &trust, work, &mut ()).unwrap();
            assert_eq!(outcomes[5], Some(Outcome::Done(50)));
            worked.load(Ordering::Relaxed)
        };
        let first = ["a"; 6];
        assert_eq!(run(first, None), 5);
        assert_eq!(run(first, None), 0);
        // One file has changed, also a failed one, and one is deleted.
        let second = ["a", "b", "gone", "b", "a", "b"];
        assert_eq!(run(second, None), 2);
        assert_eq!(run(second, Some(4)), 1);
        assert_eq!(run(second, None), 0);
        assert_eq!(run(["?"; 6], None), 0);
        // A failure is not valid after its file is deleted, and the next one not after the file reappears.
        let third = ["a", "b", "gone", "gone", "a", "b"];
        assert_eq!((run(third, None), run(third, None)), (1, 0));
        assert_eq!((run(second, None), run(second, None)), (1, 0));
    }

    #[test]
    fn shards_split_the_rows_with_separate_journals() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(10);
        let mut held = vec![0; 10];
        for index in 0..3 {
            let shard = Shard::new(index, 3).unwrap();
            let journal = folder.path().join(format!("{index}.jsonl"));
            let mut part = Run { journal, ..at(folder.path()) };
            part.options.shard = shard;
            for (row, outcome) in run(&part, &keys, all, &mut ()).unwrap().iter().enumerate() {
                held[row] += usize::from(*outcome == Some(Outcome::Done(row)));
            }
        }
        assert_eq!(held, [1; 10]);
        assert_eq!("2/3".parse::<Shard>().unwrap(), Shard::new(2, 3).unwrap());
        for wrong in ["3/3", "0/0", "1", "-1/2", "a/b"] {
            let error = wrong.parse::<Shard>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn journals_of_other_settings_and_duplicate_keys_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        run(&at(folder.path()), &keys(2), all, &mut ()).unwrap();
        let other = Run { settings: json!({"step": "test", "limit": 4}), ..at(folder.path()) };
        let refused = error_line(&run(&other, &keys(2), all, &mut ()).unwrap_err());
        assert!(refused.contains("other settings"), "{refused}");
        let twins = ["a".to_string(), "b".into(), "a".into()];
        let refused = run(&at(folder.path()), &twins, all, &mut ()).unwrap_err();
        assert_eq!(refused.to_string(), "rows 1 and 3 are both a");
        std::fs::write(at(folder.path()).journal, "{\"limit\":3,\"step\":\"test\"}\nnonsense\n")
            .unwrap();
        let refused = error_line(&run(&at(folder.path()), &keys(2), all, &mut ()).unwrap_err());
        assert!(refused.contains("line 2"), "{refused}");
    }
}
