//! Opens videos, and identifies files and their versions.

use crate::{RowError, step::State};
use opensora_video::reader::{Decoder, VideoReader};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// Opens a video and resizes its frames to square pixels. Frames are rotated upright.
///
/// # Errors
/// Returns an error if the file is missing, empty or cannot be decoded.
pub(crate) fn open(path: &Path, decoder: Decoder) -> Result<VideoReader, RowError> {
    Ok(open_stored(path, decoder)?.with_square_pixels()?)
}

/// Opens a video without resizing its frames to square pixels. Frames are rotated upright.
///
/// # Errors
/// Returns an error if the file is missing, empty or cannot be decoded.
pub(crate) fn open_stored(path: &Path, decoder: Decoder) -> Result<VideoReader, RowError> {
    check(path)?;
    Ok(VideoReader::open(path, decoder)?)
}

/// Checks that `path` is a regular file that is not empty.
///
/// # Errors
/// Returns an error if it is not.
pub(crate) fn check(path: &Path) -> Result<(), RowError> {
    match regular(path)?.len() {
        0 => Err(RowError::EmptyFile),
        _ => Ok(()),
    }
}

/// Returns the metadata of a regular file. Nothing is opened: opening a pipe would wait for its writer.
///
/// # Errors
/// Returns an error if `path` is missing or not a regular file.
pub(crate) fn regular(path: &Path) -> Result<fs::Metadata, RowError> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(RowError::NotAFile(kind(&found))),
        Ok(found) => Ok(found),
        Err(source) => Err(match fs::read_link(path) {
            Ok(target) => RowError::Link { target, source },
            Err(_) => source.into(),
        }),
    }
}

/// Returns the version of a file: its size and modification time. The version of a folder of frames is
/// the sum of the files' sizes and the latest time; if one of the files cannot be reached, the folder is
/// [`State::Gone`].
pub(crate) fn state(path: &Path) -> State {
    match size_and_time(path) {
        Err(_) => State::Gone,
        Ok((_, None)) => State::Unknown,
        Ok((size, Some(time))) => {
            State::Known(format!("{size} bytes of {}.{:09}", time.as_secs(), time.subsec_nanos()))
        }
    }
}

/// Returns the size and time of a file or folder for [`state`]; without time if the file system has none.
///
/// # Errors
/// Returns an error if the file, the folder or one of the folder's files cannot be reached: the other
/// files of the folder would look like another version.
fn size_and_time(path: &Path) -> io::Result<(u64, Option<Duration>)> {
    let time = |found: &fs::Metadata| found.modified().ok()?.duration_since(UNIX_EPOCH).ok();
    let found = fs::metadata(path)?;
    if !found.is_dir() {
        return Ok((found.len(), time(&found)));
    }
    let (mut size, mut latest) = (0, time(&found));
    for entry in fs::read_dir(path)? {
        let found = fs::metadata(entry?.path())?;
        size += found.len();
        latest = latest.max(time(&found));
    }
    Ok((size, latest))
}

/// Returns an identity that all paths to one file share, also links: the path without links, or device
/// and inode number for a file with several hard links. For a missing file, the absolute path.
pub(crate) fn identity(path: &Path) -> PathBuf {
    #[cfg(unix)]
    if let Ok(found) = fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        if found.is_file() && found.nlink() > 1 {
            return format!("{}:{}", found.dev(), found.ino()).into();
        }
    }
    let real = fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    real.unwrap_or_else(|_| path.into())
}

/// Returns the kind of something that is not a file, with its article.
pub(crate) fn kind(found: &fs::Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() {
            return "a pipe (FIFO)";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    if found.is_dir() { "a folder" } else { "not a regular file" }
}

/// Returns the text of an error without the path of its file, which decoders give in several forms.
pub(crate) fn without_path(text: &str, path: &Path) -> String {
    let path = path.display().to_string();
    if path.is_empty() {
        return text.into();
    }
    let text = text.replace(&format!("file:{path}: "), "").replace(&format!("{path}: "), "");
    let rest = text.strip_prefix(&path).unwrap_or(&text);
    rest.trim_start_matches([':', ' ']).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T>(result: Result<T, RowError>) -> String {
        result.err().unwrap().reason(None)
    }

    #[test]
    #[cfg(unix)]
    fn all_paths_to_a_file_have_one_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("a.mp4"), "x").unwrap();
        fs::write(path("b.mp4"), "x").unwrap();
        std::os::unix::fs::symlink("a.mp4", path("link.mp4")).unwrap();
        let one = identity(&path("a.mp4"));
        assert_eq!(identity(&path("sub/../a.mp4")), one);
        assert_eq!(identity(&path("link.mp4")), one);
        assert_ne!(identity(&path("b.mp4")), one);
        fs::hard_link(path("b.mp4"), path("c.mp4")).unwrap();
        assert_eq!(identity(&path("b.mp4")), identity(&path("c.mp4")));
        assert_eq!(identity(&path("none.mp4")), path("none.mp4"));
    }

    #[test]
    fn a_state_identifies_a_version_of_a_file_or_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str, seconds: u64| {
            fs::write(path(name), text).unwrap();
            let file = fs::File::options().write(true).open(path(name)).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        assert_eq!(state(&path("a.mp4")), State::Gone);
        write("a.mp4", "one", 7);
        assert_eq!(state(&path("a.mp4")), State::Known("3 bytes of 7.000000000".into()));
        fs::create_dir(path("frames")).unwrap();
        write("frames/0.png", "one", 1);
        let first = state(&path("frames"));
        assert!(first.known().unwrap().starts_with("3 bytes"), "{first:?}");
        // The folder's own time does not change with a file's contents.
        write("frames/0.png", "two", 1 << 33);
        assert_eq!(state(&path("frames")).known(), Some("3 bytes of 8589934592.000000000"));
    }

    #[test]
    #[cfg(unix)]
    fn a_folder_with_an_unreachable_frame_is_gone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("frames")).unwrap();
        fs::write(path("frames/0.png"), "one").unwrap();
        let whole = state(&path("frames"));
        assert!(whole.known().is_some());
        // A frame whose link leads to a disk that is not mounted.
        std::os::unix::fs::symlink("../away/1.png", path("frames/1.png")).unwrap();
        assert_eq!(state(&path("frames")), State::Gone);
        fs::create_dir(path("away")).unwrap();
        fs::write(path("away/1.png"), "two").unwrap();
        assert!(state(&path("frames")).known().unwrap().starts_with("6 bytes"));

        fs::set_permissions(path("frames"), fs::Permissions::from_mode(0o000)).unwrap();
        // An administrator may read it nevertheless.
        if fs::read_dir(path("frames")).is_err() {
            assert_eq!(state(&path("frames")), State::Gone);
        }
        fs::set_permissions(path("frames"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn reasons_name_what_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(reason(check(folder.path())), "it is a folder, expected a file");
        fs::write(path("empty.mp4"), "").unwrap();
        assert_eq!(reason(check(&path("empty.mp4"))), "it is empty");
        assert!(reason(check(&path("none.mp4"))).starts_with("No such file"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("gone.mp4", path("dangling.mp4")).unwrap();
            let reason = self::reason(check(&path("dangling.mp4")));
            assert!(reason.starts_with("it is a link to gone.mp4: No such file"), "{reason}");
            let made = std::process::Command::new("mkfifo").arg(path("pipe.mp4")).status();
            if made.is_ok_and(|status| status.success()) {
                let reason = self::reason(open(&path("pipe.mp4"), Decoder::Auto));
                assert_eq!(reason, "it is a pipe (FIFO), expected a file");
            }
            let null = self::reason(check(Path::new("/dev/null")));
            assert_eq!(null, "it is a device, expected a file");
        }
    }
}
