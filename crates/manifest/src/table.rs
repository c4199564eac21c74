//! Tables with all their columns.
//!
//! A table is a CSV file in UTF-8, or a Parquet file if its extension is `.parquet` or `.pq` and the crate has
//! the feature `parquet`. Columns, delimiters and missing values are described on the [front page](crate).
//! Unknown columns are kept, so that each step of data preparation can add its own. In memory, relative paths
//! are resolved against the table's folder; in the file, paths below that folder are relative to it, so that
//! the folder can be moved.
//!
//! In Parquet, columns of text, numbers and booleans are read, each as text; nulls and NaN are empty
//! fields. `path`, `text` and `url` are written as text. Other columns are written as 64-bit
//! integers or floating point if all their fields are numbers or empty, else as text; empty fields
//! are nulls. Writing and reading a table returns the same fields, except for trailing zeros of fractions.
//! Numbers that would change otherwise (`007`, `1e5`) are written as text.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/datasets.py`, `DatasetFromCSV`, and the
//! tools of later versions, whose tables have headers. Deviation: the source resolves relative paths against
//! the working directory.

use crate::{
    ManifestError,
    known::Purpose,
    stored::{self, Stored},
};
use opensora_files::folder_of;
use std::path::{Path, PathBuf};

/// Name of the column of files: an image, a video or a folder of frames.
pub const PATH: &str = "path";
/// Name of the column of captions.
pub const TEXT: &str = "text";
/// Name of the column of numbers of frames.
pub const NUM_FRAMES: &str = "num_frames";
/// Name of the column of URLs.
pub const URL: &str = "url";
/// Name of the column with a clip's start in seconds of the row's file, from 0; empty for the start of the file.
///
/// A row with a value here or in [`CLIP_END`] is a range of its file, which `opensora data split` cuts.
/// [`Manifest::read`](crate::Manifest::read) rejects such rows.
pub const CLIP_START: &str = "clip_start";
/// Name of the column with a clip's end in seconds of the row's file, after [`CLIP_START`]; empty for the file's end.
pub const CLIP_END: &str = "clip_end";

/// A table in memory. Every row has a field for every column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates an empty table with the given columns; repeated names are ignored.
    pub fn new<'a>(columns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut table = Self::default();
        for column in columns {
            table.ensure(column);
        }
        table
    }

    /// Returns the names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns true if the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the index of a column; `None` if there is no such column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Returns the index of a column, after adding it with empty fields if it is missing.
    pub fn ensure(&mut self, name: &str) -> usize {
        self.column(name).unwrap_or_else(|| {
            self.columns.push(name.into());
            self.rows.iter_mut().for_each(|row| row.push(String::new()));
            self.columns.len() - 1
        })
    }

    /// Returns a field; `None` if there is no such row or column.
    pub fn get(&self, row: usize, column: &str) -> Option<&str> {
        self.rows.get(row)?.get(self.column(column)?).map(String::as_str)
    }

    /// Sets a field, after adding the column if it is missing.
    ///
    /// # Panics
    /// Panics if there is no such row.
    #[track_caller]
    pub fn set(&mut self, row: usize, column: &str, value: impl Into<String>) {
        let at = self.ensure(column);
        self.rows[row][at] = value.into();
    }

    /// Adds a row with the given fields by column. Missing columns are added; other fields are empty.
    pub fn push<'a>(&mut self, fields: impl IntoIterator<Item = (&'a str, String)>) {
        self.rows.push(vec![String::new(); self.columns.len()]);
        let row = self.rows.len() - 1;
        for (column, value) in fields {
            self.set(row, column, value);
        }
    }

    /// Returns the fields of a row in the order of the columns; `None` if there is no such row.
    pub fn row(&self, row: usize) -> Option<&[String]> {
        self.rows.get(row).map(Vec::as_slice)
    }

    /// Returns a table of the given rows, in the given order.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn select(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let rows = rows.into_iter().map(|row| self.rows[row].clone()).collect();
        Self { columns: self.columns.clone(), rows }
    }

    /// Appends the rows of another table, matching columns by name.
    pub fn append(&mut self, other: &Self) {
        for row in &other.rows {
            self.push(other.columns.iter().map(String::as_str).zip(row.iter().cloned()));
        }
    }

    /// Removes a column. Returns false if there is no such column.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(at) = self.column(name) else { return false };
        self.columns.remove(at);
        self.rows.iter_mut().for_each(|row| drop(row.remove(at)));
        true
    }

    /// Returns all rows, each with its fields in the order of the columns.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Returns the rows for the readers of this crate, which keep all rows as long as the header.
    pub(crate) fn rows_mut(&mut self) -> &mut Vec<Vec<String>> {
        &mut self.rows
    }

    /// Reads a table and resolves relative paths against its folder.
    ///
    /// Files that the table names are not opened. An empty table is not an error. The file is read in chunks of
    /// 64 KiB; the table is held in memory.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is neither CSV in UTF-8 nor Parquet of simple
    /// columns, names a column twice, has a row of another number of fields than the header, exceeds
    /// the [limits](crate::limits), or has relative paths and a folder whose name is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        Self::read_with_root(path, folder_of(path))
    }

    /// Reads a table and resolves relative paths against `root`.
    ///
    /// # Errors
    /// Returns the errors of [`Self::read`].
    pub fn read_with_root(path: &Path, root: &Path) -> Result<Self, ManifestError> {
        let mut table = stored::read(path, Purpose::Preparation)?;
        stored::resolve(&mut table, root, path)?;
        Ok(table)
    }

    /// Writes the table with a header, atomically. Paths below the table's folder are written relative to it;
    /// other paths are absolute.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written, if the table has neither a column `path` nor
    /// `url`, or if a path that is made absolute is not UTF-8.
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        self.write_with_root(path, Some(folder_of(path)))
    }

    /// Writes the table with paths below `root` relative to it and other paths absolute. Without a root, all
    /// paths are absolute. Readers must know the root unless it is the table's folder.
    ///
    /// # Errors
    /// Returns the errors of [`Self::write`].
    pub fn write_with_root(&self, path: &Path, root: Option<&Path>) -> Result<(), ManifestError> {
        stored::write(&Stored::new(self, root, path)?, path)
    }

    /// Returns a path as a table at `file` stores it: relative to the table's folder if it is below, else absolute.
    ///
    /// # Errors
    /// Returns an error if the working directory is needed but not accessible.
    pub fn name_in(file: &Path, path: &Path) -> Result<PathBuf, ManifestError> {
        let io = |source| ManifestError::Io { path: path.into(), source };
        let folder = stored::absolute_folder(folder_of(file)).map_err(io)?;
        stored::relative(path, Some(&folder)).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (tempfile::TempDir, Result<Table, ManifestError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clips.csv");
        std::fs::write(&path, bytes).unwrap();
        let table = Table::read(&path);
        (folder, table)
    }

    #[test]
    fn unknown_columns_are_kept_and_known_ones_spelled_in_one_way() {
        let (folder, table) =
            read("\u{feff}id,Caption,Path,frames,aes\n7,ü,a.mp4,16,5.5\n".as_bytes());
        let mut table = table.unwrap();
        assert_eq!(table.columns(), ["id", TEXT, PATH, NUM_FRAMES, "aes"]);
        assert_eq!(table.get(0, PATH), folder.path().join("a.mp4").to_str());
        assert_eq!((table.get(0, TEXT), table.get(0, "aes")), (Some("ü"), Some("5.5")));
        table.set(0, "motion", "0.25");
        table.push([(PATH, "/else/b.mp4".into()), ("licence", "CC0".into())]);
        assert!(table.remove("id") && !table.remove("id"));
        let written = folder.path().join("out.csv");
        table.write(&written).unwrap();
        assert_eq!(
            std::fs::read_to_string(&written).unwrap(),
            "text,path,num_frames,aes,motion,licence\nü,a.mp4,16,5.5,0.25,\n,/else/b.mp4,,,,CC0\n"
        );
        assert_eq!(Table::read(&written).unwrap(), table);
    }

    #[test]
    fn tables_without_header_are_path_text_frames() {
        let (_folder, table) = read(b"a.mp4,\"A fox, red\",51\n/b/c.png,,\n");
        let table = table.unwrap();
        assert_eq!((table.len(), table.get(0, NUM_FRAMES)), (2, Some("51")));
        assert_eq!(table.get(1, PATH), Some("/b/c.png"));
        assert_eq!(read(b"a.mp4\n").1.unwrap().columns(), [PATH]);
        assert!(read(b"").1.unwrap().is_empty());
        assert!(read(b"path,text\n").1.unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_file_and_the_row() {
        for (bytes, words) in [
            (&b"a.mp4,fog\nb.mp4\n"[..], "row 2 (line 2): found 1 fields, expected 2"),
            (b"path,text\na.mp4,fog\nb.mp4,\xff\xfe\n", "line 3: found byte 0xff at offset 26"),
            (b"path;text\na.mp4;fog;x\n", "found 3 fields, expected 2 (delimiter ';')"),
            (b"path,text,path\n", "twice"),
            (b"a,b,c,d\n", "without a header"),
        ] {
            let text = opensora_files::error_line(&read(bytes).1.unwrap_err());
            assert!(text.contains("clips.csv") && text.contains(words), "{text}");
        }
    }

    #[test]
    fn without_header_the_number_of_frames_may_be_missing() {
        for bytes in [&b"a.mp4,fog,\nb.mp4,sea\n"[..], b"a.mp4,fog\nb.mp4,sea,\n"] {
            let table = read(bytes).1.unwrap();
            assert_eq!(table.columns(), [PATH, TEXT, NUM_FRAMES]);
            assert!(table.rows().iter().all(|row| row.len() == 3));
        }
        let frames = read(b"a.mp4,fog\nb.mp4,sea,7\nc.mp4,\n").1.unwrap();
        let frames: Vec<_> = (0..3).map(|row| frames.get(row, NUM_FRAMES).unwrap()).collect();
        assert_eq!(frames, ["", "7", ""]);
        // With a header, a field too few or too many is a comma that should have been quoted.
        assert!(read(b"path,text,num_frames\na.mp4,fog\n").1.is_err());
        assert!(read(b"path,text\na.mp4,fog, cold\n").1.is_err());
    }

    #[test]
    fn files_are_named_from_the_folder_another_one_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("set/a.mp4");
        let mut table = Table::new([PATH]);
        table.push([(PATH, inside.to_str().unwrap().into())]);
        table.push([(PATH, "/else/b.mp4".into())]);
        let out = folder.path().join("out.csv");
        let written = |root: Option<&Path>| {
            table.write_with_root(&out, root).unwrap();
            std::fs::read_to_string(&out).unwrap()
        };
        let absolute = format!("path\n{}\n/else/b.mp4\n", inside.display());
        assert_eq!(written(None), absolute);
        assert_eq!(written(Some(Path::new("/nowhere"))), absolute);
        assert_eq!(written(Some(&folder.path().join("set"))), "path\na.mp4\n/else/b.mp4\n");
        let again = Table::read_with_root(&out, &folder.path().join("set")).unwrap();
        assert_eq!(again, table);
        assert_eq!(Table::name_in(&out, &inside).unwrap(), Path::new("set/a.mp4"));
    }

    #[test]
    fn tables_that_could_not_be_read_again_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.csv");
        let refused = Table::new(["score"]).write(&out).unwrap_err().to_string();
        assert!(refused.contains("found the columns score, expected"), "{refused}");
        assert!(Table::default().write(&out).is_err() && !out.exists());
        Table::new(["url"]).write(&out).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn folders_whose_names_are_no_text() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let strange = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
        std::fs::create_dir(&strange).unwrap();
        let path = strange.join("clips.csv");
        std::fs::write(&path, "path,text\n/a.mp4,fog\nb.mp4,sea\n").unwrap();
        let wrong = Table::read(&path).unwrap_err().to_string();
        assert!(wrong.contains("row 2: the path") && wrong.contains("not UTF-8"), "{wrong}");
        let elsewhere = Table::read_with_root(&path, Path::new("/b")).unwrap();
        assert_eq!(elsewhere.get(1, PATH), Some("/b/b.mp4"));
        // Rows for training hold paths and not text.
        let rows = crate::Manifest::read(&path).unwrap().rows;
        assert_eq!(rows[1].path, strange.join("b.mp4"));
        crate::Manifest { rows }.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "path,text,num_frames\n/a.mp4,fog,\nb.mp4,sea,\n");
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn parquet_needs_its_feature() {
        let path = Path::new("clips.PARQUET");
        for wrong in [Table::read(path).unwrap_err(), Table::new([PATH]).write(path).unwrap_err()] {
            assert!(wrong.to_string().contains("cargo feature `parquet`"), "{wrong}");
        }
    }

    #[test]
    fn rows_are_selected_and_appended_by_name() {
        let mut table = Table::new([PATH, TEXT]);
        table.push([(PATH, "/a".into()), (TEXT, "fog".into())]);
        table.push([(PATH, "/b".into())]);
        let mut turned = table.select([1, 0]);
        assert_eq!(turned.get(0, PATH), Some("/b"));
        let mut other = Table::new(["score", PATH]);
        other.push([("score", "1".into()), (PATH, "/c".into())]);
        turned.append(&other);
        assert_eq!(turned.row(2).unwrap(), ["/c", "", "1"]);
        assert_eq!(turned.get(1, "score"), Some(""));
    }
}
