//! Threads that read samples and hand them over by slot.

use crate::{DataError, Source};
use opensora_files::one_line;
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

pub(crate) type Read<T> = Result<T, DataError>;

/// What a worker is to read: slot, row, epoch.
type Job = (u64, usize, u64);

pub(super) struct Workers<T> {
    /// Without bound: the loader bounds what is under way.
    jobs: Option<Sender<Job>>,
    results: Receiver<(u64, Read<T>)>,
    /// What came before its turn.
    early: HashMap<u64, Read<T>>,
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
        let mut workers =
            Self { jobs: Some(jobs), results, early: HashMap::new(), stop, threads: Vec::new() };
        for _ in 0..count {
            let (source, queue) = (source.clone(), queue.clone());
            let (sender, stop) = (sender.clone(), workers.stop.clone());
            let thread = Builder::new()
                .name("loader".into())
                .spawn(move || work(&*source, &queue, &sender, &stop))
                .map_err(|error| DataError::Worker { reason: format!("no thread: {error}") })?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(super) fn send(&self, job: Job) -> Result<(), DataError> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        sent.and_then(Result::ok).ok_or_else(gone)
    }

    /// Waits for the sample of a slot; slots are asked for in their order.
    pub(super) fn receive(&mut self, slot: u64) -> Read<T> {
        if let Some(read) = self.early.remove(&slot) {
            return read;
        }
        while let Ok((found, read)) = self.results.recv() {
            if found == slot {
                return read;
            }
            // What is earlier was read for a slot that has been left out meanwhile.
            if found > slot {
                self.early.insert(found, read);
            }
        }
        Err(gone())
    }

    /// A slot will not be asked for.
    pub(super) fn forget(&mut self, slot: u64) {
        self.early.remove(&slot);
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        // A closed queue still gives what is in it: the flag ends the threads after the sample at
        // hand, and the queue's end wakes those that wait.
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gone() -> DataError {
    DataError::Worker { reason: "the threads that read have ended".into() }
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

/// Reads a row; a panic of a decoder is that row's error.
pub(crate) fn read<S: Source + ?Sized>(source: &S, row: usize, epoch: u64) -> Read<S::Item> {
    catch_unwind(AssertUnwindSafe(|| source.read(row, epoch))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        let reason = format!("reading it panicked: {}", one_line(words));
        Err(DataError::Row { row, path: PathBuf::from(name_of(source, row)), reason })
    })
}

/// A row's file, or whatever its source calls it, without the number.
pub(super) fn name_of<S: Source + ?Sized>(source: &S, row: usize) -> String {
    let name = source.describe(row);
    match name.strip_prefix(&format!("row {}: ", row + 1)) {
        Some(file) => file.into(),
        None => name,
    }
}
