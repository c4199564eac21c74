//! Reading of untrusted files: regular files only, of bounded size, inside their folder.
//!
//! An untrusted path may name a pipe without a writer, an endless device, or a file of many gigabytes. The
//! functions of this module return an error instead of waiting or filling the memory.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

/// Upper limit of a configuration (`config.json`, `model.json`, a recipe) in bytes. Published ones have a few
/// kilobytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Opens a regular file; symbolic links are followed.
///
/// # Errors
/// Returns an error if the path cannot be opened or names a folder, a pipe, a socket or a device.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Checked before the file is opened: opening a pipe waits for its other end.
    check_regular(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

fn check_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind =
        if metadata.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput };
    Err(io::Error::new(kind, format!("{} found, expected a regular file", kind_of(metadata))))
}

fn kind_of(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    "a device"
}

/// Reads a whole regular file of at most `limit` bytes.
///
/// # Errors
/// Returns an error if the path is not a regular file, cannot be read, or has more than `limit` bytes
/// ([`io::ErrorKind::FileTooLarge`]).
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let too_large = |found: u64| {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file has {found} bytes or more, expected at most {limit}"),
        )
    };
    let declared = file.metadata()?.len();
    if declared > limit {
        return Err(too_large(declared));
    }
    // One byte more than the limit: the file may grow, and files of /proc declare no size.
    let mut bytes = Vec::with_capacity(declared as usize);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Reads a whole regular UTF-8 file of at most `limit` bytes, without a byte order mark.
///
/// # Errors
/// Returns the errors of [`read_bounded`], and an error if the file is not UTF-8
/// ([`io::ErrorKind::InvalidData`]).
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::from_utf8(read_bounded(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8 from byte {at} on"))
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// Joins `folder` and an untrusted relative path that must stay inside `folder`. Components `.` are skipped.
///
/// Only the text of the path is checked. Symbolic links may lead elsewhere, because model caches consist of
/// links.
///
/// ```
/// use opensora_files::read::inside;
/// use std::path::Path;
///
/// let folder = Path::new("model");
/// assert_eq!(inside(folder, Path::new("./vae/config.json"))?, Path::new("model/vae/config.json"));
/// assert!(inside(folder, Path::new("../secret")).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Returns [`io::ErrorKind::InvalidInput`] if the path is empty, absolute or has a `..`.
pub fn inside(folder: &Path, relative: &Path) -> io::Result<PathBuf> {
    let mut path = folder.to_path_buf();
    let mut is_named = false;
    for component in relative.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => {
                path.push(name);
                is_named = true;
            }
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("'{}' leads out of the folder", relative.display()),
                ));
            }
        }
    }
    if !is_named {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("'{}' names no file", relative.display()),
        ));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_have_at_most_a_mebibyte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, vec![b' '; 1_048_576]).unwrap();
        assert_eq!(read_bounded(&path, MAX_CONFIG_BYTES).unwrap().len(), 1_048_576);
        std::fs::write(&path, vec![b' '; 1_048_577]).unwrap();
        let error = read_bounded(&path, MAX_CONFIG_BYTES).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn files_are_read_up_to_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "\u{feff}{}").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), "\u{feff}{}".as_bytes());
        assert_eq!(read_text(&path, 5).unwrap(), "{}");
        let error = read_bounded(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("5 bytes"), "{error}");
        std::fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path, 9).unwrap_err();
        assert!(error.to_string().contains("byte 2"), "{error}");
        let missing = read_text(&folder.path().join("no"), 9).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // 1 TB that takes no place on the disk.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_text(&path, 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_named_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for (path, says) in [
            (folder.path(), "a folder"),
            (&pipe, "a pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
            (&link, "a device"),
        ] {
            for error in [open_regular(path).unwrap_err(), read_text(path, 1 << 20).unwrap_err()] {
                assert!(error.to_string().contains(says), "{error}");
            }
        }
    }

    #[test]
    fn files_of_proc_declare_no_size_and_are_bounded_too() {
        let path = Path::new("/proc/self/status");
        if path.exists() {
            assert!(!read_bounded(path, 1 << 20).unwrap().is_empty());
            assert_eq!(read_bounded(path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        }
    }

    #[test]
    fn named_paths_stay_below_their_folder() {
        let folder = Path::new("model");
        for (named, path) in [
            ("a.bin", "model/a.bin"),
            ("./a.bin", "model/a.bin"),
            ("t5/./a.bin", "model/t5/a.bin"),
            (".../a", "model/.../a"),
        ] {
            assert_eq!(inside(folder, Path::new(named)).unwrap(), Path::new(path));
        }
        for named in ["../a", "a/../../b", "a/..", "/etc/passwd", "", ".", "./"] {
            let error = inside(folder, Path::new(named)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{named}");
        }
    }
}
