//! The lock of a blob, shared with `huggingface_hub`.
//!
//! Lock files stay after use, because Python's `filelock` may not notice that its file was removed.
//! ([`opensora_files::Lock`] removes its files.)

use crate::{HubError, Locked, Observer, client::wait_slice, observer::proceed};
use opensora_files::{folder_of, try_lock};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::Path,
};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct BlobLock {
    _file: File,
}

impl BlobLock {
    /// Takes the lock at `path`, after waiting while another process holds it. File systems without locks
    /// always grant it.
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
            match try_lock(&lock) {
                Ok(()) => return Ok(Self { _file: lock }),
                Err(TryLockError::WouldBlock) => {}
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
