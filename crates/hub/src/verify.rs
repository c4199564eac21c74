//! Verification of cached files: [`Cache::verify`].

use crate::{Cache, HubError, Observer, Repository, Verified, digest::Digest};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A cached file and the result of its verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Name of the file in the repository.
    pub name: String,
    /// Hash of the commit.
    pub commit: String,
    /// Path of the bytes.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub size: u64,
    /// Result.
    pub verdict: Verdict,
}

/// Result of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The checksum is correct.
    Good,
    /// The checksum is wrong.
    Damaged {
        /// Checksum of the bytes.
        found: String,
        /// Checksum that the hub states.
        expected: String,
    },
    /// The checksum is not known: the file is a copy instead of a link, or its tag is not a checksum.
    Unknown,
}

impl Cache {
    /// Compares every file of a repository with the checksum in the name of its blob. A file that several
    /// commits share is read once.
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

    /// Compares the files of a repository for whose names `is_wanted` returns true, as [`verify`](Self::verify).
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
            // The direct target of the link: a blob may itself be a link to a store with other names.
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
