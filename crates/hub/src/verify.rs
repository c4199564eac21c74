//! Cached files against their checksums.

use crate::{Cache, HubError, Observer, Repository, Verified, digest::Digest};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A cached file and what its checksum says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its name in the repository.
    pub name: String,
    /// The commit.
    pub commit: String,
    /// Where its bytes are.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// What the checksum says.
    pub verdict: Verdict,
}

/// What a checksum says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The bytes are those that the hub names.
    Good,
    /// The bytes are others.
    Damaged {
        /// Their checksum.
        found: String,
        /// The hub's.
        expected: String,
    },
    /// The cache does not know a checksum: the file is a copy and no link, or its tag is no checksum.
    Unknown,
}

impl Cache {
    /// Compares every file of a repository with the checksum that its blob is named by; a file of several
    /// commits is read once.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or `observer` stops the check.
    pub fn verify(
        &self,
        repository: &Repository,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Checked>, HubError> {
        self.verify_files(repository, &|_| true, observer)
    }

    /// Compares those files of a repository whose names `is_wanted`, as [`verify`](Self::verify).
    ///
    /// # Errors
    /// Returns the errors of [`verify`](Self::verify).
    pub fn verify_files(
        &self,
        repository: &Repository,
        is_wanted: &dyn Fn(&str) -> bool,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Checked>, HubError> {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        let files = self.describe(repository.clone())?.files;
        for file in files.into_iter().filter(|file| is_wanted(&file.name)) {
            let path = fs::canonicalize(&file.path).map_err(HubError::io(&file.path))?;
            if !seen.insert(path.clone()) {
                continue;
            }
            // The link's own target: a blob may be a link as well, into a store that is shared by
            // repositories and has other names.
            let link = fs::read_link(&file.path).ok();
            let tag = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
            let digest = tag.map_or(Digest::None, Digest::of_tag);
            let (name, size) = (file.name.clone(), file.size);
            let found = digest.check_file(&path, &mut |done| {
                observer.verified(&Verified { file: &name, done, total: size })
            })?;
            let verdict = match (digest.expected(), found) {
                (None, _) => Verdict::Unknown,
                (Some(_), None) => Verdict::Good,
                (Some(expected), Some(found)) => {
                    Verdict::Damaged { found, expected: expected.into() }
                }
            };
            all.push(Checked { name, commit: file.commit, path, size, verdict });
        }
        Ok(all)
    }
}
