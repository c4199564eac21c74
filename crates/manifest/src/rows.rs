//! Tables for training: path, caption and number of frames of each row.
//!
//! A [`Manifest`] is read from a [`Table`] file with the columns `path` and `text` and, if known,
//! `num_frames`, under any of their [names](crate). A row of a CSV file may end behind its caption,
//! and fields beyond the columns are ignored. Other columns are not kept in memory. Rows with a clip range
//! ([`CLIP_START`], [`CLIP_END`]) are rejected: a caption of a part does not describe the whole file.
//!
//! [`CLIP_START`]: crate::table::CLIP_START
//! [`CLIP_END`]: crate::table::CLIP_END

use crate::{
    ManifestError, Table,
    known::Purpose,
    stored::{self, Stored},
    table::{NUM_FRAMES, PATH, TEXT},
    value,
};
use opensora_files::folder_of;
use std::path::{Path, PathBuf};

/// A table for training. A table that was read from a file has at least one row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The rows in order.
    pub rows: Vec<Row>,
}

/// An image or video with its caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The image, the video, or the folder of a video's frames.
    pub path: PathBuf,
    /// Caption; empty if missing.
    pub caption: String,
    /// Number of frames, 1 for images; `None` if unknown.
    pub num_frames: Option<usize>,
}

impl Manifest {
    /// Reads a manifest without opening the files that it names.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not a [`Table`], or has no rows or no column
    /// of captions, if a row has no path or has a clip range, or if its number of frames is not a whole number.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let mut table = stored::read(path, Purpose::Training)?;
        if table.is_empty() {
            let reason = "found no rows, expected at least one".into();
            return Err(ManifestError::Whole { path: path.into(), reason });
        }
        let folder = folder_of(path);
        let has_frames = table.column(NUM_FRAMES).is_some();
        let rows = std::mem::take(table.rows_mut()).into_iter().filter_map(|fields| {
            let mut fields = fields.into_iter();
            let (path, caption) = fields.next().zip(fields.next())?;
            let num_frames = fields.next().filter(|_| has_frames);
            let num_frames = num_frames.as_deref().and_then(value::count);
            // The path of the folder need not be UTF-8.
            Some(Row { path: stored::join(folder, &path), caption, num_frames })
        });
        Ok(Self { rows: rows.collect() })
    }

    /// Writes a table with the columns `path`, `text` and `num_frames` atomically. Paths below the table's
    /// folder are written relative to it, so that the folder can be moved; other paths are absolute.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written or a path is not UTF-8.
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let io = |source| ManifestError::Io { path: path.into(), source };
        let root = stored::absolute_folder(folder_of(path)).map_err(io)?;
        let mut table = Table::new([PATH, TEXT, NUM_FRAMES]);
        for (index, row) in self.rows.iter().enumerate() {
            let file = stored::relative(&row.path, Some(&root))
                .map_err(|source| ManifestError::Io { path: row.path.clone(), source })?;
            let file = stored::text(file, index, path)?;
            let frames = row.num_frames.map(|frames| frames.to_string()).unwrap_or_default();
            table.rows_mut().push(vec![file, row.caption.clone(), frames]);
        }
        stored::write(&Stored::as_it_is(&table), path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` as a manifest in an empty folder.
    fn read(bytes: &[u8]) -> (tempfile::TempDir, Result<Manifest, ManifestError>) {
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
    fn rows_need_not_be_of_one_length() {
        for bytes in [
            &b"a.mp4,fog\nb.mp4,sea,7\n"[..],
            b"a.mp4,fog,,x,y\nb.mp4,sea,7\n",
            b"path,text,num_frames,aes\na.mp4,fog\nb.mp4,sea,7,1,2\n",
        ] {
            let rows = read(bytes).1.unwrap().rows;
            assert_eq!([0, 1].map(|row| rows[row].num_frames), [None, Some(7)]);
            assert_eq!(rows[1].caption, "sea");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_row() {
        for (bytes, row, words) in [
            (
                &b"a.mp4,fog\nb.mp4\n"[..],
                Some(1),
                "row 2 (line 2): found 1 fields, expected at least 2",
            ),
            (b"path,text\na.mp4,fog\n,fog\n", Some(1), "row 2 (line 3): the path is empty"),
            (b"a.mp4,\"fog\n\"\nnan,fog\n", Some(1), "row 2 (line 3): the path is empty"),
            (b"a.mp4,fog,many\n", Some(0), "'many', expected a whole number"),
            (b"a.mp4,fog,-3\n", Some(0), "'-3'"),
            (b"a.mp4,fog,3.5\n", Some(0), "'3.5'"),
            (
                b"path,frames\na.mp4,3\n",
                None,
                "path, num_frames, expected a column text (or caption",
            ),
            (b"caption,path,frames\nfog\n", Some(0), "expected at least 2"),
            (
                b"url,text\nhttps://a,fog\n",
                None,
                "columns url, text, expected a column path (or video_path",
            ),
            (b"path,text\n", None, "no rows"),
            (b"", None, "no rows"),
        ] {
            let error = read(bytes).1.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("clips.csv") && text.contains(words), "{text}");
            match (row, &error) {
                (Some(row), ManifestError::Row { row: found, line: Some(_), .. }) => {
                    assert_eq!(row, *found);
                }
                (None, ManifestError::Whole { .. }) => {}
                _ => panic!("{error:?}"),
            }
        }
        let error = Manifest::read(Path::new("/nowhere/clips.csv")).unwrap_err();
        assert!(matches!(error, ManifestError::Io { .. }), "{error}");
    }

    #[test]
    fn ranges_of_files_are_rejected() {
        for (bytes, words) in [
            (
                &b"path,clip_start,clip_end,text\na.mp4,,nan,fog\na.mp4,,2.5,sea\n"[..],
                "clip_end 2.5",
            ),
            (b"path,text,clip_start,frames\na.mp4,fog\na.mp4,sea,0,7\n", "clip_start 0"),
            (b"path,text,clip_start\na.mp4,fog,NaN\na.mp4,sea,soon\n", "clip_start soon"),
        ] {
            let error = read(bytes).1.unwrap_err();
            assert!(matches!(error, ManifestError::Row { row: 1, line: Some(3), .. }), "{error:?}");
            let text = error.to_string();
            let found = format!("row 2 (line 3): found a range of the file ({words})");
            assert!(text.contains(&found) && text.contains("`opensora data split`"), "{text}");
        }
        // Columns without values.
        for (bytes, num_frames) in [
            (&b"path,text,clip_start,clip_end\na.mp4,fog,,None\n"[..], None),
            (b"clip_end,path,clip_start,text,num_frames\n,a.mp4,,fog,7\n", Some(7)),
        ] {
            let rows = read(bytes).1.unwrap().rows;
            assert_eq!((rows.len(), &*rows[0].caption, rows[0].num_frames), (1, "fog", num_frames));
        }
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
        assert!(matches!(error, ManifestError::Io { .. }), "{error}");
    }
}
