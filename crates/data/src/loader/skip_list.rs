//! Bad rows that are left out, and the file that lists them: CSV, a line a row with its number
//! (from 1), path and reason.
//!
//! A line counts only where that row has that path still, so the list of other data leaves out
//! nothing. Lines are taken one by one, so one that a kill cut short costs no other.

use super::workers::name_of;
use crate::{DataError, Source};
use opensora_manifest::ManifestError;
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

pub(super) struct SkipList {
    path: Option<PathBuf>,
    rows: BTreeMap<usize, String>,
}

impl SkipList {
    /// The list at `path`, empty where there is none.
    pub(super) fn open<S: Source + ?Sized>(
        path: Option<PathBuf>,
        source: &S,
    ) -> Result<Self, DataError> {
        let mut rows = BTreeMap::new();
        if let Some(path) = &path {
            let text = match fs::read(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(source) => return Err(DataError::Io { path: path.clone(), source }),
            };
            for (number, line) in String::from_utf8_lossy(&text).lines().enumerate() {
                let line = parse(line).map_err(|reason| ManifestError::Whole {
                    path: path.clone(),
                    reason: format!("line {}: {reason}", number + 1),
                })?;
                if let Some((row, name, reason)) = line
                    && row < source.len()
                    && name_of(source, row).replace(['\n', '\r'], " ") == name
                {
                    rows.insert(row, reason);
                }
            }
        }
        Ok(Self { path, rows })
    }

    pub(super) fn rows(&self) -> &BTreeMap<usize, String> {
        &self.rows
    }

    /// Adds a row, on the disk first.
    pub(super) fn add(&mut self, row: usize, name: &str, reason: String) -> Result<(), DataError> {
        if let Some(path) = &self.path {
            append(path, row, name, &reason)
                .map_err(|source| DataError::Io { path: path.clone(), source })?;
        }
        self.rows.insert(row, reason);
        Ok(())
    }
}

/// Row, name and reason; `None` for what is no whole line.
fn parse(line: &str) -> Result<Option<(usize, String, String)>, String> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(line.as_bytes());
    let Some(record) = reader.records().next() else { return Ok(None) };
    let record = record.map_err(|error| error.to_string())?;
    let (Some(row), Some(name), Some(reason)) = (record.get(0), record.get(1), record.get(2))
    else {
        return Ok(None);
    };
    let row: usize = row.trim().parse().map_err(|_| format!("'{row}' is not a row"))?;
    Ok(row.checked_sub(1).map(|row| (row, name.into(), reason.into())))
}

fn append(path: &Path, row: usize, name: &str, reason: &str) -> io::Result<()> {
    let one_line = |text: &str| text.replace(['\n', '\r'], " ");
    let mut line = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    line.write_record([(row + 1).to_string(), one_line(name), one_line(reason)])?;
    let mut line = line.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    if !ends_a_line(&mut file)? {
        line.insert(0, b'\n');
    }
    file.write_all(&line)?;
    file.sync_all()
}

/// Whether a file is empty or ends with a line's end.
fn ends_a_line(file: &mut fs::File) -> io::Result<bool> {
    use io::{Read, Seek, SeekFrom};
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
