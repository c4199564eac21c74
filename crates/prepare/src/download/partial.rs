//! Files on their way: what is there of them, and of which version of the source it is.
//!
//! The bytes gather in `<file>.part`; `<file>.part.json` says where they come from and by what the
//! source's version is known. Both are gone when the file has its own name: a file that has its own
//! name is complete.

use opensora_files::{hex, sync_folder, write_atomically};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Bytes that are brought to the disk before any are written after them. What an earlier process
/// left beyond the last whole block may be torn and is fetched again.
pub(crate) const BLOCK: u64 = 4 << 20;

/// Which version of which address bytes are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The address.
    pub(crate) url: String,
    /// What the server knows this version by: a strong entity tag, or a time of change.
    pub(crate) validator: Option<String>,
    /// Bytes of the whole file, where the server said.
    pub(crate) total: Option<u64>,
}

/// A file on its way, locked against other processes.
#[derive(Debug)]
pub(crate) struct Partial {
    target: PathBuf,
    part: PathBuf,
    file: File,
    length: u64,
    hash: Sha256,
    origin: Option<Origin>,
    /// Whether bytes of several answers were joined.
    joined: bool,
}

/// A complete file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetched {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub(crate) sha256: String,
}

impl Partial {
    /// Opens what there is of a file from this address, or begins it.
    pub(crate) fn open(target: &Path, url: &str) -> io::Result<Self> {
        let part = beside(target, ".part");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another process is fetching it")
            }
            TryLockError::Error(error) => error,
        })?;
        let origin = std::fs::read(beside(&part, ".json")).ok();
        let origin = origin.and_then(|json| serde_json::from_slice::<Origin>(&json).ok());
        let origin = origin.filter(|origin| origin.url == url && origin.validator.is_some());
        let kept = if origin.is_some() { file.metadata()?.len() / BLOCK * BLOCK } else { 0 };
        file.set_len(kept)?;
        let (length, hash) = digest(&mut file)?;
        let target = target.to_path_buf();
        Ok(Self { target, part, file, length, hash, origin, joined: false })
    }

    /// Bytes that are there.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the whole file, where that is known.
    pub(crate) fn total(&self) -> Option<u64> {
        self.origin.as_ref()?.total
    }

    /// Whether all bytes are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.total() == Some(self.length)
    }

    /// Whether bytes of several answers were joined.
    pub(crate) fn is_joined(&self) -> bool {
        self.joined
    }

    /// By what the server knows the version whose bytes are there; `None` where the rest cannot be
    /// asked for.
    pub(crate) fn validator(&self) -> Option<&str> {
        self.origin.as_ref()?.validator.as_deref().filter(|_| self.length > 0)
    }

    /// More bytes of the same version follow.
    pub(crate) fn join(&mut self) {
        self.joined = true;
    }

    /// Forgets all bytes; those of this version follow.
    pub(crate) fn begin(&mut self, origin: Origin) -> io::Result<()> {
        self.forget()?;
        let json = serde_json::to_vec(&origin)?;
        write_atomically(&beside(&self.part, ".json"), |path| std::fs::write(path, &json))?;
        self.origin = Some(origin);
        Ok(())
    }

    /// Forgets all bytes.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        (self.length, self.hash, self.joined, self.origin) = (0, Sha256::new(), false, None);
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        // Old bytes must not come back beside a new origin.
        self.file.sync_all()
    }

    /// Adds bytes.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BLOCK - self.length % BLOCK;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            if let Err(error) = self.file.write_all(now) {
                // What was written of them is taken back, so that `length` stays true.
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

    /// What the bytes so far would be as a file.
    pub(crate) fn fetched(&self) -> Fetched {
        let sha256 = hex(&self.hash.clone().finalize());
        Fetched { bytes: self.length, sha256 }
    }

    /// Gives the file its own name.
    pub(crate) fn finish(self) -> io::Result<Fetched> {
        self.file.sync_all()?;
        std::fs::rename(&self.part, &self.target)?;
        sync_folder(&self.target)?;
        // Without its part it means nothing; that it stays is the lesser evil.
        let _ = std::fs::remove_file(beside(&self.part, ".json"));
        Ok(self.fetched())
    }

    /// Takes away what there is.
    pub(crate) fn remove(self) {
        // Best effort: what stays is taken up or overwritten by the next run.
        let _ = std::fs::remove_file(&self.part);
        let _ = std::fs::remove_file(beside(&self.part, ".json"));
    }
}

/// A name with an ending of its own after it.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Length and digest of a file that has its own name; `None` where there is none.
pub(crate) fn measure(path: &Path) -> io::Result<Option<Fetched>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (bytes, hash) = digest(&mut file)?;
    Ok(Some(Fetched { bytes, sha256: hex(&hash.finalize()) }))
}

/// Length and digest of a file, from its start; it stands at its end afterwards.
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
    fn another_process_goes_on_from_the_last_whole_block() {
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
    fn bytes_of_unknown_version_or_other_addresses_are_forgotten() {
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
