//! Jobs in memory and on disk, in the order in which the worker takes them.

use crate::{
    engine::{Engine, EngineError, Preview, Stage},
    job::{Job, JobError, JobSpec, JobState, JobStatus, new_id, now},
    limits::{Limits, WhenFull},
    metrics::Metrics,
    request::JobRequest,
    store::{Store, StoreError},
    worker,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use tokio::sync::watch;

/// Attempts after which an unfinished job is marked as failed: it may be the job that crashes the process.
pub const MAX_ATTEMPTS: u32 = 5;

/// Settings of a queue.
#[derive(Default)]
pub struct QueueOptions {
    /// Limits of requests, queue and disk.
    pub limits: Limits,
    /// Receives the events of jobs; `None` ignores them.
    pub observer: Option<Box<dyn JobObserver>>,
}

/// Receives the events of jobs, on the thread that causes them.
pub trait JobObserver: Send + Sync {
    /// The worker has begun a job.
    fn started(&self, _job: &Job) {}

    /// The worker has left a job: its status is final, or `queued` again because the server stops.
    fn ended(&self, _job: &Job) {}

    /// A problem with the folder of jobs, or the cause of a failure that clients are not told, as one line of text.
    fn warned(&self, _text: &str) {}
}

/// Ignores all events.
impl JobObserver for () {}

/// Error of a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The folder of jobs cannot be used.
    #[error("the folder of jobs cannot be used")]
    Store(#[from] StoreError),
    /// The engine cannot make the video.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The queue is full.
    #[error("{queued} jobs are queued already, which is the limit: try again later")]
    QueueFull {
        /// Number of queued jobs.
        queued: usize,
    },
    /// The disk limit or the number of jobs is reached.
    #[error(
        "{jobs} jobs take {bytes} bytes, which leaves no room for another (limits: {max_jobs} jobs, \
         {max_bytes} bytes): delete finished ones"
    )]
    DiskFull {
        /// Number of jobs.
        jobs: usize,
        /// Bytes of all jobs on disk.
        bytes: u64,
        /// Maximum number of jobs.
        max_jobs: usize,
        /// Maximum number of bytes.
        max_bytes: u64,
    },
    /// There is no such job.
    #[error("there is no such video")]
    NotFound,
    /// The job's status is final.
    #[error("the video is {} already", status.name())]
    Finished {
        /// The status.
        status: JobStatus,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// A job cannot be read, written or deleted.
    #[error("the job cannot be stored")]
    Io(#[from] io::Error),
    /// The worker thread cannot be started.
    #[error("the worker cannot be started")]
    Worker(#[source] io::Error),
}

/// A job as clients see it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobView {
    /// The job.
    pub job: Job,
    /// Progress of a job that is in progress.
    pub live: Live,
    /// Jobs that are computed before this one; `None` unless it waits for the worker. A job for another model
    /// than the server's is queued and does not wait.
    pub queue_position: Option<usize>,
}

/// Progress of a job that is in progress.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Live {
    /// What is being done.
    pub stage: Option<Stage>,
    /// Steps of the sampler that are done.
    pub step: usize,
    /// Work done, in percent.
    pub progress: u8,
    /// The last preview that was made.
    pub preview: Option<Arc<Preview>>,
}

/// Number of jobs by status, and the bytes that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct QueueCounts {
    /// Jobs of each status, in the order of [`JobStatus::ALL`].
    pub jobs: [usize; 5],
    /// Bytes on disk, with what is reserved for jobs that are not finished.
    pub bytes: u64,
}

struct Entry {
    job: Job,
    /// Bytes that the finished job will take at most.
    reserved: u64,
    live: watch::Sender<Live>,
    cancel: Arc<AtomicBool>,
}

impl Entry {
    fn new(job: Job) -> Self {
        let reserved = match job.state.status.is_final() {
            true => 0,
            false => job.spec.request.max_bytes(),
        };
        Self { job, reserved, live: watch::Sender::default(), cancel: Arc::default() }
    }

    fn bytes(&self) -> u64 {
        self.job.bytes.max(self.reserved)
    }
}

#[derive(Default)]
struct Jobs {
    /// Keyed by order of arrival.
    entries: BTreeMap<u64, Entry>,
    sequences: HashMap<String, u64>,
    /// Queued jobs that the worker will take: those for the model of the engine.
    waiting: BTreeSet<u64>,
    next_sequence: u64,
    bytes: u64,
    stopping: bool,
}

impl Jobs {
    fn insert(&mut self, job: Job) {
        let sequence = job.spec.sequence;
        if job.state.status == JobStatus::Queued {
            self.waiting.insert(sequence);
        }
        self.next_sequence = self.next_sequence.max(sequence + 1);
        self.sequences.insert(job.spec.id.clone(), sequence);
        let entry = Entry::new(job);
        self.bytes += entry.bytes();
        if let Some(old) = self.entries.insert(sequence, entry) {
            self.bytes -= old.bytes();
        }
    }

    fn remove(&mut self, sequence: u64) {
        if let Some(entry) = self.entries.remove(&sequence) {
            self.bytes -= entry.bytes();
            self.sequences.remove(&entry.job.spec.id);
            self.waiting.remove(&sequence);
        }
    }

    fn find(&self, id: &str) -> Result<&Entry, QueueError> {
        let sequence = self.sequences.get(id).ok_or(QueueError::NotFound)?;
        self.entries.get(sequence).ok_or(QueueError::NotFound)
    }

    /// Sets the state of a job; a final state releases the reserved bytes.
    fn set_state(&mut self, sequence: u64, state: JobState, bytes: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&sequence) else { return };
        self.bytes -= entry.bytes();
        let status = state.status;
        entry.job.state = state;
        if let Some(bytes) = bytes {
            entry.job.bytes = bytes;
        }
        if status.is_final() {
            entry.reserved = 0;
        }
        self.bytes += entry.bytes();
        match status {
            JobStatus::Queued => self.waiting.insert(sequence),
            _ => self.waiting.remove(&sequence),
        };
        // Wakes all followers of the job.
        if status.is_final() {
            entry.live.send_modify(|live| live.preview = None);
        } else {
            entry.live.send_modify(|_| {});
        }
    }

    fn view(&self, entry: &Entry) -> JobView {
        let job = entry.job.clone();
        let sequence = job.spec.sequence;
        let waits = self.waiting.contains(&sequence);
        let queue_position = waits.then(|| self.waiting.range(..sequence).count());
        JobView { job, live: entry.live.borrow().clone(), queue_position }
    }
}

/// A job that the worker takes out of the queue.
pub(crate) struct Task {
    pub(crate) job: Job,
    pub(crate) cancel: Arc<AtomicBool>,
    pub(crate) live: watch::Sender<Live>,
}

/// The jobs of a server.
pub struct Queue {
    store: Store,
    limits: Limits,
    engine: Arc<dyn Engine>,
    observer: Box<dyn JobObserver>,
    pub(crate) metrics: Metrics,
    /// Held while the disk and memory are changed together. Taken before `jobs`.
    disk: Mutex<()>,
    jobs: Mutex<Jobs>,
    wake: Condvar,
    stop: AtomicBool,
    worker: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// Opens a folder of jobs and starts the worker. Jobs that were queued or in progress are queued.
    ///
    /// # Errors
    /// Returns an error if another server uses the folder, it cannot be read or written, or no thread can
    /// be started.
    pub fn open(
        folder: &Path,
        engine: Arc<dyn Engine>,
        options: QueueOptions,
    ) -> Result<Arc<Self>, QueueError> {
        let (store, found, skipped) = Store::open(folder)?;
        let QueueOptions { limits, observer } = options;
        let observer = observer.unwrap_or_else(|| Box::new(()));
        skipped.iter().for_each(|line| observer.warned(line));
        let model = engine.model().id.clone();
        let mut other_model = 0;
        let mut jobs = Jobs { bytes: store.unreadable_bytes(), ..Jobs::default() };
        for mut job in found {
            // Folders of other servers, and ones that could not be read before, may have the number of another job.
            job.spec.sequence = job.spec.sequence.max(jobs.next_sequence);
            if job.state.status == JobStatus::InProgress {
                if job.state.attempts >= MAX_ATTEMPTS {
                    let message = format!("the server ended {MAX_ATTEMPTS} times during this job");
                    job.state.status = JobStatus::Failed;
                    job.state.completed_at = Some(now());
                    job.state.error = Some(JobError::new("interrupted", message));
                } else {
                    job.state.status = JobStatus::Queued;
                }
                // On a full disk it is still in progress there, and read like this at the next start.
                if let Err(error) = store.write_state(&job.spec.id, &job.state) {
                    observer.warned(&format!(
                        "{}: {}",
                        job.spec.id,
                        opensora_files::error_line(&error)
                    ));
                }
            }
            let sequence = job.spec.sequence;
            let skip = job.state.status == JobStatus::Queued && job.spec.request.model != model;
            jobs.insert(job);
            if skip {
                jobs.waiting.remove(&sequence);
                other_model += 1;
            }
        }
        if other_model > 0 {
            observer.warned(&format!(
                "{other_model} queued jobs are for other models than '{model}': they stay queued"
            ));
        }
        let queue = Arc::new(Self {
            store,
            limits,
            engine,
            observer,
            metrics: Metrics::default(),
            disk: Mutex::default(),
            jobs: Mutex::new(jobs),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            worker: Mutex::default(),
        });
        let own = Arc::clone(&queue);
        let worker = std::thread::Builder::new()
            .name("worker".into())
            .spawn(move || worker::run(&own))
            .map_err(QueueError::Worker)?;
        *lock(&queue.worker) = Some(worker);
        Ok(queue)
    }

    /// Returns the engine.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Returns the bounds of requests, queue and disk.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the observer.
    pub(crate) fn observer(&self) -> &dyn JobObserver {
        &*self.observer
    }

    /// Adds a job. It is on the disk when this returns.
    ///
    /// # Errors
    /// Returns an error if the engine cannot make the video, the queue or the disk is full, the job cannot
    /// be written, or the server is stopping.
    pub fn create(&self, request: JobRequest) -> Result<JobView, QueueError> {
        self.engine.check(&request)?;
        if !self.is_alive() {
            return Err(QueueError::Stopping);
        }
        let disk = lock(&self.disk);
        let sequence = self.make_room(&request)?;
        let spec = JobSpec { id: new_id()?, sequence, created_at: now(), request };
        let mut job = Job { spec, state: JobState::default(), bytes: 0 };
        if let Err(error) = self.store.create(&job) {
            // It may have failed behind the last step: the client is told that there is no such job.
            let _ = self.store.delete(&job.spec.id);
            return Err(error.into());
        }
        // The reservation is larger.
        job.bytes = self.store.bytes(&job.spec.id).unwrap_or_default();
        let id = job.spec.id.clone();
        let mut jobs = lock(&self.jobs);
        jobs.insert(job);
        self.metrics.created();
        self.wake.notify_all();
        let view = jobs.find(&id).map(|entry| jobs.view(entry));
        drop((jobs, disk));
        view
    }

    /// Checks the limits for another job and returns its place in the order of arrival. The caller holds
    /// the lock of the disk.
    fn make_room(&self, request: &JobRequest) -> Result<u64, QueueError> {
        let limits = &self.limits;
        let needed = request.max_bytes();
        let fits = |count: usize, bytes: u64| {
            count < limits.max_jobs && bytes.saturating_add(needed) <= limits.max_disk_bytes
        };
        // What is deleted is chosen before anything is deleted.
        let (sequence, oldest) = {
            let jobs = lock(&self.jobs);
            if jobs.stopping {
                return Err(QueueError::Stopping);
            }
            let queued = jobs.waiting.len();
            if queued >= limits.max_queued {
                return Err(QueueError::QueueFull { queued });
            }
            let (mut count, mut bytes) = (jobs.entries.len(), jobs.bytes);
            let mut oldest = Vec::new();
            if limits.when_full == WhenFull::DeleteOldest {
                let finished = |entry: &&Entry| entry.job.state.status.is_final();
                for entry in jobs.entries.values().filter(finished) {
                    if fits(count, bytes) {
                        break;
                    }
                    count -= 1;
                    bytes = bytes.saturating_sub(entry.bytes());
                    oldest.push((entry.job.spec.sequence, entry.job.spec.id.clone()));
                }
            }
            if !fits(count, bytes) {
                return Err(QueueError::DiskFull {
                    jobs: jobs.entries.len(),
                    bytes: jobs.bytes,
                    max_jobs: limits.max_jobs,
                    max_bytes: limits.max_disk_bytes,
                });
            }
            (jobs.next_sequence, oldest)
        };
        for (sequence, id) in oldest {
            self.store.delete(&id)?;
            lock(&self.jobs).remove(sequence);
        }
        Ok(sequence)
    }

    /// Returns a job.
    ///
    /// # Errors
    /// Returns an error if there is none of this id.
    pub fn get(&self, id: &str) -> Result<JobView, QueueError> {
        let jobs = lock(&self.jobs);
        jobs.find(id).map(|entry| jobs.view(entry))
    }

    /// Returns a channel that changes whenever the job does.
    ///
    /// # Errors
    /// Returns an error if there is no job of this id.
    pub fn follow(&self, id: &str) -> Result<watch::Receiver<Live>, QueueError> {
        lock(&self.jobs).find(id).map(|entry| entry.live.subscribe())
    }

    /// Returns at most `limit` jobs, newest first or oldest first, behind the job `after` if there is one, and
    /// true if there are more.
    ///
    /// # Errors
    /// Returns an error if there is no job `after`.
    pub fn list(
        &self,
        after: Option<&str>,
        limit: usize,
        newest_first: bool,
    ) -> Result<(Vec<JobView>, bool), QueueError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let jobs = lock(&self.jobs);
        let after =
            after.map(|id| jobs.find(id).map(|entry| entry.job.spec.sequence)).transpose()?;
        let bound = after.map_or(Unbounded, Excluded);
        let mut found: Vec<&Entry> = match newest_first {
            true => jobs
                .entries
                .range((Unbounded, bound))
                .rev()
                .map(|found| found.1)
                .take(limit + 1)
                .collect(),
            false => jobs
                .entries
                .range((bound, Unbounded))
                .map(|found| found.1)
                .take(limit + 1)
                .collect(),
        };
        let has_more = found.len() > limit;
        found.truncate(limit);
        Ok((found.into_iter().map(|entry| jobs.view(entry)).collect(), has_more))
    }

    /// Returns the path of a file in the folder of a completed job.
    ///
    /// # Errors
    /// Returns an error if there is no job of this id.
    pub fn path(&self, id: &str, name: &str) -> Result<PathBuf, QueueError> {
        let jobs = lock(&self.jobs);
        jobs.find(id).map(|entry| self.store.folder(&entry.job.spec.id).join(name))
    }

    /// Cancels a job that is queued or in progress. The worker stops it after the current step.
    ///
    /// # Errors
    /// Returns an error if there is no job of this id, its status is final, or it cannot be written.
    pub fn cancel(&self, id: &str) -> Result<JobView, QueueError> {
        let disk = lock(&self.disk);
        let (sequence, mut state) = {
            let jobs = lock(&self.jobs);
            let entry = jobs.find(id)?;
            (entry.job.spec.sequence, entry.job.state.clone())
        };
        if state.status.is_final() {
            return Err(QueueError::Finished { status: state.status });
        }
        state.status = JobStatus::Cancelled;
        state.completed_at = Some(now());
        self.store.write_state(id, &state)?;
        let mut jobs = lock(&self.jobs);
        if let Some(entry) = jobs.entries.get(&sequence) {
            entry.cancel.store(true, Ordering::SeqCst);
        }
        jobs.set_state(sequence, state, None);
        self.metrics.ended(JobStatus::Cancelled);
        let view = jobs.find(id).map(|entry| jobs.view(entry));
        drop((jobs, disk));
        view
    }

    /// Deletes a job whose status is final, with its files. Cancels a job of any other status. Returns true
    /// if the job was deleted.
    ///
    /// # Errors
    /// Returns an error if there is no job of this id, or its files cannot be written or deleted.
    pub fn delete(&self, id: &str) -> Result<bool, QueueError> {
        match self.cancel(id) {
            Ok(_) => return Ok(false),
            Err(QueueError::Finished { .. }) => {}
            Err(error) => return Err(error),
        }
        let disk = lock(&self.disk);
        let sequence = lock(&self.jobs).find(id)?.job.spec.sequence;
        self.store.delete(id)?;
        lock(&self.jobs).remove(sequence);
        drop(disk);
        Ok(true)
    }

    /// Returns the number of jobs by status, and their bytes on disk.
    pub fn counts(&self) -> QueueCounts {
        let jobs = lock(&self.jobs);
        let mut counts = QueueCounts { bytes: jobs.bytes, ..QueueCounts::default() };
        for entry in jobs.entries.values() {
            let place = JobStatus::ALL.iter().position(|status| *status == entry.job.state.status);
            counts.jobs[place.unwrap_or_default()] += 1;
        }
        counts
    }

    /// Returns true if the worker thread runs.
    pub fn is_alive(&self) -> bool {
        lock(&self.worker).as_ref().is_some_and(|worker| !worker.is_finished())
    }

    /// Lets the worker stop after its current step, without waiting for it, and ends streams of events.
    pub(crate) fn begin_stop(&self) {
        let mut jobs = lock(&self.jobs);
        jobs.stopping = true;
        self.stop.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        jobs.entries.values().for_each(|entry| entry.live.send_modify(|_| {}));
    }

    /// Returns true if the queue stops or has stopped.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Stops the worker after its current step and waits for it. The running job returns to the queue;
    /// new jobs are rejected.
    pub fn stop(&self) {
        self.begin_stop();
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker {
            // Panics of jobs are caught. After any other panic of the worker, the jobs are still on disk.
            let _ = worker.join();
        }
    }

    /// Waits for the next job and marks it as in progress; `None` if the queue stops.
    pub(crate) fn take(&self) -> Option<Task> {
        loop {
            {
                let mut jobs = lock(&self.jobs);
                while jobs.waiting.is_empty() && !jobs.stopping {
                    jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                }
                if jobs.stopping {
                    return None;
                }
            }
            let disk = lock(&self.disk);
            // The job may have been cancelled before the lock was taken.
            let next = {
                let jobs = lock(&self.jobs);
                let first = jobs.waiting.first().and_then(|first| jobs.entries.get(first));
                first.map(|entry| (entry.job.spec.clone(), entry.job.state.clone()))
            };
            let Some((spec, state)) = next else { continue };
            let state = JobState {
                status: JobStatus::InProgress,
                attempts: state.attempts + 1,
                started_at: Some(now()),
                ..state
            };
            if let Err(error) = self.store.write_state(&spec.id, &state) {
                // The job runs anyway: on disk it stays queued, so a restart would only repeat it.
                self.warn(&spec.id, &error);
            }
            let mut jobs = lock(&self.jobs);
            jobs.set_state(spec.sequence, state, None);
            let task = jobs.entries.get(&spec.sequence).map(|entry| Task {
                job: entry.job.clone(),
                cancel: Arc::clone(&entry.cancel),
                live: entry.live.clone(),
            });
            drop((jobs, disk));
            if task.is_some() {
                return task;
            }
        }
    }

    /// Sets the state of a job after an attempt, unless the job was cancelled or deleted meanwhile.
    pub(crate) fn settle(&self, spec: &JobSpec, mut state: JobState) {
        let disk = lock(&self.disk);
        let current = lock(&self.jobs).find(&spec.id).map(|entry| entry.job.state.clone());
        let Ok(current) = current else {
            // The job was deleted: files that the worker has written since are deleted too.
            let _ = self.store.delete(&spec.id);
            return;
        };
        if current.status.is_final() {
            for name in [
                "video.mp4",
                "video.mp4.json",
                "video.png",
                "video.png.json",
                crate::store::THUMBNAIL,
            ] {
                let _ = std::fs::remove_file(self.store.folder(&spec.id).join(name));
            }
            state = current;
        } else {
            if let Err(error) = self.store.write_state(&spec.id, &state) {
                self.warn(&spec.id, &error);
                state.status = JobStatus::Failed;
                state.completed_at = Some(now());
                state.output = None;
                state.error = Some(JobError::new("storage", "the result could not be stored"));
            }
            if state.status.is_final() {
                self.metrics.ended(state.status);
            }
        }
        let bytes = self.store.bytes(&spec.id).ok();
        let mut jobs = lock(&self.jobs);
        jobs.set_state(spec.sequence, state, bytes);
        let job = jobs.find(&spec.id).map(|entry| entry.job.clone());
        drop((jobs, disk));
        if let Ok(job) = job {
            self.observer.ended(&job);
        }
    }

    pub(crate) fn warn(&self, id: &str, error: &(dyn std::error::Error + 'static)) {
        self.observer.warned(&format!("{id}: {}", opensora_files::error_line(error)));
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("store", &self.store).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
