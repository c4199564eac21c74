//! Checksums of files: SHA-256 and the SHA-1 of git blobs.

use crate::{HubError, repository::is_hexadecimal};
use opensora_files::hex;
use opensora_files::read::open_regular;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::{io::Read, ops::ControlFlow, path::Path};

/// The checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Digest {
    /// SHA-256 of the bytes, for large files.
    Sha256(String),
    /// SHA-1 of the git blob of the bytes, for small files.
    GitBlob(String),
    /// The tag is not a checksum.
    None,
}

/// An incremental checksum.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
    None,
}

impl Digest {
    /// Reads a tag: 64 hexadecimal digits are a SHA-256, 40 a git blob's SHA-1.
    pub(crate) fn of_tag(tag: &str) -> Self {
        match tag.len() {
            64 if is_hexadecimal(tag) => Self::Sha256(tag.into()),
            40 if is_hexadecimal(tag) => Self::GitBlob(tag.into()),
            _ => Self::None,
        }
    }

    pub(crate) fn expected(&self) -> Option<&str> {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => Some(digits),
            Self::None => None,
        }
    }

    /// Starts a checksum of a file of `size` bytes; a git blob begins with the size.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
            Self::None => Hasher::None,
        }
    }

    /// Compares a file with this checksum; returns the digits of the file if they differ.
    pub(crate) fn check_file(
        &self,
        path: &Path,
        advance: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<String>, HubError> {
        let Some(expected) = self.expected() else { return Ok(None) };
        let size = std::fs::metadata(path).map_err(HubError::io(path))?.len();
        let mut hasher = self.hasher(size);
        hasher.read_file(path, advance)?;
        let found = hasher.finish();
        Ok(found.filter(|found| found != expected))
    }
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
            Self::None => {}
        }
    }

    /// Adds the bytes of a file; calls `advance` with the number of bytes read.
    pub(crate) fn read_file(
        &mut self,
        path: &Path,
        advance: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        let mut file = open_regular(path).map_err(HubError::io(path))?;
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        loop {
            match file.read(&mut buffer).map_err(HubError::io(path))? {
                0 => return Ok(()),
                count => {
                    self.update(&buffer[..count]);
                    done += count as u64;
                }
            }
            if advance(done).is_break() {
                return Err(HubError::Stopped);
            }
        }
    }

    /// Returns the digits; `None` without a checksum.
    pub(crate) fn finish(self) -> Option<String> {
        match self {
            Self::Sha256(hasher) => Some(hex(&hasher.finalize())),
            Self::GitBlob(hasher) => Some(hex(&hasher.finalize())),
            Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_sha256sum_and_git() {
        let check = |tag: &str| {
            let digest = Digest::of_tag(tag);
            let mut hasher = digest.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            hasher.finish()
        };
        // `echo hello | sha256sum` and `echo hello | git hash-object --stdin`.
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(check(sha256).as_deref(), Some(sha256));
        assert_eq!(check(git).as_deref(), Some(git));
        assert_eq!(Digest::of_tag("\"abc-2\""), Digest::None);
    }
}
