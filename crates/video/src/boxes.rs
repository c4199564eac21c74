//! The box structure of an MP4 (ISO/IEC 14496-12, 4.2), read within the bounds of the file.
//!
//! Boxes declare their sizes and tables their counts. Declarations are checked against the bytes of the file:
//! only the header, which is part of the file, is held in memory.

use crate::refusal::Refusal;
use std::io::{Read, Seek, SeekFrom};

/// Maximum size of a header (`moov`) in bytes. A day of video at 30 frames per second needs 50 MB.
const MAX_HEADER: u64 = 256 << 20;
/// Maximum number of top-level boxes of a file without fragments.
const MAX_TOP: usize = 10_000;
/// Names of the first box of MP4 and QuickTime files.
const BEGINNINGS: [&[u8; 4]; 11] = [
    b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"styp", b"moof",
    b"sidx",
];

/// The name of a box.
pub(crate) type Name = [u8; 4];

fn damaged() -> Refusal {
    Refusal::unusable("damaged: a box does not fit into its parent")
}

/// Returns the size of the box header, the size of the box and its name; `None` if there are too few bytes.
fn sizes(bytes: &[u8], rest: u64) -> Option<(u64, u64, Name)> {
    let name = *bytes.get(4..)?.first_chunk()?;
    Some(match u32::from_be_bytes(*bytes.first_chunk()?) {
        0 => (8, rest, name),
        1 => (16, u64::from_be_bytes(*bytes.get(8..)?.first_chunk()?), name),
        size => (8, size.into(), name),
    })
}

/// Reads the content of the header (`moov`) of a file of `length` bytes.
pub(crate) fn read_header(file: &mut (impl Read + Seek), length: u64) -> Result<Vec<u8>, Refusal> {
    let mut header = None;
    let (mut at, mut count) = (0, 0);
    while at < length {
        let rest = length - at;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.by_ref().take(rest.min(16)).read_to_end(&mut bytes)?;
        let sizes = sizes(&bytes, rest);
        if count == 0 && sizes.is_none_or(|(.., name)| !BEGINNINGS.contains(&&name)) {
            return Err(Refusal::unsupported("no MP4 structure at the beginning of the file"));
        }
        let Some((before, size, name)) = sizes else {
            // Less than a box: some writers leave bytes after the last one.
            break;
        };
        if size < before {
            return Err(damaged());
        }
        match &name {
            b"moof" => return Err(Refusal::unsupported("a fragmented MP4")),
            b"moov" if size > rest => {
                return Err(Refusal::unusable("truncated: its header does not end"));
            }
            b"moov" if size > MAX_HEADER => {
                return Err(Refusal::unsupported(format!("an MP4 header of {size} bytes")));
            }
            b"moov" if header.is_none() => header = Some((at + before, size - before)),
            _ => {}
        }
        count += 1;
        if count > MAX_TOP {
            return Err(Refusal::unsupported(format!("more than {MAX_TOP} boxes at the top")));
        }
        // A box beyond the end is a truncated file, which is detected by its samples.
        at = at.saturating_add(size);
    }
    let (at, size) = header.ok_or_else(|| match length {
        0 => Refusal::unusable("it is empty"),
        _ => Refusal::unusable("truncated: its header (box 'moov') is missing"),
    })?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An iterator over boxes: names and contents.
pub(crate) struct Boxes<'a>(&'a [u8]);

/// Iterates over the boxes in `content`. After an error there are no more.
pub(crate) fn boxes(content: &[u8]) -> Boxes<'_> {
    Boxes(content)
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<(Name, &'a [u8]), Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        // QuickTime ends some lists with four zero bytes.
        if bytes.len() < 8 && bytes.iter().all(|byte| *byte == 0) {
            return None;
        }
        // Inside a header, sizes must be stated.
        let found = sizes(bytes, 0).and_then(|(before, size, name)| {
            let (whole, rest) = bytes.split_at_checked(usize::try_from(size).ok()?)?;
            Some((name, whole.get(before as usize..)?, rest))
        });
        let Some((name, content, rest)) = found else { return Some(Err(damaged())) };
        self.0 = rest;
        Some(Ok((name, content)))
    }
}

/// Returns the content of the first box of a name, if there is one.
pub(crate) fn find<'a>(content: &'a [u8], name: &Name) -> Result<Option<&'a [u8]>, Refusal> {
    for found in boxes(content) {
        let (found, content) = found?;
        if found == *name {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// Returns the content of the first box at a path of names.
pub(crate) fn need<'a>(mut content: &'a [u8], path: &[&Name]) -> Result<&'a [u8], Refusal> {
    for name in path {
        content = find(content, name)?.ok_or_else(|| {
            let name = String::from_utf8_lossy(*name).into_owned();
            Refusal::unusable(format!("damaged: box '{name}' is missing"))
        })?;
    }
    Ok(content)
}

/// Big-endian numbers at an offset.
pub(crate) trait Numbers {
    /// Returns 16 bits at `at`.
    fn u16_at(&self, at: usize) -> Option<u16>;
    /// Returns 32 bits at `at`.
    fn u32_at(&self, at: usize) -> Option<u32>;
    /// Returns 64 bits at `at`.
    fn u64_at(&self, at: usize) -> Option<u64>;
}

impl Numbers for [u8] {
    fn u16_at(&self, at: usize) -> Option<u16> {
        self.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        self.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn u64_at(&self, at: usize) -> Option<u64> {
        self.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }
}

/// Boxes for tests.
#[cfg(test)]
pub(crate) mod make {
    use super::Name;

    pub(crate) fn a_box(name: &Name, content: &[u8]) -> Vec<u8> {
        let size = (content.len() + 8) as u32;
        [&size.to_be_bytes(), name.as_slice(), content].concat()
    }

    /// A box of 32-bit numbers, the first of them version and flags.
    pub(crate) fn a_table(name: &Name, numbers: &[u32]) -> Vec<u8> {
        a_box(name, &numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>())
    }
}

#[cfg(test)]
mod tests {
    use super::{make::a_box, *};
    use std::io::Cursor;

    fn header(file: &[u8]) -> Result<Vec<u8>, Refusal> {
        read_header(&mut Cursor::new(file), file.len() as u64)
    }

    #[test]
    fn the_header_is_found_wherever_it_stands() {
        let moov = a_box(b"moov", b"header");
        let data = a_box(b"mdat", &[7; 40]);
        for file in [
            [a_box(b"ftyp", b"isom"), moov.clone(), data.clone()].concat(),
            [a_box(b"wide", b""), data.clone(), moov.clone(), b"\0\0".to_vec()].concat(),
            // A long size, and a size that is left open.
            [vec![0, 0, 0, 1], b"mdat".into(), vec![0, 0, 0, 0, 0, 0, 0, 17, 9], moov.clone()]
                .concat(),
            [b"\0\0\0\0".to_vec(), moov[4..].into()].concat(),
            // Truncated data.
            [moov.clone(), data[..20].into()].concat(),
        ] {
            assert_eq!(header(&file).unwrap(), b"header");
        }
    }

    #[test]
    fn files_of_other_kinds_need_the_program_and_cut_ones_are_cut() {
        for file in [b"\x1aE\xdf\xa3 and so on".as_slice(), b"text", b"RIFF0000AVI "] {
            assert!(matches!(header(file), Err(Refusal::Unsupported(_))), "{file:?}");
        }
        let fragmented = [a_box(b"moov", b""), a_box(b"moof", b"")].concat();
        assert!(header(&fragmented).unwrap_err().to_string().contains("fragmented"));
        let moov = a_box(b"moov", b"header");
        for file in [&moov[..moov.len() - 1], &a_box(b"mdat", b"?"), b""] {
            assert!(matches!(header(file), Err(Refusal::Unusable(_))), "{file:?}");
        }
        // A size that leads nowhere, and one that lies about a petabyte.
        assert!(header(b"\0\0\0\x07ftyp").is_err());
        let far = [b"\0\0\0\x01moov".as_slice(), &(1u64 << 50).to_be_bytes()].concat();
        assert!(header(&far).unwrap_err().to_string().contains("truncated"));
        let many = a_box(b"free", b"").repeat(MAX_TOP + 1);
        assert!(matches!(header(&many), Err(Refusal::Unsupported(_))));
    }

    #[test]
    fn boxes_lie_in_their_parents() {
        let inner = [a_box(b"aaaa", b"1"), a_box(b"bbbb", b"2"), a_box(b"bbbb", b"3")].concat();
        let outer = a_box(b"cccc", &inner);
        assert_eq!(need(&outer, &[b"cccc", b"bbbb"]).unwrap(), b"2");
        assert_eq!(find(&[inner.as_slice(), &[0; 4]].concat(), b"dddd").unwrap(), None);
        let missing = need(&outer, &[b"cccc", b"dddd"]).unwrap_err().to_string();
        assert!(missing.contains("'dddd'"), "{missing}");
        for size in [0, 1, 7, 19, u32::MAX] {
            let mut bad = inner.clone();
            bad[9..13].copy_from_slice(&u32::to_be_bytes(size));
            assert!(boxes(&bad).any(|found| found.is_err()), "{size}");
            assert!(boxes(&bad).count() < 4);
        }
    }
}
