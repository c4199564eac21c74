//! The structure of an MP4, checked and reduced before anything trusts it.
//!
//! The container reader is made for honest files: it walks boxes by the sizes that they declare,
//! and would walk in place for ever on a box of size zero; it makes room for what metadata boxes
//! declare. So only the boxes that lead to the first H.264 track are left to it, every one inside
//! its parent and every table inside its box; all others are renamed to `free`, which it skips.

use crate::tables;
use std::ops::Range;

/// The boxes that are read in a container, and how many bytes stand before the first of them.
type Inside = (usize, &'static [&'static [u8; 4]]);

/// `None` for boxes that hold no boxes.
fn inside(name: &[u8; 4]) -> Option<Inside> {
    Some(match name {
        b"moov" => (0, &[b"mvhd", b"trak"]),
        b"trak" => (0, &[b"tkhd", b"mdia"]),
        b"mdia" => (0, &[b"mdhd", b"hdlr", b"minf"]),
        b"minf" => (0, &[b"vmhd", b"dinf", b"stbl"]),
        b"dinf" => (0, &[b"dref"]),
        b"dref" => (8, &[b"url "]),
        b"stbl" => (0, &[b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"co64", b"stss"]),
        b"stsd" => (8, &[b"avc1"]),
        b"avc1" => (78, &[b"avcC"]),
        _ => return None,
    })
}

/// The boxes that are read at the top of a file.
const TOP: Inside = (0, &[b"ftyp", b"moov", b"mdat"]);

/// Checks all boxes that are needed for the first H.264 track, and renames all others.
pub(crate) fn reduce(bytes: &mut [u8]) -> Result<(), String> {
    let whole = 0..bytes.len();
    let mut found = Found::default();
    walk(bytes, whole, TOP, &mut found)?;
    match found {
        // Even where the header holds samples, the fragments hold the rest.
        Found { fragments: true, .. } => {
            Err("it is fragmented: rewrite it first, as with `ffmpeg -i IN -c copy OUT`".into())
        }
        Found { h264: true, .. } => Ok(()),
        Found { other: Some(name), .. } => {
            let name = String::from_utf8_lossy(&name).into_owned();
            Err(format!("its video is coded as {name:?}, expected H.264 (\"avc1\")"))
        }
        _ => Err("it holds no video track".into()),
    }
}

/// What a walk has come upon.
#[derive(Default)]
struct Found {
    h264: bool,
    fragments: bool,
    other: Option<[u8; 4]>,
}

/// A box by the places of its name and content.
struct Place {
    name: [u8; 4],
    name_at: usize,
    content: Range<usize>,
}

/// The box that begins a range.
fn first(bytes: &[u8], range: &Range<usize>, top: bool) -> Result<Place, String> {
    let damaged = || "damaged: a box does not fit into its place".to_string();
    let here = bytes.get(range.clone()).ok_or_else(damaged)?;
    let (size, name) = header(here).ok_or_else(damaged)?;
    let (size, header) = match size {
        // The last box of a file may leave its size open, and only whole files need long sizes.
        0 if top => (here.len() as u64, 8),
        1 if top => {
            let long = here.get(8..).and_then(|rest| rest.first_chunk()).ok_or_else(damaged)?;
            (u64::from_be_bytes(*long), 16)
        }
        size => (size.into(), 8),
    };
    if size < header || size > here.len() as u64 {
        return Err(damaged());
    }
    let at = |offset: u64| range.start + offset as usize;
    Ok(Place { name, name_at: at(4), content: at(header)..at(size) })
}

fn header(bytes: &[u8]) -> Option<(u32, [u8; 4])> {
    Some((u32::from_be_bytes(*bytes.first_chunk()?), *bytes.get(4..)?.first_chunk()?))
}

fn walk(
    bytes: &mut [u8],
    mut range: Range<usize>,
    (before, read): Inside,
    found: &mut Found,
) -> Result<(), String> {
    if range.len() < before {
        return Err("damaged: a box is too small".into());
    }
    range.start += before;
    let top = read == TOP.1;
    while !range.is_empty() {
        let Place { name, name_at, content } = first(bytes, &range, top)?;
        range.start = content.end;
        found.fragments |= name == *b"moof";
        let mut needed = read.contains(&&name);
        if needed && name == *b"trak" {
            needed = !found.h264 && is_h264(bytes, &content, found);
            found.h264 |= needed;
        }
        if !needed {
            if let Some(name) = bytes.get_mut(name_at..name_at + 4) {
                name.copy_from_slice(b"free");
            }
        } else if let Some(inside) = inside(&name) {
            walk(bytes, content.clone(), inside, found)?;
            if name == *b"mdia" {
                tables::check_samples(bytes, &content)?;
            }
        } else if name == *b"avcC" {
            tables::check_parameters(bytes.get(content).unwrap_or_default())?;
        } else {
            tables::check_size(&name, bytes.get(content).unwrap_or_default())?;
        }
    }
    Ok(())
}

/// Whether a track holds H.264; what else a video track holds is noted.
fn is_h264(bytes: &[u8], trak: &Range<usize>, found: &mut Found) -> bool {
    let handler = find(bytes, trak, &[b"mdia", b"hdlr"]);
    let is_video = handler.and_then(|at| bytes.get(at)?.get(8..12)).is_some_and(|it| it == b"vide");
    let entry = find(bytes, trak, &[b"mdia", b"minf", b"stbl", b"stsd"]);
    let coded = entry.and_then(|at| header(bytes.get(at)?.get(8..)?)).map(|(_, name)| name);
    if is_video && coded != Some(*b"avc1") {
        found.other = found.other.or(coded);
    }
    is_video && coded == Some(*b"avc1")
}

/// The content of a box by the names that lead to it.
pub(crate) fn find(bytes: &[u8], range: &Range<usize>, path: &[&[u8; 4]]) -> Option<Range<usize>> {
    let Some((name, path)) = path.split_first() else { return Some(range.clone()) };
    let mut range = range.clone();
    while !range.is_empty() {
        let place = first(bytes, &range, false).ok()?;
        if place.name == **name {
            return find(bytes, &place.content, path);
        }
        range.start = place.content.end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_box(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut bytes = ((content.len() + 8) as u32).to_be_bytes().to_vec();
        bytes.extend(name);
        bytes.extend(content);
        bytes
    }

    fn a_table(name: &[u8; 4], numbers: &[u32]) -> Vec<u8> {
        a_box(name, &numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>())
    }

    /// Three samples in two chunks, two ticks each.
    fn tables() -> [Vec<u8>; 5] {
        [
            a_table(b"stts", &[0, 1, 3, 2]),
            a_table(b"stsc", &[0, 2, 1, 2, 1, 2, 1, 1]),
            a_table(b"stsz", &[0, 9, 3]),
            a_table(b"stco", &[0, 2, 40, 60]),
            a_table(b"stss", &[0, 1, 1]),
        ]
    }

    fn a_track_of(handler: &[u8; 4], entry: &[u8; 4], inner: &[u8], tables: &[Vec<u8>]) -> Vec<u8> {
        let mdhd = a_table(b"mdhd", &[0, 0, 0, 10, 6, 0]);
        let hdlr = a_box(b"hdlr", &[&[0; 8], handler.as_slice(), &[0; 13]].concat());
        let entry = a_box(entry, &[&[0; 78], inner].concat());
        let stsd = a_box(b"stsd", &[&[0, 0, 0, 0, 0, 0, 0, 1], entry.as_slice()].concat());
        let minf = a_box(b"minf", &a_box(b"stbl", &[stsd, tables.concat()].concat()));
        a_box(b"trak", &a_box(b"mdia", &[mdhd, hdlr, minf].concat()))
    }

    fn a_track(handler: &[u8; 4], entry: &[u8; 4]) -> Vec<u8> {
        a_track_of(handler, entry, &parameters(), &tables())
    }

    /// One set of two bytes of each kind.
    fn parameters() -> Vec<u8> {
        a_box(b"avcC", &[1, 77, 0, 30, 255, 0xe1, 0, 2, 9, 9, 1, 0, 2, 8, 8])
    }

    fn count(bytes: &[u8], name: &[u8; 4]) -> usize {
        bytes.windows(4).filter(|window| window == name).count()
    }

    #[test]
    fn only_the_first_h264_track_is_left() {
        let tracks = [
            a_track(b"soun", b"mp4a"),
            a_track(b"vide", b"hvc1"),
            a_track(b"vide", b"avc1"),
            a_track(b"vide", b"avc1"),
            a_box(b"udta", &a_box(b"meta", &[0; 9])),
        ];
        let mut file = [a_box(b"moov", &tracks.concat()), a_box(b"uuid", b"?")].concat();
        let length = file.len();
        assert_eq!(reduce(&mut file), Ok(()));
        assert_eq!((file.len(), count(&file, b"trak"), count(&file, b"free")), (length, 1, 5));
        assert!(count(&file, b"udta") + count(&file, b"uuid") == 0);
    }

    #[test]
    fn other_videos_are_named() {
        let refused = |mut file: Vec<u8>| reduce(&mut file).unwrap_err();
        let hevc = a_box(b"moov", &a_track(b"vide", b"hvc1"));
        assert!(refused(hevc).contains("\"hvc1\""));
        assert!(refused(a_box(b"moov", &a_track(b"soun", b"mp4a"))).contains("no video"));
        let pieces = [a_box(b"moov", b""), a_box(b"moof", b"")].concat();
        assert!(refused(pieces).contains("fragmented"));
        let track = a_box(b"moov", &a_track(b"vide", b"avc1"));
        assert!(refused([track, a_box(b"moof", b"")].concat()).contains("fragmented"));
    }

    #[test]
    fn boxes_must_lie_in_their_parents() {
        let good = a_box(b"moov", &a_track(b"vide", b"avc1"));
        assert_eq!(reduce(&mut good.clone()), Ok(()));
        assert!(reduce(&mut good[..good.len() - 1].to_vec()).is_err());
        assert!(reduce(&mut b"abc".to_vec()).is_err());
        // Every size on the way, too small (zero is walked for ever) and too large.
        for name in [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1", b"avcC"] {
            let at = good.windows(4).position(|window| window == name).unwrap() - 4;
            for size in [0, 1, 7, u32::MAX] {
                let mut bad = good.clone();
                bad[at..at + 4].copy_from_slice(&u32::to_be_bytes(size));
                // A whole file in a box of open size is as good as before.
                let expected = (name, size) == (b"moov", 0);
                assert_eq!(reduce(&mut bad).is_ok(), expected, "{name:?} {size}");
            }
        }
    }

    #[test]
    fn tables_must_speak_of_the_same_samples() {
        let file = |tables: &[Vec<u8>], parameters: &[u8]| {
            let mut file = a_box(b"moov", &a_track_of(b"vide", b"avc1", parameters, tables));
            reduce(&mut file)
        };
        assert_eq!(file(&tables(), &parameters()), Ok(()));
        for (place, numbers) in [
            (0, &[0, 1, 2, 2][..]),         // too few
            (0, &[0, 1, 3, 9]),             // longer than the track
            (0, &[0, 2, 0, 1, 3, 2]),       // an empty row
            (1, &[0, 1, 1, 1]),             // two chunks of one
            (1, &[0, 1, 2, 2, 1]),          // not from the first on
            (1, &[0, 2, 1, 2, 1, 1, 1, 1]), // out of order
            (1, &[0, 0]),                   // none
            (3, &[0, 1, 40]),               // a chunk without a place
            (4, &[0, 1, 0]),                // counted from zero
        ] {
            let mut tables = tables();
            let name: [u8; 4] = *tables[place][4..].first_chunk().unwrap();
            tables[place] = a_table(&name, numbers);
            assert!(file(&tables, &parameters()).is_err(), "{place} {numbers:?}");
        }
        for length in 8..parameters().len() {
            let mut short = parameters()[..length].to_vec();
            short[3] = length as u8;
            assert!(file(&tables(), &short).is_err(), "{length}");
        }
        for absent in 0..4 {
            let mut tables = tables().to_vec();
            tables.remove(absent);
            assert!(file(&tables, &parameters()).is_err(), "{absent}");
        }
    }
}
