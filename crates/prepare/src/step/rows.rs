//! The loop of a step: workers compute records, and this thread appends them to the journal.

use super::{Fault, Line, Outcome, Run, State, Trust};
use crate::{Advanced, Observer, PrepareError, RowError, pool};
use opensora_files::Journal;
use serde::Serialize;
use std::{
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A row, the state of its file before the work, and its outcome.
type Finished<T> = (usize, State, Outcome<T>);

/// A job's result: the state of the row's file before the work, and what the work returned. `None` if
/// it panicked.
type Worked<T> = Option<(State, Result<T, Fault>)>;

/// The rows of a step, some of them with outcomes of an earlier run.
pub(super) struct Rows<'a, 't, T> {
    pub(super) run: &'a Run,
    pub(super) keys: &'a [String],
    pub(super) trust: &'a Trust<'t, T>,
    pub(super) journal: Journal,
    pub(super) outcomes: Vec<Option<Outcome<T>>>,
}

impl<T: Serialize + Send> Rows<'_, '_, T> {
    /// Processes the rows without outcome.
    pub(super) fn process(
        mut self,
        work: impl Fn(usize) -> Result<T, Fault> + Sync,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Option<Outcome<T>>>, PrepareError> {
        let shard = self.run.options.shard;
        let mine = (0..self.keys.len()).filter(|&row| shard.holds(row));
        let (done, open): (Vec<usize>, Vec<usize>) =
            mine.partition(|&row| self.outcomes[row].is_some());
        let failed = self.outcomes.iter().flatten().filter(|outcome| is_failed(outcome)).count();
        let mut progress = Advanced { done: done.len(), failed, total: done.len() + open.len() };

        let mut is_stopped = observer.advanced(&progress).is_break();
        let mut halted = None;
        let stop = AtomicBool::new(is_stopped);
        let workers = self.run.options.workers;
        let trust = self.trust;
        let job = |index: usize| {
            let row = open[index];
            // Before the work: a file that changes meanwhile has another state afterwards.
            ((trust.state)(row), work(row))
        };
        pool::run(workers, open.len(), &stop, job, |results| {
            while let Ok(first) = results.recv() {
                // Available results are synced together, but only a few, so that fast work does not
                // outrun the disk or the observer.
                let available = results.try_iter().take(workers.max(1));
                let results = std::iter::once(first).chain(available);
                let (batch, fault) =
                    self.sort(results.map(|(index, result)| (open[index], result)));
                if let Some(fault) = fault {
                    stop.store(true, Ordering::Relaxed);
                    halted.get_or_insert(fault);
                }
                if let Err(source) = self.append(&batch) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(PrepareError::Io { path: self.run.journal.clone(), source });
                }
                for (row, _, outcome) in batch {
                    progress.done += 1;
                    progress.failed += usize::from(is_failed(&outcome));
                    self.outcomes[row] = Some(outcome);
                }
                if observer.advanced(&progress).is_break() {
                    is_stopped = true;
                    stop.store(true, Ordering::Relaxed);
                }
            }
            Ok(())
        })?;
        let Advanced { done, total, .. } = progress;
        match halted {
            Some(source) if !is_stopped => Err(PrepareError::Halted { source, done, total }),
            _ if done < total => Err(PrepareError::Stopped { done, total }),
            _ => Ok(self.outcomes),
        }
    }

    /// Separates outcomes from the first error that affects every row.
    fn sort(
        &self,
        results: impl Iterator<Item = (usize, Worked<T>)>,
    ) -> (Vec<Finished<T>>, Option<Arc<dyn Error + Send + Sync>>) {
        let (mut batch, mut halted) = (Vec::new(), None);
        for (row, result) in results {
            let (state, result) =
                result.unwrap_or((State::Unknown, Err(Fault::Row(RowError::Panic))));
            let outcome = match result {
                Ok(record) => Outcome::Done(record),
                Err(Fault::Row(error)) => Outcome::Failed(error.reason((self.trust.path)(row))),
                Err(Fault::Step(error)) => {
                    halted.get_or_insert(error);
                    continue;
                }
            };
            batch.push((row, state, outcome));
        }
        (batch, halted)
    }

    /// Appends outcomes to the journal.
    fn append(&mut self, batch: &[Finished<T>]) -> io::Result<()> {
        let line = |(row, state, outcome): &Finished<T>| {
            serde_json::to_string(&Line { key: &self.keys[*row], state, outcome })
        };
        let lines: Vec<String> = batch.iter().map(line).collect::<Result<_, _>>()?;
        self.journal.append(lines.iter().map(String::as_str))
    }
}

fn is_failed<T>(outcome: &Outcome<T>) -> bool {
    matches!(outcome, Outcome::Failed(_))
}
