//! Partial downloads: the received bytes, and the version of the source that they belong to.
//!
//! The bytes are in `<file>.part`, their address and version in `<file>.part.json`. Both are removed when the
//! file is renamed to its final name, so a file with its final name is complete.

use super::busy::busy;
use crate::assemble::appended;
use opensora_files::{hex, is_at, sync_folder, try_lock, write_atomically};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Size in bytes of blocks that are synced before further ones are written. Bytes of an earlier process
/// after the last whole block can be damaged and are downloaded again.
pub(crate) const BLOCK: u64 = 4 << 20;

/// The address and version of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The address.
    pub(crate) url: String,
    /// The server's identification of the version: a strong entity tag, or a modification time.
    pub(crate) validator: Option<String>,
    /// Size of the whole file, if the server stated it.
    pub(crate) total: Option<u64>,
}

/// A partial file, locked against other processes (except on file systems without locks).
#[derive(Debug)]
pub(crate) struct Partial {
    target: PathBuf,
    part: PathBuf,
    file: File,
    length: u64,
    hash: Sha256,
    origin: Option<Origin>,
    /// True if the bytes are of several answers.
    joined: bool,
}

/// Size and SHA-256 of a downloaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetched {
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub(crate) sha256: String,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // A program that is being started may hold a copy of the descriptor, and with it the lock.
        let _ = self.file.unlock();
    }
}

impl Partial {
    /// Opens the partial file of this address, or creates it. File systems without locks do not keep other processes
    /// from opening it too, see [`try_lock`].
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened, or is open elsewhere ([`io::ErrorKind::WouldBlock`]).
    pub(crate) fn open(target: &Path, url: &str) -> io::Result<Self> {
        let part = appended(target, ".part");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part)?;
        try_lock(&file).map_err(|error| match error {
            TryLockError::WouldBlock => busy(),
            TryLockError::Error(error) => error,
        })?;
        // Another process may have completed and renamed it between opening and locking.
        if !is_at(&file, &part)? {
            return Err(busy());
        }
        let origin = std::fs::read(appended(&part, ".json")).ok();
        let origin = origin.and_then(|json| serde_json::from_slice::<Origin>(&json).ok());
        let origin = origin.filter(|origin| origin.url == url && origin.validator.is_some());
        let kept = if origin.is_some() { file.metadata()?.len() / BLOCK * BLOCK } else { 0 };
        file.set_len(kept)?;
        let (length, hash) = digest(&mut file)?;
        let target = target.to_path_buf();
        Ok(Self { target, part, file, length, hash, origin, joined: false })
    }

    /// Returns the number of bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the size of the whole file, if it is known.
    pub(crate) fn total(&self) -> Option<u64> {
        self.origin.as_ref()?.total
    }

    /// Returns true if the file is known to be complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.total() == Some(self.length)
    }

    /// Returns true if the bytes are of several answers.
    pub(crate) fn is_joined(&self) -> bool {
        self.joined
    }

    /// Returns the server's identification of the version; `None` if the rest cannot be requested.
    pub(crate) fn validator(&self) -> Option<&str> {
        self.origin.as_ref()?.validator.as_deref().filter(|_| self.length > 0)
    }

    /// Records that the following bytes of the same version are of another answer.
    pub(crate) fn join(&mut self) {
        self.joined = true;
    }

    /// Drops all bytes and starts with another version.
    pub(crate) fn begin(&mut self, origin: Origin) -> io::Result<()> {
        self.forget()?;
        let json = serde_json::to_vec(&origin)?;
        write_atomically(&appended(&self.part, ".json"), |path| std::fs::write(path, &json))?;
        self.origin = Some(origin);
        Ok(())
    }

    /// Drops all bytes.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        (self.length, self.hash, self.joined, self.origin) = (0, Sha256::new(), false, None);
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        // Old bytes must not reappear with a new origin after a crash.
        self.file.sync_all()
    }

    /// Appends bytes.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BLOCK - self.length % BLOCK;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            if let Err(error) = self.file.write_all(now) {
                // Undo a partial write, so that `length` stays correct.
                let _ = self.file.set_len(self.length);
                let _ = self.file.seek(SeekFrom::Start(self.length));
                return Err(error);
            }
            self.hash.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(BLOCK) {
                self.file.sync_data()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Returns size and digest of the bytes so far.
    pub(crate) fn fetched(&self) -> Fetched {
        let sha256 = hex(&self.hash.clone().finalize());
        Fetched { bytes: self.length, sha256 }
    }

    /// Syncs the file and renames it to its final name.
    pub(crate) fn finish(self) -> io::Result<Fetched> {
        self.file.sync_all()?;
        std::fs::rename(&self.part, &self.target)?;
        sync_folder(&self.target)?;
        // Best effort: it is ignored without its `.part`.
        let _ = std::fs::remove_file(appended(&self.part, ".json"));
        Ok(self.fetched())
    }

    /// Removes the partial file.
    pub(crate) fn remove(self) {
        // Best effort: the next run resumes or overwrites it.
        let _ = std::fs::remove_file(&self.part);
        let _ = std::fs::remove_file(appended(&self.part, ".json"));
    }
}

/// Returns size and digest of a complete file; `None` if it does not exist.
pub(crate) fn measure(path: &Path) -> io::Result<Option<Fetched>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (bytes, hash) = digest(&mut file)?;
    Ok(Some(Fetched { bytes, sha256: hex(&hash.finalize()) }))
}

/// Returns size and digest of a file, and leaves it positioned at its end.
fn digest(file: &mut File) -> io::Result<(u64, Sha256)> {
    file.seek(SeekFrom::Start(0))?;
    let (mut length, mut hash) = (0, Sha256::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((length, hash)),
            count => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(validator: Option<&str>) -> Origin {
        Origin { url: "u".into(), validator: validator.map(String::from), total: None }
    }

    #[test]
    fn another_process_resumes_after_the_last_whole_block() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.mp4");
        let bytes: Vec<u8> = (0..BLOCK * 2 + 10).map(|i| (i % 251) as u8).collect();
        let mut partial = Partial::open(&target, "u").unwrap();
        let busy = Partial::open(&target, "u").unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
        partial.begin(origin(Some("\"v1\""))).unwrap();
        partial.append(&bytes).unwrap();
        drop(partial);

        let mut partial = Partial::open(&target, "u").unwrap();
        assert_eq!((partial.length(), partial.validator()), (BLOCK * 2, Some("\"v1\"")));
        partial.append(&bytes[BLOCK as usize * 2..]).unwrap();
        let fetched = partial.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), bytes);
        assert_eq!(measure(&target).unwrap(), Some(fetched));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(measure(&folder.path().join("b.mp4")).unwrap(), None);
    }

    #[test]
    fn bytes_of_unknown_versions_or_other_addresses_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.mp4");
        for (validator, url) in [(None, "u"), (Some("\"v1\""), "other")] {
            let mut partial = Partial::open(&target, "u").unwrap();
            partial.begin(origin(validator)).unwrap();
            partial.append(&vec![7; BLOCK as usize]).unwrap();
            drop(partial);
            let partial = Partial::open(&target, url).unwrap();
            assert_eq!((partial.length(), partial.validator()), (0, None));
        }
    }
}
