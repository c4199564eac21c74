//! The folders of jobs: `DIR/jobs/{id}/request.json`, `state.json` and outputs.

use crate::job::{Job, JobSpec, JobState, is_id};
use opensora_files::{
    AtomicFolder, Existing, Lock, LockError, error_line, read::read_text, remove_folder,
    remove_leftovers, write_atomically,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest file of a job that is read into memory.
const MAX_JSON_BYTES: u64 = 256 << 10;

const REQUEST: &str = "request.json";
const STATE: &str = "state.json";

/// File name of a job's thumbnail.
pub(crate) const THUMBNAIL: &str = "thumbnail.png";

/// Error of a server's folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another server uses the folder.
    #[error("{}", path.display())]
    Locked {
        /// The file of the lock.
        path: PathBuf,
        /// The process that holds the lock.
        source: LockError,
    },
    /// A file or folder cannot be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// The jobs of one server on disk. One process at a time uses a folder.
#[derive(Debug)]
pub struct Store {
    jobs: PathBuf,
    /// Bytes of folders that are named like jobs and cannot be read.
    unreadable_bytes: u64,
    _lock: Lock,
}

impl Store {
    /// Opens a folder, which is created if it does not exist, and reads all jobs in it, in order of arrival.
    /// Other folders are not changed; the returned lines of text name them.
    ///
    /// # Errors
    /// Returns an error if another server uses the folder or it cannot be read.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Job>, Vec<String>), StoreError> {
        let jobs = folder.join("jobs");
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StoreError::Io { path, source }
        };
        fs::create_dir_all(&jobs).map_err(fail(&jobs))?;
        let lock_path = folder.join("lock");
        let lock = Lock::take(&lock_path)
            .map_err(|source| StoreError::Locked { path: lock_path, source })?;
        // The lock is held: no other process writes here.
        remove_leftovers(&jobs, Duration::ZERO).map_err(fail(&jobs))?;
        let mut store = Self { jobs, unreadable_bytes: 0, _lock: lock };
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&store.jobs).map_err(fail(&store.jobs))? {
            let name = entry.map_err(fail(&store.jobs))?.file_name();
            let Some(id) = name.to_str().filter(|name| is_id(name)) else {
                skipped.push(format!("{}: not a job", store.jobs.join(name).display()));
                continue;
            };
            // What an interrupted deletion of an earlier version has left.
            if matches!(store.folder(id).join(REQUEST).try_exists(), Ok(false)) {
                skipped.push(match fs::remove_dir_all(store.folder(id)) {
                    Ok(()) => format!("{id}: removed: it has no {REQUEST}"),
                    Err(error) => format!("{id}: cannot be removed: {}", error_line(&error)),
                });
                continue;
            }
            match store.read(id) {
                Ok(job) => found.push(job),
                Err(error) => {
                    store.unreadable_bytes += store.bytes(id).unwrap_or_default();
                    skipped.push(format!(
                        "{}: the job cannot be read: {}",
                        store.folder(id).display(),
                        error_line(&error)
                    ));
                }
            }
        }
        found.sort_by(|a, b| {
            let key = |job: &Job| (job.spec.sequence, job.spec.created_at);
            key(a).cmp(&key(b)).then_with(|| a.spec.id.cmp(&b.spec.id))
        });
        Ok((store, found, skipped))
    }

    /// Returns the bytes of folders that are named like jobs and could not be read.
    pub fn unreadable_bytes(&self) -> u64 {
        self.unreadable_bytes
    }

    /// Returns the folder of a job.
    pub fn folder(&self, id: &str) -> PathBuf {
        self.jobs.join(id)
    }

    fn read(&self, id: &str) -> io::Result<Job> {
        let folder = self.folder(id);
        remove_leftovers(&folder, Duration::ZERO)?;
        let spec: JobSpec = read_json(&folder.join(REQUEST))?;
        if spec.id != id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has the id of another job"));
        }
        let mut state: JobState = read_json(&folder.join(STATE))?;
        // The name could lead out of the job's folder.
        state.output =
            state.output.filter(|name| matches!(name.as_str(), "video.mp4" | "video.png"));
        Ok(Job { spec, state, bytes: self.bytes(id)? })
    }

    /// Returns the size of a job's folder in bytes, in whole blocks of 4 KiB.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub fn bytes(&self, id: &str) -> io::Result<u64> {
        const BLOCK: u64 = 4096;
        let mut bytes = BLOCK;
        for entry in fs::read_dir(self.folder(id))? {
            bytes += entry?.metadata()?.len().next_multiple_of(BLOCK);
        }
        Ok(bytes)
    }

    /// Writes a new job atomically.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn create(&self, job: &Job) -> io::Result<()> {
        let folder = AtomicFolder::create(&self.folder(&job.spec.id), Existing::Refuse)?;
        fs::write(folder.temporary_path().join(REQUEST), json(&job.spec)?)?;
        fs::write(folder.temporary_path().join(STATE), json(&job.state)?)?;
        folder.commit()
    }

    /// Replaces the state of a job.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn write_state(&self, id: &str, state: &JobState) -> io::Result<()> {
        let text = json(state)?;
        write_atomically(&self.folder(id).join(STATE), |file| fs::write(file, text))
    }

    /// Deletes a job's folder, unless someone has deleted it already. Leftovers of an interrupted deletion are removed
    /// when the folder of jobs is opened.
    ///
    /// # Errors
    /// Returns an error if it cannot be deleted.
    pub fn delete(&self, id: &str) -> io::Result<()> {
        match remove_folder(&self.folder(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_str(&read_text(path, MAX_JSON_BYTES)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{job::new_id, limits::Limits, request::VideoRequest, testing::model};

    fn job(sequence: u64) -> Job {
        let request = VideoRequest { prompt: "fog".into(), ..VideoRequest::default() }
            .resolve(&model(), &Limits::default(), 1)
            .unwrap();
        let spec = JobSpec { id: new_id().unwrap(), sequence, created_at: 5, request };
        Job { spec, state: JobState::default(), bytes: 3 * 4096 }
    }

    #[test]
    fn jobs_come_back_in_order_and_damaged_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (store, jobs, _) = Store::open(folder.path()).unwrap();
        assert!(jobs.is_empty());
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked { .. })));
        let (second, first, damaged) = (job(2), job(1), job(3));
        for job in [&second, &first, &damaged] {
            store.create(job).unwrap();
        }
        fs::write(store.folder(&damaged.spec.id).join(REQUEST), "{").unwrap();
        fs::create_dir(store.folder("other")).unwrap();
        fs::create_dir(store.folder(".opensora-0123456789abcdef.part")).unwrap();
        drop(store);
        let (store, jobs, mut skipped) = Store::open(folder.path()).unwrap();
        assert_eq!(jobs, [first.clone(), second]);
        skipped.sort();
        assert_eq!(skipped.len(), 2, "{skipped:?}");
        assert_eq!(store.unreadable_bytes(), 3 * 4096);
        assert!(skipped.iter().any(|line| line.contains("not a job")));
        assert!(skipped.iter().any(|line| line.contains("cannot be read")));

        // Deletions that were interrupted before and behind the first file.
        let half = job(4);
        store.create(&half).unwrap();
        fs::remove_file(store.folder(&half.spec.id).join(REQUEST)).unwrap();
        let renamed = job(5);
        store.create(&renamed).unwrap();
        let leftover = format!(".opensora-{}.part", renamed.spec.id);
        fs::rename(store.folder(&renamed.spec.id), folder.path().join("jobs").join(&leftover))
            .unwrap();
        store.delete(&first.spec.id).unwrap();
        // Once more, as if its folder had been removed by hand.
        store.delete(&first.spec.id).unwrap();
        drop(store);
        let (store, ..) = Store::open(folder.path()).unwrap();
        assert!(!store.folder(&half.spec.id).exists() && !store.folder(&leftover).exists());
        drop(store);
        assert_eq!(Store::open(folder.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn states_are_replaced_and_foreign_outputs_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (store, ..) = Store::open(folder.path()).unwrap();
        let job = job(1);
        store.create(&job).unwrap();
        let state = JobState { output: Some("../../secret.mp4".into()), ..JobState::default() };
        store.write_state(&job.spec.id, &state).unwrap();
        drop(store);
        assert_eq!(Store::open(folder.path()).unwrap().1, [job]);
    }
}
