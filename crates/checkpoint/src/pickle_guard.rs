//! Bounds on `torch.save` files, checked before they are parsed.
//!
//! `pytorch-reader` never executes pickle and bounds every length by the file, but a pickle of one-byte
//! instructions becomes a hundred times its size in memory, and a compressed entry can become a thousand
//! times its own. Published files are far below the bounds: a T5-XXL with encoder and decoder has a
//! pickle of 100 KB, and `torch.save` never compresses.

use crate::source::MAX_TENSORS;
use opensora_files::read::open_regular;
use std::{
    fs::File,
    io::{BufReader, Read, Seek},
    path::Path,
};
use zip::{CompressionMethod, ZipArchive};

/// Most bytes of a pickle.
const MAX_PICKLE: usize = 8 << 20;

/// Most instructions of a file's pickles together. A tensor takes about 30.
const MAX_INSTRUCTIONS: usize = 500_000;

/// Pickles at the start of a file of before PyTorch 1.6: magic number, version, system, object, keys.
const LEGACY_PICKLES: usize = 5;

/// Fails if the file at `path` would take more memory or time than a published one of its size could.
/// Damaged files pass: the reader says what is wrong with them.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let mut file = open_regular(path).map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    let io = |error: std::io::Error| error.to_string();
    file.by_ref().take(262).read_to_end(&mut head).map_err(io)?;
    if head.starts_with(b"PK") {
        check_zip(file)
    } else if head.get(257..262) == Some(b"ustar") {
        Err("a tar archive of PyTorch before 0.1.10 found, expected a file of PyTorch 0.1.10 or newer"
            .into())
    } else {
        file.rewind().map_err(io)?;
        check_stream(file)
    }
}

/// Entries must be stored as they are, and the pickle must be of a bounded size.
fn check_zip(file: File) -> Result<(), String> {
    // Damaged directories and entries are the reader's to name.
    let Ok(mut archive) = ZipArchive::new(BufReader::new(file)) else { return Ok(()) };
    if archive.len() > MAX_TENSORS {
        return Err(format!("{} entries found, expected at most {MAX_TENSORS}", archive.len()));
    }
    for index in 0..archive.len() {
        let Ok(mut entry) = archive.by_index_raw(index) else { continue };
        let name = entry.name().map(|name| name.to_string()).unwrap_or_default();
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!(
                "entry '{name}' is compressed, expected stored entries as torch.save writes them; \
                 load the file in PyTorch and save it again"
            ));
        }
        if name != "data.pkl" && !name.ends_with("/data.pkl") {
            continue;
        }
        if entry.size() > MAX_PICKLE as u64 {
            return Err(format!(
                "'{name}' has {} bytes, expected at most {MAX_PICKLE}",
                entry.size()
            ));
        }
        let mut pickle = Vec::new();
        if entry.by_ref().take(MAX_PICKLE as u64).read_to_end(&mut pickle).is_err() {
            continue;
        }
        if Scan::new(&pickle).pickles(1) == Scanned::TooMany {
            return Err(too_many());
        }
    }
    Ok(())
}

/// A stream of pickles, with the tensors' bytes after them.
fn check_stream(file: File) -> Result<(), String> {
    let mut head = Vec::new();
    let read = file.take(MAX_PICKLE as u64).read_to_end(&mut head);
    read.map_err(|error| error.to_string())?;
    match Scan::new(&head).pickles(LEGACY_PICKLES) {
        Scanned::TooMany => Err(too_many()),
        Scanned::Cut if head.len() == MAX_PICKLE => {
            Err(format!("its pickles have more than {MAX_PICKLE} bytes"))
        }
        Scanned::Whole | Scanned::Cut => Ok(()),
    }
}

fn too_many() -> String {
    format!("its pickle has more than {MAX_INSTRUCTIONS} instructions")
}

#[derive(Debug, PartialEq, Eq)]
enum Scanned {
    /// All pickles, or all up to something that is none.
    Whole,
    /// The bytes end within a pickle.
    Cut,
    /// More instructions than allowed.
    TooMany,
}

/// Walks over instructions and their arguments without interpreting them.
struct Scan<'a> {
    rest: &'a [u8],
    instructions: usize,
}

impl<'a> Scan<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, instructions: 0 }
    }

    fn pickles(&mut self, count: usize) -> Scanned {
        for _ in 0..count {
            loop {
                let Some((&code, rest)) = self.rest.split_first() else { return Scanned::Cut };
                self.rest = rest;
                self.instructions += 1;
                if self.instructions > MAX_INSTRUCTIONS {
                    return Scanned::TooMany;
                }
                if code == b'.' {
                    break;
                }
                match self.skip_argument(code) {
                    Some(true) => {}
                    Some(false) => return Scanned::Cut,
                    None => return Scanned::Whole,
                }
            }
        }
        Scanned::Whole
    }

    /// Returns false if the bytes end within the argument, and nothing if `code` is no instruction.
    fn skip_argument(&mut self, code: u8) -> Option<bool> {
        // Source: CPython, Lib/pickletools.py.
        Some(match code {
            b'K' | b'q' | b'h' | 0x80 | 0x82 => self.skip(1),
            b'M' | 0x83 => self.skip(2),
            b'J' | b'j' | b'r' | 0x84 => self.skip(4),
            b'G' | 0x95 => self.skip(8),
            b'I' | b'L' | b'F' | b'V' | b'g' | b'p' | b'P' | b'S' => self.skip_line(),
            b'c' | b'i' => self.skip_line() && self.skip_line(),
            b'U' | b'C' | 0x8a | 0x8c => self.skip_counted(1),
            b'T' | b'X' | b'B' | 0x8b => self.skip_counted(4),
            0x8d | 0x8e | 0x96 => self.skip_counted(8),
            b'('
            | b'0'
            | b'1'
            | b'2'
            | b'N'
            | b'R'
            | b'b'
            | b'd'
            | b'l'
            | b't'
            | b's'
            | b'a'
            | b')'
            | b']'
            | b'}'
            | b'e'
            | b'u'
            | b'Q'
            | b'o'
            | 0x81
            | 0x85..=0x89
            | 0x8f..=0x94
            | 0x97
            | 0x98 => true,
            _ => return None,
        })
    }

    fn skip(&mut self, count: usize) -> bool {
        match self.rest.get(count..) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn skip_line(&mut self) -> bool {
        match self.rest.iter().position(|&byte| byte == b'\n') {
            Some(end) => self.skip(end + 1),
            None => false,
        }
    }

    /// Skips bytes whose number stands before them in `width` bytes.
    fn skip_counted(&mut self, width: usize) -> bool {
        let mut count = [0; 8];
        let Some(bytes) = self.rest.get(..width) else { return false };
        count[..width].copy_from_slice(bytes);
        let count = usize::try_from(u64::from_le_bytes(count)).unwrap_or(usize::MAX);
        self.skip(width) && self.skip(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_of_every_width_are_walked() {
        let pickle = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01U\x01bM\x01\x02ctorch\nSize\nG\x00\x00\x00\x00\x00\x00\x00\x00u.";
        let mut scan = Scan::new(pickle);
        assert_eq!(scan.pickles(1), Scanned::Whole);
        assert!(scan.rest.is_empty());
        assert_eq!(scan.instructions, 12);
        for length in 0..pickle.len() {
            assert_eq!(Scan::new(&pickle[..length]).pickles(1), Scanned::Cut, "{length}");
        }
        // A length that no file has.
        assert_eq!(Scan::new(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff..").pickles(1), Scanned::Cut);
        assert_eq!(Scan::new(b"N\xff.").pickles(1), Scanned::Whole);
    }

    #[test]
    fn instructions_are_counted_over_all_pickles() {
        let mut bytes = vec![b'N'; MAX_INSTRUCTIONS];
        assert_eq!(Scan::new(&bytes).pickles(1), Scanned::Cut);
        bytes[3] = b'.';
        bytes.push(b'.');
        assert_eq!(Scan::new(&bytes).pickles(2), Scanned::TooMany);
        assert_eq!(Scan::new(&bytes).pickles(1), Scanned::Whole);
    }
}
