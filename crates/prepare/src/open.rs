//! Videos opened, with reasons that fit into a table.

use crate::step::State;
use opensora_files::{error_line, one_line};
use opensora_video::reader::{Decoder, VideoReader};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// Opens a video whose frames come in square pixels.
///
/// # Errors
/// One line without the path, which the row has.
pub(crate) fn open(path: &Path, decoder: Decoder) -> Result<VideoReader, String> {
    let reader = open_stored(path, decoder)?;
    reader.with_square_pixels().map_err(|error| without_path(&error, path))
}

/// Opens a video whose frames come in the stored number of pixels.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_stored(path: &Path, decoder: Decoder) -> Result<VideoReader, String> {
    check(path)?;
    VideoReader::open(path, decoder).map_err(|error| without_path(&error, path))
}

/// Fails if `path` is no file that holds something.
///
/// # Errors
/// One line without the path.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    match regular(path)?.len() {
        0 => Err("it is empty".into()),
        _ => Ok(()),
    }
}

/// Fails if `path` is no regular file; nothing is opened, as opening a pipe waits for its writer.
///
/// # Errors
/// One line without the path.
pub(crate) fn regular(path: &Path) -> Result<fs::Metadata, String> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(format!("it is {}, expected a file", kind(&found))),
        Ok(found) => Ok(found),
        Err(error) => Err(match fs::read_link(path) {
            Ok(target) => format!("it is a link to {}: {error}", one_line(target.display())),
            Err(_) => error.to_string(),
        }),
    }
}

/// Returns what tells a file from an earlier or later version of it: its size and time. Of a folder of
/// frames these are the sum of the files' sizes and the latest of all times; if one of the files is out of
/// reach, so is the folder.
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
/// Returns an error if the file, the folder or one of the folder's files is out of reach: the rest of a
/// folder would look like another version of it.
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

/// Returns what all paths to one file have in common, also links: its path without links, or for a file
/// of several names its number on its device. Of a file that is not there, the absolute path.
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

/// Names the kind of something that is no file.
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
    if found.is_dir() { "a folder" } else { "no regular file" }
}

/// An error's words without the path, which may stand in the words of several decoders.
pub(crate) fn without_path(error: &(dyn std::error::Error + 'static), path: &Path) -> String {
    strip_path(&error_line(error), path)
}

/// A text without the path, as [`without_path`].
pub(crate) fn strip_path(text: &str, path: &Path) -> String {
    let path = path.display().to_string();
    let text = text.replace(&format!("file:{path}: "), "");
    let text = text.replace(&format!("{path}: "), "");
    let rest = text.strip_prefix(&path).unwrap_or(&text);
    one_line(rest.trim_start_matches([':', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    #[cfg(unix)]
    fn a_file_has_one_identity_whatever_the_path() {
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
    fn a_state_is_that_of_one_version_of_a_file_or_folder() {
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
    fn a_folder_that_is_partly_out_of_reach_is_gone() {
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
    fn what_is_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(check(folder.path()).unwrap_err(), "it is a folder, expected a file");
        fs::write(path("empty.mp4"), "").unwrap();
        assert_eq!(check(&path("empty.mp4")).unwrap_err(), "it is empty");
        assert!(check(&path("none.mp4")).unwrap_err().starts_with("No such file"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("gone.mp4", path("dangling.mp4")).unwrap();
            let reason = check(&path("dangling.mp4")).unwrap_err();
            assert!(reason.starts_with("it is a link to gone.mp4: No such file"), "{reason}");
            let made = std::process::Command::new("mkfifo").arg(path("pipe.mp4")).status();
            if made.is_ok_and(|status| status.success()) {
                let reason = open(&path("pipe.mp4"), Decoder::Auto).err().unwrap();
                assert_eq!(reason, "it is a pipe (FIFO), expected a file");
            }
            let null = check(Path::new("/dev/null")).unwrap_err();
            assert_eq!(null, "it is a device, expected a file");
        }
    }
}
