//! Files that appear complete or not at all.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Lets `write` fill a file under a temporary name beside `path`, brings it to the disk and renames
/// it: whoever looks sees the old file or the whole new one, also after a crash. Where anything
/// fails, the temporary file is removed and what was at `path` stays.
///
/// # Errors
/// Where `write` fails or the file cannot be brought to the disk or renamed.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let done = write(&temporary)
        .and_then(|()| File::open(&temporary)?.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path));
    if done.is_err() {
        // The first error tells what happened; that the rest of the file stays is the lesser evil.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

/// Brings the folder that holds `path` to the disk, so that a rename in it survives a crash.
///
/// # Errors
/// Where the folder cannot be opened.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    // Two processes that write the same file do not write into each other's.
    temporary.push(format!(".{}.partial", std::process::id()));
    Ok(folder_of(path).join(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("opensora-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        write_atomically(&path, |temporary| std::fs::write(temporary, "first")).unwrap();
        let error = write_atomically(&path, |temporary| {
            std::fs::write(temporary, "half")?;
            Err(io::Error::other("full"))
        });
        assert_eq!(error.unwrap_err().to_string(), "full");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        write_atomically(&path, |temporary| std::fs::write(temporary, "second")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
