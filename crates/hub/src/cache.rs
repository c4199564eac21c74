//! The cache on the disk, in the layout of `huggingface_hub`.
//!
//! ```text
//! models--hpcai-tech--Open-Sora/
//!   blobs/<etag>                      the bytes
//!   refs/main                         the commit that a branch or tag was last seen at
//!   snapshots/<commit>/<file>         a link to the blob
//!   listings/<commit>.json            an array of the names of all files, after a download of all
//! .locks/models--hpcai-tech--Open-Sora/<etag>.lock
//! ```
//!
//! `listings` is this crate's own; `huggingface_hub` ignores other entries of a repository's folder.

use crate::{
    HubError, Repository, RepositoryFile,
    repository::{check_relative, is_commit},
};
use opensora_files::{folder_of, read::read_text, write_atomically};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Upper limit of a file in `refs` in bytes.
const MAX_REF: u64 = 1024;
/// Upper limit of a file in `listings` in bytes.
const MAX_LISTING: u64 = 64 << 20;

/// The folder of cached repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRepository {
    /// Owner and name.
    pub repository: Repository,
    /// Branches, tags and other names, each with its last known commit.
    pub refs: Vec<(String, String)>,
    /// The files of all commits.
    pub files: Vec<CachedFile>,
    /// Bytes of all complete files on the disk; a file that several commits share counts once.
    pub bytes: u64,
    /// Bytes of unfinished downloads.
    pub incomplete_bytes: u64,
}

/// A file of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedFile {
    /// Hash of the commit.
    pub commit: String,
    /// Name of the file in the repository.
    pub name: String,
    /// Path of the file on the disk.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub size: u64,
}

impl Cache {
    /// Creates the cache of a folder, such as `HF_HUB_CACHE`. The folder need not exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the folder of a repository; it need not exist.
    pub fn repository_folder(&self, repository: &Repository) -> PathBuf {
        self.folder.join(repository.folder_name())
    }

    /// Returns the commit of a revision: the revision itself if it is a commit, else the last known commit of
    /// the branch or tag.
    pub fn commit(&self, repository: &Repository, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        check_relative(revision, "").ok()?;
        let path = self.repository_folder(repository).join("refs").join(revision);
        let commit = read_text(&path, MAX_REF).ok()?.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    /// Returns the path of a file, if the cache has it at the commit of the revision.
    pub fn find(&self, file: &RepositoryFile<'_>) -> Option<PathBuf> {
        check_relative(file.name, "").ok()?;
        let commit = self.commit(file.repository, file.revision)?;
        let path = self.snapshot(file.repository, &commit).join(file.name);
        path.is_file().then_some(path)
    }

    /// Returns the folder of a commit; it need not exist.
    pub fn snapshot(&self, repository: &Repository, commit: &str) -> PathBuf {
        self.repository_folder(repository).join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, repository: &Repository, tag: &str) -> PathBuf {
        self.repository_folder(repository).join("blobs").join(tag)
    }

    pub(crate) fn lock(&self, repository: &Repository, tag: &str) -> PathBuf {
        self.folder.join(".locks").join(repository.folder_name()).join(format!("{tag}.lock"))
    }

    /// Records the commit of a branch or tag.
    pub(crate) fn record(
        &self,
        repository: &Repository,
        revision: &str,
        commit: &str,
    ) -> Result<(), HubError> {
        if revision == commit || self.commit(repository, revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.repository_folder(repository).join("refs").join(revision);
        let write = || {
            fs::create_dir_all(folder_of(&path))?;
            write_atomically(&path, |file| fs::write(file, commit))
        };
        write().map_err(HubError::io(&path))
    }

    /// Records the names of all files of a commit, hidden files excepted, after all were downloaded.
    pub(crate) fn record_listing(
        &self,
        repository: &Repository,
        commit: &str,
        files: &[String],
    ) -> io::Result<()> {
        let path = self.listing_path(repository, commit);
        let text = serde_json::to_string(files)?;
        fs::create_dir_all(folder_of(&path))?;
        write_atomically(&path, |file| fs::write(file, text))
    }

    /// Returns the recorded names of all files of a commit; `None` if they were never all downloaded. Files
    /// can have been removed since.
    pub(crate) fn listing(
        &self,
        repository: &Repository,
        commit: &str,
    ) -> Option<BTreeSet<String>> {
        let text = read_text(&self.listing_path(repository, commit), MAX_LISTING).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn listing_path(&self, repository: &Repository, commit: &str) -> PathBuf {
        self.repository_folder(repository).join("listings").join(format!("{commit}.json"))
    }

    /// Makes a blob available under its name at a commit: as a link or, if links are not supported, by
    /// moving the blob if `is_new`, else by a copy. Returns the path. The revision must be a commit.
    pub(crate) fn publish(
        &self,
        file: &RepositoryFile<'_>,
        tag: &str,
        is_new: bool,
    ) -> Result<PathBuf, HubError> {
        let blob = self.blob(file.repository, tag);
        let path = self.snapshot(file.repository, file.revision).join(file.name);
        let publish = || -> io::Result<()> {
            fs::create_dir_all(folder_of(&path))?;
            // A relative link: `snapshots/<commit>/a/b` is three folders below the repository.
            let up = "../".repeat(2 + Path::new(file.name).components().count() - 1);
            let target = PathBuf::from(format!("{up}blobs/{tag}"));
            let mut linked = link(&target, &path);
            if matches!(&linked, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
                if fs::canonicalize(&path).ok() == fs::canonicalize(&blob).ok() {
                    return Ok(());
                }
                // A dangling link, one to another blob, or a file, as after a manual change.
                fs::remove_file(&path)?;
                linked = link(&target, &path);
            }
            match linked {
                Ok(()) => Ok(()),
                Err(_) if is_new => fs::rename(&blob, &path),
                Err(_) => write_atomically(&path, |file| fs::copy(&blob, file).map(|_| ())),
            }
        };
        publish().map_err(HubError::io(&path))?;
        Ok(path)
    }

    /// Returns all repositories of models in the cache, sorted by name.
    ///
    /// # Errors
    /// Returns an error if the cache exists and cannot be listed.
    pub fn repositories(&self) -> Result<Vec<CachedRepository>, HubError> {
        let mut found = Vec::new();
        for (name, path) in entries(&self.folder)? {
            let Some(repository) = Repository::of_folder(&name).filter(|_| path.is_dir()) else {
                continue;
            };
            found.push(self.describe(repository)?);
        }
        found.sort_by(|a, b| a.repository.cmp(&b.repository));
        Ok(found)
    }

    /// Returns the cached files of a repository.
    ///
    /// # Errors
    /// Returns an error if its folder exists and cannot be listed.
    pub fn describe(&self, repository: Repository) -> Result<CachedRepository, HubError> {
        let folder = self.repository_folder(&repository);
        let refs_folder = folder.join("refs");
        let mut refs = Vec::new();
        for (name, path) in files_below(&refs_folder)? {
            let text = read_text(&path, MAX_REF).unwrap_or_default();
            refs.push((name, text.trim().to_string()));
        }
        let mut files = Vec::new();
        // Bytes of regular files, which exist if links are not supported.
        let mut unlinked = 0;
        let snapshots = entries(&folder.join("snapshots"))?;
        // File managers leave files beside the folders, such as `.DS_Store`.
        for (commit, path) in snapshots.into_iter().filter(|(_, path)| path.is_dir()) {
            for (name, path) in files_below(&path)? {
                // A dangling link is not a file.
                let Ok(metadata) = fs::metadata(&path) else { continue };
                if !path.is_symlink() {
                    unlinked += metadata.len();
                }
                files.push(CachedFile { commit: commit.clone(), name, path, size: metadata.len() });
            }
        }
        files.sort_by(|a, b| (&a.commit, &a.name).cmp(&(&b.commit, &b.name)));
        let (mut bytes, mut incomplete_bytes) = (unlinked, 0);
        for (name, path) in entries(&folder.join("blobs"))? {
            let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            match name.ends_with(".incomplete") {
                true => incomplete_bytes += size,
                false => bytes += size,
            }
        }
        Ok(CachedRepository { repository, refs, files, bytes, incomplete_bytes })
    }

    /// Returns the names of the files that the cache has at a commit.
    pub(crate) fn names(
        &self,
        repository: &Repository,
        commit: &str,
    ) -> Result<BTreeSet<String>, HubError> {
        let files = files_below(&self.snapshot(repository, commit))?;
        Ok(files.into_iter().filter(|(_, path)| path.is_file()).map(|(name, _)| name).collect())
    }
}

#[cfg(unix)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn link(target: &Path, path: &Path) -> io::Result<()> {
    // Windows does not resolve links with slashes.
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, path)
}

/// Returns the names and paths of all entries of a folder, sorted; none for a missing folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, HubError> {
    let list = || -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                found.push((name, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(HubError::io(folder)),
    }
}

/// Returns the names (with slashes) and paths of all files below a folder.
fn files_below(folder: &Path) -> Result<Vec<(String, PathBuf)>, HubError> {
    let mut found = Vec::new();
    for (name, path) in entries(folder)? {
        if path.is_dir() && !path.is_symlink() {
            found.extend(
                files_below(&path)?
                    .into_iter()
                    .map(|(inner, path)| (format!("{name}/{inner}"), path)),
            );
        } else {
            found.push((name, path));
        }
    }
    Ok(found)
}

/// Repository and commit of a cached file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Owner and name.
    pub repository: Repository,
    /// Hash of the commit.
    pub commit: String,
    /// The file or folder in the repository; empty for the top folder.
    pub file: String,
}

/// Returns the repository, commit and file of a path in a cache of the hub; `None` for other paths.
///
/// ```
/// use std::path::Path;
///
/// let path = "hub/models--owner--name/snapshots/0123456789abcdef0123456789abcdef01234567/config.json";
/// let found = opensora_hub::provenance(Path::new(path)).ok_or("not in a cache")?;
/// assert_eq!((found.repository.as_str(), found.file.as_str()), ("owner/name", "config.json"));
/// # Ok::<(), &str>(())
/// ```
pub fn provenance(path: &Path) -> Option<Provenance> {
    let names: Vec<&str> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => Some(""),
        })
        .collect();
    let at = names.windows(3).rposition(|names| {
        Repository::of_folder(names[0]).is_some() && names[1] == "snapshots" && is_commit(names[2])
    })?;
    Some(Provenance {
        repository: Repository::of_folder(names[at])?,
        commit: names[at + 2].into(),
        file: names[at + 3..].join("/"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_blob_is_published_by_a_relative_link() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let repository: Repository = "owner/name".parse().unwrap();
        let at = |name| RepositoryFile { repository: &repository, revision: COMMIT, name };
        let blob = cache.blob(&repository, "tag");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, "bytes").unwrap();
        for name in ["a.bin", "vae/a.bin"] {
            for _ in 0..2 {
                let path = cache.publish(&at(name), "tag", true).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), "bytes");
                assert!(path.is_symlink() && fs::read_link(&path).unwrap().is_relative());
            }
        }
        cache.record(&repository, "refs/pr/1", COMMIT).unwrap();
        assert_eq!(cache.commit(&repository, "refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit(&repository, "../x"), None);
        assert!(cache.find(&at("vae/a.bin")).is_some());
        assert!(cache.find(&at("../../blobs/tag")).is_none());

        let all = cache.repositories().unwrap();
        assert_eq!((all.len(), all[0].files.len(), all[0].bytes), (1, 2, 5));
        assert_eq!(all[0].refs, [("refs/pr/1".to_string(), COMMIT.to_string())]);
        let stray = cache.repository_folder(&repository).join("snapshots/.DS_Store");
        fs::write(stray, "written by a file manager").unwrap();
        assert_eq!(cache.repositories().unwrap()[0].files.len(), 2);

        // A link to a blob that is gone is no file, and is replaced.
        fs::remove_file(&blob).unwrap();
        assert!(cache.find(&at("a.bin")).is_none());
        fs::write(&blob, "again").unwrap();
        cache.publish(&at("a.bin"), "tag", true).unwrap();
        assert!(cache.find(&at("a.bin")).is_some());
    }

    #[test]
    fn paths_into_a_cache_say_where_their_file_is_from() {
        let path = format!("/hf/hub/models--a--b/snapshots/{COMMIT}/vae/x.bin");
        let found = provenance(Path::new(&path)).unwrap();
        assert_eq!((found.repository.as_str(), found.file.as_str()), ("a/b", "vae/x.bin"));
        assert_eq!(found.commit, COMMIT);
        let folder = format!("models--a--b/snapshots/{COMMIT}");
        assert_eq!(provenance(Path::new(&folder)).unwrap().file, "");
        for path in ["/models/x.bin", "models--a--b/snapshots/main/x", "models--a--b/blobs/x"] {
            assert_eq!(provenance(Path::new(path)), None, "{path}");
        }
    }
}
