//! Locks between processes.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::Path,
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
/// The file holds the process id. It stays when the lock is dropped: removing it would race with a
/// process that has just opened it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, without waiting. On file systems that have no locks it is taken
    /// as if it were free.
    ///
    /// # Errors
    /// Returns an error if another process (or another [`Lock`] of this one) holds it, or the file
    /// cannot be opened, locked or written.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        // Truncated after it is locked: until then it holds another's process id.
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = fs::read_to_string(path).unwrap_or_default();
                return Err(LockError::InUse { pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        Lock::take(&path).unwrap();
        let missing = Lock::take(&folder.path().join("none/lock")).unwrap_err();
        assert!(matches!(missing, LockError::Io(_)), "{missing}");
    }
}
