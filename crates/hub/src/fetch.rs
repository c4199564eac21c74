//! Downloads of missing files into the cache: [`Hub::fetch`].

use crate::{
    Cache, Files, HubError, Observer, Planned, Repository, RepositoryFile, Settings, Unreachable,
    client::Client,
    digest::Digest,
    lock::BlobLock,
    observer::proceed,
    remote::{Listing, Metadata},
    repository::{FILE_NAME, REVISION, check_relative, is_commit},
    select::{Choice, choose, has_weights, shards},
    transfer::Transfer,
};
use opensora_files::{folder_of, remove_if_present};
use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A function that returns the free bytes of the disk of a folder.
type FreeSpace = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// A client of the hub with its cache.
#[derive(Clone)]
pub struct Hub {
    pub(crate) settings: Settings,
    cache: Cache,
    pub(crate) client: Arc<Client>,
    free_space: FreeSpace,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Branch, tag or commit, usually `main`.
    pub revision: &'a str,
    /// Selection of files.
    pub files: &'a Files,
}

/// When the hub is contacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Only if the cache lacks a file at the last known commit of the revision.
    CacheFirst,
    /// Always, to find the current commit of the revision. If the hub is unreachable, the cache is used.
    Ask,
}

/// Files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The repository.
    pub repository: Repository,
    /// Hash of the commit.
    pub commit: String,
    /// The folder of the commit.
    pub folder: PathBuf,
    /// Names of the wanted files, relative to `folder`.
    pub files: Vec<String>,
}

impl Hub {
    /// Creates a client with the settings of the environment. Nothing is requested or written.
    ///
    /// # Errors
    /// Returns an error if a variable is invalid or the token file cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(Settings::from_env()?))
    }

    /// Creates a client with the given settings.
    pub fn new(settings: Settings) -> Self {
        let client = Client::new(&settings.endpoint, settings.token.clone());
        let cache = Cache::new(&settings.cache);
        Self { settings, cache, client: client.into(), free_space: Arc::new(free_space) }
    }

    /// Replaces the function that measures free disk space.
    pub fn with_free_space(
        self,
        free_space: impl Fn(&Path) -> io::Result<u64> + Send + Sync + 'static,
    ) -> Self {
        Self { free_space: Arc::new(free_space), ..self }
    }

    /// Sets the wait before the second attempt, which doubles with each further attempt. Default: one second.
    pub fn with_first_wait(self, first_wait: Duration) -> Self {
        let mut client = Client::new(&self.settings.endpoint, self.settings.token.clone());
        client.first_wait = first_wait;
        Self { client: client.into(), ..self }
    }

    /// Returns the cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the files, after downloading those that the cache lacks.
    ///
    /// The commit of the revision is recorded when all files are complete.
    ///
    /// # Errors
    /// Returns an error if a file does not exist, is not accessible, or cannot be downloaded; if a file is
    /// missing in offline mode; if the disk has too little space; or if the observer stops the work.
    pub fn fetch(
        &self,
        wanted: &Wanted<'_>,
        lookup: Lookup,
        observer: &mut dyn Observer,
    ) -> Result<Snapshot, HubError> {
        check_names(wanted)?;
        let offline = self.settings.offline;
        if (offline || lookup == Lookup::CacheFirst)
            && let Some(snapshot) = self.cached(wanted, offline)?
        {
            return Ok(snapshot);
        }
        if offline {
            return Err(self.offline(wanted)?);
        }
        let listing = match wanted.files {
            Files::Named(_) => Ok(None),
            _ => self.list(wanted.repository, wanted.revision, observer).map(Some),
        };
        // With a listing, some files are missing: the cached ones count as all only if they once were, at the commit of an
        // earlier listing.
        let partial = listing.is_err();
        match listing.and_then(|listing| self.download(wanted, listing, observer)) {
            Err(error) if error.is_unreachable() => match self.cached(wanted, partial)? {
                Some(snapshot) => {
                    proceed(observer.unreachable(&Unreachable { error: &error }))?;
                    Ok(snapshot)
                }
                None => Err(error),
            },
            result => result,
        }
    }

    /// Returns the wanted files if all are cached. The names of [`Files::All`] are known after a complete
    /// download only: `partial` otherwise accepts the files that are cached.
    fn cached(&self, wanted: &Wanted<'_>, partial: bool) -> Result<Option<Snapshot>, HubError> {
        let Wanted { repository, revision, files } = *wanted;
        let Some(commit) = self.cache.commit(repository, revision) else { return Ok(None) };
        let names = self.cache.names(repository, &commit)?;
        let listing = match files {
            Files::All => self.cache.listing(repository, &commit),
            _ => None,
        };
        let Choice { mut files, index } = match (files, listing) {
            (_, Some(listing)) if listing.is_subset(&names) => choose(files, &listing),
            (Files::All, _) if !partial || names.is_empty() => return Ok(None),
            _ => choose(files, &names),
        };
        let folder = self.cache.snapshot(repository, &commit);
        if *wanted.files == Files::Model {
            if !has_weights(&Choice { files: files.clone(), index: None }) {
                return Ok(None);
            }
            if let Some(index) = index {
                files.extend(shards(&folder.join(index))?);
            }
        }
        let complete = files.iter().all(|name| names.contains(name));
        let repository = repository.clone();
        Ok(complete.then_some(Snapshot { repository, commit, folder, files }))
    }

    fn offline(&self, wanted: &Wanted<'_>) -> Result<HubError, HubError> {
        let commit = self.cache.commit(wanted.repository, wanted.revision);
        let there = match commit {
            Some(commit) => self.cache.names(wanted.repository, &commit)?,
            None => BTreeSet::new(),
        };
        let file = match wanted.files {
            Files::Named(names) => names.iter().find(|name| !there.contains(*name)).cloned(),
            _ => None,
        };
        Ok(HubError::Offline {
            repository: wanted.repository.to_string(),
            file: file.unwrap_or_else(|| "weights".into()),
            cache: self.cache.folder().into(),
        })
    }

    fn download(
        &self,
        wanted: &Wanted<'_>,
        listing: Option<Listing>,
        observer: &mut dyn Observer,
    ) -> Result<Snapshot, HubError> {
        let Wanted { repository, revision, files } = *wanted;
        let mut commit = match &listing {
            Some(listing) => Some(listing.commit.clone()),
            None => is_commit(revision).then(|| revision.to_string()),
        };
        let names = listing.map(|listing| listing.files).unwrap_or_default();
        let Choice { mut files, index } = choose(files, &names);
        if *wanted.files == Files::Model && !has_weights(&choose(wanted.files, &names)) {
            return Err(HubError::FileNotFound {
                repository: repository.to_string(),
                revision: revision.into(),
                file: "model.safetensors (nor weights under another usual name)".into(),
            });
        }
        if let (Some(index), Some(commit)) = (&index, &commit) {
            // The index names the shards.
            let missing =
                self.missing(wanted, commit.clone(), std::slice::from_ref(index), observer)?;
            self.transfer_all(repository, missing.1, observer)?;
            for shard in shards(&self.cache.snapshot(repository, commit).join(index))? {
                check_relative(&shard, FILE_NAME)?;
                files.push(shard);
            }
        }
        let start = commit.take().unwrap_or_else(|| revision.to_string());
        let (commit, missing) = self.missing(wanted, start, &files, observer)?;
        self.check_space(repository, &missing, observer)?;
        self.transfer_all(repository, missing, observer)?;
        self.cache.record(repository, revision, &commit)?;
        if *wanted.files == Files::All && !files.is_empty() {
            // An error is ignored: a read-only cache can be complete. The next call asks the hub again.
            let _ = self.cache.record_listing(repository, &commit, &files);
        }
        let folder = self.cache.snapshot(repository, &commit);
        Ok(Snapshot { repository: repository.clone(), commit, folder, files })
    }

    /// Returns the commit, and the metadata of the files that the cache lacks.
    fn missing(
        &self,
        wanted: &Wanted<'_>,
        revision: String,
        files: &[String],
        observer: &mut dyn Observer,
    ) -> Result<(String, Vec<(String, Metadata)>), HubError> {
        let mut commit = revision;
        let mut missing = Vec::new();
        for name in files {
            let file = RepositoryFile { repository: wanted.repository, revision: &commit, name };
            if is_commit(&commit) && self.cache.find(&file).is_some() {
                continue;
            }
            let metadata = self.metadata(&file, observer)?;
            // All files come from the commit of the first one.
            let file = RepositoryFile { revision: &metadata.commit, ..file };
            let found = self.cache.find(&file);
            commit = metadata.commit.clone();
            if !found.is_some_and(|path| has_size(&path, metadata.size)) {
                missing.push((name.clone(), metadata));
            }
        }
        Ok((commit, missing))
    }

    /// Reports the planned downloads. Returns an error if the disk has too little space.
    fn check_space(
        &self,
        repository: &Repository,
        missing: &[(String, Metadata)],
        observer: &mut dyn Observer,
    ) -> Result<(), HubError> {
        let mut tags = BTreeSet::new();
        let mut bytes = 0;
        for (_, metadata) in missing {
            let blob = self.cache.blob(repository, &metadata.tag);
            if !is_blob(&blob, metadata.size) && tags.insert(&metadata.tag) {
                let there = fs::metadata(incomplete(&blob)).map_or(0, |partial| partial.len());
                bytes += metadata.size.unwrap_or(0).saturating_sub(there);
            }
        }
        if tags.is_empty() {
            return Ok(());
        }
        let folder = self.cache.repository_folder(repository);
        proceed(observer.planned(&Planned {
            repository: repository.as_str(),
            folder: &folder,
            files: tags.len(),
            bytes,
        }))?;
        self.require_space(self.cache.folder(), bytes)
    }

    /// Returns an error if the disk of `folder`, which need not exist, has too little space.
    pub(crate) fn require_space(&self, folder: &Path, needed: u64) -> Result<(), HubError> {
        let available = (self.free_space)(folder).map_err(HubError::io(folder))?;
        match available < needed {
            true => Err(HubError::Space { folder: folder.into(), needed, available }),
            false => Ok(()),
        }
    }

    fn transfer_all(
        &self,
        repository: &Repository,
        missing: Vec<(String, Metadata)>,
        observer: &mut dyn Observer,
    ) -> Result<(), HubError> {
        for (name, metadata) in missing {
            self.transfer(repository, &name, &metadata, observer)?;
        }
        Ok(())
    }

    fn transfer(
        &self,
        repository: &Repository,
        name: &str,
        metadata: &Metadata,
        observer: &mut dyn Observer,
    ) -> Result<(), HubError> {
        let Metadata { commit, tag, size, url } = metadata;
        let file = RepositoryFile { repository, revision: commit, name };
        let blob = self.cache.blob(repository, tag);
        fs::create_dir_all(folder_of(&blob)).map_err(HubError::io(folder_of(&blob)))?;
        let _lock = BlobLock::wait(&self.cache.lock(repository, tag), name, observer)?;
        // Meanwhile, another process may have published the file: without links, by moving the blob.
        if self.cache.find(&file).is_some_and(|path| has_size(&path, *size)) {
            return Ok(());
        }
        let is_new = !is_blob(&blob, *size);
        if is_new {
            // Replace a damaged or planted file.
            remove_if_present(&blob).map_err(HubError::io(&blob))?;
            let transfer = Transfer {
                url,
                name,
                partial: &incomplete(&blob),
                target: &blob,
                size: *size,
                digest: Digest::of_tag(tag),
                if_range: None,
                refuse: &|answer| self.refuse_file(&file, url, answer),
            };
            transfer.run(&self.client, observer)?;
        }
        self.cache.publish(&file, tag, is_new)?;
        Ok(())
    }
}

fn check_names(wanted: &Wanted<'_>) -> Result<(), HubError> {
    check_relative(wanted.revision, REVISION)?;
    if let Files::Named(names) = wanted.files {
        names.iter().try_for_each(|name| check_relative(name, FILE_NAME))?;
    }
    Ok(())
}

/// Returns true for a regular file (not a link) of this size; `None` accepts any size.
fn is_blob(path: &Path, size: Option<u64>) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    is_file && has_size(path, size)
}

/// Returns true if the file, after following links, has this size; `None` accepts any size.
fn has_size(path: &Path, size: Option<u64>) -> bool {
    fs::metadata(path).is_ok_and(|found| size.is_none_or(|size| found.len() == size))
}

/// Returns the path of an unfinished download.
pub(crate) fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_os_string();
    name.push(".incomplete");
    name.into()
}

/// Returns the free bytes of the disk of `folder`, which need not exist.
fn free_space(folder: &Path) -> io::Result<u64> {
    let folder = std::path::absolute(folder)?;
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(&folder);
    fs4::available_space(there)
}
