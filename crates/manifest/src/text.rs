//! A reader of UTF-8 text in chunks, with positions of errors.
//!
//! [`TextReader`] skips a byte order mark and stops at the first byte that is not UTF-8, with its
//! line and offset. Other encodings and common binary formats are named in the error. At most 64 KiB
//! of the file are in memory at a time.

use std::io::{self, Read};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// The reason why a file is not UTF-8 text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file is text in another Unicode encoding.
    #[error("found text in {name}, expected UTF-8; convert it with: iconv -f {name} -t UTF-8")]
    Encoding {
        /// The encoding, as `iconv` names it.
        name: &'static str,
    },
    /// The file is not text.
    #[error("found {what}, expected text in UTF-8")]
    Foreign {
        /// The format.
        what: &'static str,
    },
    /// A byte that is invalid in UTF-8 at its position.
    #[error(
        "line {line}: found byte 0x{byte:02x} at offset {offset}, expected UTF-8; \
         convert a file of Windows programs with: iconv -f WINDOWS-1252 -t UTF-8"
    )]
    NotUtf8 {
        /// The line, counted from 1.
        line: u64,
        /// The byte's offset in the file.
        offset: u64,
        /// The byte.
        byte: u8,
    },
    /// A NUL byte, as in binary files and in files that are incomplete after a crash.
    #[error("line {line}: found a NUL byte at offset {offset}, expected text in UTF-8")]
    Nul {
        /// The line, counted from 1.
        line: u64,
        /// The byte's offset in the file.
        offset: u64,
    },
    /// A line exceeds the limit.
    #[error("line {line}: longer than {limit} bytes")]
    LongLine {
        /// The line, counted from 1.
        line: u64,
        /// Maximum size of a line in bytes.
        limit: usize,
    },
}

/// An error of reading text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system could not read the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not text in UTF-8.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// A reader of UTF-8 text.
///
/// ```
/// use opensora_manifest::text::TextReader;
///
/// let mut reader = TextReader::new(&b"\xef\xbb\xbfa red fox\r\n"[..]);
/// assert_eq!(reader.rest()?, "a red fox\r\n");
/// reader.consume("a red fox\r\n".len());
/// assert_eq!(reader.rest()?, "");
/// # Ok::<(), opensora_manifest::text::ReadError>(())
/// ```
#[derive(Debug)]
pub struct TextReader<R> {
    inner: R,
    chunk: String,
    /// Number of consumed bytes of the chunk.
    consumed: usize,
    /// First bytes of a character that continues in the next chunk.
    carry: Vec<u8>,
    /// Number of lines before the end of the chunk.
    lines: LineCount,
    /// Offset of the end of the chunk in the file.
    offset: u64,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Begin,
    Middle,
    End,
}

impl<R: Read> TextReader<R> {
    /// Creates a reader. `inner` must be at the start of the file.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            chunk: String::new(),
            consumed: 0,
            carry: Vec::new(),
            lines: LineCount::default(),
            offset: 0,
            state: State::Begin,
        }
    }

    /// Returns the text that was read but not consumed. The text is empty only at the end of the file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not UTF-8.
    pub fn rest(&mut self) -> Result<&str, ReadError> {
        while self.consumed == self.chunk.len() && self.state != State::End {
            self.fill()?;
        }
        Ok(&self.chunk[self.consumed..])
    }

    /// Marks the first `bytes` bytes of [`Self::rest`] as consumed.
    ///
    /// # Panics
    /// The next [`Self::rest`] panics if `bytes` exceeds the rest or ends within a character.
    pub fn consume(&mut self, bytes: usize) {
        self.consumed += bytes;
    }

    fn fill(&mut self) -> Result<(), ReadError> {
        let mut bytes = std::mem::take(&mut self.chunk).into_bytes();
        self.consumed = 0;
        bytes.clear();
        bytes.append(&mut self.carry);
        let read = self.inner.by_ref().take(CHUNK as u64).read_to_end(&mut bytes)?;
        if self.state == State::Begin {
            if let Some(error) = foreign(&bytes) {
                return Err(error.into());
            }
            if bytes.starts_with(BOM) {
                bytes.drain(..BOM.len());
                self.offset = BOM.len() as u64;
            }
        }
        self.state = if read == 0 { State::End } else { State::Middle };
        self.chunk = match String::from_utf8(bytes) {
            Ok(chunk) => chunk,
            Err(error) => {
                let fault = error.utf8_error();
                let mut bytes = error.into_bytes();
                self.carry = bytes.split_off(fault.valid_up_to());
                let chunk = String::from_utf8(bytes).unwrap_or_default();
                // A character may continue in the next chunk, but not after the end of the file.
                if fault.error_len().is_some() || self.state == State::End {
                    self.check(&chunk)?;
                    return Err(self.not_utf8().into());
                }
                chunk
            }
        };
        let chunk = std::mem::take(&mut self.chunk);
        self.check(&chunk)?;
        self.chunk = chunk;
        Ok(())
    }

    /// Counts the lines and bytes of the next chunk; returns an error at a NUL byte.
    fn check(&mut self, chunk: &str) -> Result<(), TextError> {
        if let Some(at) = chunk.bytes().position(|byte| byte == 0) {
            self.lines.add(&chunk[..at]);
            let offset = self.offset + at as u64;
            return Err(TextError::Nul { line: self.lines.line(), offset });
        }
        self.lines.add(chunk);
        self.offset += chunk.len() as u64;
        Ok(())
    }

    fn not_utf8(&self) -> TextError {
        let byte = self.carry.first().copied().unwrap_or_default();
        TextError::NotUtf8 { line: self.lines.line(), offset: self.offset, byte }
    }

    /// Returns the lines of the text, each of at most `limit` bytes.
    pub fn lines(self, limit: usize) -> Lines<R> {
        Lines { reader: self, limit, number: 0, after_return: false, failed: false }
    }
}

/// The lines of a text with their numbers, counted from 1, without line ends (LF, CR LF or CR) and
/// without byte order marks at their starts.
#[derive(Debug)]
pub struct Lines<R> {
    reader: TextReader<R>,
    limit: usize,
    number: u64,
    /// The previous line ended in CR: an LF that follows belongs to the same line end.
    after_return: bool,
    failed: bool,
}

impl<R: Read> Lines<R> {
    fn read(&mut self) -> Result<Option<(u64, String)>, ReadError> {
        let mut line = String::new();
        self.number += 1;
        loop {
            let rest = self.reader.rest()?;
            if rest.is_empty() {
                return Ok((!line.is_empty()).then(|| (self.number, without_mark(line))));
            }
            if std::mem::take(&mut self.after_return) && rest.starts_with('\n') {
                self.reader.consume(1);
                continue;
            }
            let end = rest.find(['\n', '\r']);
            line.push_str(&rest[..end.unwrap_or(rest.len())]);
            self.after_return = end.is_some_and(|end| rest.as_bytes()[end] == b'\r');
            let bytes = end.map_or(rest.len(), |end| end + 1);
            self.reader.consume(bytes);
            if line.len() > self.limit {
                return Err(TextError::LongLine { line: self.number, limit: self.limit }.into());
            }
            if end.is_some() {
                return Ok(Some((self.number, without_mark(line))));
            }
        }
    }
}

impl<R: Read> Iterator for Lines<R> {
    type Item = Result<(u64, String), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let line = self.read();
        self.failed = line.is_err();
        line.transpose()
    }
}

/// Removes a leading byte order mark: concatenated files contain marks in the middle.
fn without_mark(mut line: String) -> String {
    if line.starts_with('\u{feff}') {
        line.remove(0);
    }
    line
}

/// A counter of line ends: LF, CR LF and CR.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LineCount {
    ends: u64,
    after_return: bool,
}

impl LineCount {
    /// Counts the line ends of `text`.
    pub(crate) fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            self.add_byte(byte);
        }
    }

    pub(crate) fn add_byte(&mut self, byte: u8) {
        self.ends += u64::from(byte == b'\r' || (byte == b'\n' && !self.after_return));
        self.after_return = byte == b'\r';
    }

    /// Returns the line of the next character, counted from 1.
    pub(crate) fn line(&self) -> u64 {
        self.ends + 1
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Returns an error if the first bytes of a file show that it is not UTF-8 text.
fn foreign(bytes: &[u8]) -> Option<TextError> {
    let encodings: [(&[u8], _); 4] = [
        (b"\xff\xfe\0\0", "UTF-32LE"),
        (b"\0\0\xfe\xff", "UTF-32BE"),
        (b"\xff\xfe", "UTF-16LE"),
        (b"\xfe\xff", "UTF-16BE"),
    ];
    let marked = encodings.into_iter().find(|(mark, _)| bytes.starts_with(mark));
    // Without a mark, UTF-16 is recognized by the zero bytes of Latin letters.
    let name = marked.map(|(_, name)| name).or(match *bytes {
        [first, 0, second, 0, ..] if first != 0 && second != 0 => Some("UTF-16LE"),
        [0, first, 0, second, ..] if first != 0 && second != 0 => Some("UTF-16BE"),
        _ => None,
    });
    let formats: [(&[u8], _); 6] = [
        (b"\x1f\x8b", "a gzip archive"),
        (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
        (b"PAR1\x15", "a Parquet file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"version https://git-lfs.github.com/", "a Git LFS pointer (git lfs pull gets the file)"),
    ];
    name.map(|name| TextError::Encoding { name }).or_else(|| {
        let format = formats.into_iter().find(|(magic, _)| bytes.starts_with(magic));
        format.map(|(_, what)| TextError::Foreign { what })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_any_line_end_and_may_be_blank() {
        let lines = TextReader::new(&b"a\n\nb\r\n\r\nc\rd"[..]).lines(1);
        let lines: Vec<(u64, String)> = lines.map(Result::unwrap).collect();
        let expected = [(1, "a"), (2, ""), (3, "b"), (4, ""), (5, "c"), (6, "d")];
        assert_eq!(lines, expected.map(|(number, line)| (number, line.to_string())));
    }

    #[test]
    fn lines_are_at_most_as_long_as_the_limit() {
        let mut lines = TextReader::new(&b"abc\nabcd\nx\n"[..]).lines(3);
        assert_eq!(lines.next().unwrap().unwrap(), (1, "abc".into()));
        let error = lines.next().unwrap().unwrap_err().to_string();
        assert_eq!(error, "line 2: longer than 3 bytes");
        assert!(lines.next().is_none());
        let mut lines = TextReader::new(&b"abcde\n"[..]).lines(3);
        assert!(lines.next().unwrap().is_err());
    }

    #[test]
    fn zero_bytes_without_letters_are_not_utf_16() {
        for (bytes, expected) in [
            (b"a\0b\0", "found text in UTF-16LE, expected UTF-8"),
            (b"\0a\0b", "found text in UTF-16BE, expected UTF-8"),
            (b"a\0\0\0", "line 1: found a NUL byte at offset 1, expected text in UTF-8"),
            (b"\0a\0\0", "line 1: found a NUL byte at offset 0, expected text in UTF-8"),
            (b"\0\0\0\0", "line 1: found a NUL byte at offset 0, expected text in UTF-8"),
        ] {
            let error = TextReader::new(&bytes[..]).rest().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
