//! Locks between processes.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("in use by {}", process(*pid))]
    InUse {
        /// The process, if it could be read.
        pid: Option<u32>,
    },
    /// The lock's file cannot be opened, locked or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn process(pid: Option<u32>) -> String {
    pid.map_or("another process".into(), |pid| format!("process {pid}"))
}

/// A lock that one process at a time holds, until it drops the lock or ends in whatever way.
///
/// The file holds the process id, and is removed when the lock is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    /// Absolute, so that it is found again after a change of the working directory.
    path: PathBuf,
}

impl Lock {
    /// Takes the lock at `path`, without waiting. On file systems that have no locks it is taken
    /// as if it were free.
    ///
    /// # Errors
    /// Returns an error if another process (or another [`Lock`] of this one) holds it, or the file
    /// cannot be opened, locked or written.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let path = std::path::absolute(path)?;
        loop {
            // Truncated after it is locked: until then it holds another's process id.
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    return Err(LockError::InUse { pid: text.trim().parse().ok() });
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            if is_at(&file, &path)? {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Self { _file: file, path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked, so that only the holder removes it.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns true if `file` is still the file at `path`: its holder may have removed it between
/// opening and locking.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
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
        drop(lock);
        assert!(!path.exists() || cfg!(not(unix)));
        Lock::take(&path).unwrap();
        let missing = Lock::take(&folder.path().join("none/lock")).unwrap_err();
        assert!(matches!(missing, LockError::Io(_)), "{missing}");
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
