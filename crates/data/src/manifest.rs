//! The list of training data: one image or video a row, with its caption.
//!
//! A manifest is a CSV file in UTF-8. Without a header its columns are path, caption and, where it
//! is known, the number of frames. With a header they go by name, in any order and among others:
//! `path`, `text` or `caption`, and `num_frames` or `frames`. A first row is a header where one of
//! its fields is `path`. Relative paths start from the manifest's folder.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/datasets.py`, `DatasetFromCSV`, and the
//! tools of later versions, whose manifests have headers. Deviation: there, relative paths start
//! from the working directory.

use crate::DataError;
use csv::StringRecord;
use opensora_files::write_atomically;
use std::path::{Path, PathBuf};

/// The rows of a manifest, at least one where it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The rows in order.
    pub rows: Vec<Row>,
}

/// An image or video and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The file, or the folder of a video's frames.
    pub path: PathBuf,
    /// Its caption, as written; it may be empty.
    pub caption: String,
    /// How many frames it has, where that is known; 1 for images.
    pub num_frames: Option<usize>,
}

/// Which fields of a record are which.
struct Columns {
    path: usize,
    caption: usize,
    num_frames: Option<usize>,
}

impl Columns {
    /// Those of a first record that is a header, else `None`.
    fn named(record: &StringRecord) -> Result<Option<Self>, String> {
        let find = |names: &[&str]| {
            record
                .iter()
                .position(|field| names.iter().any(|name| field.trim().eq_ignore_ascii_case(name)))
        };
        let Some(path) = find(&["path"]) else { return Ok(None) };
        let caption = find(&["text", "caption"]).ok_or_else(|| {
            let names: Vec<_> = record.iter().collect();
            format!("the header names {}, but neither text nor caption", names.join(", "))
        })?;
        Ok(Some(Self { path, caption, num_frames: find(&["num_frames", "frames"]) }))
    }

    fn row(&self, record: &StringRecord, folder: &Path) -> Result<Row, String> {
        let field = |at: usize, name: &str| {
            record.get(at).ok_or_else(|| {
                let count = record.len();
                format!("it has {count} fields, and {name} would be number {}", at + 1)
            })
        };
        let path = field(self.path, "the path")?;
        if path.is_empty() {
            return Err("its path is empty".into());
        }
        let caption = field(self.caption, "the caption")?.to_string();
        let num_frames = match self.num_frames.and_then(|at| record.get(at)).map(str::trim) {
            None | Some("") => None,
            Some(text) => {
                Some(count(text).ok_or_else(|| format!("'{text}' is no number of frames"))?)
            }
        };
        Ok(Row { path: folder.join(path), caption, num_frames })
    }
}

/// A count of frames; tables that had gaps once carry counts as `51.0`.
fn count(text: &str) -> Option<usize> {
    let whole = text.split_once('.').map_or(text, |(whole, rest)| {
        if rest.bytes().all(|digit| digit == b'0') { whole } else { text }
    });
    whole.parse().ok()
}

impl Manifest {
    /// Reads a manifest; the files that it names are not looked at.
    ///
    /// # Errors
    /// Where it cannot be read, is no CSV in UTF-8 or has no rows; where a row lacks its path or
    /// caption, or its number of frames is none.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let whole = |reason: String| DataError::Manifest { path: path.into(), reason };
        let io = |source| DataError::Io { path: path.into(), source };
        let mut text = std::fs::read(path).map_err(io)?;
        if text.starts_with(b"\xef\xbb\xbf") {
            text.drain(..3);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_slice());
        let mut columns = None;
        let mut rows = Vec::new();
        for record in reader.records() {
            let fail = |reason: String| DataError::ManifestRow {
                path: path.into(),
                row: rows.len(),
                reason,
            };
            let record = record.map_err(|error| fail(words(&error)))?;
            if columns.is_none() {
                columns = Columns::named(&record).map_err(whole)?;
                if columns.is_some() {
                    continue;
                }
            }
            let columns =
                columns.get_or_insert(Columns { path: 0, caption: 1, num_frames: Some(2) });
            rows.push(columns.row(&record, folder).map_err(fail)?);
        }
        if rows.is_empty() {
            return Err(whole("it has no rows".into()));
        }
        Ok(Self { rows })
    }

    /// Writes a manifest with the header `path,text,num_frames`: whole, or not at all. Files below
    /// its folder are named relative to that, so that the folder can be moved; others by their
    /// absolute path.
    ///
    /// # Errors
    /// Where it cannot be written, or a path is no UTF-8.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let io = |source| DataError::Io { path: path.into(), source };
        let absolute = std::path::absolute(path).map_err(io)?;
        let folder = absolute.parent().unwrap_or(Path::new(""));
        let mut writer = csv::Writer::from_writer(Vec::new());
        let whole =
            |error: csv::Error| DataError::Manifest { path: path.into(), reason: words(&error) };
        writer.write_record(["path", "text", "num_frames"]).map_err(whole)?;
        for (index, row) in self.rows.iter().enumerate() {
            let file = std::path::absolute(&row.path)
                .map_err(|source| DataError::Io { path: row.path.clone(), source })?;
            let file = file.strip_prefix(folder).unwrap_or(&file);
            let file = file.to_str().ok_or_else(|| DataError::ManifestRow {
                path: path.into(),
                row: index,
                reason: format!("the path {} is no UTF-8", row.path.display()),
            })?;
            let frames = row.num_frames.map(|frames| frames.to_string()).unwrap_or_default();
            writer.write_record([file, &row.caption, &frames]).map_err(whole)?;
        }
        let bytes = writer.into_inner().map_err(|error| DataError::Manifest {
            path: path.into(),
            reason: error.to_string(),
        })?;
        write_atomically(path, |temporary| std::fs::write(temporary, &bytes)).map_err(io)
    }
}

/// An error's words on one line.
fn words(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => {
            format!("field {} is no UTF-8", err.field() + 1)
        }
        _ => error.to_string().replace(['\n', '\r'], " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` as a manifest in an empty folder.
    fn read(bytes: &[u8]) -> (tempfile::TempDir, Result<Manifest, DataError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clips.csv");
        std::fs::write(&path, bytes).unwrap();
        let manifest = Manifest::read(&path);
        (folder, manifest)
    }

    #[test]
    fn rows_without_header_are_path_caption_frames() {
        let bytes = "\u{feff}a.mp4,\"A fox, \"\"red\"\"\nruns\",51\n/b/c.png,,\nd.gif,ü\n";
        let (folder, manifest) = read(bytes.as_bytes());
        let row = |path: &Path, caption: &str, num_frames| Row {
            path: path.into(),
            caption: caption.into(),
            num_frames,
        };
        assert_eq!(
            manifest.unwrap().rows,
            [
                row(&folder.path().join("a.mp4"), "A fox, \"red\"\nruns", Some(51)),
                row(Path::new("/b/c.png"), "", None),
                row(&folder.path().join("d.gif"), "ü", None),
            ]
        );
    }

    #[test]
    fn rows_with_header_go_by_name() {
        for header in ["id,Caption,path,frames", "\u{feff}id, text ,path,num_frames,aes"] {
            let (folder, manifest) = read(format!("{header}\n7,fog,a.mp4,16.0\n").as_bytes());
            let rows = manifest.unwrap().rows;
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].path, folder.path().join("a.mp4"));
            assert_eq!((rows[0].caption.as_str(), rows[0].num_frames), ("fog", Some(16)));
        }
    }

    #[test]
    fn errors_name_the_file_and_the_row() {
        for (bytes, row, words) in [
            (&b"a.mp4,fog\nb.mp4\n"[..], Some(1), "1 fields"),
            (b"path,text\na.mp4,fog\n,fog\n", Some(1), "empty"),
            (b"a.mp4,fog,many\n", Some(0), "'many'"),
            (b"a.mp4,fog,-3\n", Some(0), "'-3'"),
            (b"a.mp4,fog,3.5\n", Some(0), "'3.5'"),
            (b"a.mp4,fog\nb.mp4,\xff\xfe\n", Some(1), "field 2 is no UTF-8"),
            (b"path,frames\na.mp4,3\n", None, "neither text nor caption"),
            (b"path,text\n", None, "no rows"),
            (b"", None, "no rows"),
        ] {
            let error = read(bytes).1.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("clips.csv") && text.contains(words), "{text}");
            match (row, &error) {
                (Some(row), DataError::ManifestRow { row: found, .. }) => {
                    assert_eq!(row, *found);
                    assert!(text.contains(&format!("row {}", row + 1)), "{text}");
                }
                (None, DataError::Manifest { .. }) => {}
                _ => panic!("{error:?}"),
            }
        }
        let error = Manifest::read(Path::new("/nowhere/clips.csv")).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
    }

    #[test]
    fn what_is_written_comes_back_also_after_a_move() {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("first");
        std::fs::create_dir(&first).unwrap();
        let row = |path: PathBuf, num_frames| Row {
            path,
            caption: "a \"quoted\", long\ncaption".into(),
            num_frames,
        };
        let manifest = Manifest {
            rows: vec![row(first.join("clips/ü.mp4"), Some(3)), row("/else/b.png".into(), None)],
        };
        manifest.write(&first.join("clips.csv")).unwrap();
        assert_eq!(Manifest::read(&first.join("clips.csv")).unwrap(), manifest);
        assert_eq!(std::fs::read_dir(&first).unwrap().count(), 1);

        let second = folder.path().join("second");
        std::fs::rename(&first, &second).unwrap();
        let moved = Manifest::read(&second.join("clips.csv")).unwrap();
        assert_eq!(moved.rows[0].path, second.join("clips/ü.mp4"));
        assert_eq!(moved.rows[1].path, Path::new("/else/b.png"));
        let error = manifest.write(&first.join("clips.csv")).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
    }
}
