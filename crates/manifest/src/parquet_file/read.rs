//! Reading of Parquet files as text, column by column.
//!
//! Stated sizes are checked against the length of the file, and a panic of the Parquet reader is converted to
//! an error. A file of a kilobyte can repeat one word a million times, so memory is limited to a multiple of
//! the file's size, far above real tables. The Parquet reader itself can allocate up to 2 GiB for one damaged
//! page.

use super::BATCH;
use crate::{
    ManifestError, Table, header,
    known::{Known, Purpose},
};
use parquet::{
    basic::{ConvertedType, LogicalType, Type as PhysicalType},
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    errors::ParquetError,
    file::reader::{ChunkReader, FileReader, Length, SerializedFileReader},
    schema::types::ColumnDescriptor,
};
use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Maximum bytes of memory for each byte of the file, in addition to [`FREE`]. For comparison: deflate expands
/// by at most 1032.
const GROWTH: u64 = 4096;
/// Bytes of memory that every table may use.
const FREE: u64 = 64 << 20;

/// Reads a table.
pub(crate) fn read(path: &Path, purpose: Purpose) -> Result<Table, ManifestError> {
    let io = |source| ManifestError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    catch_unwind(AssertUnwindSafe(|| table(Bounded { file, length }, purpose)))
        .unwrap_or_else(|_| Err(Wrong::Whole("damaged Parquet: its reader gave up".into())))
        .map_err(|wrong| match wrong {
            Wrong::Library(source) => {
                ManifestError::Parquet { path: path.into(), source: source.into() }
            }
            Wrong::Whole(reason) => ManifestError::Whole { path: path.into(), reason },
            Wrong::Row(row, reason) => {
                ManifestError::Row { path: path.into(), row, line: None, reason }
            }
        })
}

/// An error without the path.
enum Wrong {
    Library(ParquetError),
    Whole(String),
    Row(usize, String),
}

impl From<ParquetError> for Wrong {
    fn from(error: ParquetError) -> Self {
        Self::Library(error)
    }
}

/// A file that rejects reads beyond its end before they allocate memory.
struct Bounded {
    file: File,
    length: u64,
}

impl Length for Bounded {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Bounded {
    type T = <File as ChunkReader>::T;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<bytes::Bytes> {
        let end = u64::try_from(length).ok().and_then(|length| start.checked_add(length));
        if end.is_none_or(|end| end > self.length) {
            let reason = format!("{length} bytes from {start} of a file of {}", self.length);
            return Err(ParquetError::EOF(reason));
        }
        self.file.get_bytes(start, length)
    }
}

/// Conversion of the values of a column to text.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Signed,
    Unsigned,
    Float,
}

impl Kind {
    fn of(column: &ColumnDescriptor) -> Result<Self, Wrong> {
        let name = column.path().string();
        if column.path().parts().len() != 1 || column.max_rep_level() != 0 {
            return Err(Wrong::Whole(format!(
                "the column {name} is a list or a group of columns, expected text or numbers"
            )));
        }
        // The Parquet reader sets the converted type if a file has only the logical type.
        let (logical, converted) = (column.logical_type_ref(), column.converted_type());
        match (column.physical_type(), logical, converted) {
            (
                PhysicalType::BYTE_ARRAY,
                None | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json),
                ConvertedType::NONE
                | ConvertedType::UTF8
                | ConvertedType::ENUM
                | ConvertedType::JSON,
            ) => Ok(Self::Text),
            (PhysicalType::BOOLEAN, ..) => Ok(Self::Bool),
            (PhysicalType::FLOAT | PhysicalType::DOUBLE, ..) => Ok(Self::Float),
            (
                PhysicalType::INT32 | PhysicalType::INT64,
                _,
                ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64,
            ) => Ok(Self::Unsigned),
            (
                PhysicalType::INT32 | PhysicalType::INT64,
                None | Some(LogicalType::Integer(_) | LogicalType::Unknown),
                ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64,
            ) => Ok(Self::Signed),
            (physical, ..) => {
                let what = logical.map(|kind| format!(" ({kind:?})")).unwrap_or_default();
                Err(Wrong::Whole(format!(
                    "the column {name} is {physical}{what}, expected text or numbers"
                )))
            }
        }
    }
}

/// A column that is added to the rows.
struct Sink<'a> {
    rows: &'a mut Vec<Vec<String>>,
    /// First row of the row group.
    first: usize,
    /// Number of fields added so far.
    count: usize,
    column: usize,
    columns: usize,
    /// Remaining bytes of memory for the table.
    left: &'a mut u64,
}

impl Sink<'_> {
    fn push(&mut self, field: String) -> Result<(), Wrong> {
        let row = self.first + self.count;
        let header = if self.column == 0 { size_of::<Vec<String>>() } else { 0 };
        let bytes = (header + size_of::<String>() + field.len()) as u64;
        *self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| Wrong::Whole(format!("unpacks to more than {GROWTH} times its size")))?;
        if self.column == 0 {
            let mut fields = Vec::with_capacity(self.columns);
            fields.push(field);
            self.rows.push(fields);
        } else {
            let fields = self
                .rows
                .get_mut(row)
                .ok_or_else(|| Wrong::Whole("the columns have different numbers of rows".into()))?;
            fields.push(field);
        }
        self.count += 1;
        Ok(())
    }
}

fn table(file: Bounded, purpose: Purpose) -> Result<Table, Wrong> {
    let mut left = FREE.saturating_add(file.length.saturating_mul(GROWTH));
    let reader = SerializedFileReader::new(file)?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr();
    let names: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
    let columns = header::columns(&names).map_err(Wrong::Whole)?;
    let known = Known::of(columns, purpose).map_err(Wrong::Whole)?;
    let kinds = known.kept.iter().map(|&at| Kind::of(&schema.column(at)));
    let kinds: Vec<Kind> = kinds.collect::<Result<_, _>>()?;
    let mut table = Table::new(known.columns.iter().map(String::as_str));
    let rows = table.rows_mut();
    for index in 0..metadata.num_row_groups() {
        let group = reader.get_row_group(index)?;
        let first = rows.len();
        let expected = usize::try_from(group.metadata().num_rows()).ok();
        for (column, (&kind, &at)) in kinds.iter().zip(&known.kept).enumerate() {
            let (columns, name) = (kinds.len(), names[at]);
            let mut sink = Sink { rows, first, count: 0, column, columns, left: &mut left };
            read_column(group.get_column_reader(at)?, kind, name, &mut sink)?;
            if Some(sink.count) != expected {
                let (found, expected) = (sink.count, group.metadata().num_rows());
                return Err(Wrong::Whole(format!(
                    "the column {name} has {found} fields in a group of {expected} rows"
                )));
            }
        }
        for (row, fields) in rows.iter_mut().enumerate().skip(first) {
            known.check(fields).map_err(|reason| Wrong::Row(row, reason))?;
        }
    }
    Ok(table)
}

fn read_column(
    reader: ColumnReader,
    kind: Kind,
    name: &str,
    sink: &mut Sink<'_>,
) -> Result<(), Wrong> {
    match reader {
        ColumnReader::BoolColumnReader(reader) => each(reader, sink, |value| Ok(value.to_string())),
        ColumnReader::Int32ColumnReader(reader) => each(reader, sink, |&value| {
            Ok(match kind {
                Kind::Unsigned => value.cast_unsigned().to_string(),
                _ => value.to_string(),
            })
        }),
        ColumnReader::Int64ColumnReader(reader) => each(reader, sink, |&value| {
            Ok(match kind {
                Kind::Unsigned => value.cast_unsigned().to_string(),
                _ => value.to_string(),
            })
        }),
        ColumnReader::FloatColumnReader(reader) => each(reader, sink, |&value| {
            Ok(if value.is_nan() { String::new() } else { value.to_string() })
        }),
        ColumnReader::DoubleColumnReader(reader) => each(reader, sink, |&value| {
            Ok(if value.is_nan() { String::new() } else { value.to_string() })
        }),
        ColumnReader::ByteArrayColumnReader(reader) => each(reader, sink, |value: &ByteArray| {
            let text = std::str::from_utf8(value.data());
            text.map(String::from).map_err(|_| format!("the field {name} is not UTF-8"))
        }),
        // `Kind::of` rejects these types.
        ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
            Err(Wrong::Whole(format!("the column {name} is neither text nor numbers")))
        }
    }
}

/// Reads every field of a column; nulls become empty fields.
fn each<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    sink: &mut Sink<'_>,
    text: impl Fn(&T::T) -> Result<String, String>,
) -> Result<(), Wrong> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    loop {
        values.clear();
        levels.clear();
        let (count, _, _) = reader.read_records(BATCH, Some(&mut levels), None, &mut values)?;
        if count == 0 {
            return Ok(());
        }
        let mut values = values.iter();
        for record in 0..count {
            // Columns without nulls have no levels.
            let value = match levels.get(record) {
                Some(0) => None,
                _ => Some(values.next().ok_or_else(|| {
                    Wrong::Whole("damaged Parquet: a column ends before its rows do".into())
                })?),
            };
            let row = sink.first + sink.count;
            let field = value.map(&text).transpose().map_err(|reason| Wrong::Row(row, reason))?;
            sink.push(field.unwrap_or_default())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_at_the_end_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers");
        std::fs::write(&path, [0, 1, 2, 3, 4]).unwrap();
        let bounded = Bounded { file: File::open(&path).unwrap(), length: 5 };
        assert_eq!(bounded.len(), 5);
        assert_eq!(bounded.get_bytes(0, 5).unwrap(), [0, 1, 2, 3, 4].as_slice());
        assert_eq!(bounded.get_bytes(2, 3).unwrap(), [2, 3, 4].as_slice());
        for (start, length) in [(2, 4), (6, 0), (1, usize::MAX), (u64::MAX, 1)] {
            let error = bounded.get_bytes(start, length).unwrap_err().to_string();
            let expected = format!("EOF: {length} bytes from {start} of a file of 5");
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn memory_is_counted_for_rows_and_fields() {
        let (mut rows, mut left) = (Vec::new(), 1000);
        let mut sink =
            Sink { rows: &mut rows, first: 0, count: 0, column: 0, columns: 2, left: &mut left };
        assert!(sink.push("abc".into()).is_ok());
        // A list of fields, its first field, and the text.
        let row = (size_of::<Vec<String>>() + size_of::<String>() + 3) as u64;
        assert_eq!((*sink.left, sink.count), (1000 - row, 1));
        (sink.column, sink.count) = (1, 0);
        assert!(sink.push("de".into()).is_ok());
        let field = size_of::<String>() as u64 + 2;
        assert_eq!((*sink.left, sink.count), (1000 - row - field, 1));
        (*sink.left, sink.count) = (field, 0);
        assert!(sink.push("fg".into()).is_ok());
        (*sink.left, sink.count) = (field - 1, 0);
        assert!(matches!(sink.push("hi".into()), Err(Wrong::Whole(_))));
        assert_eq!(rows, [["abc", "de", "fg"]]);
    }
}
