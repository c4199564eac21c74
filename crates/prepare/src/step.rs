//! Work row by row: in parallel, journalled, sharded, restartable.
//!
//! A step gives each of its rows a key that stays the same from run to run (a path, a URL) and a
//! function that makes a row's record. Records are appended to a journal as they come and are on
//! the disk before the row counts as done; the journal's first line holds the step's settings, so
//! that records of other settings are never mixed in. What a row failed with is recorded as well
//! and is as final as a success, unless failures are to be tried again. What would meet every row
//! alike, such as a server that refuses us, is no row's failure: it ends the step, and nothing of it
//! is recorded ([`Fault::Step`]).
//!
//! Records of files carry the file's size and time. A file that has changed since, or has come back, is
//! worked on again; the record of a success outlives its file ([`run_on_files`], [`Trust`]).

mod trust;

pub use trust::{State, Trust};

use crate::{
    PrepareError, open,
    pool::{self, PANIC},
};
use opensora_files::{Journal, one_line};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::HashMap,
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
};

/// One part of the rows, for job arrays: row r belongs to part r modulo `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 0.
    index: usize,
    /// Parts there are, at least 1.
    count: usize,
}

impl Shard {
    /// All rows.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Part `index` of `count`.
    ///
    /// # Errors
    /// Where there is no such part.
    pub fn new(index: usize, count: usize) -> Result<Self, PrepareError> {
        if index < count {
            return Ok(Self { index, count });
        }
        Err(PrepareError::Spec {
            field: "shard",
            found: format!("{index}/{count}"),
            expected: "i/n with i from 0 to n - 1",
        })
    }

    /// Parts there are.
    pub fn count(self) -> usize {
        self.count
    }

    /// Whether a row belongs to this part.
    pub fn holds(self, row: usize) -> bool {
        row % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = PrepareError;

    fn from_str(text: &str) -> Result<Self, PrepareError> {
        let numbers = text.split_once('/');
        let parsed = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        // What is no number is as wrong as a part that does not exist.
        let (index, count) = parsed.unwrap_or((0, 0));
        Self::new(index, count).map_err(|error| match error {
            PrepareError::Spec { field, expected, .. } => {
                PrepareError::Spec { field, found: text.into(), expected }
            }
            error => error,
        })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// How a step is run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where the journal is kept.
    pub journal: PathBuf,
    /// The step's name and all that its records depend on besides the rows.
    pub settings: Value,
    /// Rows worked on at once; 0 counts as 1.
    pub workers: usize,
    /// Which rows.
    pub shard: Shard,
    /// Whether rows that failed in an earlier run are tried again.
    pub retry_failed: bool,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// It has a record.
    Done(T),
    /// It cannot be used, and why; one line.
    Failed(String),
}

/// Why a row has no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It cannot be used; this is recorded.
    Row(String),
    /// It was not found out whether it can be used, and other rows would fare no better: the step
    /// ends, and the row is open when it is started again.
    Step(String),
}

/// Watches a step.
pub trait Watch {
    /// `done` of `total` rows are done, `failed` of them without success. A break stops the step:
    /// rows that are being worked on are still finished and recorded.
    fn advanced(&mut self, done: usize, failed: usize, total: usize) -> ControlFlow<()>;
}

/// Nobody watches.
impl Watch for () {
    fn advanced(&mut self, _: usize, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A line of a journal, read.
#[derive(Deserialize)]
struct Entry<T> {
    key: String,
    #[serde(default)]
    state: State,
    #[serde(flatten)]
    outcome: Outcome<T>,
}

/// A line of a journal, to be written.
#[derive(Serialize)]
struct Line<'a, T> {
    key: &'a str,
    #[serde(skip_serializing_if = "State::is_unknown")]
    state: &'a State,
    #[serde(flatten)]
    outcome: &'a Outcome<T>,
}

/// Works on the rows with these keys that have no record yet, and returns every row's outcome;
/// `None` for rows of other shards. `work` gets a row's index and may run on several threads at
/// once; a panic in it is that row's failure.
///
/// # Errors
/// Where two rows have one key, the journal cannot be used, or the watcher stops the step.
pub fn run<T>(
    run: &Run,
    keys: &[String],
    work: impl Fn(usize) -> Result<T, String> + Sync,
    watch: &mut dyn Watch,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    run_or_halt(run, keys, |row| work(row).map_err(Fault::Row), watch)
}

/// [`run`], for work that can find out that it is no use to go on: after a [`Fault::Step`], rows that
/// are being worked on are still finished and recorded, and no others are begun.
///
/// # Errors
/// As [`run`], and [`PrepareError::Halted`] after a [`Fault::Step`].
pub fn run_or_halt<T>(
    run: &Run,
    keys: &[String],
    work: impl Fn(usize) -> Result<T, Fault> + Sync,
    watch: &mut dyn Watch,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    run_checked(run, keys, &Trust::ALL, work, watch)
}

/// [`run_or_halt`], for rows that are each made of the file at its `path`: a record counts until the file
/// is another one.
///
/// # Errors
/// As [`run_or_halt`].
pub fn run_on_files<'p, T>(
    run: &Run,
    keys: &[String],
    path: impl Fn(usize) -> &'p Path + Sync,
    work: impl Fn(usize) -> Result<T, Fault> + Sync,
    watch: &mut dyn Watch,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    let trust = Trust { state: &|row| open::state(path(row)), holds: &|_, _| true };
    run_checked(run, keys, &trust, work, watch)
}

/// [`run_or_halt`], for records that are checked before they are trusted.
///
/// # Errors
/// As [`run_or_halt`].
pub fn run_checked<T>(
    run: &Run,
    keys: &[String],
    trust: &Trust<'_, T>,
    work: impl Fn(usize) -> Result<T, Fault> + Sync,
    watch: &mut dyn Watch,
) -> Result<Vec<Option<Outcome<T>>>, PrepareError>
where
    T: Serialize + DeserializeOwned + Send,
{
    let mut rows = HashMap::new();
    for (second, key) in keys.iter().enumerate() {
        if let Some(first) = rows.insert(key.as_str(), second) {
            return Err(PrepareError::Twice { first, second, key: key.clone() });
        }
    }
    let (mut journal, known) = open::<T>(run)?;
    let mut outcomes: Vec<Option<Outcome<T>>> = keys.iter().map(|_| None).collect();
    let mut states = vec![State::Unknown; keys.len()];
    for Entry { key, state, outcome } in known {
        let Some(&row) = rows.get(key.as_str()) else { continue };
        let again = run.retry_failed && matches!(outcome, Outcome::Failed(_));
        if run.shard.holds(row) {
            // Later lines replace earlier ones: a retry's outcome comes after the failure's.
            (outcomes[row], states[row]) = ((!again).then_some(outcome), state);
        }
    }
    for (row, state) in states.into_iter().enumerate() {
        let counts = match &outcomes[row] {
            None => continue,
            Some(Outcome::Done(record)) => {
                // Asked in any case, as it may note what there was.
                (trust.holds)(row, record) && !state.is_outdated(|| (trust.state)(row), true)
            }
            Some(Outcome::Failed(_)) => !state.is_outdated(|| (trust.state)(row), false),
        };
        if !counts {
            outcomes[row] = None;
        }
    }

    let mine = (0..keys.len()).filter(|&row| run.shard.holds(row));
    let (done, open): (Vec<usize>, Vec<usize>) = mine.partition(|&row| outcomes[row].is_some());
    let total = done.len() + open.len();
    let failures = |outcomes: &[Option<Outcome<T>>]| {
        outcomes.iter().filter(|outcome| matches!(outcome, Some(Outcome::Failed(_)))).count()
    };
    let mut progress = (done.len(), failures(&outcomes));

    let mut is_broken = watch.advanced(progress.0, progress.1, total).is_break();
    let mut halted = None;
    let stop = AtomicBool::new(is_broken);
    // Records that are there go to the disk together; not more than a few, so that quick work
    // does not run ahead of the disk and of whoever watches.
    let more = run.workers.max(1);
    let job = |index: usize| {
        let row = open[index];
        // Before the work: what changes meanwhile is another state.
        ((trust.state)(row), work(row))
    };
    pool::run(run.workers, open.len(), &stop, job, |results| {
        while let Ok(first) = results.recv() {
            let mut batch = Vec::new();
            for (index, result) in std::iter::once(first).chain(results.try_iter().take(more)) {
                let (state, result) = match result {
                    Some((state, result)) => (state, Some(result)),
                    None => (State::Unknown, None),
                };
                match outcome(result) {
                    Ok(outcome) => batch.push((open[index], state, outcome)),
                    Err(reason) => {
                        stop.store(true, Ordering::Relaxed);
                        halted.get_or_insert(reason);
                    }
                }
            }
            if let Err(error) = append(&mut journal, keys, &batch) {
                stop.store(true, Ordering::Relaxed);
                return Err(PrepareError::Io { path: run.journal.clone(), source: error });
            }
            for (row, _, outcome) in batch {
                progress.0 += 1;
                progress.1 += usize::from(matches!(outcome, Outcome::Failed(_)));
                outcomes[row] = Some(outcome);
            }
            if watch.advanced(progress.0, progress.1, total).is_break() {
                is_broken = true;
                stop.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    })?;
    let (done, _) = progress;
    match halted {
        Some(reason) if !is_broken => Err(PrepareError::Halted { reason, done, total }),
        _ if done < total => Err(PrepareError::Stopped { done, total }),
        _ => Ok(outcomes),
    }
}

/// Brings outcomes to the journal.
fn append<T: Serialize>(
    journal: &mut Journal,
    keys: &[String],
    batch: &[(usize, State, Outcome<T>)],
) -> std::io::Result<()> {
    let line = |(row, state, outcome): &(usize, State, Outcome<T>)| {
        serde_json::to_string(&Line { key: &keys[*row], state, outcome })
    };
    let lines: Vec<String> = batch.iter().map(line).collect::<Result<_, _>>()?;
    journal.append(lines.iter().map(String::as_str))
}

/// A row's outcome from what its work returned (`None`: it panicked), or why the step ends.
fn outcome<T>(result: Option<Result<T, Fault>>) -> Result<Outcome<T>, String> {
    match result {
        Some(Ok(record)) => Ok(Outcome::Done(record)),
        Some(Err(Fault::Row(reason))) => Ok(Outcome::Failed(one_line(reason))),
        Some(Err(Fault::Step(reason))) => Err(one_line(reason)),
        None => Ok(Outcome::Failed(PANIC.into())),
    }
}

/// Opens or begins a journal; returns it and its lines.
pub(crate) fn open_journal(path: &Path) -> Result<(Journal, Vec<String>), PrepareError> {
    Journal::open(path).map_err(|source| match source.kind() {
        // Not the operating system's refusal, but what the journal is.
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::InvalidData => {
            PrepareError::Journal { path: path.into(), reason: source.to_string() }
        }
        _ => PrepareError::Io { path: path.into(), source },
    })
}

/// Opens the journal, checks or writes its first line, and reads its records.
fn open<T: DeserializeOwned>(run: &Run) -> Result<(Journal, Vec<Entry<T>>), PrepareError> {
    let path: &Path = &run.journal;
    let fail = |reason: String| PrepareError::Journal { path: path.into(), reason };
    let (mut journal, lines) = open_journal(path)?;
    let Some((first, lines)) = lines.split_first() else {
        journal
            .append([run.settings.to_string().as_str()])
            .map_err(|source| PrepareError::Io { path: path.into(), source })?;
        return Ok((journal, vec![]));
    };
    let settings: Value = serde_json::from_str(first)
        .map_err(|error| fail(format!("its first line holds no settings: {}", one_line(error))))?;
    if settings != run.settings {
        return Err(fail(format!(
            "it was written with other settings ({settings}, now {}): move it away, or write \
             elsewhere",
            run.settings
        )));
    }
    let entries = lines.iter().enumerate().map(|(index, line)| {
        serde_json::from_str(line)
            .map_err(|error| fail(format!("line {} is no record: {}", index + 2, one_line(error))))
    });
    Ok((journal, entries.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::{Mutex, atomic::AtomicUsize};

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|row| format!("clip \"{row}\".mp4")).collect()
    }

    fn at(folder: &Path) -> Run {
        Run {
            journal: folder.join("steps.jsonl"),
            settings: json!({"step": "test", "limit": 3}),
            workers: 3,
            shard: Shard::WHOLE,
            retry_failed: false,
        }
    }

    /// Stops after so many rows, and says that it has.
    struct StopAt<'a>(usize, &'a AtomicBool);

    impl Watch for StopAt<'_> {
        fn advanced(&mut self, done: usize, _: usize, _: usize) -> ControlFlow<()> {
            if done < self.0 {
                return ControlFlow::Continue(());
            }
            self.1.store(true, Ordering::Relaxed);
            ControlFlow::Break(())
        }
    }

    #[test]
    fn a_step_goes_on_where_it_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, worked) = (keys(40), Mutex::new(vec![0; 40]));
        let stopped = AtomicBool::new(false);
        let work = |row: usize| {
            // The last rows are worked on slowly, until someone has stopped the step.
            while row >= 35 && !stopped.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            worked.lock().unwrap()[row] += 1;
            // Not faster than the journal: else all rows are there before a stop is heard.
            std::thread::sleep(std::time::Duration::from_millis(1));
            if row % 7 == 3 { Err(format!("bad\nrow {row}")) } else { Ok(row * row) }
        };
        for stop in [0, 5, 17] {
            stopped.store(false, Ordering::Relaxed);
            let mut watch = StopAt(stop, &stopped);
            let error = run(&at(folder.path()), &keys, work, &mut watch).unwrap_err();
            assert!(matches!(error, PrepareError::Stopped { total: 40, .. }), "{error}");
        }
        // A crash in the middle of a line.
        let journal = at(folder.path()).journal;
        let bytes = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, &bytes[..bytes.len() - 3]).unwrap();
        let outcomes = run(&at(folder.path()), &keys, work, &mut ()).unwrap();
        for (row, outcome) in outcomes.into_iter().enumerate() {
            let expected = match row % 7 {
                3 => Outcome::Failed(format!("bad\\nrow {row}")),
                _ => Outcome::Done(row * row),
            };
            assert_eq!(outcome, Some(expected));
        }
        // Only the row of the torn line was worked on twice.
        let worked = worked.into_inner().unwrap();
        assert_eq!(worked.iter().sum::<i32>(), 41, "{worked:?}");
    }

    #[test]
    fn failures_are_final_until_they_are_tried_again() {
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
        let retry = Run { retry_failed: true, ..at(folder.path()) };
        let retried = run(&retry, &keys, |_| Ok(2), &mut ()).unwrap();
        let numbers: Vec<_> = retried.into_iter().flatten().collect();
        assert_eq!(numbers, [1, 1, 2, 1].map(Outcome::Done));
        let last = run(&at(folder.path()), &keys, |_| Ok(3), &mut ()).unwrap();
        assert_eq!(last[2], Some(Outcome::Done(2)));
    }

    #[test]
    fn what_meets_every_row_ends_the_step_and_is_not_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(20);
        let serial = Run { workers: 1, ..at(folder.path()) };
        let refuse = |row| match row {
            2 => Err(Fault::Row("no picture".into())),
            5.. => Err(Fault::Step("the server\nknows us not".into())),
            _ => Ok(row),
        };
        let halted = run_or_halt(&serial, &keys, refuse, &mut ()).unwrap_err();
        assert!(matches!(halted, PrepareError::Halted { done: 5, total: 20, .. }), "{halted}");
        assert!(halted.to_string().starts_with("the server\\nknows us not"), "{halted}");
        let outcomes = run(&serial, &keys, Ok, &mut ()).unwrap();
        for (row, outcome) in outcomes.into_iter().enumerate() {
            let failed = Outcome::Failed("no picture".into());
            assert_eq!(outcome, Some(if row == 2 { failed } else { Outcome::Done(row) }));
        }
    }

    #[test]
    fn records_of_other_states_and_lost_results_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, worked) = (keys(6), AtomicUsize::new(0));
        // As an earlier version wrote it: without a state.
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
                if row == 3 { Err(Fault::Row("torn".into())) } else { Ok(row) }
            };
            let trust = Trust { state: &state, holds: &holds };
            let outcomes = run_checked(&at(folder.path()), &keys, &trust, work, &mut ()).unwrap();
            assert_eq!(outcomes[5], Some(Outcome::Done(50)));
            worked.load(Ordering::Relaxed)
        };
        let first = ["a"; 6];
        assert_eq!(run(first, None), 5);
        assert_eq!(run(first, None), 0);
        // One is another file now, one that failed as well, and one is gone.
        let second = ["a", "b", "gone", "b", "a", "b"];
        assert_eq!(run(second, None), 2);
        assert_eq!(run(second, Some(4)), 1);
        assert_eq!(run(second, None), 0);
        assert_eq!(run(["?"; 6], None), 0);
        // A failure tells nothing of a file that is gone, and the next one nothing of one that came back.
        let third = ["a", "b", "gone", "gone", "a", "b"];
        assert_eq!((run(third, None), run(third, None)), (1, 0));
        assert_eq!((run(second, None), run(second, None)), (1, 0));
    }

    #[test]
    fn shards_share_the_rows_and_need_no_common_journal() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(10);
        let mut held = vec![0; 10];
        for index in 0..3 {
            let shard = Shard::new(index, 3).unwrap();
            let journal = folder.path().join(format!("{index}.jsonl"));
            let part = Run { shard, journal, ..at(folder.path()) };
            for (row, outcome) in run(&part, &keys, Ok, &mut ()).unwrap().iter().enumerate() {
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
    fn journals_of_other_settings_and_twins_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        run(&at(folder.path()), &keys(2), Ok, &mut ()).unwrap();
        let other = Run { settings: json!({"step": "test", "limit": 4}), ..at(folder.path()) };
        let refused = run(&other, &keys(2), Ok, &mut ()).unwrap_err().to_string();
        assert!(refused.contains("other settings"), "{refused}");
        let twins = ["a".to_string(), "b".into(), "a".into()];
        let refused = run(&at(folder.path()), &twins, Ok, &mut ()).unwrap_err();
        assert_eq!(refused.to_string(), "rows 1 and 3 are both a");
        std::fs::write(at(folder.path()).journal, "{\"limit\":3,\"step\":\"test\"}\nnonsense\n")
            .unwrap();
        let refused = run(&at(folder.path()), &keys(2), Ok, &mut ()).unwrap_err().to_string();
        assert!(refused.contains("line 2"), "{refused}");
    }
}
