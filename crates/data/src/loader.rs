//! Batches from a source: read ahead by worker threads, in an order that does not depend on them.
//!
//! A bad row is an error, unless the recipe allows some: then its slot of the order is left out,
//! the batch goes on with the slots behind it, and the row is written to a list that later runs
//! heed. No row ever stands in for another.

use crate::{DataError, Source, order::Order};
use std::{
    collections::{BTreeMap, HashMap},
    fs::OpenOptions,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
};

/// How a loader reads.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderConfig {
    /// Samples of a batch.
    pub batch_size: usize,
    /// Threads that read; 0 reads in the calling thread.
    pub workers: usize,
    /// Batches that are read ahead.
    pub prefetch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Whether the order is shuffled, anew each epoch.
    pub shuffle: bool,
    /// Bad rows that are left out before it is an error.
    pub skip_bad: usize,
    /// Where bad rows are listed (CSV: row, path, reason); rows that are listed there already are
    /// left out unread and do not count.
    pub skip_list: Option<PathBuf>,
}

/// Consecutive samples of the order.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<T> {
    /// The samples.
    pub items: Vec<T>,
    /// Their rows in the manifest.
    pub rows: Vec<usize>,
    /// The slot at which the batch began.
    pub first_slot: u64,
    /// The slot at which the next one begins.
    pub next_slot: u64,
}

type Read<T> = Result<T, DataError>;

/// A job for a worker: slot, row, epoch.
type Job = (u64, usize, u64);

/// An endless iterator of batches; after an error it ends.
pub struct Loader<S: Source + ?Sized> {
    source: Arc<S>,
    config: LoaderConfig,
    order: Order,
    /// The next slot to hand to a worker, and the next to put into a batch.
    ahead: u64,
    slot: u64,
    skipped: BTreeMap<usize, String>,
    newly_skipped: usize,
    workers: Option<Workers<S::Item>>,
    finished: bool,
}

struct Workers<T> {
    jobs: Option<SyncSender<Job>>,
    results: Receiver<(u64, Read<T>)>,
    /// What came before its turn.
    early: HashMap<u64, Read<T>>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: Source + ?Sized + 'static> Loader<S>
where
    S::Item: 'static,
{
    /// Batches from slot `start` on.
    ///
    /// # Errors
    /// Where the source has no rows, the batch no samples, or the skip list cannot be read.
    pub fn new(source: Arc<S>, config: LoaderConfig, start: u64) -> Result<Self, DataError> {
        if config.batch_size == 0 {
            let (field, found) = ("batch_size", "0".to_string());
            return Err(DataError::Spec { field, found, expected: "at least 1" });
        }
        if source.len() == 0 {
            return Err(DataError::Worker { reason: "the data has no rows".into() });
        }
        let skipped = match &config.skip_list {
            Some(path) if path.exists() => read_skip_list(path)?,
            _ => BTreeMap::new(),
        };
        let order = Order::new(source.len(), config.seed, config.shuffle);
        let workers = (config.workers > 0).then(|| Workers::start(&source, &config));
        Ok(Self {
            source,
            config,
            order,
            ahead: start,
            slot: start,
            skipped,
            newly_skipped: 0,
            workers,
            finished: false,
        })
    }

    /// The rows that are left out, with the reasons.
    pub fn skipped(&self) -> &BTreeMap<usize, String> {
        &self.skipped
    }

    fn batch(&mut self) -> Result<Batch<S::Item>, DataError> {
        let first_slot = self.slot;
        let (mut items, mut rows) = (Vec::new(), Vec::new());
        let mut left_out = 0;
        while items.len() < self.config.batch_size {
            // A whole epoch in which every row is left out cannot fill a batch.
            if left_out >= self.source.len() {
                let reason = format!("all {} rows are bad", self.source.len());
                return Err(DataError::Worker { reason });
            }
            let slot = self.slot;
            let Some((epoch, row)) = self.order.at(slot) else {
                return Err(DataError::Worker { reason: "the data has no rows".into() });
            };
            let read = if self.skipped.contains_key(&row) {
                None
            } else {
                Some(self.take(slot, row, epoch))
            };
            self.slot += 1;
            match read {
                None => left_out += 1,
                Some(Ok(item)) => {
                    items.push(item);
                    rows.push(row);
                }
                Some(Err(error)) => {
                    self.skip(row, error)?;
                    left_out += 1;
                }
            }
        }
        Ok(Batch { items, rows, first_slot, next_slot: self.slot })
    }

    /// The sample of a slot, from a worker or read here.
    fn take(&mut self, slot: u64, row: usize, epoch: u64) -> Read<S::Item> {
        let Some(workers) = &mut self.workers else { return read(&*self.source, row, epoch) };
        // Keep the workers busy: as many slots ahead as batches are to be read ahead.
        let window = (self.config.batch_size * self.config.prefetch.max(1)) as u64;
        self.ahead = self.ahead.max(slot);
        while self.ahead < slot + window {
            if let Some((epoch, row)) = self.order.at(self.ahead)
                && !self.skipped.contains_key(&row)
            {
                workers.send((self.ahead, row, epoch))?;
            }
            self.ahead += 1;
        }
        workers.receive(slot)
    }

    /// Notes a bad row, or gives its error where no more are allowed.
    fn skip(&mut self, row: usize, error: DataError) -> Result<(), DataError> {
        if self.config.skip_bad == 0 {
            return Err(error);
        }
        if self.newly_skipped == self.config.skip_bad {
            let allowed = self.config.skip_bad;
            let reason = format!("more than the {allowed} bad rows that are allowed: {error}");
            return Err(DataError::Worker { reason });
        }
        let reason = error.to_string();
        if let Some(path) = &self.config.skip_list {
            append_skipped(path, row, &self.source.describe(row), &reason)
                .map_err(|source| DataError::Io { path: path.clone(), source })?;
        }
        self.skipped.insert(row, reason);
        self.newly_skipped += 1;
        Ok(())
    }
}

impl<S: Source + ?Sized + 'static> Iterator for Loader<S>
where
    S::Item: 'static,
{
    type Item = Result<Batch<S::Item>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let batch = self.batch();
        self.finished = batch.is_err();
        Some(batch)
    }
}

impl<T: Send + 'static> Workers<T> {
    fn start<S: Source<Item = T> + ?Sized + 'static>(
        source: &Arc<S>,
        config: &LoaderConfig,
    ) -> Self {
        // Never full: the loader bounds what is under way by itself.
        let capacity = config.batch_size * config.prefetch.max(1) + 1;
        let (jobs, queue) = sync_channel::<Job>(capacity);
        let queue = Arc::new(Mutex::new(queue));
        let (sender, results) = channel();
        let threads = (0..config.workers)
            .map(|_| {
                let (source, queue, sender) = (source.clone(), queue.clone(), sender.clone());
                std::thread::spawn(move || work(&*source, &queue, &sender))
            })
            .collect();
        Self { jobs: Some(jobs), results, early: HashMap::new(), threads }
    }

    fn send(&self, job: Job) -> Result<(), DataError> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        sent.and_then(Result::ok).ok_or_else(|| DataError::Worker { reason: gone() })
    }

    fn receive(&mut self, slot: u64) -> Read<T> {
        loop {
            if let Some(read) = self.early.remove(&slot) {
                return read;
            }
            match self.results.recv() {
                Ok((found, read)) => {
                    self.early.insert(found, read);
                }
                Err(_) => return Err(DataError::Worker { reason: gone() }),
            }
        }
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        // Without the sender's end the workers stop after the sample at hand.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gone() -> String {
    "the threads that read have ended".into()
}

fn work<S: Source + ?Sized>(
    source: &S,
    queue: &Mutex<Receiver<Job>>,
    results: &Sender<(u64, Read<S::Item>)>,
) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.try_recv().or_else(|_| queue.recv()),
            Err(_) => return,
        };
        let Ok((slot, row, epoch)) = job else { return };
        if results.send((slot, read(source, row, epoch))).is_err() {
            return;
        }
    }
}

/// Reads a row; a panic of a decoder is that row's error.
fn read<S: Source + ?Sized>(source: &S, row: usize, epoch: u64) -> Read<S::Item> {
    catch_unwind(AssertUnwindSafe(|| source.read(row, epoch))).unwrap_or_else(|_| {
        let path = source.describe(row).into();
        Err(DataError::Row { row, path, reason: "reading it panicked".into() })
    })
}

fn read_skip_list(path: &Path) -> Result<BTreeMap<usize, String>, DataError> {
    let fail = |reason: String| DataError::Manifest { path: path.into(), reason };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_path(path)
        .map_err(|error| fail(error.to_string()))?;
    let mut skipped = BTreeMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| fail(error.to_string()))?;
        // A line that a kill cut short: its row is read again and listed again.
        if let (Some(row), Some(reason)) = (record.get(0), record.get(2)) {
            let row: usize = row.parse().map_err(|_| fail(format!("'{row}' is not a row")))?;
            // Rows count from 1 in files for people.
            skipped.insert(row.saturating_sub(1), reason.to_string());
        }
    }
    Ok(skipped)
}

fn append_skipped(path: &Path, row: usize, name: &str, reason: &str) -> std::io::Result<()> {
    let mut line = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    line.write_record([&(row + 1).to_string(), name, reason])?;
    let line = line.into_inner().map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(&line)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Gives `row + 100 * epoch`; some rows are bad.
    struct Numbers {
        rows: usize,
        bad: HashSet<usize>,
        panics: HashSet<usize>,
    }

    impl Numbers {
        fn new(rows: usize, bad: &[usize]) -> Self {
            Self { rows, bad: bad.iter().copied().collect(), panics: HashSet::new() }
        }
    }

    impl Source for Numbers {
        type Item = u64;

        fn len(&self) -> usize {
            self.rows
        }

        fn read(&self, row: usize, epoch: u64) -> Result<u64, DataError> {
            assert!(!self.panics.contains(&row), "as asked");
            if self.bad.contains(&row) {
                let (path, reason) = (self.describe(row).into(), "bad".to_string());
                return Err(DataError::Row { row, path, reason });
            }
            Ok(row as u64 + 100 * epoch)
        }

        fn describe(&self, row: usize) -> String {
            format!("number-{row}")
        }
    }

    fn config(workers: usize, skip_bad: usize) -> LoaderConfig {
        let (batch_size, prefetch, seed, shuffle) = (4, 3, 9, true);
        LoaderConfig { batch_size, workers, prefetch, seed, shuffle, skip_bad, skip_list: None }
    }

    fn batches(source: Numbers, config: LoaderConfig, start: u64, count: usize) -> Vec<Batch<u64>> {
        let loader = Loader::new(Arc::new(source), config, start).unwrap();
        loader.take(count).map(Result::unwrap).collect()
    }

    #[test]
    fn the_order_does_not_depend_on_the_workers_and_can_be_entered_anywhere() {
        let alone = batches(Numbers::new(10, &[3, 7]), config(0, 5), 0, 9);
        for workers in [1, 2, 5] {
            assert_eq!(batches(Numbers::new(10, &[3, 7]), config(workers, 5), 0, 9), alone);
        }
        for first in [1, 4, 8] {
            let start = alone[first - 1].next_slot;
            let rest = batches(Numbers::new(10, &[3, 7]), config(2, 5), start, 9 - first);
            assert_eq!(rest, alone[first..]);
        }
        // Every good row once an epoch, and no other.
        let mut epoch: Vec<u64> = alone.iter().flat_map(|b| b.items.clone()).take(8).collect();
        epoch.sort_unstable();
        assert_eq!(epoch, [0, 1, 2, 4, 5, 6, 8, 9]);
    }

    #[test]
    fn a_bad_row_is_an_error_that_names_it() {
        for workers in [0, 2] {
            let source = Arc::new(Numbers::new(6, &[2]));
            let mut loader = Loader::new(source, config(workers, 0), 0).unwrap();
            let error = loader.find_map(Result::err).unwrap().to_string();
            assert!(error.contains("row 3") && error.contains("number-2"), "{error}");
            assert!(loader.next().is_none());
        }
    }

    #[test]
    fn so_many_bad_rows_are_left_out_and_listed_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("skipped.csv");
        let with_list =
            |skip_bad| LoaderConfig { skip_list: Some(list.clone()), ..config(2, skip_bad) };
        let source = || Arc::new(Numbers::new(10, &[1, 4, 8]));
        let mut loader = Loader::new(source(), with_list(2), 0).unwrap();
        let error = loader.find_map(Result::err).unwrap().to_string();
        assert!(error.contains("more than the 2 bad rows"), "{error}");
        assert_eq!(std::fs::read_to_string(&list).unwrap().lines().count(), 2);

        // What is listed does not count again.
        let mut loader = Loader::new(source(), with_list(1), 0).unwrap();
        for _ in 0..20 {
            assert!(loader.next().unwrap().is_ok());
        }
        assert_eq!(loader.skipped().keys().copied().collect::<Vec<_>>(), [1, 4, 8]);
        assert_eq!(std::fs::read_to_string(&list).unwrap().lines().count(), 3);
    }

    #[test]
    fn only_bad_rows_end_in_an_error_and_not_in_a_search() {
        let source = Arc::new(Numbers::new(3, &[0, 1, 2]));
        let mut loader = Loader::new(source, config(2, 10), 0).unwrap();
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("all 3 rows are bad"), "{error}");
        assert!(Loader::new(Arc::new(Numbers::new(0, &[])), config(0, 0), 0).is_err());
    }

    #[test]
    fn a_panic_is_its_rows_error() {
        let source = Numbers { panics: [1].into(), ..Numbers::new(3, &[]) };
        let mut loader = Loader::new(Arc::new(source), config(1, 0), 0).unwrap();
        let error = loader.find_map(Result::err).unwrap().to_string();
        assert!(error.contains("number-1") && error.contains("panicked"), "{error}");
    }
}
