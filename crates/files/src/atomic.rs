//! Files and folders that appear complete or not at all.
//!
//! Contents are written under an unpredictable temporary name in the target's folder, synced, and renamed.
//! The temporary file is created with `O_EXCL`: an existing file or symbolic link of that name is never
//! opened. A reader sees the old or the complete new contents, also after a crash. Permissions are those of
//! any new file: `0666` minus the umask, `0777` for folders. Dropping an uncommitted file or folder removes
//! it; [`remove_leftovers`] removes those of killed processes.

use crate::folder::{folder_of, sync_entries, sync_folder};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// Start of temporary names.
const PREFIX: &str = ".opensora-";
/// End of temporary names.
const SUFFIX: &str = ".part";

/// What to do if the target exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Replace a file or an empty folder.
    #[default]
    Replace,
    /// Return an error of the kind [`io::ErrorKind::AlreadyExists`], when the temporary file is created and
    /// again at the commit, which creates the target atomically only if it is absent.
    Refuse,
}

/// Calls `write` with the path of a temporary file, syncs the file and renames it to `path`. On failure,
/// the temporary file is removed and the old file stays.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.txt");
/// opensora_files::write_atomically(&path, |temporary| std::fs::write(temporary, "whole"))?;
/// assert_eq!(std::fs::read_to_string(&path)?, "whole");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Returns an error if `write` fails, or the file cannot be created, synced or renamed.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let file = AtomicFile::create(path, Existing::Replace)?;
    write(file.temporary_path())?;
    file.commit()
}

/// Checks that `path` can become a file; for a call before long work. Its folder need not exist yet.
///
/// # Errors
/// Returns an error if `path` is a folder, device, pipe or socket.
pub fn check_file_path(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let reason = "it is a folder, expected a file name";
            Err(io::Error::new(io::ErrorKind::IsADirectory, reason))
        }
        // Renaming would replace the device itself.
        Ok(found) if !found.is_file() => {
            let reason = "it is a device, pipe or socket, expected a file";
            Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
        }
        _ => Ok(()),
    }
}

/// Checks that a file can be written to `path`; for a call before long work. Leaves no file.
///
/// # Errors
/// Returns the errors of [`AtomicFile::create`], and an error if the disk is full.
pub fn check_writable(path: &Path) -> io::Result<()> {
    AtomicFile::create(path, Existing::Replace)?.try_write()
}

/// A temporary file that becomes the file at its target when it is committed.
///
/// The file can be created long before it is written, so that a read-only target is found before the work:
///
/// ```
/// # use opensora_files::{AtomicFile, Existing};
/// # use std::io::Write;
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("video.mp4");
/// let mut file = AtomicFile::create(&path, Existing::Refuse)?;
/// file.try_write()?;
/// // Minutes of work; dropping `file` here leaves nothing behind.
/// file.write_all(b"frames")?;
/// file.commit()?;
/// assert!(AtomicFile::create(&path, Existing::Refuse).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// [`Write`], [`Read`] and [`Seek`] access the temporary file, unbuffered.
#[derive(Debug)]
pub struct AtomicFile {
    temporary: Temporary,
    file: File,
    target: PathBuf,
    existing: Existing,
}

impl AtomicFile {
    /// Creates an empty temporary file in the folder of `path`, which must exist.
    ///
    /// # Errors
    /// Returns an error if `path` has no file name or is a folder or device, if it exists and `existing` is
    /// [`Existing::Refuse`], or if its folder is not writable.
    pub fn create(path: &Path, existing: Existing) -> io::Result<Self> {
        check_target(path, existing)?;
        check_file_path(path)?;
        let create =
            |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let (temporary, file) = Temporary::create(path, create, |path| fs::remove_file(path))?;
        Ok(Self { temporary, file, target: path.into(), existing })
    }

    /// Writes a few bytes and removes them again, so that a full disk is found early.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn try_write(&mut self) -> io::Result<()> {
        self.file.write_all(b"try")?;
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Returns the path that the file gets at the commit.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the path of the temporary file, for writers that open a path themselves.
    pub fn temporary_path(&self) -> &Path {
        &self.temporary.path
    }

    /// Syncs the file to the disk, as [`AtomicFile::commit`] does. Useful for several files that are renamed
    /// only after all are complete.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened or synced.
    pub fn sync(&self) -> io::Result<()> {
        // By its path: a writer that opened the path may have replaced the file.
        sync_file(&self.temporary.path)
    }

    /// Syncs the file, renames it to its target and syncs the folder.
    ///
    /// # Errors
    /// Returns an error if one of these steps fails, or if the target was created meanwhile and `existing` is
    /// [`Existing::Refuse`]. The temporary file is then removed.
    pub fn commit(self) -> io::Result<()> {
        // A writer that replaces the file, as the safetensors crate does, may have made it private.
        let rights = self.file.metadata()?.permissions();
        if fs::metadata(&self.temporary.path)?.permissions() != rights {
            fs::set_permissions(&self.temporary.path, rights)?;
        }
        self.sync()?;
        match self.existing {
            Existing::Replace => fs::rename(&self.temporary.path, &self.target)?,
            Existing::Refuse => rename_new(&self.temporary.path, &self.target)?,
        }
        self.temporary.keep();
        sync_folder(&self.target)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for AtomicFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// A temporary folder that becomes the folder at its target when it is committed.
#[derive(Debug)]
pub struct AtomicFolder {
    temporary: Temporary,
    target: PathBuf,
    existing: Existing,
}

impl AtomicFolder {
    /// Creates an empty temporary folder in the folder of `path`, which must exist.
    ///
    /// # Errors
    /// Returns an error if `path` has no name or is a file, if it exists and `existing` is
    /// [`Existing::Refuse`], or if its folder is not writable.
    pub fn create(path: &Path, existing: Existing) -> io::Result<Self> {
        check_target(path, existing)?;
        if path.exists() && !path.is_dir() {
            let reason = "it is a file, expected a folder";
            return Err(io::Error::new(io::ErrorKind::NotADirectory, reason));
        }
        let remove = |path: &Path| fs::remove_dir_all(path);
        let (temporary, ()) = Temporary::create(path, |path| fs::create_dir(path), remove)?;
        Ok(Self { temporary, target: path.into(), existing })
    }

    /// Returns the path that the folder gets at the commit.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the path of the temporary folder, to write files into.
    pub fn temporary_path(&self) -> &Path {
        &self.temporary.path
    }

    /// Syncs all files and folders inside, renames the folder to its target and syncs the parent folder.
    ///
    /// # Errors
    /// Returns an error if one of these steps fails, if a folder at the target is not empty, or if the target
    /// was created meanwhile and `existing` is [`Existing::Refuse`]. The temporary folder is then removed.
    pub fn commit(self) -> io::Result<()> {
        sync_all_in(&self.temporary.path)?;
        // Only Unix can rename over an empty folder. There, creating the target claims its name atomically.
        let refuses = self.existing == Existing::Refuse;
        if refuses && cfg!(unix) {
            fs::create_dir(&self.target)?;
        } else if !refuses && !cfg!(unix) && self.target.exists() {
            fs::remove_dir(&self.target)?;
        }
        if let Err(error) = fs::rename(&self.temporary.path, &self.target) {
            if refuses && cfg!(unix) {
                // The target is the empty folder created above; report the first error.
                let _ = fs::remove_dir(&self.target);
            }
            return Err(error);
        }
        self.temporary.keep();
        sync_folder(&self.target)
    }
}

/// Removes temporary files and folders of killed processes from `folder` if they were not modified for at
/// least `age`. Newer ones may be in use.
///
/// A missing folder is not an error.
///
/// # Errors
/// Returns an error if the folder cannot be listed. If an entry cannot be removed, the others are tried, and the first
/// error is returned.
pub fn remove_leftovers(folder: &Path, age: Duration) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut result = Ok(());
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            continue;
        }
        let remove = || {
            // Metadata of the entry itself: a symbolic link is removed, not its target.
            let found = entry.metadata()?;
            let idle = found.modified()?.elapsed().unwrap_or_default();
            match idle >= age {
                true if found.is_dir() => fs::remove_dir_all(entry.path()),
                true => fs::remove_file(entry.path()),
                false => Ok(()),
            }
        };
        // A missing entry was committed, or removed by another process.
        result = result.and(unless_missing(remove()));
    }
    result
}

/// Removes the temporary files and folders of killed processes from `folder`, and those of the safetensors crate (`.tmp`
/// and six characters), which it renames over them. For folders in which only the caller writes.
///
/// # Errors
/// Returns an error if the folder cannot be listed or an entry cannot be removed.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    remove_leftovers(folder, Duration::ZERO)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let drawn = name.to_str().and_then(|name| name.strip_prefix(".tmp"));
        if drawn.is_some_and(|drawn| drawn.len() == 6) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file. A missing one is not an error.
///
/// # Errors
/// Returns an error if the file is there and cannot be removed.
pub fn remove_if_present(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(path))
}

fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes a folder with its contents. It is first renamed to a temporary name, so that after an interruption
/// [`remove_leftovers`] removes the rest.
///
/// # Errors
/// Returns an error if the folder is missing or cannot be removed. A call that follows a failed one continues it.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut leftover = OsString::from(PREFIX);
    leftover.push(name);
    leftover.push(SUFFIX);
    let leftover = folder_of(path).join(leftover);
    match fs::rename(path, &leftover) {
        // An earlier call failed after this step.
        Err(error) if error.kind() == io::ErrorKind::NotFound && leftover.exists() => {}
        renamed => renamed?,
    }
    sync_folder(path)?;
    fs::remove_dir_all(leftover)
}

/// Returns an error if `path` has no name, or exists and `existing` is [`Existing::Refuse`].
fn check_target(path: &Path, existing: Existing) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    // Metadata of the entry itself: a dangling link counts as existing.
    if existing == Existing::Refuse && fs::symlink_metadata(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists already"));
    }
    Ok(())
}

/// A temporary file or folder, removed when dropped.
#[derive(Debug)]
struct Temporary {
    /// Absolute, so that a change of the working directory does not matter.
    path: PathBuf,
    remove: fn(&Path) -> io::Result<()>,
}

impl Temporary {
    /// Calls `create` with unpredictable names in the folder of `target` until one is unused.
    fn create<T>(
        target: &Path,
        create: impl Fn(&Path) -> io::Result<T>,
        remove: fn(&Path) -> io::Result<()>,
    ) -> io::Result<(Self, T)> {
        let folder = std::path::absolute(folder_of(target))?;
        loop {
            // Keyed by random bytes of the operating system.
            let random = RandomState::new().build_hasher().finish();
            let path = folder.join(format!("{PREFIX}{random:016x}{SUFFIX}"));
            match create(&path) {
                Ok(created) => return Ok((Self { path, remove }, created)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Disarms the removal after the rename.
    fn keep(mut self) {
        self.remove = |_| Ok(());
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // On failure the file stays, as after a killed process.
        let _ = (self.remove)(&self.path);
    }
}

/// Renames `temporary` to `target` atomically; returns an error if `target` exists.
fn rename_new(temporary: &Path, target: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, target) {
        Ok(()) => fs::remove_file(temporary),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // A file system without hard links: claim the name with an empty file first.
        Err(_) => {
            OpenOptions::new().write(true).create_new(true).open(target)?;
            fs::rename(temporary, target).inspect_err(|_| {
                // The target is the empty file; report the first error.
                let _ = fs::remove_file(target);
            })
        }
    }
}

/// Syncs a file. Only Windows needs the right to write for that, which a copy of a read-only file does not grant.
fn sync_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).write(!cfg!(unix)).open(path)?.sync_all()
}

fn sync_all_in(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all_in(&entry.path())?;
        } else if kind.is_file() {
            sync_file(&entry.path())?;
        }
    }
    sync_entries(folder)
}

#[cfg(test)]
mod tests;
