//! The comment in the header of an MP4, which players and `ffprobe` show.
//!
//! The comment is stored as in iTunes files (`moov/udta/meta/ilst/©cmt`). It enlarges the header, so that the
//! offsets of samples after the header are increased.

use crate::{
    boxes::{Name, Numbers, boxes, find},
    error::Cause,
    refusal::Refusal,
};
use std::ops::Range;

/// The box of a comment.
const COMMENT: Name = *b"\xa9cmt";
/// Type code of a `data` box with text.
const UTF_8: u32 = 1;
/// Maximum size of a comment in bytes, far more than a prompt and its settings.
pub(crate) const MAX_COMMENT: usize = 1 << 20;

/// Adds a comment to a complete MP4.
///
/// # Errors
/// Returns an error if the comment is too long, or if the file is not an MP4 of fewer than 4 GiB without user
/// data, as this crate writes them.
pub(crate) fn with_comment(mp4: &[u8], comment: &str) -> Result<Vec<u8>, Cause> {
    if comment.len() > MAX_COMMENT {
        let found = comment.len();
        return Err(format!("metadata of {found} bytes, at most {MAX_COMMENT}").into());
    }
    let moov = header(mp4)?.ok_or("it has no header")?;
    if find(&mp4[moov.clone()], b"udta")?.is_some() {
        return Err("its header has user data already".into());
    }
    let added = user_data(comment);
    let (before, rest) = mp4.split_at(moov.end);
    let mut out = [before, &added, rest].concat();
    let size = moov.len() + 8 + added.len();
    let size = u32::try_from(size).map_err(|_| "its header would be too large")?;
    out[moov.start - 8..moov.start - 4].copy_from_slice(&size.to_be_bytes());
    // Data after the header has moved.
    let moved = Moved { behind: moov.end as u64, by: added.len() as u64 };
    moved.offsets(&mut out, moov).ok_or("its samples lie too far behind")?;
    Ok(out)
}

/// Returns the comment in the content of an MP4's header (`moov`), if there is one.
pub(crate) fn comment(moov: &[u8]) -> Result<Option<String>, Refusal> {
    let Some(user_data) = find(moov, b"udta")? else { return Ok(None) };
    // Version and flags come before the boxes.
    let Some(meta) = find(user_data, b"meta")?.and_then(|meta| meta.get(4..)) else {
        return Ok(None);
    };
    let Some(list) = find(meta, b"ilst")? else { return Ok(None) };
    let Some(item) = find(list, &COMMENT)? else { return Ok(None) };
    let text = find(item, b"data")?.filter(|data| data.u32_at(0) == Some(UTF_8));
    let text = text.and_then(|data| data.get(8..));
    Ok(text.map(|text| String::from_utf8_lossy(text).into_owned()))
}

/// Returns the range of the header's content.
fn header(mp4: &[u8]) -> Result<Option<Range<usize>>, Refusal> {
    for found in boxes(mp4) {
        let (name, content) = found?;
        if name == *b"moov" {
            return Ok(Some(place(mp4, content)));
        }
    }
    Ok(None)
}

/// Returns the range of `part`, a subslice of `whole`.
fn place(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

fn a_box(name: &Name, content: &[u8]) -> Vec<u8> {
    let size = (content.len() + 8) as u32;
    [&size.to_be_bytes(), name.as_slice(), content].concat()
}

/// Returns a box `udta` with a comment.
fn user_data(comment: &str) -> Vec<u8> {
    // Version, flags and predefined zeros; handler `mdir` of `appl`; no name.
    let handler = a_box(b"hdlr", b"\0\0\0\0\0\0\0\0mdirappl\0\0\0\0\0\0\0\0\0");
    // Type, and no country.
    let kind = [UTF_8, 0].map(u32::to_be_bytes).concat();
    let data = a_box(b"data", &[kind.as_slice(), comment.as_bytes()].concat());
    let list = a_box(b"ilst", &a_box(&COMMENT, &data));
    a_box(b"udta", &a_box(b"meta", &[&[0; 4], handler.as_slice(), &list].concat()))
}

/// An offset of all data after a position.
struct Moved {
    behind: u64,
    by: u64,
}

impl Moved {
    /// Adjusts the offsets of samples in the boxes of a range of a file; `None` if an offset overflows.
    fn offsets(&self, file: &mut [u8], part: Range<usize>) -> Option<()> {
        let inside: Vec<(Name, Range<usize>)> = boxes(&file[part.clone()])
            .filter_map(Result::ok)
            .map(|(name, content)| (name, place(file, content)))
            .collect();
        for (name, content) in inside {
            match &name {
                b"trak" | b"mdia" | b"minf" | b"stbl" => self.offsets(file, content)?,
                b"stco" => {
                    for at in (content.start + 8..content.end.saturating_sub(3)).step_by(4) {
                        let moved = u32::try_from(self.offset(file.u32_at(at)?.into())).ok()?;
                        file[at..at + 4].copy_from_slice(&moved.to_be_bytes());
                    }
                }
                b"co64" => {
                    for at in (content.start + 8..content.end.saturating_sub(7)).step_by(8) {
                        let moved = self.offset(file.u64_at(at)?);
                        file[at..at + 8].copy_from_slice(&moved.to_be_bytes());
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    fn offset(&self, offset: u64) -> u64 {
        if offset >= self.behind { offset + self.by } else { offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::make::a_table;

    /// A file of a header with two tables and 16 bytes of samples, before or behind it.
    fn file(header_first: bool) -> Vec<u8> {
        let moov = |at: u32| {
            let tables = [
                a_table(b"stco", &[0, 2, at, at + 8]),
                a_table(b"co64", &[0, 1, 0, at]),
                a_table(b"stts", &[0, 0]),
            ];
            let track = [b"stbl", b"minf", b"mdia", b"trak"]
                .iter()
                .fold(tables.concat(), |inside, name| a_box(name, &inside));
            a_box(b"moov", &[a_table(b"mvhd", &[0; 25]), track].concat())
        };
        let mdat = a_box(b"mdat", b"first...second..");
        let ftyp = a_box(b"ftyp", b"isom");
        match header_first {
            true => [ftyp, moov(12 + moov(0).len() as u32 + 8), mdat].concat(),
            false => [ftyp, mdat, moov(20)].concat(),
        }
    }

    #[test]
    fn a_comment_is_added_and_samples_are_found_again() {
        for header_first in [true, false] {
            let out =
                with_comment(&file(header_first), "{\"prompt\": \"Nebel über dem Fluß\"}").unwrap();
            let moov = &out[header(&out).unwrap().unwrap()];
            assert_eq!(comment(moov).unwrap().unwrap(), "{\"prompt\": \"Nebel über dem Fluß\"}");
            let stbl = crate::boxes::need(moov, &[b"trak", b"mdia", b"minf", b"stbl"]).unwrap();
            let stco = find(stbl, b"stco").unwrap().unwrap();
            let sample = |at: u64| &out[at as usize..][..8];
            assert_eq!(sample(stco.u32_at(8).unwrap().into()), b"first...");
            assert_eq!(sample(stco.u32_at(12).unwrap().into()), b"second..");
            let co64 = find(stbl, b"co64").unwrap().unwrap();
            assert_eq!(sample(co64.u64_at(8).unwrap()), b"first...");
            assert!(boxes(&out).all(|found| found.is_ok()));
            assert_eq!(comment(&file(true)[20..]).ok().flatten(), None);
            // Once.
            assert!(with_comment(&out, "again").is_err());
        }
        assert!(with_comment(&file(true), &"x".repeat(MAX_COMMENT + 1)).is_err());
        for cut in 0..file(true).len() {
            let _ = with_comment(&file(true)[..cut], "x");
        }
    }
}
