//! Reads lists in CSV: Panda-70M, and any other with a column `url`.
//!
//! Source: snap-research/Panda-70M, `dataset_dataloading/README.md`, whose lists have the columns
//! `videoID,url,timestamp,caption,matching_score` and, later, `desirable_filtering` and
//! `shot_boundary_detection`: one video per row, with Python lists of one item per clip in the cells.

use super::{
    address::Address,
    list::{Clip, END, LICENCE, List, ListError, ListFormat, REASON, SHA256, START, no_times},
    literal::Literal,
    readable, seconds,
};
use crate::filter::FILTER;
use csv::{ByteRecord, Reader, ReaderBuilder};
use opensora_files::one_line;
use opensora_manifest::{
    layout,
    table::{CLIP_END, CLIP_START, PATH, TEXT, URL},
    text::{ReadError, TextError, TextReader},
    value,
};
use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    rc::Rc,
};

/// Maximum size of a record in bytes. With an unclosed quote, the rest of the file is one record.
pub(super) const MAX_RECORD: u64 = 64 << 20;
/// Bytes from which the encoding and the delimiter are detected.
const START_BYTES: u64 = 64 << 10;

/// Detects the format of the CSV at `path` from its header.
pub(crate) fn format(path: &Path) -> Result<ListFormat, ListError> {
    let header = Records::open(path)?.header()?;
    let is_panda = ["videoID", "timestamp"].iter().all(|name| header.iter().any(|h| h == name));
    Ok(if is_panda { ListFormat::Panda70M } else { ListFormat::Csv })
}

/// Reads the list's part of the file.
pub(crate) fn read(path: &Path, list: &mut List) -> Result<(), ListError> {
    let mut records = Records::open(path)?;
    let header = records.header()?;
    let layout = Layout::of(&header, list.format).map_err(|reason| records.wrong(reason))?;
    list.columns = layout.rest.iter().map(|&at| header[at].clone()).collect();
    let part = list.part();
    let mut record = ByteRecord::new();
    for index in 0..part.end() {
        if !records.next(&mut record)? {
            break;
        }
        if index >= part.offset {
            row(list, &layout, &record, header.len(), index);
        }
    }
    Ok(())
}

/// The records of a CSV, read one at a time in bounded memory.
struct Records<'a> {
    path: &'a Path,
    reader: Reader<Bounded>,
    left: Rc<Cell<u64>>,
    delimiter: u8,
    /// Size of the file, and bytes before the header.
    length: u64,
    skip: u64,
    /// Lines before the header.
    lines: u64,
}

impl<'a> Records<'a> {
    fn open(path: &'a Path) -> Result<Self, ListError> {
        let io = |source| ListError::Io { path: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(START_BYTES).read_to_end(&mut start).map_err(io)?;
        if let Err(ReadError::Text(
            reason @ (TextError::Encoding { .. } | TextError::Foreign { .. }),
        )) = TextReader::new(&start[..]).rest()
        {
            return Err(ListError::Format { path: path.into(), reason: reason.to_string() });
        }
        let mark = if start.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let (delimiter, before) = layout::delimiter(&String::from_utf8_lossy(&start[mark..]));
        let skip = (mark + before) as u64;
        file.seek(SeekFrom::Start(skip)).map_err(io)?;
        let left = Rc::new(Cell::new(0));
        let bounded = Bounded { file, left: left.clone() };
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .delimiter(delimiter)
            .flexible(true)
            .buffer_capacity(1 << 16)
            .from_reader(bounded);
        let lines = u64::from(before > 0);
        Ok(Self { path, reader, left, delimiter, length, skip, lines })
    }

    /// Reads the next record; returns false at the end of the file.
    fn next(&mut self, record: &mut ByteRecord) -> Result<bool, ListError> {
        self.left.set(MAX_RECORD);
        let read = self.reader.read_byte_record(record);
        let is_there = read.map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(source) => ListError::Io { path: self.path.into(), source },
            other => self.wrong(format!("{other:?}")),
        })?;
        // With an unclosed quote, the rest of the file is one record.
        if is_there && self.skip + self.reader.position().byte() >= self.length {
            self.check_quotes(record)?;
        }
        Ok(is_there)
    }

    /// Returns an error if the last record ends within quotes.
    fn check_quotes(&self, record: &ByteRecord) -> Result<(), ListError> {
        let Some(position) = record.position() else { return Ok(()) };
        let io = |source| ListError::Io { path: self.path.into(), source };
        let mut file = File::open(self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.skip + position.byte())).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut bytes).map_err(io)?;
        match open_quote(&bytes, self.delimiter) {
            None => Ok(()),
            Some(lines) => {
                let line = self.lines + position.line() + lines;
                Err(self.wrong(format!("line {line}: the quote that opens here is not closed")))
            }
        }
    }

    fn header(&mut self) -> Result<Vec<String>, ListError> {
        let mut record = ByteRecord::new();
        self.next(&mut record)?;
        let field = |field| String::from_utf8_lossy(field).trim().to_string();
        Ok(record.iter().map(field).collect())
    }

    fn wrong(&self, reason: String) -> ListError {
        ListError::Format { path: self.path.into(), reason }
    }
}

/// Returns the number of lines before the quote that the record `bytes` does not close.
fn open_quote(bytes: &[u8], delimiter: u8) -> Option<u64> {
    #[derive(PartialEq)]
    enum Place {
        Start,
        Plain,
        Quoted,
        /// After a quote that closes, unless another one follows.
        Quote,
    }
    let (mut lines, mut opened, mut place) = (0, 0, Place::Start);
    for &byte in bytes {
        lines += u64::from(byte == b'\n');
        place = match (place, byte) {
            (Place::Start, b'"') => {
                opened = lines;
                Place::Quoted
            }
            (Place::Quoted, b'"') => Place::Quote,
            (Place::Quoted, _) | (Place::Quote, b'"') => Place::Quoted,
            (_, byte) if byte == delimiter || byte == b'\n' || byte == b'\r' => Place::Start,
            _ => Place::Plain,
        };
    }
    (place == Place::Quoted).then_some(opened)
}

/// A file with a limit on the bytes that are read.
pub(super) struct Bounded {
    pub(super) file: File,
    pub(super) left: Rc<Cell<u64>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.get().checked_sub(buffer.len() as u64) else {
            let reason =
                format!("a row is longer than {} MiB: is a quote not closed?", MAX_RECORD >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        };
        self.left.set(left);
        self.file.read(buffer)
    }
}

/// Index of each known column in a list.
struct Layout {
    url: usize,
    text: Option<usize>,
    /// Panda-70M's list of pairs.
    timestamp: Option<usize>,
    start: Option<usize>,
    end: Option<usize>,
    licence: Option<usize>,
    sha256: Option<usize>,
    /// All other columns.
    rest: Vec<usize>,
}

impl Layout {
    fn of(header: &[String], format: ListFormat) -> Result<Self, String> {
        let find = |names: &[&str]| {
            let mut at = names.iter().filter_map(|name| {
                header.iter().position(|column| column.eq_ignore_ascii_case(name))
            });
            at.next()
        };
        let is_panda = format == ListFormat::Panda70M;
        let need = |names: &[&str]| {
            let known = header.join(", ");
            find(names).ok_or_else(|| {
                format!("its header has no column {}: {}", names[0], one_line(&known))
            })
        };
        let names: Vec<&str> = header.iter().map(String::as_str).collect();
        let known = |column: &str| layout::column(&names, column);
        let url = match known(URL) {
            Some(url) => url,
            None if is_panda => need(&["videoID"])?,
            None => need(&["url (or video_url, contentUrl)"])?,
        };
        let timestamp = is_panda.then(|| need(&["timestamp"])).transpose()?;
        let other = |names: &[&str]| find(names).filter(|_| !is_panda);
        let layout = Self {
            url,
            text: known(TEXT),
            timestamp,
            start: other(&[START, CLIP_START]),
            end: other(&[END, CLIP_END]),
            licence: other(&[LICENCE, "license"]),
            sha256: other(&[SHA256]),
            rest: vec![],
        };
        // A list of failures or of dropped rows that is read again has the old reasons.
        let same = |name: &str| header.iter().position(|column| column == name);
        let reason = same(REASON);
        let used = [
            Some(url),
            layout.text,
            timestamp,
            layout.start,
            layout.end,
            layout.licence,
            layout.sha256,
            // Replaced by the path of the downloaded file.
            other(&[PATH]),
            // Replaced by the times in the columns `start` and `end`, if the list has both.
            other(&[CLIP_START]),
            other(&[CLIP_END]),
            reason,
            reason.and_then(|_| same(FILTER)),
        ];
        let mut rest: Vec<usize> =
            (0..header.len()).filter(|at| !used.contains(&Some(*at))).collect();
        rest.retain(|&at| !header[at].is_empty());
        if let Some(&twice) = rest.iter().find(|&&at| header[..at].contains(&header[at])) {
            return Err(format!("its header names the column {} twice", one_line(&header[twice])));
        }
        match readable::wrong_columns(rest.iter().map(|&at| header[at].as_str())) {
            None => Ok(Self { rest, ..layout }),
            Some(reason) => Err(reason),
        }
    }
}

/// Adds a record to the list, or to its rejected rows with the reason. `columns` is the number of
/// columns of the header, `index` the number of the record, from 0.
fn row(list: &mut List, layout: &Layout, record: &ByteRecord, columns: usize, index: usize) {
    let lossy = |at: usize| String::from_utf8_lossy(record.get(at).unwrap_or(b"")).into_owned();
    let field = |at: Option<usize>| at.map(lossy).filter(|field| !value::is_missing(field));
    let url = lossy(layout.url);
    let raw = Clip {
        text: field(layout.text),
        licence: field(layout.licence),
        rest: layout.rest.iter().map(|&at| lossy(at)).collect(),
        ..Clip::default()
    };
    // Under its own name, `timestamp` would make the failures look like a list of Panda-70M.
    let times = [(START, layout.start.or(layout.timestamp)), (END, layout.end)];
    let given: Vec<(&str, String)> = times
        .into_iter()
        .chain([(SHA256, layout.sha256)])
        .filter_map(|(column, at)| Some((column, lossy(at?))))
        .collect();
    let wrong = |reason: String| format!("row {} of the list: {reason}", index + 1);
    let address = match Address::parse(&url) {
        Ok(address) => address,
        Err(reason) => return list.reject(Err(&url), &raw, &given, &wrong(reason)),
    };
    let whole = whole(record, columns);
    let is_torn = whole.is_err();
    let clips = whole.and_then(|()| match layout.timestamp {
        Some(at) => panda_clips(&lossy(at), &raw),
        None => single_clip(field(layout.start), field(layout.end), raw.clone()),
    });
    let sha256 = field(layout.sha256).map(|digest| digest.trim().to_ascii_lowercase());
    let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match (clips, sha256) {
        (Err(reason), _) => {
            // Without a time that is wrong, the row would mean the whole video.
            let is_missing = layout.timestamp.is_some_and(|at| value::is_missing(&lossy(at)));
            let unknown = no_times();
            let given = if is_torn || is_missing { &unknown[..] } else { &given[..] };
            list.reject(Ok(&address), &raw, given, &wrong(reason));
        }
        (_, Some(digest)) if !is_digest(&digest) => {
            let reason = wrong(format!("{digest:?} is not a SHA-256"));
            list.reject(Ok(&address), &raw, &given, &reason);
        }
        (Ok(clips), sha256) => list.push(address, sha256, clips, &wrong),
    }
}

/// Returns an error unless the record has a field for each column, in UTF-8.
fn whole(record: &ByteRecord, columns: usize) -> Result<(), String> {
    if record.len() != columns {
        return Err(format!("it has {} fields, expected {columns}", record.len()));
    }
    match record.iter().position(|field| std::str::from_utf8(field).is_err()) {
        Some(at) => Err(format!("field {} is not UTF-8", at + 1)),
        None => Ok(()),
    }
}

/// Returns the single clip of a row.
fn single_clip(start: Option<String>, end: Option<String>, raw: Clip) -> Result<Vec<Clip>, String> {
    let time = |text: Option<String>| {
        let read = |text: String| seconds::parse(&text).ok_or(format!("{text:?} is not a time"));
        text.map(read).transpose()
    };
    let clip = Clip { start: time(start)?, end: time(end)?, ..raw };
    Ok(vec![ordered(clip)?])
}

/// Returns the clips of a row of Panda-70M, with one item of each list.
fn panda_clips(timestamp: &str, raw: &Clip) -> Result<Vec<Clip>, String> {
    let times = Literal::parse(timestamp).map_err(|reason| format!("timestamp: {reason}"))?;
    let times = times.into_list().ok_or("timestamp: not a list")?;
    let count = times.len();
    // Items of a cell by clip; a cell without a list is the same for all clips.
    let cut = |name: &str, cell: &str| {
        if !cell.trim_start().starts_with('[') {
            return Ok(vec![cell.to_string(); count]);
        }
        let items = Literal::parse(cell).map_err(|reason| format!("{name}: {reason}"))?;
        let items = items.into_list().unwrap_or_default();
        if items.len() != count {
            return Err(format!("{name}: {} items for {count} clips", items.len()));
        }
        Ok(items.into_iter().map(Literal::into_field).collect())
    };
    let texts = raw.text.as_deref().map(|text| cut("caption", text)).transpose()?;
    let rest = raw.rest.iter().map(|cell| cut("a column", cell));
    let rest = rest.collect::<Result<Vec<Vec<String>>, String>>()?;
    let clip = |(at, pair): (usize, Literal)| {
        let (start, end) = span(pair)?;
        ordered(Clip {
            start: Some(start),
            end: Some(end),
            text: texts.as_ref().map(|texts| texts[at].clone()).filter(|it| !value::is_missing(it)),
            licence: None,
            rest: rest.iter().map(|items| items[at].clone()).collect(),
        })
    };
    times.into_iter().enumerate().map(clip).collect()
}

/// Parses a pair of times.
fn span(pair: Literal) -> Result<(f64, f64), String> {
    let text = pair.clone().into_field();
    let both = pair.into_list().and_then(|items| {
        let [start, end] = <[Literal; 2]>::try_from(items).ok()?;
        Some((seconds::parse(&start.into_field())?, seconds::parse(&end.into_field())?))
    });
    both.ok_or_else(|| format!("timestamp: {text} is not a pair of times"))
}

/// Returns a clip, or an error if it does not end after its start.
fn ordered(clip: Clip) -> Result<Clip, String> {
    match (clip.start, clip.end) {
        (start, Some(end)) if end <= start.unwrap_or(0.0) => {
            Err(format!("it ends at {end} s and begins at {} s", start.unwrap_or(0.0)))
        }
        _ => Ok(clip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{download::list::Part, step::Shard};
    use opensora_files::error_line;

    const HEADER: &str = "videoID,url,timestamp,caption,matching_score,desirable_filtering,shots\n";

    fn read(text: &[u8], part: Part) -> Result<List, ListError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.csv");
        std::fs::write(&path, text).unwrap();
        List::read(&path, ListFormat::of(&path)?, part)
    }

    #[test]
    fn rows_of_panda_70m_give_several_clips() {
        let row = r#"-2yHu5qgTzM,https://www.youtube.com/watch?v=-2yHu5qgTzM,"[['0:01:20.880', '0:01:23.983'], ['1:02:31.151', '1:02:34.320']]","['A fox, red.', ""It's a \""b\"".""]","[0.451416015625, 0.4990234375]","['desirable', '2_tiny']","[[['0:00:00.000', '0:00:03.069']], [['0:00:00.000', '0:00:01.000'], ['0:00:01.033', '0:00:03.169']]]""#;
        let list = read(format!("{HEADER}{row}\n").as_bytes(), Part::WHOLE).unwrap();
        assert_eq!((list.format, list.videos(), list.clips()), (ListFormat::Panda70M, 1, 2));
        assert_eq!(list.columns, ["videoID", "matching_score", "desirable_filtering", "shots"]);
        let [one, two] = &list.videos[0].clips[..] else { panic!("two clips") };
        assert_eq!((one.start, one.end), (Some(80.88), Some(83.983)));
        assert_eq!((two.start, two.end), (Some(3751.151), Some(3754.32)));
        assert_eq!(one.text.as_deref(), Some("A fox, red."));
        assert_eq!(two.text.as_deref(), Some(r#"It's a "b"."#));
        assert_eq!(
            one.rest,
            ["-2yHu5qgTzM", "0.451416015625", "desirable", "[['0:00:00.000', '0:00:03.069']]"]
        );
        assert_eq!(two.rest[2], "2_tiny");
    }

    #[test]
    fn invalid_rows_of_panda_70m_are_listed_and_the_others_read() {
        let rows = [
            "a,https://youtu.be/-2yHu5qgTz1,\"[['0:00:01', '0:00:02']]\",\"['a', 'b']\",[1],x,y",
            "b,https://youtu.be/-2yHu5qgTz2,\"[['0:00:03', '0:00:02']]\",['a'],[1],x,y",
            "c,https://youtu.be/-2yHu5qgTz3,[['0:00:03']],['a'],[1],x,y",
            "d,https://youtu.be/-2yHu5qgTz4,[[__import__('os')]],['a'],[1],x,y",
            "e,https://youtu.be/-2yHu5qgTz5,\"[['0:00:01', '0:00:02']]\"",
            "f,https://youtu.be/-2yHu5qgTz6,\"[['0:00:01', '0:00:02']]\",\"['\u{e9}']\",[1],x,y",
        ];
        let mut bytes = format!("{HEADER}{}\n", rows.join("\n")).into_bytes();
        bytes.extend(b"g,https://youtu.be/-2yHu5qgTz7,\"[]\",\xff,[],x,y\n");
        let list = read(&bytes, Part::WHOLE).unwrap();
        assert_eq!((list.videos(), list.rejected.len()), (1, 6));
        for (row, words) in [
            (0, "row 1 of the list: caption: 2 items for 1 clips"),
            (1, "it ends at 2 s and begins at 3 s"),
            (2, "['0:00:03'] is not a pair of times"),
            (3, "timestamp: not a Python literal"),
            (4, "it has 3 fields, expected 7"),
            (5, "row 7 of the list: field 4 is not UTF-8"),
        ] {
            let reason = list.rejected.get(row, REASON).unwrap();
            assert!(reason.contains(words), "{reason}");
        }
        assert_eq!(list.rejected.get(0, "videoID"), Some("a"));
        assert_eq!(list.videos[0].clips[0].text.as_deref(), Some("\u{e9}"));
    }

    #[test]
    fn rows_that_no_table_can_hold_are_listed() {
        let long = "x".repeat(10_001);
        let rows = [
            format!("https://a.example/1.mp4,{long},a"),
            "https://a.example/2.mp4,Fog\0,b".into(),
            format!("https://a.example/3.mp4,Sea,{}", "y".repeat(2 << 20)),
            "https://a.example/4.mp4,Sea,d".into(),
        ];
        let list = read(format!("url,text,note\n{}\n", rows.join("\n")).as_bytes(), Part::WHOLE);
        let list = list.unwrap();
        assert_eq!((list.videos(), list.clips(), list.rejected.len()), (1, 1, 3));
        for (row, words) in [
            (0, "row 1 of the list: its caption has 10001 characters, expected at most 10000"),
            (1, "row 2 of the list: its text has a NUL byte"),
            (2, "row 3 of the list: its note has 2097152 bytes, expected at most 1048576"),
        ] {
            assert_eq!(list.rejected.get(row, REASON), Some(words));
        }
        // The list of failures can be read.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failed.csv");
        list.rejected.write(&path).unwrap();
        assert_eq!(opensora_manifest::Table::read(&path).unwrap().len(), 3);

        // Two clips of a video, one of them with a caption that is too long.
        let row = format!(
            "a,https://youtu.be/-2yHu5qgTz1,\"[['0:01', '0:02'], ['0:03', '0:04']]\",\
             \"['Fog.', '{long}']\",\"[1, 2]\",x,y"
        );
        let list = read(format!("{HEADER}{row}\n").as_bytes(), Part::WHOLE).unwrap();
        assert_eq!((list.clips(), list.rejected.len()), (1, 1));
        assert_eq!(list.rejected.get(0, "matching_score"), Some("2"));
    }

    #[test]
    fn old_reasons_are_left_out() {
        let text = "url,reason,filter,note\nhttps://a.example/1.mp4,it is empty,fps,x\n";
        assert_eq!(read(text.as_bytes(), Part::WHOLE).unwrap().columns, ["note"]);
        let text = "url,filter\nhttps://a.example/1.mp4,mine\n";
        assert_eq!(read(text.as_bytes(), Part::WHOLE).unwrap().columns, ["filter"]);
    }

    #[test]
    fn only_a_part_is_kept_and_records_are_bounded() {
        let rows: String = (0..100).map(|row| format!("https://a.example/{row}.mp4\n")).collect();
        let part = Part { offset: 90, limit: Some(5), shard: Shard::WHOLE };
        let list = read(format!("\u{feff}URL\n{rows}").as_bytes(), part).unwrap();
        let urls: Vec<_> = list.videos.iter().map(|video| video.address.url()).collect();
        assert_eq!(urls[0], "https://a.example/90.mp4");
        assert_eq!(urls.len(), 5);
        let open = format!("url\n\"{}", "x".repeat(MAX_RECORD as usize + (1 << 20)));
        let error = error_line(&read(open.as_bytes(), Part::WHOLE).unwrap_err());
        assert!(error.contains("longer than 64 MiB"), "{error}");
    }

    #[test]
    fn lists_of_other_tools_are_read() {
        for text in [
            "videoid,contentUrl,duration,caption\n7,https://a.example/7.mp4,PT3S,A fox\n",
            "\u{feff}\"Video URL\";Prompt\r\nhttps://a.example/7.mp4;A fox\r\n",
            "sep=\t\nurl\ttext\tstart\nhttps://a.example/7.mp4\t\"A fox\"\tNaN\n",
            "url|description|sha256|licence\nhttps://a.example/7.mp4|A fox|None|N/A",
        ] {
            let list = read(text.as_bytes(), Part::WHOLE).unwrap();
            assert_eq!((list.videos(), list.rejected.len()), (1, 0), "{text}");
            let clip = &list.videos[0].clips[0];
            assert_eq!(list.videos[0].address.url(), "https://a.example/7.mp4");
            assert_eq!(clip.text.as_deref(), Some("A fox"), "{text}");
            assert_eq!((clip.start, &clip.licence, &list.videos[0].sha256), (None, &None, &None));
        }
        let missing = read(b"url,text\nhttps://a.example/7.mp4,NULL\n", Part::WHOLE).unwrap();
        assert_eq!(missing.videos[0].clips[0].text, None);
    }

    #[test]
    fn other_encodings_and_open_quotes_are_rejected() {
        let utf_16: Vec<u8> =
            "\u{feff}url,text\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let refused = |bytes: &[u8]| read(bytes, Part::WHOLE).err().map(|error| error.to_string());
        assert!(refused(&utf_16).unwrap().contains("UTF-16LE, expected UTF-8"));
        assert!(refused(b"\x1f\x8b\x08").unwrap().contains("gzip"));
        let open = "url,text\nhttps://a.example/1.mp4,\"A fox\nhttps://a.example/2.mp4,b\n";
        assert!(
            refused(open.as_bytes())
                .unwrap()
                .ends_with("line 2: the quote that opens here is not closed")
        );
        let later = "sep=,\nurl,text\nhttps://a.example/1.mp4,\"A\n\"\"fox\"\"\"\nhttps://b.example,\"x\n\n";
        assert!(refused(later.as_bytes()).unwrap().contains("line 5: the quote that opens"));
        for closed in ["\"A\nfox\"", "5\" of \"snow", "\"\"", "\"a \"\"b\"\"\""] {
            let text = format!("url,text\nhttps://a.example/1.mp4,{closed}");
            assert_eq!(refused(text.as_bytes()), None, "{closed}");
        }
    }

    #[test]
    fn lists_without_their_columns_are_rejected() {
        for (text, words) in [
            ("path,text\n", "no column url (or video_url, contentUrl): path, text"),
            ("", "no column url"),
            ("url,a,b,a\n", "names the column a twice"),
        ] {
            let error = read(text.as_bytes(), Part::WHOLE).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("list.csv"), "{error}");
        }
    }
}
