//! An output that is tried before the work, and complete or absent after it.
//!
//! Opening checks all that can be checked (format, size, rate, and that the place can be written
//! to) and keeps a temporary file or folder beside the target. Writing fills that and renames it,
//! together with a JSON record of how the clip was made. Dropping a writer leaves nothing behind,
//! and what stood at the target before stays until it is replaced by something complete.

use crate::{Frames, VideoError, frames::MAX_SIDE, gif, mp4, png};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    io::{BufWriter, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::{NamedTempFile, TempDir};

/// A kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// H.264 in MP4.
    Mp4,
    /// Animated GIF.
    Gif,
    /// One image.
    Png,
    /// A folder of numbered PNG frames.
    PngFolder,
}

impl Format {
    /// From a path's ending; no ending, or a separator behind it, stands for a folder of PNG
    /// frames.
    ///
    /// # Errors
    /// Where the ending is of no known format.
    pub fn of(path: &Path) -> Result<Self, VideoError> {
        if ends_in_separator(path) {
            return Ok(Self::PngFolder);
        }
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("mp4") => Ok(Self::Mp4),
            Some("gif") => Ok(Self::Gif),
            Some("png") => Ok(Self::Png),
            None if path.file_name().is_some() => Ok(Self::PngFolder),
            _ => Err(VideoError::Format { path: path.into() }),
        }
    }
}

fn ends_in_separator(path: &Path) -> bool {
    let last = path.as_os_str().as_encoded_bytes().last();
    last.is_some_and(|&byte| std::path::is_separator(char::from(byte)))
}

/// What will be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoSpec {
    /// Frames of the clip.
    pub frames: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Frames per second.
    pub fps: f64,
}

/// An opened output.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    format: Format,
    spec: VideoSpec,
    place: Place,
    /// Dropped after the place, which lies in them.
    _folders: CreatedFolders,
}

/// Folders that were made for an output; those that stay empty go again.
#[derive(Debug)]
pub struct CreatedFolders(Vec<PathBuf>);

impl CreatedFolders {
    /// Makes `folder` and what is missing above it.
    ///
    /// # Errors
    /// Where the operating system refuses.
    pub fn create(folder: &Path) -> std::io::Result<Self> {
        let missing = folder.ancestors().take_while(|f| *f != Path::new("") && !f.exists());
        let created = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(folder)?;
        Ok(created)
    }
}

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Refused where something lies in it, which is as it should be.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Where the bytes go before they have their name.
#[derive(Debug)]
enum Place {
    /// The clip and its record.
    File(NamedTempFile, NamedTempFile),
    Folder(TempDir),
}

impl Writer {
    /// Opens an output for a clip; the format follows from the path's ending (see [`Format::of`]).
    /// A single frame becomes a PNG: the path then ends in `.png` whatever its ending was, unless
    /// a separator behind it asks for a folder. See [`Writer::path`].
    ///
    /// # Errors
    /// Where the format is unknown or cannot hold the clip, or the place cannot be written to. A
    /// folder of frames that is not empty is not replaced.
    pub fn open(path: &Path, spec: &VideoSpec) -> Result<Self, VideoError> {
        let mut format = Format::of(path)?;
        let is_folder = ends_in_separator(path);
        // Without a separator at its end.
        let mut path: PathBuf = path.components().collect();
        if path.file_name().is_none() {
            return Err(VideoError::Format { path });
        }
        if spec.frames == 1 && format != Format::Png && !is_folder {
            path.set_extension("png");
            format = Format::Png;
        }
        let wrong = |reason: &str| VideoError::Spec { path: path.clone(), reason: reason.into() };
        check(format, spec).map_err(|reason| wrong(&reason))?;

        let io = |source| VideoError::Io { path: path.clone(), source };
        let parent = parent(&path);
        let folders = CreatedFolders::create(parent).map_err(io)?;
        let place = if format == Format::PngFolder {
            if path.exists() && fs::read_dir(&path).map_err(io)?.next().is_some() {
                return Err(wrong("the folder is not empty"));
            }
            let folder = temporary(0o777, |builder| builder.tempdir_in(parent)).map_err(io)?;
            fs::write(folder.path().join("try"), b"try").map_err(io)?;
            fs::remove_file(folder.path().join("try")).map_err(io)?;
            Place::Folder(folder)
        } else {
            if path.is_dir() {
                return Err(wrong("it is a folder, expected a file name"));
            }
            if record_path(&path).is_dir() {
                return Err(wrong("the record beside it (.json) would replace a folder"));
            }
            Place::File(tried_file(parent).map_err(io)?, tried_file(parent).map_err(io)?)
        };
        Ok(Self { path, format, spec: *spec, place, _folders: folders })
    }

    /// The path that the output will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the clip under its name, and `record` as JSON beside it (`clip.mp4.json`) or in the
    /// folder of frames (`metadata.json`), unless it is null. Returns the path.
    ///
    /// # Errors
    /// Where the clip is not what the output was opened for, or encoding or writing fails; nothing
    /// is left behind then.
    pub fn write(self, clip: &Frames, record: &Value) -> Result<PathBuf, VideoError> {
        let Self { path, format, spec, place, _folders } = self;
        let expected = [spec.frames, spec.height, spec.width];
        let found = [clip.len(), clip.height(), clip.width()];
        if expected != found {
            return Err(VideoError::OtherClip {
                path,
                expected: format!("{expected:?}"),
                found: format!("{found:?}"),
            });
        }
        let io = |source| VideoError::Io { path: path.clone(), source };
        let encode = |reason: String| VideoError::Encode { path: path.clone(), reason };
        let json = format!("{record:#}\n");
        match place {
            Place::Folder(folder) => {
                png::encode_folder(clip, folder.path()).map_err(encode)?;
                if !record.is_null() {
                    fs::write(folder.path().join("metadata.json"), json).map_err(io)?;
                }
                // An empty folder of that name may be there; only Unix renames over it.
                #[cfg(not(unix))]
                if path.exists() {
                    fs::remove_dir(&path).map_err(io)?;
                }
                fs::rename(folder.path(), &path).map_err(io)?;
                // The folder has its name now; there is nothing left to clean up.
                let _ = folder.keep();
            }
            Place::File(mut file, mut beside) => {
                let mut out = BufWriter::new(&mut file);
                match format {
                    Format::Mp4 => mp4::encode(clip, spec.fps, &mut out),
                    Format::Gif => gif::encode(clip, spec.fps, &mut out),
                    Format::Png | Format::PngFolder => {
                        png::encode(clip.data(), clip.height(), clip.width(), &mut out)
                    }
                }
                .map_err(encode)?;
                out.flush().map_err(io)?;
                drop(out);
                beside.write_all(json.as_bytes()).map_err(io)?;
                // Both are complete before either gets its name.
                file.as_file().sync_all().and_then(|()| beside.as_file().sync_all()).map_err(io)?;
                file.persist(&path).map_err(|error| io(error.error))?;
                let record_path = record_path(&path);
                if !record.is_null() {
                    beside.persist(record_path).map_err(|error| io(error.error))?;
                } else if record_path.exists() {
                    // It tells of another clip.
                    fs::remove_file(record_path).map_err(io)?;
                }
            }
        }
        Ok(path)
    }
}

/// Removes half-written outputs from a folder, as a killed process leaves them, where nothing was
/// written to them for as long as `age`: younger ones may still be somebody's.
///
/// # Errors
/// Where the operating system refuses. A folder that is not there has none.
pub fn remove_leftovers(folder: &Path, age: Duration) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            continue;
        }
        let remove = || {
            let place = entry.metadata()?;
            let time = place.modified()?.elapsed().unwrap_or_default();
            match time >= age {
                true if place.is_dir() => fs::remove_dir_all(entry.path()),
                true => fs::remove_file(entry.path()),
                false => Ok(()),
            }
        };
        // What is gone by now was somebody's, or somebody else removed it.
        remove().or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(())
}

/// Names of temporary files and folders begin and end so.
const PREFIX: &str = ".opensora-";
const SUFFIX: &str = ".part";

/// Checks what a format can hold.
fn check(format: Format, spec: &VideoSpec) -> Result<(), String> {
    let VideoSpec { frames, width, height, fps } = *spec;
    let side = |pixels: usize| (1..=MAX_SIDE).contains(&pixels);
    if frames == 0 || !side(width) || !side(height) {
        return Err(format!(
            "{frames} frames of {height}x{width} cannot be written: sides are 1 to {MAX_SIDE} pixels"
        ));
    }
    if !(fps.is_finite() && (0.01..=1000.0).contains(&fps)) {
        return Err(format!("{fps} frames a second cannot be written: 0.01 to 1000 are possible"));
    }
    match format {
        Format::Mp4 => mp4::check(height, width, fps),
        Format::Gif => gif::check(height, width, fps),
        Format::Png if frames > 1 => {
            Err(format!("one PNG cannot hold {frames} frames: name a folder, .mp4 or .gif"))
        }
        Format::Png | Format::PngFolder => Ok(()),
    }
}

/// `<output>.json`.
fn record_path(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().into();
    name.push(".json");
    name.into()
}

/// The folder of a path, which may be the current one.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A temporary file or folder with the rights of any other, less what the umask takes: it will be
/// renamed, and temporary ones are private otherwise.
pub(crate) fn temporary<T>(
    mode: u32,
    make: impl FnOnce(&tempfile::Builder) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    make(&builder)
}

/// An empty temporary file that has been written to.
fn tried_file(parent: &Path) -> std::io::Result<NamedTempFile> {
    let mut file = temporary(0o666, |builder| builder.tempfile_in(parent))?;
    file.write_all(b"try")?;
    file.flush()?;
    file.as_file().set_len(0)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn clip(frames: usize) -> Frames {
        Frames::from_rgb(vec![77; frames * 16 * 32 * 3], [frames, 16, 32]).unwrap()
    }

    fn spec(frames: usize) -> VideoSpec {
        VideoSpec { frames, width: 32, height: 16, fps: 8.0 }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn leftovers_are_removed_when_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        std::mem::forget(Writer::open(&path, &spec(3)).unwrap());
        std::mem::forget(Writer::open(&folder.path().join("b/"), &spec(3)).unwrap());
        fs::write(folder.path().join("mine.part"), "x").unwrap();
        assert_eq!(names(folder.path()).len(), 4);
        remove_leftovers(folder.path(), Duration::from_secs(3600)).unwrap();
        assert_eq!(names(folder.path()).len(), 4);
        remove_leftovers(folder.path(), Duration::ZERO).unwrap();
        assert_eq!(names(folder.path()), ["mine.part"]);
        remove_leftovers(&folder.path().join("none"), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_clip_without_record_leaves_none_of_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        for (record, found) in
            [(json!({"seed": 5}), vec!["a.mp4", "a.mp4.json"]), (Value::Null, vec!["a.mp4"])]
        {
            Writer::open(&path, &spec(3)).unwrap().write(&clip(3), &record).unwrap();
            assert_eq!(names(folder.path()), found);
        }
    }

    #[test]
    fn every_format_is_written_with_its_record() {
        let folder = tempfile::tempdir().unwrap();
        for (name, frames, written) in [
            ("a.mp4", 3, vec!["a.mp4", "a.mp4.json"]),
            ("b.gif", 3, vec!["b.gif", "b.gif.json"]),
            ("c.PNG", 1, vec!["c.PNG", "c.PNG.json"]),
            ("d", 3, vec!["d"]),
            // A single frame becomes a PNG.
            ("e.mp4", 1, vec!["e.png", "e.png.json"]),
            ("f", 1, vec!["f.png", "f.png.json"]),
            // Unless a folder is asked for.
            ("g/", 1, vec!["g"]),
            ("h.mp4/", 3, vec!["h.mp4"]),
        ] {
            let inner = folder.path().join(format!("of-{}", name.trim_end_matches('/')));
            let writer = Writer::open(&inner.join(name), &spec(frames)).unwrap();
            let announced = writer.path().to_path_buf();
            let path = writer.write(&clip(frames), &json!({"seed": 5})).unwrap();
            assert!(path.exists() && path == announced);
            assert_eq!(
                path.is_dir(),
                Format::of(&inner.join(name)).unwrap() == Format::PngFolder
                    && path.extension() != Some("png".as_ref())
            );
            assert_eq!(names(&inner), written);
            let record =
                if path.is_dir() { path.join("metadata.json") } else { inner.join(written[1]) };
            let record: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
            assert_eq!(record, json!({"seed": 5}));
        }
        let frames = names(&folder.path().join("of-d/d"));
        assert_eq!(
            frames,
            ["frame_00000.png", "frame_00001.png", "frame_00002.png", "metadata.json"]
        );
    }

    #[test]
    fn nothing_is_left_of_a_writer_that_did_not_write() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.mp4"), "before").unwrap();
        drop(Writer::open(&folder.path().join("a.mp4"), &spec(3)).unwrap());
        drop(Writer::open(&folder.path().join("frames"), &spec(3)).unwrap());
        drop(Writer::open(&folder.path().join("new/and/deep/a.mp4"), &spec(3)).unwrap());
        // A clip of another length fails after opening.
        let writer = Writer::open(&folder.path().join("a.mp4"), &spec(3)).unwrap();
        let error = writer.write(&clip(2), &json!({})).unwrap_err();
        assert!(matches!(error, VideoError::OtherClip { .. }), "{error}");
        assert_eq!(names(folder.path()), ["a.mp4"]);
        assert_eq!(fs::read_to_string(folder.path().join("a.mp4")).unwrap(), "before");

        // A name that appears as a folder while the clip is made cannot be given.
        let writer = Writer::open(&folder.path().join("b.gif"), &spec(3)).unwrap();
        fs::create_dir(folder.path().join("b.gif")).unwrap();
        assert!(writer.write(&clip(3), &json!({})).is_err());
        let writer = Writer::open(&folder.path().join("c"), &spec(3)).unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        fs::write(folder.path().join("c/x"), "x").unwrap();
        assert!(writer.write(&clip(3), &json!({})).is_err());
        assert_eq!(names(folder.path()), ["a.mp4", "b.gif", "c"]);
        assert_eq!(names(&folder.path().join("c")), ["x"]);
    }

    #[test]
    fn what_was_there_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        for seed in [1, 2] {
            Writer::open(&path, &spec(3)).unwrap().write(&clip(3), &json!(seed)).unwrap();
            assert_eq!(fs::read_to_string(record_path(&path)).unwrap(), format!("{seed}\n"));
        }
        fs::create_dir(folder.path().join("empty")).unwrap();
        let frames = Writer::open(&folder.path().join("empty"), &spec(3)).unwrap();
        let frames = frames.write(&clip(3), &json!({})).unwrap();
        assert_eq!(png::read_folder(&frames).unwrap(), clip(3));
        assert_eq!(names(folder.path()), ["a.mp4", "a.mp4.json", "empty"]);
    }

    #[cfg(unix)]
    #[test]
    fn outputs_have_the_rights_of_any_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(folder.path().join("plain"), "").unwrap();
        fs::create_dir(folder.path().join("plain-folder")).unwrap();
        let write = |name: &str| {
            let writer = Writer::open(&folder.path().join(name), &spec(3)).unwrap();
            writer.write(&clip(3), &json!({})).unwrap()
        };
        let (video, frames) = (write("a.mp4"), write("frames"));
        assert_eq!(mode(&video), mode(&folder.path().join("plain")));
        assert_eq!(mode(&record_path(&video)), mode(&video));
        assert_eq!(mode(&frames), mode(&folder.path().join("plain-folder")));
    }

    #[test]
    fn outputs_that_cannot_be_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, spec: VideoSpec| {
            Writer::open(&folder.path().join(name), &spec).unwrap_err().to_string()
        };
        assert!(open("a.avi", spec(3)).contains("unknown format"));
        assert!(open("a.png", spec(3)).contains("3 frames"));
        assert!(open("a.mp4", VideoSpec { fps: 0.0, ..spec(3) }).contains("0 frames a second"));
        assert!(open("a.mp4", VideoSpec { fps: f64::NAN, ..spec(3) }).contains("NaN"));
        assert!(open("a.mp4", VideoSpec { width: 0, ..spec(3) }).contains("16x0"));
        assert!(open("a.mp4", VideoSpec { width: 33, ..spec(3) }).contains("16x33"));
        assert!(open("a.gif", VideoSpec { fps: 90.0, ..spec(3) }).contains("GIF"));
        assert!(open("a.mp4", VideoSpec { frames: 0, ..spec(3) }).contains("0 frames"));
        fs::create_dir(folder.path().join("b.mp4")).unwrap();
        assert!(open("b.mp4", spec(3)).contains("folder"));
        fs::create_dir(folder.path().join("c.mp4.json")).unwrap();
        assert!(open("c.mp4", spec(3)).contains(".json"));
        fs::create_dir(folder.path().join("full")).unwrap();
        fs::write(folder.path().join("full/x"), "x").unwrap();
        assert!(open("full", spec(3)).contains("not empty"));
        assert!(matches!(Writer::open(Path::new("/"), &spec(3)), Err(VideoError::Format { .. })));
        // A file where a folder is needed.
        fs::write(folder.path().join("file"), "x").unwrap();
        assert!(!open("file/a.mp4", spec(3)).contains('\n'));
        assert_eq!(names(folder.path()), ["b.mp4", "c.mp4.json", "file", "full"]);
    }
}
