//! Rows of named columns, and their files.
//!
//! A table is a CSV file in UTF-8. A first row is a header where one of its fields is `path` or
//! `url`; without a header the columns are `path`, `text` and, where there is a third,
//! `num_frames`. Columns that nobody asks for are kept, so that each step of a preparation can add
//! its own. In memory, relative paths are resolved from the table's folder; on the disk, files
//! below that folder are named relative to it, so that the folder can be moved.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/datasets.py`, `DatasetFromCSV`, and the
//! tools of later versions, whose manifests have headers. Deviation: there, relative paths start
//! from the working directory.

use crate::ManifestError;
use opensora_files::write_atomically;
use std::path::{Path, PathBuf};

/// The column that names the image or video.
pub const PATH: &str = "path";
/// The column of captions; `caption` is read as well.
pub const TEXT: &str = "text";
/// The column of frame counts; `frames` is read as well.
pub const NUM_FRAMES: &str = "num_frames";
/// The column of addresses, in lists of what is to be downloaded.
pub const URL: &str = "url";

/// Rows of named columns; every row has a field for every column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table of these columns; a name that comes again is left out.
    pub fn new<'a>(columns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut table = Self::default();
        for column in columns {
            table.ensure(column);
        }
        table
    }

    /// Names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Where a column is.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Where a column is; it is added, empty, where there is none of that name.
    pub fn ensure(&mut self, name: &str) -> usize {
        self.column(name).unwrap_or_else(|| {
            self.columns.push(name.into());
            self.rows.iter_mut().for_each(|row| row.push(String::new()));
            self.columns.len() - 1
        })
    }

    /// A field; `None` where there is no such row or column.
    pub fn get(&self, row: usize, column: &str) -> Option<&str> {
        self.rows.get(row)?.get(self.column(column)?).map(String::as_str)
    }

    /// Sets a field; the column is added where there is none.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn set(&mut self, row: usize, column: &str, value: impl Into<String>) {
        let at = self.ensure(column);
        self.rows[row][at] = value.into();
    }

    /// Adds a row of these fields by column; columns that are new are added, others stay empty.
    pub fn push<'a>(&mut self, fields: impl IntoIterator<Item = (&'a str, String)>) {
        self.rows.push(vec![String::new(); self.columns.len()]);
        let row = self.rows.len() - 1;
        for (column, value) in fields {
            self.set(row, column, value);
        }
    }

    /// A row's fields in the order of the columns.
    pub fn row(&self, row: usize) -> Option<&[String]> {
        self.rows.get(row).map(Vec::as_slice)
    }

    /// A table of some of the rows, in this order.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn select(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let rows = rows.into_iter().map(|row| self.rows[row].clone()).collect();
        Self { columns: self.columns.clone(), rows }
    }

    /// Appends the rows of another table by the names of their columns.
    pub fn append(&mut self, other: &Self) {
        for row in &other.rows {
            self.push(other.columns.iter().map(String::as_str).zip(row.iter().cloned()));
        }
    }

    /// Takes a column away; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(at) = self.column(name) else { return false };
        self.columns.remove(at);
        self.rows.iter_mut().for_each(|row| drop(row.remove(at)));
        true
    }

    /// Reads a table; files that it names are not looked at. Rows that are shorter than the header
    /// are an error, empty tables are none.
    ///
    /// # Errors
    /// Where it cannot be read, is no CSV in UTF-8, names a column twice, or a row has another
    /// number of fields than the header.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let io = |source| ManifestError::Io { path: path.into(), source };
        let whole = |reason: String| ManifestError::Whole { path: path.into(), reason };
        let mut text = std::fs::read(path).map_err(io)?;
        if text.starts_with(b"\xef\xbb\xbf") {
            text.drain(..3);
        }
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_slice());
        let mut table = Self::default();
        for (index, record) in reader.records().enumerate() {
            let header = usize::from(index > 0 && table.rows.len() < index);
            let fail =
                |reason| ManifestError::Row { path: path.into(), row: index - header, reason };
            let record = record.map_err(|error| fail(words(&error)))?;
            if index == 0 {
                table.columns = columns(&record).map_err(whole)?;
                if is_header(&record) {
                    continue;
                }
            }
            if record.len() != table.columns.len() {
                let (found, expected) = (record.len(), table.columns.len());
                return Err(fail(format!("it has {found} fields, expected {expected}")));
            }
            table.rows.push(record.iter().map(str::to_string).collect());
        }
        table.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(table)
    }

    /// Makes relative paths start from `folder`.
    fn resolve(&mut self, folder: &Path) {
        let Some(at) = self.column(PATH) else { return };
        for path in self.rows.iter_mut().map(|row| &mut row[at]).filter(|path| !path.is_empty()) {
            *path = folder.join(&*path).to_string_lossy().into_owned();
        }
    }

    /// Writes the table with a header: whole, or not at all.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let io = |source| ManifestError::Io { path: path.into(), source };
        let whole = |reason: String| ManifestError::Whole { path: path.into(), reason };
        let absolute = std::path::absolute(path).map_err(io)?;
        let folder = absolute.parent().unwrap_or(Path::new(""));
        let at = self.column(PATH);
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.columns).map_err(|error| whole(words(&error)))?;
        for row in &self.rows {
            let mut row = row.clone();
            if let Some(file) = at.map(|at| &mut row[at]).filter(|file| !file.is_empty()) {
                *file = relative(file, folder).map_err(io)?;
            }
            writer.write_record(&row).map_err(|error| whole(words(&error)))?;
        }
        let bytes = writer.into_inner().map_err(|error| whole(error.to_string()))?;
        write_atomically(path, |temporary| std::fs::write(temporary, &bytes)).map_err(io)
    }
}

/// A path from `folder` where it lies below that, else the absolute one.
fn relative(file: &str, folder: &Path) -> std::io::Result<String> {
    let file: PathBuf = std::path::absolute(file)?;
    Ok(file.strip_prefix(folder).unwrap_or(&file).to_string_lossy().into_owned())
}

/// Whether a first record is a header.
fn is_header(record: &csv::StringRecord) -> bool {
    record.iter().any(|field| {
        let field = field.trim();
        field.eq_ignore_ascii_case(PATH) || field.eq_ignore_ascii_case(URL)
    })
}

/// The columns that a first record stands for.
fn columns(record: &csv::StringRecord) -> Result<Vec<String>, String> {
    if !is_header(record) {
        return match record.len() {
            count @ 1..=3 => {
                Ok([PATH, TEXT, NUM_FRAMES].into_iter().take(count).map(String::from).collect())
            }
            count => {
                Err(format!("it has no header (a column `path` or `url`) and {count} columns"))
            }
        };
    }
    let mut columns = Vec::<String>::new();
    for field in record {
        // The names that readers of these tables know are spelled in one way.
        let field = field.trim();
        let name = match field.to_ascii_lowercase().as_str() {
            "caption" if !record.iter().any(|other| other.trim() == TEXT) => TEXT.into(),
            "frames" if !record.iter().any(|other| other.trim() == NUM_FRAMES) => NUM_FRAMES.into(),
            known @ (PATH | TEXT | NUM_FRAMES | URL) => known.into(),
            _ => field.to_string(),
        };
        if columns.contains(&name) {
            return Err(format!("its header names the column {name} twice"));
        }
        columns.push(name);
    }
    Ok(columns)
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
            (&b"a.mp4,fog\nb.mp4\n"[..], "row 2: it has 1 fields"),
            (b"path,text\na.mp4,fog\nb.mp4,\xff\xfe\n", "row 2: field 2 is no UTF-8"),
            (b"path,text,path\n", "twice"),
            (b"a,b,c,d\n", "no header"),
        ] {
            let text = read(bytes).1.unwrap_err().to_string();
            assert!(text.contains("clips.csv") && text.contains(words), "{text}");
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
