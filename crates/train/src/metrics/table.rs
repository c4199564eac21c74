//! `metrics.csv`: a header and one row a step.

use super::{COLUMNS, MetricsError, Record};
use opensora_files::write_atomically;
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// Appends to a table.
#[derive(Debug)]
pub(super) struct TableWriter {
    path: PathBuf,
    file: File,
    /// Bytes of whole rows.
    length: u64,
    columns: Vec<String>,
}

impl TableWriter {
    /// Opens the table at `path` or begins it. Rows of steps after `resume_at_step` are cut off, so
    /// that no step stands twice, and so is a last row that a killed process left unfinished.
    pub(super) fn open(path: &Path, resume_at_step: u64) -> Result<Self, MetricsError> {
        let found = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(MetricsError::io(path)(error)),
        };
        let (columns, kept) = match keep(path, &found, resume_at_step)? {
            Some((columns, kept)) => (columns, kept.to_string()),
            None => {
                let columns = COLUMNS.map(String::from).to_vec();
                let header = columns.join(",") + "\n";
                (columns, header)
            }
        };
        if kept != found {
            rewrite(path, &kept)?;
        }
        let file = append_to(path)?;
        Ok(Self { path: path.into(), file, length: kept.len() as u64, columns })
    }

    /// Appends a row, and new columns where the record has parts that none had before.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let parts = record.parts.iter().map(|(name, _)| *name);
        let new: Vec<&str> = parts.filter(|part| !self.columns.iter().any(|c| c == part)).collect();
        if !new.is_empty() {
            self.widen(&new)?;
        }
        let cells: Vec<String> = self.columns.iter().map(|column| record.cell(column)).collect();
        let row = cells.join(",") + "\n";
        if let Err(error) = self.file.write_all(row.as_bytes()) {
            // Half a row may stand there. The error that brought it about is the one to report.
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

/// Columns of a table, and the part of it that a run goes on from; `None` where there is nothing
/// to keep.
fn keep<'a>(
    path: &Path,
    text: &'a str,
    resume_at_step: u64,
) -> Result<Option<(Vec<String>, &'a str)>, MetricsError> {
    let mut lines = text.split_inclusive('\n');
    let Some(header) = lines.next().filter(|line| line.ends_with('\n')) else {
        return Ok(None);
    };
    let fail = |line, reason| MetricsError::Table { path: path.into(), line, reason };
    let columns: Vec<String> = header.trim_end().split(',').map(String::from).collect();
    if columns[0] != COLUMNS[0] {
        let reason = format!("the first column is '{}', expected '{}'", columns[0], COLUMNS[0]);
        return Err(fail(1, reason));
    }
    let rows: Vec<&str> = lines.collect();
    let mut end = header.len();
    for (index, row) in rows.iter().enumerate() {
        let step = row.split(',').next().and_then(|cell| cell.parse::<u64>().ok());
        let whole = row.ends_with('\n') && row.matches(',').count() + 1 == columns.len();
        match step {
            Some(step) if whole && step <= resume_at_step => end += row.len(),
            // Steps rise, so everything behind it is later too.
            Some(_) if whole => break,
            // A process that is killed, or a machine that loses its power, damages the end.
            _ if index + 1 == rows.len() => break,
            _ => {
                let reason = format!("expected a step and {} columns", columns.len());
                return Err(fail(index + 2, reason));
            }
        }
    }
    Ok(Some((columns, &text[..end])))
}

fn rewrite(path: &Path, text: &str) -> Result<(), MetricsError> {
    write_atomically(path, |temporary| std::fs::write(temporary, text))
        .map_err(MetricsError::io(path))
}

fn append_to(path: &Path) -> Result<File, MetricsError> {
    OpenOptions::new().append(true).open(path).map_err(MetricsError::io(path))
}

/// A table that was read: one number a cell, not-a-number for an empty one.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<f64>>,
}

impl Table {
    /// Reads a table, also while a run writes it: an unfinished last row is left out.
    ///
    /// # Errors
    /// Where the file cannot be read, has no header, or a cell is no number.
    pub fn read(path: &Path) -> Result<Self, MetricsError> {
        let text = std::fs::read_to_string(path).map_err(MetricsError::io(path))?;
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let fail = |line: u64, reason| MetricsError::Table {
            path: path.into(),
            line: line as usize,
            reason,
        };
        let mut reader = csv::Reader::from_reader(whole.as_bytes());
        let position = |error: &csv::Error| error.position().map_or(1, csv::Position::line);
        let header = reader.headers().map_err(|error| fail(1, error.to_string()))?;
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
                _ => fail(position(&error), error.to_string()),
            })?;
            let line = row.position().map_or(1, csv::Position::line);
            let cells = row.iter().zip(&columns).map(|(cell, column)| match cell.trim() {
                "" => Ok(f64::NAN),
                text => text
                    .parse()
                    .map_err(|_| fail(line, format!("{column} is '{text}', expected a number"))),
            });
            rows.push(cells.collect::<Result<_, _>>()?);
        }
        Ok(Self { columns, rows })
    }

    /// The numbers of a column, or `None` where there is none of that name.
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
    fn rows_after_the_checkpoint_and_half_rows_are_cut_off() {
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
    fn what_is_no_table_is_refused_in_one_line() {
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
        let mut writer = TableWriter { path: full.into(), file, length: 0, columns };
        let error = writer.append(&record(1)).unwrap_err();
        assert!(matches!(error, MetricsError::Io { .. }), "{error}");
    }
}
