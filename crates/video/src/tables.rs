//! The sample tables of an MP4 track, checked before the container reader looks samples up in them.
//!
//! It looks up each sample in all tables without asking whether they have it, and makes room for
//! as many entries as a table declares.

use crate::boxes::find;
use std::ops::Range;

/// Tables that begin with version and flags, four bytes, and a number of entries; bytes of one.
const TABLES: [(&[u8; 4], usize); 6] =
    [(b"stts", 8), (b"ctts", 8), (b"stsc", 12), (b"stco", 4), (b"co64", 8), (b"stss", 4)];

/// Most samples of a track: above a day of video.
const MAX_SAMPLES: u32 = 1 << 22;

/// Whether a table holds as many entries as it declares.
pub(crate) fn check_size(name: &[u8; 4], content: &[u8]) -> Result<(), String> {
    let lying = || {
        let name = String::from_utf8_lossy(name);
        format!("damaged: table '{name}' declares more entries than it has")
    };
    if name == b"stsz" {
        let (size, count) = number(content, 4).zip(number(content, 8)).ok_or_else(lying)?;
        if count > MAX_SAMPLES {
            return Err(format!("it has {count} frames, at most {MAX_SAMPLES} are read"));
        }
        let held = content.len().saturating_sub(12) / 4;
        return if size != 0 || count as usize <= held { Ok(()) } else { Err(lying()) };
    }
    let Some((_, entry)) = TABLES.iter().find(|(table, _)| *table == name) else {
        return Ok(());
    };
    let count = number(content, 4).ok_or_else(lying)? as usize;
    let room = content.len().saturating_sub(8) / entry;
    if count <= room { Ok(()) } else { Err(lying()) }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The rows of a table that begin with a number of entries; none where it is absent.
fn rows<const COLUMNS: usize>(table: Option<&[u8]>) -> impl Iterator<Item = [u64; COLUMNS]> {
    let table = table.unwrap_or_default();
    let count = number(table, 4).unwrap_or(0) as usize;
    let rows = table.get(8..).unwrap_or_default().chunks_exact(4 * COLUMNS).take(count);
    rows.map(|row| std::array::from_fn(|column| number(row, 4 * column).unwrap_or(0).into()))
}

/// Whether the tables of a track's `mdia` speak of the same samples.
pub(crate) fn check_samples(bytes: &[u8], mdia: &Range<usize>) -> Result<(), String> {
    let stbl = find(bytes, mdia, &[b"minf", b"stbl"]).ok_or("damaged: it has no sample tables")?;
    let table = |name: &[u8; 4]| find(bytes, &stbl, &[name]).and_then(|at| bytes.get(at));
    let missing = |name: &str| format!("damaged: table '{name}' does not cover all samples");

    let count = table(b"stsz").and_then(|sizes| number(sizes, 8));
    let count = u64::from(count.ok_or_else(|| missing("stsz"))?);

    // The reader moves on by at most one row a sample: an empty row would leave it behind.
    let (mut covered, mut ticks, mut last) = (0, 0u64, 0);
    for [samples, each] in rows(table(b"stts")) {
        if samples == 0 {
            return Err(missing("stts"));
        }
        covered += samples;
        ticks = ticks.saturating_add(samples.saturating_mul(each));
        last = each;
    }
    if covered < count {
        return Err(missing("stts"));
    }
    // The last sample lasts for what is left of the track.
    let header = find(bytes, mdia, &[b"mdhd"]).and_then(|at| bytes.get(at)).unwrap_or_default();
    let stated = if header.first() == Some(&1) {
        let halves = number(header, 24).zip(number(header, 28));
        halves.map(|(high, low)| u64::from(high) << 32 | u64::from(low))
    } else {
        number(header, 16).map(u64::from)
    };
    if stated.is_none_or(|stated| stated < ticks.saturating_sub(last)) {
        return Err("damaged: its samples last longer than the track".into());
    }

    if let Some(shifts) = table(b"ctts") {
        let mut covered = 0;
        for [samples, _] in rows(Some(shifts)) {
            if samples == 0 {
                return Err(missing("ctts"));
            }
            covered += samples;
        }
        if covered < count {
            return Err(missing("ctts"));
        }
    }
    if rows(table(b"stss")).any(|[sample]| sample == 0) {
        return Err("damaged: table 'stss' counts samples from zero".into());
    }

    // The reader prefers the short places where a track has both tables.
    let places = match table(b"stco") {
        Some(places) => rows::<1>(Some(places)).count(),
        None => rows::<2>(table(b"co64")).count(),
    } as u64;
    // Runs of chunks: the first chunk, and samples in each.
    let mut runs = rows(table(b"stsc")).peekable();
    let (mut held, mut next) = (0u64, 1);
    while let Some([first, samples, _]) = runs.next() {
        if first < next || (next == 1 && first != 1) || samples == 0 {
            return Err("damaged: table 'stsc' is out of order".into());
        }
        let end = runs.peek().map_or(places + 1, |&[first, ..]: &[u64; 3]| first.min(places + 1));
        held = held.saturating_add(end.saturating_sub(first).saturating_mul(samples));
        next = first + 1;
    }
    if held < count { Err(missing("stsc")) } else { Ok(()) }
}

/// Whether the parameter sets of an `avcC` fit into it.
pub(crate) fn check_parameters(content: &[u8]) -> Result<(), String> {
    let sets = |content: &[u8], at: usize, mask: u8| -> Option<usize> {
        let mut end = at + 1;
        for _ in 0..content.get(at)? & mask {
            let length = content.get(end..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
            end += 2 + usize::from(length?);
        }
        (end <= content.len()).then_some(end)
    };
    sets(content, 5, 0x1f)
        .and_then(|end| sets(content, end, 0xff))
        .map(|_| ())
        .ok_or_else(|| "damaged: its parameter sets are cut short".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_must_hold_what_they_declare() {
        let table = |name: &[u8; 4], numbers: &[u32]| {
            let content: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
            check_size(name, &content)
        };
        assert_eq!(table(b"stts", &[0, 2, 0, 0, 0, 0]), Ok(()));
        assert!(table(b"stts", &[0, 3, 0, 0, 0, 0]).is_err());
        assert!(table(b"co64", &[0, u32::MAX]).is_err() && table(b"stco", &[0]).is_err());
        assert_eq!(table(b"stsz", &[0, 100, 1000]), Ok(()));
        assert_eq!(table(b"stsz", &[0, 0, 1, 9]), Ok(()));
        assert!(table(b"stsz", &[0, 0, 1]).is_err() && table(b"stsz", &[0]).is_err());
        assert!(table(b"stsz", &[0, 100, u32::MAX]).is_err());
    }
}
