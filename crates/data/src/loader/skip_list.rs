//! The list of bad rows that are skipped, a CSV file with number (from 1), path, reason and slot of each row.
//!
//! A row is skipped from its slot on, so that a run that resumes at an earlier slot has the batches of a run without a
//! break. A row whose line has no slot (earlier versions wrote none) is always skipped.
//!
//! A line counts only if the row has the path that the line names, so a list of another data set skips
//! nothing. Lines are parsed separately, so a line that was cut off by a kill affects no other line.

use super::workers::name_of;
use crate::{DataError, Source};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A bad row that is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Slot of the order from which the row is skipped.
    pub slot: u64,
    /// Error of the row on one line.
    pub reason: String,
}

pub(super) struct SkipList {
    path: Option<PathBuf>,
    /// True if added rows are written to the file.
    writes: bool,
    rows: BTreeMap<usize, Skipped>,
}

impl SkipList {
    /// Reads the list at `path`. A missing file is an empty list.
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
                let line = parse(line).map_err(|BadLine { reason, source }| {
                    let (path, line) = (path.clone(), number + 1);
                    DataError::SkipList { path, line, reason, source }
                })?;
                if let Some((row, name, skipped)) = line
                    && row < source.len()
                    && name_of(source, row).replace(['\n', '\r'], " ") == name
                {
                    // Of several lines of a row, the last one has the earliest slot.
                    rows.insert(row, skipped);
                }
            }
        }
        Ok(Self { path, writes: true, rows })
    }

    /// Takes the rows of the rank that writes the file, and leaves writing it to that rank.
    pub(super) fn follow(&mut self, rows: BTreeMap<usize, Skipped>) {
        self.writes = false;
        self.rows = rows;
    }

    pub(super) fn rows(&self) -> &BTreeMap<usize, Skipped> {
        &self.rows
    }

    /// Returns true if `row` is skipped in `slot`.
    pub(super) fn skips(&self, row: usize, slot: u64) -> bool {
        self.rows.get(&row).is_some_and(|skipped| skipped.slot <= slot)
    }

    /// Returns true if all `rows` rows of the source are skipped from `slot` on.
    pub(super) fn skips_all(&self, rows: usize, slot: u64) -> bool {
        // The list has only rows of the source.
        self.rows.len() == rows && self.rows.values().all(|skipped| skipped.slot <= slot)
    }

    /// Adds a row, to the file first if this rank writes it.
    pub(super) fn add(
        &mut self,
        row: usize,
        name: &str,
        skipped: Skipped,
    ) -> Result<(), DataError> {
        if let Some(path) = self.path.as_ref().filter(|_| self.writes) {
            append(path, row, name, &skipped)
                .map_err(|source| DataError::Io { path: path.clone(), source })?;
        }
        self.rows.insert(row, skipped);
        Ok(())
    }
}

/// Error of parsing a line.
struct BadLine {
    reason: String,
    source: Option<csv::Error>,
}

/// Parses row, name, reason and slot; returns `None` for an incomplete line.
fn parse(line: &str) -> Result<Option<(usize, String, Skipped)>, BadLine> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(line.as_bytes());
    let Some(record) = reader.records().next() else { return Ok(None) };
    let record = record
        .map_err(|error| BadLine { reason: "not a line of CSV".into(), source: Some(error) })?;
    let (Some(row), Some(name), Some(reason)) = (record.get(0), record.get(1), record.get(2))
    else {
        return Ok(None);
    };
    let row: usize = row
        .trim()
        .parse()
        .map_err(|_| BadLine { reason: format!("'{row}' is not a row"), source: None })?;
    let slot = record.get(3).and_then(|slot| slot.trim().parse().ok()).unwrap_or(0);
    let skipped = Skipped { slot, reason: reason.into() };
    Ok(row.checked_sub(1).map(|row| (row, name.into(), skipped)))
}

fn append(path: &Path, row: usize, name: &str, skipped: &Skipped) -> io::Result<()> {
    let one_line = |text: &str| text.replace(['\n', '\r'], " ");
    let mut line = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    let Skipped { slot, reason } = skipped;
    let (row, slot) = ((row + 1).to_string(), slot.to_string());
    line.write_record([row, one_line(name), one_line(reason), slot])?;
    let mut line = line.into_inner().map_err(|error| error.into_error())?;
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    if !ends_a_line(&mut file)? {
        line.insert(0, b'\n');
    }
    file.write_all(&line)?;
    file.sync_all()
}

/// Returns true if a file is empty or ends with a newline.
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
