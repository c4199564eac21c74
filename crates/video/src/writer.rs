//! Atomic output of a clip: [`Writer`].
//!
//! Opening a writer checks format, size, frame rate and that the target is writable, and creates a temporary
//! file or folder beside the target. Writing fills and renames it, together with a JSON record of how the clip
//! was made. Dropping a writer removes the temporary file. An existing target stays until it is replaced by a
//! complete output.

use crate::{Frames, VideoError, frames::MAX_SIDE, gif, mp4, png};
use opensora_files::{AtomicFile, AtomicFolder, CreatedFolders, Existing, folder_of};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// H.264 in MP4.
    Mp4,
    /// Animated GIF.
    Gif,
    /// A PNG image.
    Png,
    /// A folder of numbered PNG frames.
    PngFolder,
}

impl Format {
    /// Returns the format of a path's extension. A path without extension or with a trailing separator is a
    /// folder of PNG frames.
    ///
    /// ```
    /// use opensora_video::Format;
    /// use std::path::Path;
    ///
    /// assert_eq!(Format::of(Path::new("clip.mp4"))?, Format::Mp4);
    /// assert_eq!(Format::of(Path::new("clip"))?, Format::PngFolder);
    /// # Ok::<(), opensora_video::VideoError>(())
    /// ```
    ///
    /// # Errors
    /// Returns an error if the extension is unknown.
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

/// Returns true if a path ends in a separator: it names a folder, whatever dots are in the name.
pub fn ends_in_separator(path: &Path) -> bool {
    let last = path.as_os_str().as_encoded_bytes().last();
    last.is_some_and(|&byte| std::path::is_separator(char::from(byte)))
}

/// Properties of the clip to write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoSpec {
    /// Number of frames.
    pub frames: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
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
    /// Dropped last, because these folders contain the temporary files.
    _folders: CreatedFolders,
}

/// The temporary files.
#[derive(Debug)]
enum Place {
    /// Files of the clip and its record.
    File(AtomicFile, AtomicFile),
    Folder(AtomicFolder),
}

impl Writer {
    /// Opens an output for a clip in the format of the path's extension ([`Format::of`]). A single frame is
    /// written as PNG: the extension is replaced by `.png`, unless a trailing separator requests a folder
    /// ([`Writer::path`]).
    ///
    /// # Errors
    /// Returns an error if the format is unknown or does not support the clip, if the target is not writable, or
    /// if a folder of frames exists and is not empty.
    pub fn open(path: &Path, spec: &VideoSpec) -> Result<Self, VideoError> {
        Self::open_as(path, spec, Existing::Replace)
    }

    /// Opens an output as [`Writer::open`]; `existing` determines whether an existing output is replaced.
    ///
    /// # Errors
    /// Returns the errors of [`Writer::open`], and an error if the clip, record or folder exists and `existing`
    /// is [`Existing::Refuse`].
    pub fn open_as(path: &Path, spec: &VideoSpec, existing: Existing) -> Result<Self, VideoError> {
        let mut format = Format::of(path)?;
        let is_folder = ends_in_separator(path);
        // Removes a trailing separator.
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
        let folders = CreatedFolders::create(folder_of(&path)).map_err(io)?;
        let place = if format == Format::PngFolder {
            if path.exists() && fs::read_dir(&path).map_err(io)?.next().is_some() {
                return Err(wrong("the folder is not empty"));
            }
            let folder = AtomicFolder::create(&path, existing).map_err(io)?;
            fs::write(folder.temporary_path().join("try"), b"try").map_err(io)?;
            fs::remove_file(folder.temporary_path().join("try")).map_err(io)?;
            Place::Folder(folder)
        } else {
            if record_path(&path).is_dir() {
                return Err(wrong("the record beside it (.json) would replace a folder"));
            }
            let tried = |path: &Path| {
                let mut file = AtomicFile::create(path, existing)?;
                file.try_write().map(|()| file)
            };
            Place::File(tried(&path).map_err(io)?, tried(&record_path(&path)).map_err(io)?)
        };
        Ok(Self { path, format, spec: *spec, place, _folders: folders })
    }

    /// Returns the path of the output.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the clip, and `record` as JSON beside it (`clip.mp4.json`) or in the folder of frames
    /// (`metadata.json`), unless the record is null. An MP4 also contains the record as its comment
    /// ([`mp4::comment`]). Returns the path.
    ///
    /// # Errors
    /// Returns an error if the clip differs from the specification, or if encoding or writing fails. Nothing is
    /// left behind on failure.
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
        let encode = |source| VideoError::Encode { path: path.clone(), source };
        let json = format!("{record:#}\n");
        match place {
            Place::Folder(folder) => {
                png::encode_folder(clip, folder.temporary_path()).map_err(encode)?;
                if !record.is_null() {
                    let record_path = folder.temporary_path().join("metadata.json");
                    fs::write(record_path, json).map_err(io)?;
                }
                folder.commit().map_err(io)?;
            }
            Place::File(mut file, mut beside) => {
                let mut out = BufWriter::new(&mut file);
                match format {
                    Format::Mp4 => {
                        let comment = (!record.is_null()).then(|| record.to_string());
                        mp4::encode_with(clip, spec.fps, comment.as_deref(), &mut out)
                    }
                    Format::Gif => gif::encode(clip, spec.fps, &mut out),
                    Format::Png | Format::PngFolder => {
                        png::encode(clip.data(), clip.height(), clip.width(), &mut out)
                    }
                }
                .map_err(encode)?;
                out.flush().map_err(io)?;
                drop(out);
                beside.write_all(json.as_bytes()).map_err(io)?;
                // Both files are complete before either is renamed.
                file.sync().and_then(|()| beside.sync()).map_err(io)?;
                file.commit().map_err(io)?;
                let record_path = record_path(&path);
                if !record.is_null() {
                    beside.commit().map_err(io)?;
                } else if record_path.exists() {
                    // The old record describes another clip.
                    fs::remove_file(record_path).map_err(io)?;
                }
            }
        }
        Ok(path)
    }
}

/// Returns an error if a format does not support a clip.
fn check(format: Format, spec: &VideoSpec) -> Result<(), String> {
    let VideoSpec { frames, width, height, fps } = *spec;
    let side = |pixels: usize| (1..=MAX_SIDE).contains(&pixels);
    if frames == 0 || !side(width) || !side(height) {
        return Err(format!(
            "found {frames} frames of {height}x{width}, expected sides of 1 to {MAX_SIDE} pixels"
        ));
    }
    if !(fps.is_finite() && (0.01..=1000.0).contains(&fps)) {
        return Err(format!("found {fps} frames per second, expected 0.01 to 1000"));
    }
    match format {
        Format::Mp4 => mp4::check(height, width, fps),
        Format::Gif => gif::check(height, width, fps),
        Format::Png if frames > 1 => Err(format!(
            "a PNG image has one frame, found {frames} frames: use a folder, .mp4 or .gif"
        )),
        Format::Png | Format::PngFolder => Ok(()),
    }
}

/// Returns the path `<output>.json` of the record.
pub fn record_path(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().into();
    name.push(".json");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;
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
            // A trailing separator requests a folder.
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

    #[test]
    fn existing_outputs_can_be_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open =
            |name: &str| Writer::open_as(&folder.path().join(name), &spec(3), Existing::Refuse);
        open("a.mp4").unwrap().write(&clip(3), &json!(1)).unwrap();
        fs::write(folder.path().join("b.mp4.json"), "").unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        for name in ["a.mp4", "b.mp4", "c"] {
            let error = open(name).unwrap_err();
            let VideoError::Io { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists);
        }
        // One that appears while the clip is made.
        let writer = open("d.mp4").unwrap();
        fs::write(folder.path().join("d.mp4"), "before").unwrap();
        assert!(writer.write(&clip(3), &Value::Null).is_err());
        assert_eq!(fs::read_to_string(folder.path().join("d.mp4")).unwrap(), "before");
        assert_eq!(names(folder.path()), ["a.mp4", "a.mp4.json", "b.mp4.json", "c", "d.mp4"]);
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
            error_line(&Writer::open(&folder.path().join(name), &spec).unwrap_err())
        };
        assert!(open("a.avi", spec(3)).contains("unknown format"));
        assert!(open("a.png", spec(3)).contains("3 frames"));
        assert!(open("a.mp4", VideoSpec { fps: 0.0, ..spec(3) }).contains("0 frames per second"));
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
