//! Tables as CSV in UTF-8.

use crate::{
    ManifestError, Table, header,
    stored::Stored,
    table::{NUM_FRAMES, PATH, TEXT},
};
use std::{io, path::Path};

/// Which rows a table may have.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rows {
    /// As long as the header: a field too few or too many is a comma that should have been quoted.
    /// Without a header, rows may go without the number of frames.
    Even,
    /// All that reach to the path and the caption; more fields than columns are left out.
    Ragged,
}

/// Reads a table.
pub(crate) fn read(path: &Path, rows: Rows) -> Result<Table, ManifestError> {
    let io = |source| ManifestError::Io { path: path.into(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    // The reader skips a byte order mark.
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(file);
    let mut table = Table::default();
    let mut named = false;
    for (index, record) in reader.records().enumerate() {
        let row = index - usize::from(named);
        let fail = |reason| ManifestError::Row { path: path.into(), row, reason };
        let record = match record.map_err(|error| (words(&error), error.into_kind())) {
            Ok(record) => record,
            Err((_, csv::ErrorKind::Io(error))) => return Err(io(error)),
            Err((words, _)) => return Err(fail(words)),
        };
        let mut fields: Vec<&str> = record.iter().collect();
        if index == 0 {
            named = header::is_header(&fields);
            let columns =
                if named { header::columns(&fields) } else { unnamed(fields.len(), rows) };
            let columns =
                columns.map_err(|reason| ManifestError::Whole { path: path.into(), reason })?;
            table = Table::new(columns.iter().map(String::as_str));
            if named {
                continue;
            }
        }
        match (rows, named, fields.len(), table.columns().len()) {
            (_, _, found, expected) if found == expected => {}
            (Rows::Even, false, 2, 3) => fields.push(""),
            (Rows::Even, false, 3, 2) => drop(table.ensure(NUM_FRAMES)),
            (Rows::Even, _, found, expected) => {
                return Err(fail(format!("it has {found} fields, expected {expected}")));
            }
            (Rows::Ragged, _, found, columns) => {
                let last = table.column(PATH).max(table.column(TEXT));
                if last.is_some_and(|last| found <= last) {
                    let expected = last.map_or(0, |last| last + 1);
                    let reason = format!("it has {found} fields, expected at least {expected}");
                    return Err(fail(reason));
                }
                fields.resize(columns, "");
            }
        }
        table.rows_mut().push(fields.into_iter().map(String::from).collect());
    }
    Ok(table)
}

/// The columns of rows without header, of which the first has `count` fields.
fn unnamed(count: usize, rows: Rows) -> Result<Vec<String>, String> {
    let known = [PATH, TEXT, NUM_FRAMES].map(String::from);
    match rows {
        Rows::Ragged => Ok(known.into()),
        Rows::Even if count <= known.len() => Ok(known.into_iter().take(count).collect()),
        Rows::Even => {
            Err(format!("it has no header (a column `path` or `url`) and {count} columns"))
        }
    }
}

/// Writes a table with a header.
pub(crate) fn write(table: &Stored<'_>, path: &Path) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    writer.write_record(table.columns())?;
    for row in 0..table.len() {
        writer.write_record((0..table.columns().len()).map(|column| table.field(row, column)))?;
    }
    writer.flush()
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
