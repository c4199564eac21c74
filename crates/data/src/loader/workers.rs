//! Worker threads that read samples and return them by slot.

use crate::{DataError, Source};
use opensora_files::one_line;
use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

pub(crate) type Read<T> = Result<T, DataError>;

/// A sample to read: slot, row, epoch.
type Job = (u64, usize, u64);

pub(super) struct Workers<T> {
    /// Queue of the threads' jobs, `None` after it was closed. It has no limit, since the loader limits
    /// the number of jobs.
    jobs: Option<Sender<Job>>,
    results: Receiver<(u64, Read<T>)>,
    /// Slots of the current and later batches that have been requested.
    requested: BTreeSet<u64>,
    /// Samples that were read before they were waited for.
    early: BTreeMap<u64, Read<T>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<T: Send + 'static> Workers<T> {
    pub(super) fn start<S: Source<Item = T> + ?Sized + 'static>(
        source: &Arc<S>,
        count: usize,
    ) -> Result<Self, DataError> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let (sender, results) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Self {
            jobs: Some(jobs),
            results,
            requested: BTreeSet::new(),
            early: BTreeMap::new(),
            stop,
            threads: Vec::new(),
        };
        for _ in 0..count {
            let (source, queue) = (source.clone(), queue.clone());
            let (sender, stop) = (sender.clone(), workers.stop.clone());
            let thread = Builder::new()
                .name("loader".into())
                .spawn(move || work(&*source, &queue, &sender, &stop))
                .map_err(|source| DataError::Thread { source })?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Requests a sample, unless it has been requested.
    pub(super) fn request(&mut self, job: Job) -> Result<(), DataError> {
        if !self.requested.insert(job.0) {
            return Ok(());
        }
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        sent.and_then(Result::ok).ok_or(DataError::ThreadsEnded)
    }

    /// Waits for the sample of a slot that was requested and not received yet. A slot with an error may be requested
    /// again: if another rank has an earlier bad row, the ranks skip that one first, and then this one is read again.
    pub(super) fn receive(&mut self, slot: u64) -> Read<T> {
        let read = self.wait(slot);
        if read.is_err() {
            self.requested.remove(&slot);
        }
        read
    }

    fn wait(&mut self, slot: u64) -> Read<T> {
        if let Some(read) = self.early.remove(&slot) {
            return read;
        }
        while let Ok((found, read)) = self.results.recv() {
            if found == slot {
                return read;
            }
            self.early.insert(found, read);
        }
        Err(DataError::ThreadsEnded)
    }

    /// Drops the samples of slots before `slot`, which nothing waits for any more.
    pub(super) fn forget_before(&mut self, slot: u64) {
        self.requested = self.requested.split_off(&slot);
        self.early = self.early.split_off(&slot);
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        // Closing the queue wakes waiting threads but leaves the queued jobs to be done: the flag ends the
        // threads after their current sample.
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work<S: Source + ?Sized>(
    source: &S,
    queue: &Mutex<Receiver<Job>>,
    results: &Sender<(u64, Read<S::Item>)>,
    stop: &AtomicBool,
) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok((slot, row, epoch)) = job else { return };
        if stop.load(Ordering::Relaxed) || results.send((slot, read(source, row, epoch))).is_err() {
            return;
        }
    }
}

/// Reads a row. A panic of a decoder becomes an error of that row.
///
/// # Errors
/// Returns an error if the row cannot be read.
pub fn read<S: Source + ?Sized>(source: &S, row: usize, epoch: u64) -> Read<S::Item> {
    catch_unwind(AssertUnwindSafe(|| source.read(row, epoch))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let reason = format!("reading it panicked: {}", one_line(text));
        Err(DataError::row(row, name_of(source, row), reason))
    })
}

/// Returns the description of a row without its number.
pub(super) fn name_of<S: Source + ?Sized>(source: &S, row: usize) -> String {
    let name = source.describe(row);
    match name.strip_prefix(&format!("row {}: ", row + 1)) {
        Some(file) => file.into(),
        None => name,
    }
}
