//! Locks between processes: a lock file, and the lock of an open file.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// An error of taking a lock.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds the lock.
    #[error("in use by {}", process(*pid))]
    InUse {
        /// The process id, if it could be read from the file.
        pid: Option<u32>,
    },
    /// The file cannot be opened or locked.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn process(pid: Option<u32>) -> String {
    pid.map_or("another process".into(), |pid| format!("process {pid}"))
}

/// A lock that one process at a time can hold.
///
/// The lock is released when it is dropped or its process ends, also by a crash. The file contains the process
/// id, unless the disk is full, and is removed when the lock is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    /// Absolute, so that a change of the working directory does not matter.
    path: PathBuf,
}

impl Lock {
    /// Takes the lock at `path` without waiting. File systems without locks always grant it, see [`try_lock`].
    ///
    /// # Errors
    /// Returns an error if another process, or another [`Lock`] of this process, holds the lock, or if the
    /// file cannot be opened or locked.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let path = std::path::absolute(path)?;
        loop {
            // Truncated only after it is locked: until then the file may contain the id of the holder.
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(false).open(&path)?;
            match try_lock(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    return Err(LockError::InUse { pid: text.trim().parse().ok() });
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            if is_at(&file, &path)? {
                // On a full disk, others are told of a process without its id.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                return Ok(Self { _file: file, path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while locked, so that only the holder removes it.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks an open file without waiting, until it is unlocked or closed. File systems without locks, such as Lustre
/// mounted without `flock`, always grant the lock: there, two processes can hold it at once.
///
/// # Errors
/// Returns [`TryLockError::WouldBlock`] if another process, or another open file of this process, holds the lock, and
/// [`TryLockError::Error`] if the file cannot be locked for another reason.
pub fn try_lock(file: &File) -> Result<(), TryLockError> {
    granted(file.try_lock())
}

/// Makes a missing support of locks a success.
fn granted(locked: Result<(), TryLockError>) -> Result<(), TryLockError> {
    match locked {
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

/// Returns true if `file` is the file at `path`. The previous holder may have removed or renamed it between opening and
/// locking. Always true on systems other than Unix.
///
/// # Errors
/// Returns an error if the file or the path cannot be examined.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns true: on Unix, if `file` is the file at `path`.
///
/// # Errors
/// Returns an error on Unix only.
#[cfg(not(unix))]
pub fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_at_a_time_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        fs::write(&path, "an older and longer process id").unwrap();
        let lock = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err();
        assert!(matches!(error, LockError::InUse { pid } if pid == Some(std::process::id())));
        assert_eq!(error.to_string(), format!("in use by process {}", std::process::id()));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        // A holder whose file cannot be parsed.
        fs::write(&path, "").unwrap();
        let error = Lock::take(&path).unwrap_err();
        assert_eq!(error.to_string(), "in use by another process");
        drop(lock);
        assert!(!path.exists() || cfg!(not(unix)));
        Lock::take(&path).unwrap();
        let missing = Lock::take(&folder.path().join("none/lock")).unwrap_err();
        assert!(matches!(missing, LockError::Io(_)), "{missing}");
    }

    #[test]
    fn file_systems_without_locks_grant_them() {
        let of = |kind: io::ErrorKind| granted(Err(TryLockError::Error(kind.into())));
        assert!(of(io::ErrorKind::Unsupported).is_ok());
        assert!(matches!(of(io::ErrorKind::PermissionDenied), Err(TryLockError::Error(_))));
        // The error of Lustre without `flock`.
        #[cfg(target_os = "linux")]
        {
            const ENOSYS: i32 = 38;
            let error = TryLockError::Error(io::Error::from_raw_os_error(ENOSYS));
            assert!(granted(Err(error)).is_ok());
        }
        // A lock that another open file holds is not granted.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (first, second) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        try_lock(&first).unwrap();
        assert!(matches!(try_lock(&second), Err(TryLockError::WouldBlock)));
        first.unlock().unwrap();
        try_lock(&second).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_replaced_is_not_the_one_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let file = File::create(&path).unwrap();
        assert!(is_at(&file, &path).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, &path).unwrap());
        fs::write(&path, "").unwrap();
        assert!(!is_at(&file, &path).unwrap());
        // A path through a file is neither present nor missing.
        assert!(is_at(&file, &path.join("inner")).is_err());
    }

    #[test]
    fn many_takers_never_hold_it_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (held, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let Ok(_lock) = Lock::take(&path) else { continue };
                        assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        held.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
    }
}
