//! The lock of a blob, shared with `huggingface_hub`.
//!
//! Its lock files stay where they are after use: Python's `filelock` need not notice that the
//! file it has locked was removed. ([`opensora_files::Lock`] removes its files.)

use crate::{HubError, Locked, Observer, client::wait_slice, observer::proceed};
use opensora_files::folder_of;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::Path,
};

/// Holds a lock until it is dropped.
#[derive(Debug)]
pub(crate) struct BlobLock {
    _file: File,
}

impl BlobLock {
    /// Takes the lock at `path`; waits while another process holds it. On file systems without locks
    /// it is taken as if it were free.
    pub(crate) fn wait(
        path: &Path,
        file: &str,
        observer: &mut dyn Observer,
    ) -> Result<Self, HubError> {
        fs::create_dir_all(folder_of(path)).map_err(HubError::io(folder_of(path)))?;
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(HubError::io(path))?;
        let mut said = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { _file: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Self { _file: lock });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(HubError::Io { path: path.into(), source });
                }
            }
            if !said {
                proceed(observer.locked(&Locked { file }))?;
                said = true;
            }
            wait_slice(observer)?;
        }
    }
}
