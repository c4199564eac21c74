//! Writing of Parquet tables.

use super::BATCH;
use crate::{
    stored::Stored,
    table::{PATH, TEXT, URL},
};
use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as PhysicalType},
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};
use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

/// Number of rows of a row group, which is compressed in memory.
const GROUP: usize = 1 << 17;

/// The type of a column in the file.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Integer,
    Float,
}

impl Kind {
    fn of(table: &Stored<'_>, column: usize) -> Self {
        // Captions are text even if all are numbers.
        if [PATH, TEXT, URL].contains(&table.columns()[column].as_str()) {
            return Self::Text;
        }
        let fields = || {
            (0..table.len()).map(|row| table.field(row, column)).filter(|field| !field.is_empty())
        };
        if fields().next().is_none() {
            Self::Text
        } else if fields().all(|field| integer(field).is_some()) {
            Self::Integer
        } else if fields().all(|field| float(field).is_some()) {
            Self::Float
        } else {
            Self::Text
        }
    }

    fn schema(self, name: &str) -> Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Self::Text => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
            Self::Integer => (PhysicalType::INT64, None),
            Self::Float => (PhysicalType::DOUBLE, None),
        };
        Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical)
            .build()
    }
}

/// Returns the integer of a field that it prints exactly.
fn integer(field: &str) -> Option<i64> {
    field.parse().ok().filter(|number: &i64| number.to_string() == field)
}

/// Returns the number of a field that it prints exactly, except for trailing zeros of the fraction.
fn float(field: &str) -> Option<f64> {
    let shortest = match field.contains('.') {
        true => field.trim_end_matches('0').trim_end_matches('.'),
        false => field,
    };
    let ends_well = !field.ends_with('.');
    field
        .parse()
        .ok()
        .filter(|number: &f64| ends_well && number.is_finite() && number.to_string() == shortest)
}

/// Writes a table; empty fields are nulls.
pub(crate) fn write(table: &Stored<'_>, path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    written(table, file).map_err(io::Error::other)
}

fn written(table: &Stored<'_>, file: File) -> Result<(), ParquetError> {
    let kinds: Vec<Kind> =
        (0..table.columns().len()).map(|column| Kind::of(table, column)).collect();
    let fields = kinds.iter().zip(table.columns());
    let fields = fields.map(|(kind, name)| kind.schema(name).map(Arc::new));
    let schema = Type::group_type_builder("schema")
        .with_fields(fields.collect::<Result<_, _>>()?)
        .build()?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    for first in (0..table.len()).step_by(GROUP) {
        let rows = first..table.len().min(first + GROUP);
        let mut group = writer.next_row_group()?;
        for (column, kind) in kinds.iter().enumerate() {
            let Some(mut writer) = group.next_column()? else { break };
            let field = |row| table.field(row, column);
            match kind {
                Kind::Text => fill::<ByteArrayType>(&mut writer, rows.clone(), |row| {
                    Some(field(row)).filter(|text| !text.is_empty()).map(ByteArray::from)
                }),
                Kind::Integer => {
                    fill::<Int64Type>(&mut writer, rows.clone(), |row| integer(field(row)))
                }
                Kind::Float => {
                    fill::<DoubleType>(&mut writer, rows.clone(), |row| float(field(row)))
                }
            }?;
            writer.close()?;
        }
        group.close()?;
    }
    writer.close().map(drop)
}

/// Writes a range of rows of a column.
fn fill<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    rows: Range<usize>,
    value: impl Fn(usize) -> Option<T::T>,
) -> Result<(), ParquetError> {
    let end = rows.end;
    for first in rows.step_by(BATCH) {
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        for row in first..end.min(first + BATCH) {
            let value = value(row);
            levels.push(i16::from(value.is_some()));
            values.extend(value);
        }
        writer.typed::<T>().write_batch(&values, Some(&levels), None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_numbers_if_numbers_print_them() {
        assert_eq!((integer("12"), integer("-3"), integer("0")), (Some(12), Some(-3), Some(0)));
        for text in ["012", "+1", "-0", "1.0", "", "x"] {
            assert_eq!(integer(text), None, "{text}");
        }
        assert_eq!(
            (float("0.5"), float("-1.50"), float("2.0")),
            (Some(0.5), Some(-1.5), Some(2.0))
        );
        for text in ["2.", ".5", "01.5", "1e3", "inf", "NaN", "", "x"] {
            assert_eq!(float(text), None, "{text}");
        }
    }
}
