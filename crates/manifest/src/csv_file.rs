//! Reading and writing of CSV tables in UTF-8.

pub(crate) mod dialect;
mod records;

pub(crate) use records::{Fault, Record, Records};

use dialect::Dialect;

use crate::{
    ManifestError, Table, header,
    known::{Known, Purpose, shown},
    stored::Stored,
    table::{NUM_FRAMES, PATH, TEXT, URL},
};
use std::{io, path::Path};

/// Reads a table.
pub(crate) fn read(path: &Path, purpose: Purpose) -> Result<Table, ManifestError> {
    let whole = |reason: String| ManifestError::Whole { path: path.into(), reason };
    let mut records = Records::open(path)?;
    let Some(first) = records.next().map_err(|fault| fault.of(path))? else {
        return Ok(Table::default());
    };
    let has_header = header::is_header(&fields_of(&first));
    let columns = if has_header {
        header::columns(&fields_of(&first))
    } else {
        unnamed(&first.fields, purpose)
    };
    let mut rows = Rows::of(columns.map_err(whole)?, has_header, purpose).map_err(whole)?;
    // A first row without any file may be a header of unknown columns: then the second row names a file.
    let suspect = (!has_header && !first.fields.iter().any(|field| is_place(field)))
        .then(|| shown(&first.fields));
    let mut table = Table::new(rows.known.columns.iter().map(String::as_str));
    let mut next = Some(first).filter(|_| !has_header);
    loop {
        if next.is_none() {
            next = records.next().map_err(|fault| fault.of(path))?;
        }
        let Some(Record { line, fields }) = next.take() else { return Ok(table) };
        let row = table.len();
        if let (Some(found), 1, true) =
            (&suspect, row, fields.iter().any(|it| dialect::is_file(it)))
        {
            return Err(whole(format!("found the columns {found}, {}", expected_header())));
        }
        let fields = rows.fields(fields).map_err(|mut reason| {
            if records.delimiter() != ',' {
                reason += &format!(" (delimiter {:?})", records.delimiter());
            }
            ManifestError::Row { path: path.into(), row, line: Some(line), reason }
        })?;
        if fields.len() > table.columns().len() {
            table.ensure(NUM_FRAMES);
        }
        table.rows_mut().push(fields);
    }
}

fn fields_of(record: &Record) -> Vec<&str> {
    record.fields.iter().map(String::as_str).collect()
}

/// A checker of rows against the header.
struct Rows {
    known: Known,
    /// Number of columns of the file.
    width: usize,
    has_header: bool,
    purpose: Purpose,
}

impl Rows {
    fn of(columns: Vec<String>, has_header: bool, purpose: Purpose) -> Result<Self, String> {
        let width = columns.len();
        Ok(Self { known: Known::of(columns, purpose)?, width, has_header, purpose })
    }

    /// Checks a record and returns the fields to keep.
    fn fields(&mut self, mut fields: Vec<String>) -> Result<Vec<String>, String> {
        let (found, expected) = (fields.len(), self.width);
        if self.purpose == Purpose::Training {
            // Path and caption come first among the kept columns.
            let last = self.known.kept[0].max(self.known.kept[1]);
            if found <= last {
                let expected = last + 1;
                return Err(format!("found {found} fields, expected at least {expected}"));
            }
            let take = |&at: &usize| fields.get_mut(at).map(std::mem::take).unwrap_or_default();
            fields = self.known.kept.iter().map(take).collect();
        } else if found != expected {
            match (self.has_header, found, expected) {
                (false, 2, 3) => fields.push(String::new()),
                (false, 3, 2) => {
                    let columns = [PATH, TEXT, NUM_FRAMES].map(String::from).into();
                    *self = Self::of(columns, self.has_header, self.purpose)?;
                }
                _ => return Err(format!("found {found} fields, expected {expected}")),
            }
        }
        self.known.check(&mut fields)?;
        Ok(fields)
    }
}

fn expected_header() -> String {
    let (path, url) = (header::names_of(PATH), header::names_of(URL));
    format!("expected a header with a column {path} or {url}")
}

/// Returns true for a field that may be a file or a URL.
fn is_place(field: &str) -> bool {
    field.contains(['.', '/', '\\'])
}

/// Returns the columns of a table without a header, by its first row.
fn unnamed(fields: &[String], purpose: Purpose) -> Result<Vec<String>, String> {
    let known = [PATH, TEXT, NUM_FRAMES].map(String::from);
    let expected = expected_header;
    if let Some(comment) = fields.first().filter(|field| field.trim_start().starts_with('#')) {
        return Err(format!(
            "line 1: found a comment, {}, {}",
            shown(std::slice::from_ref(comment)),
            expected()
        ));
    }
    if header::looks_like_header(&fields.iter().map(String::as_str).collect::<Vec<_>>()) {
        return Err(format!("found the columns {}, {}", shown(fields), expected()));
    }
    match (purpose, fields) {
        (_, [field]) if dialect::has_other_delimiter(field) => {
            Err(format!("found one column, {}, {}", shown(fields), expected()))
        }
        (Purpose::Training, _) => Ok(known.into()),
        _ if fields.len() <= known.len() => Ok(known.into_iter().take(fields.len()).collect()),
        _ => Err(format!(
            "found {} columns without a header ({}), {}, or the fields path, text and num_frames",
            fields.len(),
            shown(fields),
            expected()
        )),
    }
}

/// Returns the delimiter of a table that begins with `text`, and how many bytes come before its header.
pub(crate) fn delimiter(text: &str) -> (u8, usize) {
    let Dialect { delimiter, skip } = dialect::of(text);
    (delimiter, skip)
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
