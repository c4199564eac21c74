//! Tables and prompt files as people and other tools write them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_manifest::{
    Manifest, ManifestError, Table, limits, read_prompts,
    table::{NUM_FRAMES, PATH, TEXT, URL},
    text::TextError,
};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/field").join(name)
}

/// Reads the bytes of a table for a preparation and for training.
fn read(bytes: &[u8]) -> (Result<Table, ManifestError>, Result<Manifest, ManifestError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clips.csv");
    std::fs::write(&path, bytes).unwrap();
    (Table::read_with_root(&path, Path::new("")), Manifest::read(&path))
}

fn prompts(name: &str, bytes: &[u8]) -> Result<Vec<String>, ManifestError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read_prompts(&path)
}

/// The only line of an error.
#[track_caller]
fn line(error: &ManifestError) -> String {
    let text = opensora_files::error_line(error);
    assert_eq!(text.lines().count(), 1, "{text:?}");
    assert!(text.len() < 400, "{text:?}");
    text
}

fn utf16(text: &str, big: bool) -> Vec<u8> {
    let unit = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
    text.encode_utf16().flat_map(unit).collect()
}

#[test]
fn captions_of_pandas_are_missing() {
    let table = Table::read(&fixture("nan.csv")).unwrap();
    let rows = Manifest::read(&fixture("nan.csv")).unwrap().rows;
    assert_eq!((table.len(), rows.len()), (6, 6));
    for (row, clip) in rows.iter().enumerate() {
        assert_eq!((table.get(row, TEXT), clip.caption.as_str()), (Some(""), ""), "row {row}");
    }
}

#[test]
fn numbers_of_pandas_are_missing() {
    let table = Table::read_with_root(&fixture("nfnan.csv"), Path::new("")).unwrap();
    assert_eq!([0, 1].map(|row| table.get(row, NUM_FRAMES)), [Some(""); 2]);
    assert_eq!(table.get(1, PATH), Some("é.mp4"));
    let rows = Manifest::read(&fixture("nfnan.csv")).unwrap().rows;
    assert_eq!([rows[0].num_frames, rows[1].num_frames], [None, None]);
    assert_eq!([&*rows[0].caption, &*rows[1].caption], ["x", "y"]);
}

#[test]
fn fields_of_other_columns_are_kept_as_they_are() {
    let (table, _) = read(b"path,text,licence,id\na.mp4,n/a,None,NA\nNULL,fog,nan,-\n");
    let table = table.unwrap();
    assert_eq!(table.row(0).unwrap(), ["a.mp4", "", "None", "NA"]);
    assert_eq!(table.row(1).unwrap(), ["", "fog", "nan", "-"]);
}

#[test]
fn delimiters_are_recognised() {
    let table = Table::read_with_root(&fixture("semi.csv"), Path::new("")).unwrap();
    assert_eq!(table.columns(), [PATH, TEXT]);
    assert_eq!(table.row(0).unwrap(), ["a.mp4", "x"]);
    for text in [
        "path;text;frames\na.mp4;\"fog; sea, \"\"old\"\"\";5\n",
        "video_path\tcaption\tframes\na.mp4\t\"fog; sea, \"\"old\"\"\"\t5\n",
        "sep=;\r\nfile_name;prompt;num_frames\r\na.mp4;\"fog; sea, \"\"old\"\"\";5.0\r\n",
        "\u{feff}\"video\"|\"text\"|\"frame\"\n\"a.mp4\"|\"fog; sea, \"\"old\"\"\"|\"5\"\n",
        "a.mp4;fog; sea, \"old\";5\n",
    ] {
        let (table, manifest) = read(text.as_bytes());
        if text.starts_with("a.mp4") {
            // A delimiter in an unquoted field is one field too many.
            assert!(line(&table.unwrap_err()).contains("without a header"));
            continue;
        }
        let table = table.unwrap();
        assert_eq!(table.columns(), [PATH, TEXT, NUM_FRAMES], "{text}");
        assert_eq!(table.get(0, TEXT), Some("fog; sea, \"old\""), "{text}");
        let row = &manifest.unwrap().rows[0];
        assert!(row.path.ends_with("a.mp4"));
        assert_eq!((row.caption.as_str(), row.num_frames), ("fog; sea, \"old\"", Some(5)));
    }
}

#[test]
fn headers_without_files_are_named() {
    for (text, found) in [
        ("clip,caption\na,fog\n", "found the columns clip, caption, expected"),
        ("datei;titel\na.mp4;fog\n", "found one column, datei;titel, expected a header"),
        ("[{\"path\": \"a.mp4\", \"text\": \"fog\"}]", "line 1: found JSON"),
        ("{\"file_name\": \"a.mp4\"}\n", "line 1: found JSON"),
        ("<!DOCTYPE html>\n<html></html>", "line 1: found a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "found a Git LFS pointer"),
    ] {
        let (table, manifest) = read(text.as_bytes());
        for error in [table.unwrap_err(), manifest.unwrap_err()] {
            assert!(line(&error).contains(found), "{error}");
        }
    }
}

#[test]
fn unknown_headers_are_known_by_the_files_below_them() {
    for text in ["clip,label\na.mp4,A fox\n", "clip;label\na.PNG;A\n", "f,c\nraw 1.webm,A\n"] {
        let (table, manifest) = read(text.as_bytes());
        for error in [table.unwrap_err(), manifest.unwrap_err()] {
            let line = line(&error);
            assert!(line.contains("expected a header with a column path"), "{line}");
        }
    }
    let (table, _) = read(b"# made on Monday\npath,text\na.mp4,A\n");
    let line = line(&table.unwrap_err());
    assert!(line.contains("line 1: found a comment, # made on Monday"), "{line}");
    // Folders of frames have no ending, and files need no header.
    for text in ["frames1,A fox\nframes2,A hen\n", "raw/clip,A\nb.mp4,B\n", "a.mp4,A\nb.mp4,B\n"] {
        let (table, manifest) = read(text.as_bytes());
        assert_eq!((table.unwrap().len(), manifest.unwrap().rows.len()), (2, 2), "{text}");
    }
}

#[test]
fn a_caption_that_is_the_name_of_a_column_is_no_header() {
    for text in ["a.mp4,video\nb.mp4,A hen\n", "a.mp4;path\nb.mp4;A hen\n", "a.png\timage\n"] {
        let (table, manifest) = read(text.as_bytes());
        let table = table.unwrap();
        assert_eq!(table.columns(), [PATH, TEXT], "{text}");
        assert_eq!(table.len(), text.lines().count(), "{text}");
        assert_eq!(manifest.unwrap().rows.len(), table.len(), "{text}");
        assert!(table.get(0, PATH).unwrap().starts_with("a."), "{text}");
    }
}

#[test]
fn other_encodings_are_named() {
    let text = "path,text\na.mp4,fog\n";
    let marked = format!("\u{feff}{text}");
    let utf32: Vec<u8> = marked.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    for (bytes, name) in [
        (utf16(&marked, false), "UTF-16LE"),
        (utf16(&marked, true), "UTF-16BE"),
        (utf16(text, false), "UTF-16LE"),
        (utf16(text, true), "UTF-16BE"),
        (utf32, "UTF-32LE"),
    ] {
        let (table, manifest) = read(&bytes);
        let errors = [
            table.unwrap_err(),
            manifest.unwrap_err(),
            prompts("p.txt", &bytes).unwrap_err(),
            prompts("p.csv", &bytes).unwrap_err(),
        ];
        for error in errors {
            let ManifestError::Text { source: TextError::Encoding { name: found }, .. } = error
            else {
                panic!("{error:?}");
            };
            assert_eq!(found, name);
            assert!(line(&error).contains(&format!("iconv -f {name}")), "{error}");
        }
    }
    for (bytes, what) in [(&b"\x1f\x8b\x08\0"[..], "gzip"), (b"PK\x03\x04\x14\0", "Excel")] {
        assert!(line(&read(bytes).0.unwrap_err()).contains(what));
        assert!(line(&prompts("p.txt", bytes).unwrap_err()).contains(what));
    }
}

#[test]
fn lines_that_are_not_utf8_are_named_wherever_they_are() {
    // Behind the first chunks, and with characters that lie across the chunks' borders.
    for count in [0, 1, 20_000] {
        for end in ["\n", "\r\n", "\r"] {
            let mut bytes = format!("path,text{end}").into_bytes();
            let mut lines = vec![];
            for row in 0..count {
                lines.extend(format!("{row}.mp4,eine h\u{fc}bsche \u{1f98a}{end}").bytes());
            }
            bytes.extend(&lines);
            let good = bytes.len();
            bytes.extend(b"x.mp4,a caf\xe9 in Paris");
            let (table, manifest) = read(&bytes);
            for error in [table.unwrap_err(), manifest.unwrap_err()] {
                let ManifestError::Text {
                    source: TextError::NotUtf8 { line: at, offset, byte },
                    ..
                } = error
                else {
                    panic!("{error:?}");
                };
                assert_eq!((at, offset, byte), (count + 2, good as u64 + 11, 0xe9));
                assert!(line(&error).contains(&format!("line {}: found byte 0xe9", count + 2)));
            }
            bytes.truncate(good);
            bytes.extend(b"x.mp4,a cut \xf0\x9f");
            assert!(line(&read(&bytes).0.unwrap_err()).contains("byte 0xf0"));
            bytes.truncate(good);
            bytes.extend([0; 4096]);
            let wanted = format!("line {}: found a NUL byte at offset {good}", count + 2);
            assert!(line(&read(&bytes).0.unwrap_err()).contains(&wanted));
            bytes.truncate(good);
            let table = read(&bytes).0.unwrap();
            assert_eq!(table.len() as u64, count);
            let all = |row| table.get(row, TEXT) == Some("eine h\u{fc}bsche \u{1f98a}");
            assert!((0..table.len()).all(all));
        }
    }
}

#[test]
fn unclosed_quotes_are_errors_where_they_open() {
    let many = "b.mp4,sea\n".repeat(50_000);
    for (text, at, words) in [
        ("path,text\na.mp4,\"fog\nb.mp4,sea\n".into(), 2, "before the end of the file"),
        (format!("path,text\r\nx.mp4,fog\r\na.mp4,\"fog\r\n{many}"), 3, "before the end"),
        (
            format!("path,text\na.mp4,\"fog\n{many}c.mp4,\"sea, old\"\n"),
            2,
            "line 50003, is followed",
        ),
        (format!("path,text\na.mp4,\"fog\n{}", many.repeat(3)), 2, "longer than 1 MiB"),
        ("\"path,text\na.mp4,fog\n".into(), 1, "before the end of the file"),
    ] {
        let (table, manifest) = read(text.as_bytes());
        for error in [table.unwrap_err(), manifest.unwrap_err()] {
            let ManifestError::Line { line: found, .. } = error else { panic!("{error:?}") };
            assert_eq!(found, at);
            assert!(line(&error).contains(words), "{error}");
        }
    }
    // Quotes that pandas accepts as well.
    let (table, _) =
        read(b"path,text\na.mp4,\"A fox\" runs\nb.mp4,a \"red\" fox\nc.mp4,\"two\nlines\"\n");
    let table = table.unwrap();
    let captions: Vec<_> = (0..3).map(|row| table.get(row, TEXT).unwrap()).collect();
    assert_eq!(captions, ["A fox runs", "a \"red\" fox", "two\nlines"]);
}

#[test]
fn sizes_are_limited() {
    let caption = "\u{e9}".repeat(limits::MAX_CAPTION_CHARS);
    let (table, manifest) = read(format!("path,text\na.mp4,{caption}\n").as_bytes());
    assert_eq!(table.unwrap().get(0, TEXT), Some(&*caption));
    assert_eq!(manifest.unwrap().rows[0].caption, caption);
    for (text, words) in [
        (
            format!("path,text\nb.mp4,x\na.mp4,{caption}x\n"),
            "row 2 (line 3): the caption has 10001 characters, expected at most 10000",
        ),
        (
            format!("path,text\na.mp4,{}\n", "x".repeat(2 << 20)),
            "line 2: a field is longer than 1 MiB",
        ),
        (format!("path{}\n", ",".repeat(5000)), "line 1: a row has more than 4096 fields"),
        (
            format!("path,text\na.mp4,x{}\n", format!(",{}", "x".repeat(1 << 20)).repeat(9)),
            "line 2: a row is longer than 8 MiB",
        ),
    ] {
        let (table, manifest) = read(text.as_bytes());
        for error in [table.unwrap_err(), manifest.unwrap_err()] {
            assert!(line(&error).contains(words), "{error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn endless_files_are_errors() {
    for name in ["/dev/zero", "/dev/urandom"] {
        let error = Table::read(Path::new(name)).unwrap_err();
        assert!(matches!(error, ManifestError::Text { .. }), "{error:?}");
        let error = read_prompts(Path::new(name)).unwrap_err();
        assert!(matches!(error, ManifestError::Text { .. }), "{error:?}");
    }
    let error = Manifest::read(Path::new("/")).unwrap_err();
    assert!(std::error::Error::source(&error).is_some(), "{error:?}");
    assert!(line(&error).starts_with("/: "), "{error}");
}

#[test]
fn prompts_are_lines() {
    assert_eq!(read_prompts(&fixture("bomblank.txt")).unwrap(), ["fox"]);
    for (bytes, expected) in [
        (&b"fox\n\n  \n sea \n"[..], &["fox", "sea"][..]),
        (b"fox\rsea\r", &["fox", "sea"]),
        (b"\xef\xbb\xbffox\r\n\xef\xbb\xbfsea", &["fox", "sea"]),
        (b"nan\n\"None\", she said\n", &["nan", "\"None\", she said"]),
        (b"a,b;c\td\n", &["a,b;c\td"]),
    ] {
        assert_eq!(prompts("p.txt", bytes).unwrap(), expected);
    }
    let longest = "x".repeat(limits::MAX_CAPTION_CHARS);
    assert_eq!(prompts("p", format!(" {longest}\n").as_bytes()).unwrap(), [&*longest]);
    for (bytes, words) in [
        (b"fox\r\nsea\r\na caf\xe9\r\n".to_vec(), "line 3: found byte 0xe9 at offset 15"),
        (format!("fox\n{longest}x\n").into_bytes(), "line 2: the prompt is longer than 10000"),
        (b"x".repeat(1 << 20), "line 1: the prompt is longer than 10000"),
        (b"\xef\xbb\xbf\r\n \n".to_vec(), "found no prompt"),
        (b"\n{\"prompt\": \"fox\"}\n".to_vec(), "line 2: found JSON, expected one prompt a line"),
        (b"[\"fox\", \"sea\"]".to_vec(), "line 1: found JSON"),
        (b"<!DOCTYPE html>\n<p>fox".to_vec(), "line 1: found a web page"),
        (vec![], "found no prompt"),
        (b"fox\n".repeat((65 << 20) / 4), "larger than 64 MiB"),
    ] {
        let error = prompts("p.txt", &bytes).unwrap_err();
        assert!(line(&error).contains(words), "{error}");
    }
    let error = read_prompts(Path::new("/nowhere/p.txt")).unwrap_err();
    assert!(matches!(error, ManifestError::Io { .. }));
}

#[test]
fn prompts_of_tables_are_their_column() {
    for text in [
        "prompt,seed\nfox,1\nNaN,2\n\"sea, old\",3\n",
        "id;caption\n1;fox\n2; \n3;sea, old\n",
        "\u{feff}TEXT\tseed\r\nfox\t1\r\n\"sea, old\"\t3\r\n",
    ] {
        assert_eq!(prompts("p.csv", text.as_bytes()).unwrap(), ["fox", "sea, old"], "{text}");
        assert_eq!(prompts("p.TSV", text.as_bytes()).unwrap(), ["fox", "sea, old"], "{text}");
    }
    // Nothing separates a single column.
    for name in ["p.csv", "p.tsv"] {
        let found = prompts(name, b"prompt\nA fox, red; old\n\"sea, old\",\n,\n").unwrap();
        assert_eq!(found, ["A fox, red; old", "sea, old"]);
    }
    for (text, words) in [
        ("a red fox, running\n", "found the columns a red fox, running, expected a column text"),
        ("prompt\nfox\n\"sea\n", "line 3: a quote opens here"),
        ("prompt,text,text\n", "the column text twice"),
        ("prompt,seed\nA fox, red,1\n", "line 2: found 3 fields, expected 2"),
        ("prompt\n", "found no prompt"),
    ] {
        let error = prompts("p.csv", text.as_bytes()).unwrap_err();
        assert!(line(&error).contains(words), "{error}");
    }
}

#[test]
fn addresses_are_found_by_other_names() {
    let (table, _) = read(b"videoid,contentUrl,name\n1,https://a.example/1.mp4,fog\n2,nan,sea\n");
    let table = table.unwrap();
    assert_eq!(table.get(0, URL), Some("https://a.example/1.mp4"));
    assert_eq!(table.get(1, URL), Some(""));
}
