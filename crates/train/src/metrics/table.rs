//! Writer and reader of `metrics.csv`: a header and one row for each step.

use super::{COLUMNS, MetricsError, Record};
use opensora_files::{one_line, read::read_text, write_atomically};
use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// Upper limit in bytes of the table of a run that is resumed: that of more than four million steps.
const MAX_BYTES: u64 = 1 << 30;

/// Appends rows to a table.
#[derive(Debug)]
pub(super) struct TableWriter {
    path: PathBuf,
    file: File,
    /// Bytes of whole rows.
    length: u64,
    columns: Vec<String>,
    gaps: Vec<Gap>,
}

impl TableWriter {
    /// Opens or creates the table at `path`. Removes the rows of steps after `resume_at_step`,
    /// which will be written again, and an incomplete last row of a killed process.
    pub(super) fn open(path: &Path, resume_at_step: u64) -> Result<Self, MetricsError> {
        let found = match read_text(path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(MetricsError::io(path)(error)),
        };
        let (columns, kept, steps) = match keep(path, &found, resume_at_step)? {
            Some(Kept { columns, text, steps }) => (columns, text.to_string(), steps),
            None => {
                let columns = COLUMNS.map(String::from).to_vec();
                let header = columns.join(",") + "\n";
                (columns, header, Vec::new())
            }
        };
        let gaps = gaps(steps.into_iter().chain([resume_at_step + 1]));
        if kept != found {
            rewrite(path, &kept)?;
        }
        let file = append_to(path)?;
        Ok(Self { path: path.into(), file, length: kept.len() as u64, columns, gaps })
    }

    /// Returns the missing rows of steps before the one at which the table was opened.
    pub(super) fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Appends a row, and new columns for parts that no record had before.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let parts = record.parts.iter().map(|(name, _)| *name);
        let new: Vec<&str> = parts.filter(|part| !self.columns.iter().any(|c| c == part)).collect();
        if !new.is_empty() {
            self.widen(&new)?;
        }
        let cells: Vec<String> = self.columns.iter().map(|column| record.cell(column)).collect();
        let row = cells.join(",") + "\n";
        if let Err(error) = self.file.write_all(row.as_bytes()) {
            // Part of the row may have been written. The first error is the one to report.
            let _ = self.file.set_len(self.length);
            return Err(MetricsError::io(&self.path)(error));
        }
        self.length += row.len() as u64;
        Ok(())
    }

    fn widen(&mut self, new: &[&str]) -> Result<(), MetricsError> {
        let text = std::fs::read_to_string(&self.path).map_err(MetricsError::io(&self.path))?;
        let (names, gaps) = (format!(",{}", new.join(",")), ",".repeat(new.len()));
        let mut wide = String::with_capacity(text.len() * 2);
        for (index, line) in text.lines().enumerate() {
            wide += line;
            wide += if index == 0 { &names } else { &gaps };
            wide.push('\n');
        }
        rewrite(&self.path, &wide)?;
        self.columns.extend(new.iter().map(|name| name.to_string()));
        self.file = append_to(&self.path)?;
        self.length = wide.len() as u64;
        Ok(())
    }
}

/// The part of a table that is kept at a resume.
struct Kept<'a> {
    columns: Vec<String>,
    text: &'a str,
    /// Steps of the rows.
    steps: Vec<u64>,
}

/// Returns the part of a table to keep at a resume, or `None` if there is none.
fn keep<'a>(
    path: &Path,
    text: &'a str,
    resume_at_step: u64,
) -> Result<Option<Kept<'a>>, MetricsError> {
    let mut lines = text.split_inclusive('\n');
    let Some(header) = lines.next().filter(|line| line.ends_with('\n')) else {
        return Ok(None);
    };
    let fail = |line, reason| MetricsError::Table { path: path.into(), line, reason, source: None };
    let columns: Vec<String> = header.trim_end().split(',').map(String::from).collect();
    if columns[0] != COLUMNS[0] {
        let reason = format!("the first column is '{}', expected '{}'", columns[0], COLUMNS[0]);
        return Err(fail(1, reason));
    }
    let rows: Vec<&str> = lines.collect();
    let (mut end, mut steps) = (header.len(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        let step = row.split(',').next().and_then(|cell| cell.parse::<u64>().ok());
        let whole = row.ends_with('\n') && row.matches(',').count() + 1 == columns.len();
        match step {
            Some(step) if whole && step <= resume_at_step => {
                end += row.len();
                steps.push(step);
            }
            // Steps rise, so all further rows are later too.
            Some(_) if whole => break,
            // A killed process or a power failure damages the end.
            _ if index + 1 == rows.len() => break,
            _ => {
                let reason = format!("expected a step and {} columns", columns.len());
                return Err(fail(index + 2, reason));
            }
        }
    }
    Ok(Some(Kept { columns, text: &text[..end], steps }))
}

/// Consecutive steps that have no row in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// First missing step.
    pub first: u64,
    /// Last missing step.
    pub last: u64,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last - self.first {
            0 => write!(f, "the row of step {} is missing", self.first),
            _ => write!(f, "the rows of steps {} to {} are missing", self.first, self.last),
        }
    }
}

/// Returns the missing steps before and between `steps`, which count from 1.
fn gaps(steps: impl IntoIterator<Item = u64>) -> Vec<Gap> {
    let (mut gaps, mut next) = (Vec::new(), 1);
    for step in steps {
        if step > next {
            gaps.push(Gap { first: next, last: step - 1 });
        }
        next = step.saturating_add(1);
    }
    gaps
}

fn rewrite(path: &Path, text: &str) -> Result<(), MetricsError> {
    write_atomically(path, |temporary| std::fs::write(temporary, text))
        .map_err(MetricsError::io(path))
}

fn append_to(path: &Path) -> Result<File, MetricsError> {
    OpenOptions::new().append(true).open(path).map_err(MetricsError::io(path))
}

/// The numbers of a table. Empty cells are NaN.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The columns' names.
    pub columns: Vec<String>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<f64>>,
}

impl Table {
    /// Reads a table, also while a run writes it: an incomplete last row is ignored.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, has no header, or a cell is not a number.
    pub fn read(path: &Path) -> Result<Self, MetricsError> {
        let text = std::fs::read_to_string(path).map_err(MetricsError::io(path))?;
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let error = |line: u64, reason, source| MetricsError::Table {
            path: path.into(),
            line: line as usize,
            reason,
            source,
        };
        let fail = |line, reason| error(line, reason, None);
        let not_csv = |line, source| error(line, "not CSV".into(), Some(source));
        let mut reader = csv::Reader::from_reader(whole.as_bytes());
        let position = |error: &csv::Error| error.position().map_or(1, csv::Position::line);
        let header = reader.headers().map_err(|error| not_csv(1, error))?;
        let columns: Vec<String> = header.iter().map(String::from).collect();
        if columns.is_empty() {
            return Err(fail(1, "expected a header".into()));
        }
        let mut rows = Vec::new();
        for row in reader.records() {
            let row = row.map_err(|error| match error.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => fail(
                    position(&error),
                    format!("{len} cells, but the header has {expected_len}"),
                ),
                _ => not_csv(position(&error), error),
            })?;
            let line = row.position().map_or(1, csv::Position::line);
            let cells = row.iter().zip(&columns).map(|(cell, column)| match cell.trim() {
                "" => Ok(f64::NAN),
                text => text.parse().map_err(|_| {
                    fail(
                        line,
                        format!("{} is '{}', expected a number", one_line(column), one_line(text)),
                    )
                }),
            });
            rows.push(cells.collect::<Result<_, _>>()?);
        }
        Ok(Self { columns, rows })
    }

    /// Returns the missing rows of steps before the last row.
    pub fn gaps(&self) -> Vec<Gap> {
        let steps = self.column(COLUMNS[0]).unwrap_or_default();
        gaps(steps.into_iter().filter(|step| *step >= 1.0).map(|step| step as u64))
    }

    /// Returns the numbers of a column, or `None` if there is no column of this name.
    pub fn column(&self, name: &str) -> Option<Vec<f64>> {
        let index = self.columns.iter().position(|column| column == name)?;
        Some(self.rows.iter().map(|row| row[index]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record { step, loss: 1.0 / step as f64, ..Record::default() }
    }

    fn steps(path: &Path) -> Vec<f64> {
        Table::read(path).unwrap().column("step").unwrap()
    }

    #[test]
    fn later_and_incomplete_rows_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let mut writer = TableWriter::open(&path, 0).unwrap();
        (1..=9).for_each(|step| writer.append(&record(step)).unwrap());
        let full = std::fs::read_to_string(&path).unwrap();

        // Killed anywhere inside the last row: a resume at a later step keeps all whole rows.
        let last = full[..full.len() - 1].rfind('\n').unwrap() + 1;
        for end in last..=full.len() {
            std::fs::write(&path, &full[..end]).unwrap();
            TableWriter::open(&path, 100).unwrap();
            assert_eq!(steps(&path).len(), if end == full.len() { 9 } else { 8 });
        }
        let mut writer = TableWriter::open(&path, 4).unwrap();
        assert_eq!(steps(&path), [1.0, 2.0, 3.0, 4.0]);
        writer.append(&record(5)).unwrap();
        assert_eq!(steps(&path), [1.0, 2.0, 3.0, 4.0, 5.0]);
        TableWriter::open(&path, 0).unwrap();
        assert!(steps(&path).is_empty());
        // Killed inside the header.
        std::fs::write(&path, "step,sam").unwrap();
        TableWriter::open(&path, 7).unwrap().append(&record(8)).unwrap();
        assert_eq!(steps(&path), [8.0]);
    }

    #[test]
    fn missing_rows_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let mut writer = TableWriter::open(&path, 0).unwrap();
        assert!(writer.gaps().is_empty());
        (1..=9).for_each(|step| writer.append(&record(step)).unwrap());
        assert_eq!(Table::read(&path).unwrap().gaps(), []);
        let text = std::fs::read_to_string(&path).unwrap();
        let lost = |line: &&str| !["1,", "4,", "5,"].iter().any(|step| line.starts_with(step));
        let lines: Vec<&str> = text.lines().filter(lost).collect();
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let found = [Gap { first: 1, last: 1 }, Gap { first: 4, last: 5 }];
        assert_eq!(Table::read(&path).unwrap().gaps(), found);
        // A run that resumes later than the last row lost the rows between.
        let writer = TableWriter::open(&path, 11).unwrap();
        assert_eq!(writer.gaps(), [&found[..], &[Gap { first: 10, last: 11 }]].concat());
        assert_eq!(writer.gaps()[0].to_string(), "the row of step 1 is missing");
        assert_eq!(writer.gaps()[2].to_string(), "the rows of steps 10 to 11 are missing");
    }

    #[test]
    fn new_parts_become_new_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let mut writer = TableWriter::open(&path, 0).unwrap();
        writer.append(&record(1)).unwrap();
        writer.append(&Record { parts: vec![("mse", 0.5), ("vb", 0.25)], ..record(2) }).unwrap();
        drop(writer);
        // Columns of an earlier start are found again.
        let mut writer = TableWriter::open(&path, 2).unwrap();
        writer.append(&Record { parts: vec![("vb", 0.125)], ..record(3) }).unwrap();
        let table = Table::read(&path).unwrap();
        assert_eq!(table.columns.len(), COLUMNS.len() + 2);
        let mse = table.column("mse").unwrap();
        assert!(mse[0].is_nan() && mse[1] == 0.5 && mse[2].is_nan());
        assert_eq!(table.column("vb").unwrap()[1..], [0.25, 0.125]);
        assert_eq!(table.column("loss").unwrap()[2], 1.0 / 3.0);
        assert_eq!(table.column("lr"), None);
    }

    #[test]
    fn invalid_tables_are_rejected_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        for (text, line, tells) in [
            ("loss,step\n", "line 1", "'loss'"),
            ("step,loss\n1,2\nx,3\n4,5\n", "line 3", "2 columns"),
            ("step,loss\n1\n4,5\n", "line 2", "2 columns"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = TableWriter::open(&path, 9).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(tells), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "what is not ours is kept");
        }
        for (text, tells) in [("", "header"), ("step\nx\n", "'x'"), ("a,b\n1\n", "2")] {
            std::fs::write(&path, text).unwrap();
            let error = Table::read(&path).unwrap_err().to_string();
            assert!(error.contains(tells) && !error.contains('\n'), "{error}");
        }
        assert!(matches!(
            TableWriter::open(&folder.path().join("none/metrics.csv"), 0),
            Err(MetricsError::Io { .. })
        ));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let file = OpenOptions::new().append(true).open(full).unwrap();
        let columns = COLUMNS.map(String::from).to_vec();
        let (path, gaps) = (full.into(), Vec::new());
        let mut writer = TableWriter { path, file, length: 0, columns, gaps };
        let error = writer.append(&record(1)).unwrap_err();
        assert!(matches!(error, MetricsError::Io { .. }), "{error}");
    }
}
