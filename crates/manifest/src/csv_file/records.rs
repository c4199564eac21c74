//! A streaming reader of CSV records with line numbers, in bounded memory.
//!
//! Fields are quoted as in RFC 4180. Cases that the RFC leaves open are read as pandas and the crate
//! `csv` read them: a quote within an unquoted field is a character, text after a closing quote
//! belongs to the field, and blank lines are skipped. Exception: text after the closing quote of a
//! field of several lines is an error, because then the opening quote was never closed, and the
//! second quote opens another field.

use crate::{
    ManifestError,
    limits::{MAX_COLUMNS, MAX_FIELD_BYTES, MAX_ROW_BYTES},
    text::{LineCount, ReadError, TextReader},
};
use std::{fs::File, io::Read, path::Path};

/// A record of delimited text.
pub(crate) struct Record {
    /// The line on which the record starts, counted from 1.
    pub(crate) line: u64,
    pub(crate) fields: Vec<String>,
}

/// An error of reading a record.
pub(crate) enum Fault {
    Read(ReadError),
    Line(u64, String),
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl Fault {
    pub(crate) fn of(self, path: &Path) -> ManifestError {
        let path = path.into();
        match self {
            Self::Read(ReadError::Io(source)) => ManifestError::Io { path, source },
            Self::Read(ReadError::Text(source)) => ManifestError::Text { path, source },
            Self::Line(line, reason) => ManifestError::Line { path, line, reason },
        }
    }
}

/// The position of the next character.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The start of a field.
    Start,
    /// An unquoted field, or text after a closing quote.
    Plain,
    /// Text within quotes.
    Quoted,
    /// After a quote within quotes, which closes the field or is the first of two.
    Quote,
}

/// A reader of records.
pub(crate) struct Records<R> {
    text: TextReader<R>,
    delimiter: u8,
    lines: LineCount,
    /// The previous record ended in CR: an LF that follows belongs to the same line end.
    after_return: bool,
}

impl Records<File> {
    /// Opens a file and detects its delimiter.
    pub(crate) fn open(path: &Path) -> Result<Self, ManifestError> {
        let io = |source| ManifestError::Io { path: path.into(), source };
        Self::new(File::open(path).map_err(io)?).map_err(|fault| fault.of(path))
    }
}

impl<R: Read> Records<R> {
    pub(crate) fn new(file: R) -> Result<Self, Fault> {
        let mut text = TextReader::new(file);
        let start = text.rest()?;
        if let Some(what) = super::dialect::foreign(start) {
            return Err(Fault::Line(1, what));
        }
        let dialect = super::dialect::of(start);
        text.consume(dialect.skip);
        let mut lines = LineCount::default();
        if dialect.skip > 0 {
            lines.add("\n");
        }
        Ok(Self { text, delimiter: dialect.delimiter, lines, after_return: false })
    }

    pub(crate) fn delimiter(&self) -> char {
        self.delimiter.into()
    }

    /// Returns the next record; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Fault> {
        loop {
            let Some(record) = self.record()? else { return Ok(None) };
            let blank = matches!(&record.fields[..], [field] if field.trim().is_empty());
            if !blank {
                return Ok(Some(record));
            }
        }
    }

    fn record(&mut self) -> Result<Option<Record>, Fault> {
        let mut record = Open {
            line: 0,
            fields: Vec::new(),
            field: String::new(),
            bytes: 0,
            place: Place::Start,
            quote: 0,
        };
        loop {
            let rest = self.text.rest()?;
            if rest.is_empty() {
                if record.place == Place::Quoted {
                    let reason = "a quote opens here and is not closed before the end of the file";
                    return Err(Fault::Line(record.quote, reason.into()));
                }
                return Ok(record.at_end());
            }
            if std::mem::take(&mut self.after_return) && rest.starts_with('\n') {
                self.lines.add_byte(b'\n');
                self.text.consume(1);
                continue;
            }
            if record.line == 0 {
                record.line = self.lines.line();
            }
            let (bytes, ended) = record.take(rest, self.delimiter, &mut self.lines)?;
            self.after_return = ended && rest.as_bytes()[bytes - 1] == b'\r';
            self.text.consume(bytes);
            if ended {
                return Ok(Some(Record { line: record.line, fields: record.fields }));
            }
        }
    }
}

/// An unfinished record.
struct Open {
    line: u64,
    fields: Vec<String>,
    field: String,
    /// Bytes of all fields.
    bytes: usize,
    place: Place,
    /// The line on which the last quote opened.
    quote: u64,
}

impl Open {
    /// Reads `text`. Returns the number of bytes read, and true if the record ended.
    fn take(
        &mut self,
        text: &str,
        delimiter: u8,
        lines: &mut LineCount,
    ) -> Result<(usize, bool), Fault> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            if self.place == Place::Quoted {
                let run = bytes[at..].iter().position(|&byte| byte == b'"');
                let end = run.map_or(bytes.len(), |run| at + run);
                self.push(&text[at..end], lines.line())?;
                lines.add(&text[at..end]);
                if run.is_some() {
                    lines.add_byte(b'"');
                    self.place = Place::Quote;
                }
                at = end + usize::from(run.is_some());
            } else if byte == delimiter || byte == b'\n' || byte == b'\r' {
                lines.add_byte(byte);
                self.close(lines.line())?;
                at += 1;
                if byte != delimiter {
                    return Ok((at, true));
                }
            } else if byte == b'"' && self.place != Place::Plain {
                lines.add_byte(byte);
                if self.place == Place::Start {
                    self.quote = lines.line();
                } else {
                    self.push("\"", lines.line())?;
                }
                self.place = Place::Quoted;
                at += 1;
            } else {
                if self.place == Place::Quote && self.quote != lines.line() {
                    let reason = format!(
                        "a quote opens here and is not closed: the next one, on line {}, is \
                         followed by text instead of a delimiter",
                        lines.line()
                    );
                    return Err(Fault::Line(self.quote, reason));
                }
                self.place = Place::Plain;
                let ends = |byte: &u8| *byte == delimiter || matches!(byte, b'\n' | b'\r');
                let end = bytes[at..].iter().position(ends).map_or(bytes.len(), |run| at + run);
                self.push(&text[at..end], lines.line())?;
                lines.add_byte(0);
                at = end;
            }
        }
        Ok((at, false))
    }

    fn push(&mut self, text: &str, line: u64) -> Result<(), Fault> {
        self.bytes += text.len();
        if self.field.len() + text.len() > MAX_FIELD_BYTES {
            let reason = format!("a field is longer than {} MiB", MAX_FIELD_BYTES >> 20);
            return Err(match self.place {
                Place::Quoted => Fault::Line(
                    self.quote,
                    format!("{reason}: the quote that opens here may not be closed"),
                ),
                _ => Fault::Line(line, reason),
            });
        }
        if self.bytes > MAX_ROW_BYTES {
            let reason = format!("a row is longer than {} MiB", MAX_ROW_BYTES >> 20);
            return Err(Fault::Line(self.line, reason));
        }
        self.field.push_str(text);
        Ok(())
    }

    fn close(&mut self, line: u64) -> Result<(), Fault> {
        if self.fields.len() == MAX_COLUMNS {
            let reason = format!("a row has more than {MAX_COLUMNS} fields");
            return Err(Fault::Line(line, reason));
        }
        self.fields.push(std::mem::take(&mut self.field));
        self.place = Place::Start;
        Ok(())
    }

    /// Returns the last record of a file without a line end at its end.
    fn at_end(mut self) -> Option<Record> {
        // A record has a line from its first character on.
        if self.line == 0 {
            return None;
        }
        self.fields.push(self.field);
        Some(Record { line: self.line, fields: self.fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Result<Vec<(u64, Vec<String>)>, String> {
        let message = |fault: Fault| fault.of(Path::new("t.csv")).to_string();
        let mut records = Records::new(text.as_bytes()).map_err(message)?;
        let mut all = vec![];
        while let Some(record) = records.next().map_err(message)? {
            all.push((record.line, record.fields));
        }
        Ok(all)
    }

    #[test]
    fn the_last_record_needs_no_line_end() {
        let record = |line, fields: [&str; 2]| (line, fields.map(String::from).to_vec());
        for text in ["path,text\na.mp4,fox", "path,text\r\na.mp4,\"fox\"", "path,text\ra.mp4,fox\r"]
        {
            let expected = [record(1, ["path", "text"]), record(2, ["a.mp4", "fox"])];
            assert_eq!(records(text).unwrap(), expected, "{text:?}");
        }
        assert_eq!(records("path,text\na,").unwrap()[1], record(2, ["a", ""]));
        assert_eq!(records("\n\npath,text\n\n").unwrap(), [record(3, ["path", "text"])]);
        assert_eq!(records("").unwrap(), []);
    }

    #[test]
    fn fields_and_rows_of_the_largest_size_are_read() {
        let field = "x".repeat(MAX_FIELD_BYTES);
        let row = [field.as_str(); MAX_ROW_BYTES / MAX_FIELD_BYTES].join(",");
        let all = records(&format!("{row}\n{row}")).unwrap();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|(_, fields)| fields.iter().all(|found| *found == field)));
        let error = records(&format!("{row},x\n")).unwrap_err();
        assert!(error.ends_with("line 1: a row is longer than 8 MiB"), "{error}");
        let error = records(&format!("a\n{field}x\n")).unwrap_err();
        assert!(error.ends_with("line 2: a field is longer than 1 MiB"), "{error}");
    }
}
