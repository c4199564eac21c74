//! Tests of Parquet files: round trips, files of other programs, damaged files.

use crate::{
    Manifest, ManifestError, Table,
    limits::MAX_CAPTION_CHARS,
    table::{PATH, TEXT},
};
use parquet::{
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type},
    file::{
        reader::FileReader, serialized_reader::SerializedFileReader, writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use std::{fs::File, path::Path, sync::Arc};

/// A table of every kind of column.
fn table(rows: usize) -> Table {
    let mut table = Table::new([PATH, TEXT, "num_frames", "score", "id", "licence", "note"]);
    for row in 0..rows {
        table.push([
            (PATH, format!("/clips/{row:05}.mp4")),
            (TEXT, if row % 3 == 0 { String::new() } else { row.to_string() }),
            ("num_frames", if row % 5 == 0 { String::new() } else { (row * 7).to_string() }),
            ("score", format!("{}.5", row as i64 - 3)),
            ("id", format!("{row:03}")),
            ("licence", "CC-BY \"ü\"\n4.0".into()),
        ]);
    }
    table
}

fn at(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("clips.parquet")
}

#[test]
fn tables_come_back_and_their_numbers_are_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for rows in [0, 1, 20_000, (1 << 17) + 3] {
        let written = table(rows);
        written.write(&at(&folder)).unwrap();
        assert!(Table::read(&at(&folder)).unwrap() == written, "{rows} rows");
    }
    let file = SerializedFileReader::new(File::open(at(&folder)).unwrap()).unwrap();
    let schema = file.metadata().file_metadata().schema_descr();
    let kinds: Vec<_> =
        schema.columns().iter().map(|column| column.physical_type().to_string()).collect();
    let text = "BYTE_ARRAY";
    assert_eq!(kinds, [text, text, "INT64", "DOUBLE", text, text, text]);
    assert_eq!(file.metadata().num_row_groups(), 2);
}

#[test]
fn numbers_lose_zeros_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for (fields, expected) in [
        (["0.500", "51.0"], ["0.5", "51"]),
        (["-0.25", "30"], ["-0.25", "30"]),
        (["007", "1"], ["007", "1"]),
        (["1e5", "1"], ["1e5", "1"]),
        (["1.", ".5"], ["1.", ".5"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["9223372036854775807", "-1"], ["9223372036854775807", "-1"]),
        (["9223372036854775808", "0.1"], ["9223372036854775808", "0.1"]),
        (["0.30000000000000004", " 1"], ["0.30000000000000004", " 1"]),
    ] {
        let mut table = Table::new([PATH, "x"]);
        for field in fields {
            table.push([(PATH, "/a".into()), ("x", field.into())]);
        }
        table.write(&at(&folder)).unwrap();
        let read = Table::read(&at(&folder)).unwrap();
        assert_eq!([0, 1].map(|row| read.get(row, "x").unwrap()), expected);
    }
}

#[test]
fn paths_are_relative_to_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = Table::new([PATH]);
    table.push([(PATH, folder.path().join("a.mp4").to_str().unwrap().into())]);
    table.write(&at(&folder)).unwrap();
    let elsewhere = Table::read_with_root(&at(&folder), Path::new("/else")).unwrap();
    assert_eq!(elsewhere.get(0, PATH), Some("/else/a.mp4"));
}

/// Writes a file of a schema with `fill` for its columns.
fn foreign(
    path: &Path,
    schema: &str,
    rows: &[fn(&mut parquet::file::writer::SerializedColumnWriter<'_>)],
) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for fill in rows {
        let mut column = group.next_column().unwrap().unwrap();
        fill(&mut column);
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn columns_of_other_programs_become_text() {
    let folder = tempfile::tempdir().unwrap();
    foreign(
        &at(&folder),
        "message schema {
            required binary Path (UTF8); optional float aes; required boolean ok;
            required int32 frames (UINT_32); optional int64 big; required binary caption;
        }",
        &[
            |column| {
                let paths = [ByteArray::from("/a"), ByteArray::from("/b")];
                column.typed::<ByteArrayType>().write_batch(&paths, None, None).unwrap();
            },
            |column| {
                let levels = Some(&[1, 1][..]);
                column.typed::<FloatType>().write_batch(&[0.1, f32::NAN], levels, None).unwrap();
            },
            |column| {
                column.typed::<BoolType>().write_batch(&[true, false], None, None).unwrap();
            },
            |column| {
                column.typed::<Int32Type>().write_batch(&[-1, 5], None, None).unwrap();
            },
            |column| {
                let levels = Some(&[0, 1][..]);
                column.typed::<Int64Type>().write_batch(&[i64::MIN], levels, None).unwrap();
            },
            |column| {
                let texts = [ByteArray::from("fog"), ByteArray::from(vec![0xff, 0xfe])];
                column.typed::<ByteArrayType>().write_batch(&texts[..], None, None).unwrap();
            },
        ],
    );
    let wrong = Table::read(&at(&folder)).unwrap_err();
    assert!(matches!(wrong, ManifestError::Row { row: 1, .. }), "{wrong}");
    assert!(wrong.to_string().contains("row 2: the field caption is not UTF-8"), "{wrong}");

    foreign(
        &at(&folder),
        "message schema {
            required binary Path (UTF8); optional float aes; required int32 frames (UINT_32);
            required int64 id (INTEGER(64,false)); required int64 shift (INTEGER(64,true));
        }",
        &[
            |column| {
                let paths = [ByteArray::from("/a"), ByteArray::from("/b")];
                column.typed::<ByteArrayType>().write_batch(&paths, None, None).unwrap();
            },
            |column| {
                let levels = Some(&[1, 1][..]);
                column.typed::<FloatType>().write_batch(&[0.1, f32::NAN], levels, None).unwrap();
            },
            |column| {
                column.typed::<Int32Type>().write_batch(&[-1, 5], None, None).unwrap();
            },
            |column| {
                column.typed::<Int64Type>().write_batch(&[-2, 6], None, None).unwrap();
            },
            |column| {
                column.typed::<Int64Type>().write_batch(&[-3, 7], None, None).unwrap();
            },
        ],
    );
    let read = Table::read(&at(&folder)).unwrap();
    assert_eq!(read.columns(), [PATH, "aes", "num_frames", "id", "shift"]);
    assert_eq!(read.row(0).unwrap(), ["/a", "0.1", "4294967295", "18446744073709551614", "-3"]);
    assert_eq!(read.row(1).unwrap(), ["/b", "", "5", "6", "7"]);
}

#[test]
fn other_columns_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (column, words) in [
        ("required int64 made (TIMESTAMP(MILLIS,true))", "column made is INT64 (Timestamp"),
        ("required int32 day (DATE)", "column day is INT32"),
        ("repeated int32 codes", "column codes is a list"),
        (
            "optional group box { required int32 width; } required int32 w",
            "column box.width is a list or",
        ),
        ("required fixed_len_byte_array(2) half", "column half is FIXED_LEN_BYTE_ARRAY"),
        ("required binary price (DECIMAL(9,2))", "column price is BYTE_ARRAY"),
        ("required binary url; required binary PATH", "column path twice"),
    ] {
        let schema = format!("message schema {{ required binary path (UTF8); {column}; }}");
        let schema = Arc::new(parse_message_type(&schema).unwrap());
        let file = File::create(at(&folder)).unwrap();
        SerializedFileWriter::new(file, schema, Default::default()).unwrap().close().unwrap();
        let wrong = Table::read(&at(&folder)).unwrap_err().to_string();
        assert!(wrong.contains("clips.parquet") && wrong.contains(words), "{wrong}");
    }
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = at(&folder);
    table(50).write(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut errors = 0;
    let mut read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match Table::read(&path) {
            Ok(table) => assert!(table.len() < 1_000_000),
            Err(error) => {
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
                errors += 1;
            }
        }
    };
    for length in (0..good.len()).step_by(13) {
        read(&good[..length]);
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
        read(&bytes);
    }
    assert!(errors > good.len() / 4, "{errors} of {}", good.len());
}

#[test]
fn small_files_cannot_fill_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    // Many times the same kilobyte, which a dictionary holds once.
    let write = |thousands: usize| {
        let schema = parse_message_type("message s { required binary path (UTF8); }").unwrap();
        let file = File::create(at(&folder)).unwrap();
        let mut writer =
            SerializedFileWriter::new(file, Arc::new(schema), Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values = vec![ByteArray::from(vec![b'a'; 1000]); 1000];
        for _ in 0..thousands {
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        }
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        std::fs::metadata(at(&folder)).unwrap().len()
    };
    write(1000);
    let wrong = Table::read(&at(&folder)).unwrap_err().to_string();
    assert!(wrong.contains("unpacks to more than"), "{wrong}");
    // Every table may have 64 MB, also if that is more than 4096 times the file.
    assert!(write(50) < 10_000);
    assert_eq!(Table::read(&at(&folder)).unwrap().len(), 50_000);
}

#[test]
fn missing_values_are_those_of_csv() {
    let folder = tempfile::tempdir().unwrap();
    foreign(
        &at(&folder),
        "message schema {
            required binary video (UTF8); optional binary caption (UTF8);
            optional double frames; required binary url (UTF8);
        }",
        &[
            |column| {
                let paths = ["/a", "/b", "/c"].map(ByteArray::from);
                column.typed::<ByteArrayType>().write_batch(&paths, None, None).unwrap();
            },
            |column| {
                let texts = ["NaN", "fog"].map(ByteArray::from);
                let levels = Some(&[1, 0, 1][..]);
                column.typed::<ByteArrayType>().write_batch(&texts, levels, None).unwrap();
            },
            |column| {
                let levels = Some(&[1, 1, 0][..]);
                column.typed::<DoubleType>().write_batch(&[51.0, f64::NAN], levels, None).unwrap();
            },
            |column| {
                let texts = ["None", "NULL", "https://c.example"].map(ByteArray::from);
                column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            },
        ],
    );
    let table = Table::read(&at(&folder)).unwrap();
    assert_eq!(table.row(0).unwrap(), ["/a", "", "51", ""]);
    assert_eq!(table.row(1).unwrap(), ["/b", "", "", ""]);
    assert_eq!(table.row(2).unwrap(), ["/c", "fog", "", "https://c.example"]);
    let rows = Manifest::read(&at(&folder)).unwrap().rows;
    assert_eq!([0, 1, 2].map(|row| &*rows[row].caption), ["", "", "fog"]);
    assert_eq!([0, 1, 2].map(|row| rows[row].num_frames), [Some(51), None, None]);
}

#[test]
fn training_reads_three_columns_and_checks_their_fields() {
    let folder = tempfile::tempdir().unwrap();
    foreign(
        &at(&folder),
        "message schema {
            required int64 made (TIMESTAMP(MILLIS,true)); required binary text (UTF8);
            required binary path (UTF8);
        }",
        &[
            |column| {
                column.typed::<Int64Type>().write_batch(&[1], None, None).unwrap();
            },
            |column| {
                let texts = [ByteArray::from("fog")];
                column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            },
            |column| {
                let paths = [ByteArray::from("/a")];
                column.typed::<ByteArrayType>().write_batch(&paths, None, None).unwrap();
            },
        ],
    );
    assert!(Table::read(&at(&folder)).unwrap_err().to_string().contains("column made is INT64"));
    let rows = Manifest::read(&at(&folder)).unwrap().rows;
    assert_eq!((rows[0].path.to_str(), &*rows[0].caption), (Some("/a"), "fog"));

    let longest = "\u{e9}".repeat(MAX_CAPTION_CHARS);
    for (column, field, words) in [
        (TEXT, longest.clone() + "x", "row 2: the caption has 10001 characters"),
        ("num_frames", "many".into(), "row 2: the number of frames is 'many'"),
        ("clip_start", "2.5".into(), "row 2: found a range of the file (clip_start 2.5)"),
        (PATH, String::new(), "row 2: the path is empty"),
    ] {
        let mut table = Table::new([PATH, TEXT, "num_frames"]);
        for _ in 0..2 {
            table.push([(PATH, "/a".into()), (TEXT, longest.clone()), ("num_frames", "3".into())]);
        }
        table.write(&at(&folder)).unwrap();
        assert_eq!(Manifest::read(&at(&folder)).unwrap().rows[1].caption, longest);
        table.set(1, column, field);
        table.write(&at(&folder)).unwrap();
        let error = Manifest::read(&at(&folder)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
