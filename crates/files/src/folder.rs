//! The folder of a path: created, synced, and removed if unused.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Returns the folder of `path`: `.` for a bare file name.
///
/// ```
/// use opensora_files::folder_of;
/// use std::path::Path;
/// assert_eq!(folder_of(Path::new("a/b.mp4")), Path::new("a"));
/// assert_eq!(folder_of(Path::new("b.mp4")), Path::new("."));
/// ```
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Syncs the folder that holds `path`, so that a rename in it survives a crash. File systems that cannot sync
/// folders, such as AFS and the shared folders of VirtualBox, are no error.
///
/// # Errors
/// Returns an error if the folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    sync_entries(folder_of(path))
}

/// Syncs the entries of `folder`, as [`sync_folder`] does.
pub(crate) fn sync_entries(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, Unsupported};
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Folders that were created for an output. Dropping the value removes the empty ones.
#[derive(Debug)]
pub struct CreatedFolders(Vec<PathBuf>);

impl CreatedFolders {
    /// Creates `folder` and the missing folders above it.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be created.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let missing = folder.ancestors().take_while(|f| *f != Path::new("") && !f.exists());
        let created = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(folder)?;
        Ok(created)
    }
}

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Fails for a folder that is not empty, as intended.
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_folders_that_stay_empty_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        drop(CreatedFolders::create(&deep).unwrap());
        assert!(!root.path().join("a").exists());
        let created = CreatedFolders::create(&deep).unwrap();
        fs::write(root.path().join("a/b/file"), "").unwrap();
        drop(created);
        assert!(root.path().join("a/b/file").exists() && !deep.exists());
        // Existing folders stay, empty or not.
        fs::create_dir(&deep).unwrap();
        drop(CreatedFolders::create(&deep).unwrap());
        assert!(deep.exists());
    }

    #[test]
    fn the_folder_of_a_path_is_synced() {
        let root = tempfile::tempdir().unwrap();
        sync_folder(&root.path().join("file")).unwrap();
        assert_eq!(folder_of(Path::new("/")), Path::new("."));
        if cfg!(unix) {
            assert!(sync_folder(&root.path().join("missing/file")).is_err());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn folders_that_cannot_be_synced_are_no_error() {
        // /proc returns EINVAL, as AFS and the shared folders of VirtualBox do.
        let synced = File::open("/proc").unwrap().sync_all();
        assert_eq!(synced.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        sync_folder(Path::new("/proc/version")).unwrap();
    }
}
