//! Tables as CSV in UTF-8.

use crate::{
    ManifestError, Table, header,
    stored::Stored,
    table::{NUM_FRAMES, PATH, TEXT},
};
use std::{io, path::Path};

/// Reads a table. Without a header, rows may go without the number of frames.
pub(crate) fn read(path: &Path) -> Result<Table, ManifestError> {
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
        let fields: Vec<&str> = record.iter().collect();
        if index == 0 {
            named = header::is_header(&fields);
            let columns = if named { header::columns(&fields) } else { unnamed(fields.len()) };
            let columns =
                columns.map_err(|reason| ManifestError::Whole { path: path.into(), reason })?;
            table = Table::new(columns.iter().map(String::as_str));
            if named {
                continue;
            }
        }
        let mut row: Vec<String> = fields.into_iter().map(String::from).collect();
        match (named, row.len(), table.columns().len()) {
            (_, found, expected) if found == expected => {}
            (false, 2, 3) => row.push(String::new()),
            (false, 3, 2) => drop(table.ensure(NUM_FRAMES)),
            (_, found, expected) => {
                return Err(fail(format!("it has {found} fields, expected {expected}")));
            }
        }
        table.rows_mut().push(row);
    }
    Ok(table)
}

/// The columns of rows without header.
fn unnamed(count: usize) -> Result<Vec<String>, String> {
    let known = [PATH, TEXT, NUM_FRAMES];
    if count > known.len() {
        return Err(format!("it has no header (a column `path` or `url`) and {count} columns"));
    }
    Ok(known.into_iter().take(count).map(String::from).collect())
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
