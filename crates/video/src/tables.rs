//! The sample tables of an MP4 track (ISO/IEC 14496-12, 8.6 and 8.7).

use crate::{
    boxes::{Numbers, find, need},
    refusal::Refusal,
};

/// Maximum number of samples of a track, more than a day of video.
const MAX_SAMPLES: u32 = 1 << 22;
/// Minimum size of a sample in bytes: a length and a NAL unit of one byte. (A table of samples of equal size has
/// no entries, so that its count is checked against the file.)
const LEAST_BYTES: u64 = 2;

/// A coded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Size in bytes.
    pub(crate) size: u32,
    /// Ticks until the next sample is decoded.
    pub(crate) ticks: u32,
    /// Display time in ticks of the track, before edits.
    pub(crate) shown: i64,
    /// True if the container marks a key frame.
    pub(crate) is_key: bool,
}

/// A table: version, flags, count, and rows of equal size.
#[derive(Clone, Copy)]
struct Table<'a> {
    rows: &'a [u8],
    bytes: usize,
}

impl<'a> Table<'a> {
    /// Reads a table of `stbl`; `None` if it is absent.
    fn find(stbl: &'a [u8], name: &[u8; 4], bytes: usize) -> Result<Option<Self>, Refusal> {
        let Some(content) = find(stbl, name)? else { return Ok(None) };
        let rows = content.u32_at(4).and_then(|count| {
            let length = (count as usize).checked_mul(bytes)?;
            content.get(8..)?.get(..length)
        });
        match rows {
            Some(rows) => Ok(Some(Self { rows, bytes })),
            None => {
                let name = String::from_utf8_lossy(name);
                let words = format!("damaged: table '{name}' declares more entries than it has");
                Err(Refusal::unusable(words))
            }
        }
    }

    fn need(stbl: &'a [u8], name: &[u8; 4], bytes: usize) -> Result<Self, Refusal> {
        Self::find(stbl, name, bytes)?.ok_or_else(|| not_covered(name))
    }

    /// Iterates over the numbers of each row.
    fn numbers<const N: usize>(self) -> impl Iterator<Item = [u32; N]> + use<'a, N> {
        let rows = self.rows.chunks_exact(self.bytes);
        rows.map(move |row| {
            std::array::from_fn(|column| row.u32_at(4 * column).unwrap_or_default())
        })
    }

    fn len(self) -> usize {
        self.rows.len() / self.bytes
    }
}

fn not_covered(name: &[u8; 4]) -> Refusal {
    let name = String::from_utf8_lossy(name);
    Refusal::unusable(format!("damaged: table '{name}' does not cover all samples"))
}

/// Reads the samples of a track, in decoding order, from its `stbl` in a file of `length` bytes.
/// Every sample is inside the file, and all samples together are not larger than the file.
pub(crate) fn samples(stbl: &[u8], length: u64) -> Result<Vec<Sample>, Refusal> {
    let sizes = sizes(stbl, length)?;
    let mut samples = Vec::new();
    let mut times = Times::new(stbl)?;
    let mut places = Places::new(stbl)?;
    for size in sizes {
        let (ticks, shown) = times.next()?;
        let offset = places.next(size)?;
        if offset.checked_add(size.into()).is_none_or(|end| end > length) {
            let index = samples.len();
            let words = format!("truncated: sample {index} lies behind the end of the file");
            return Err(Refusal::unusable(words));
        }
        samples.push(Sample { offset, size, ticks, shown, is_key: false });
    }
    if samples.iter().map(|sample| u64::from(sample.size)).sum::<u64>() > length {
        return Err(Refusal::unusable("damaged: its samples overlap"));
    }
    match Table::find(stbl, b"stss", 4)? {
        // Without this table, each sample is a key frame.
        None => samples.iter_mut().for_each(|sample| sample.is_key = true),
        Some(keys) => {
            for [number] in keys.numbers() {
                let index = (number as usize).checked_sub(1);
                let sample = index.and_then(|index| samples.get_mut(index));
                if let Some(sample) = sample {
                    sample.is_key = true;
                }
            }
        }
    }
    // Empty samples contain no frames.
    samples.retain(|sample| sample.size > 0);
    Ok(samples)
}

/// Returns the sizes of all samples in bytes. `length` is that of the file: samples of a larger total
/// are rejected.
fn sizes(stbl: &[u8], length: u64) -> Result<Vec<u32>, Refusal> {
    let content = need(stbl, &[b"stsz"])?;
    let (Some(size), Some(count)) = (content.u32_at(4), content.u32_at(8)) else {
        return Err(not_covered(b"stsz"));
    };
    if count > MAX_SAMPLES {
        let found = format!("{count} samples in a track (at most {MAX_SAMPLES} are read)");
        return Err(Refusal::unsupported(found));
    }
    if size != 0 {
        let least = u64::from(count).saturating_mul(LEAST_BYTES.max(size.into()));
        return match least <= length {
            true => Ok(vec![size; count as usize]),
            false => Err(Refusal::unusable("damaged: its samples are larger than the file")),
        };
    }
    let rows = content.get(12..).and_then(|rows| rows.get(..4 * count as usize));
    let rows = rows.ok_or_else(|| {
        Refusal::unusable("damaged: table 'stsz' declares more entries than it has")
    })?;
    Ok(rows.as_chunks::<4>().0.iter().map(|size| u32::from_be_bytes(*size)).collect())
}

/// A run-length encoded table: counts and values.
struct Runs<I> {
    rows: I,
    left: u32,
    value: u32,
}

impl<I: Iterator<Item = [u32; 2]>> Runs<I> {
    fn new(rows: I) -> Self {
        Self { rows, left: 0, value: 0 }
    }

    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            [self.left, self.value] = self.rows.next()?;
        }
        self.left -= 1;
        Some(self.value)
    }
}

/// Decoding and display times of samples.
struct Times<I> {
    ticks: Runs<I>,
    shifts: Option<Runs<I>>,
    decoded: i64,
}

impl Times<()> {
    fn new(stbl: &[u8]) -> Result<Times<impl Iterator<Item = [u32; 2]>>, Refusal> {
        let ticks = Runs::new(Table::need(stbl, b"stts", 8)?.numbers());
        let shifts = Table::find(stbl, b"ctts", 8)?.map(|table| Runs::new(table.numbers()));
        Ok(Times { ticks, shifts, decoded: 0 })
    }
}

impl<I: Iterator<Item = [u32; 2]>> Times<I> {
    /// Returns the ticks until the next sample is decoded, and the display time of this sample.
    fn next(&mut self) -> Result<(u32, i64), Refusal> {
        let ticks = self.ticks.next().ok_or_else(|| not_covered(b"stts"))?;
        let shift = match &mut self.shifts {
            // Signed in version 1, and in files that state version 0 against the standard.
            Some(shifts) => shifts.next().ok_or_else(|| not_covered(b"ctts"))?.cast_signed(),
            None => 0,
        };
        // No overflow: at most 2^22 samples of 2^32 ticks.
        let shown = self.decoded + i64::from(shift);
        self.decoded += i64::from(ticks);
        Ok((ticks, shown))
    }
}

/// Offsets of samples.
struct Places<C, R: Iterator> {
    /// Offsets of chunks.
    chunks: C,
    /// Runs of chunks: number of the first chunk (from 1) and samples per chunk.
    runs: std::iter::Peekable<R>,
    in_each: u32,
    /// Samples left in the chunk.
    left: u32,
    /// Offset of the next sample.
    at: u64,
    /// Number of the chunk.
    chunk: u32,
}

impl Places<(), std::iter::Empty<()>> {
    fn new(
        stbl: &[u8],
    ) -> Result<Places<impl Iterator<Item = u64>, impl Iterator<Item = [u32; 3]>>, Refusal> {
        let (table, is_long) = match Table::find(stbl, b"stco", 4)? {
            Some(table) => (table, false),
            None => (Table::need(stbl, b"co64", 8)?, true),
        };
        let count = table.len();
        let chunks = (0..count).filter_map(move |index| match is_long {
            false => table.rows.u32_at(4 * index).map(u64::from),
            true => table.rows.u64_at(8 * index),
        });
        let runs = Table::need(stbl, b"stsc", 12)?.numbers().peekable();
        Ok(Places { chunks, runs, in_each: 0, left: 0, at: 0, chunk: 0 })
    }
}

impl<C: Iterator<Item = u64>, R: Iterator<Item = [u32; 3]>> Places<C, R> {
    /// Returns the offset of the next sample, which has `size` bytes.
    fn next(&mut self, size: u32) -> Result<u64, Refusal> {
        while self.left == 0 {
            self.at = self.chunks.next().ok_or_else(|| not_covered(b"stsc"))?;
            self.chunk += 1;
            if let Some([_, in_each, _]) = self.runs.next_if(|[first, ..]| *first == self.chunk) {
                self.in_each = in_each;
            }
            if self.runs.peek().is_some_and(|[first, ..]| *first <= self.chunk) {
                return Err(Refusal::unusable("damaged: table 'stsc' is out of order"));
            }
            self.left = self.in_each;
        }
        self.left -= 1;
        let at = self.at;
        self.at = self.at.saturating_add(size.into());
        Ok(at)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::boxes::make::a_table;

    /// Three samples of three bytes in two chunks, two ticks each, the last two in reverse order.
    pub(crate) fn tables() -> Vec<Vec<u8>> {
        vec![
            a_table(b"stts", &[0, 1, 3, 2]),
            a_table(b"stsc", &[0, 2, 1, 2, 1, 2, 1, 1]),
            a_table(b"stsz", &[0, 0, 3, 3, 3, 3]),
            a_table(b"stco", &[0, 2, 40, 60]),
            a_table(b"stss", &[0, 1, 1]),
            a_table(b"ctts", &[0, 3, 1, 0, 1, 2, 1, (-2i32).cast_unsigned()]),
        ]
    }

    fn read(tables: &[Vec<u8>]) -> Result<Vec<Sample>, Refusal> {
        samples(&tables.concat(), 100)
    }

    #[test]
    fn samples_come_out_of_their_tables() {
        let sample = |offset, shown, is_key| Sample { offset, size: 3, ticks: 2, shown, is_key };
        let expected = [sample(40, 0, true), sample(43, 4, false), sample(60, 2, false)];
        assert_eq!(read(&tables()).unwrap(), expected);
        // Without key frames and shifts, of one size, with long offsets, and an empty one.
        let mut other = tables()[..2].to_vec();
        other.push(a_table(b"stsz", &[0, 3, 3]));
        other.push(a_table(b"co64", &[0, 2, 0, 40, 0, 60]));
        let found = read(&other).unwrap();
        assert!(found.iter().all(|sample| sample.is_key));
        assert_eq!(found.iter().map(|sample| sample.shown).collect::<Vec<_>>(), [0, 2, 4]);
        other[2] = a_table(b"stsz", &[0, 0, 3, 3, 0, 3]);
        assert_eq!(read(&other).unwrap().len(), 2);
    }

    #[test]
    fn tables_cover_all_samples() {
        for (place, numbers) in [
            (0, &[0, 1, 2, 2][..]),         // too few
            (0, &[0, 9, 3, 2]),             // more rows than there are
            (1, &[0, 1, 1, 1]),             // two chunks of one
            (1, &[0, 1, 2, 2, 1]),          // not from the first on
            (1, &[0, 2, 1, 2, 1, 1, 1, 1]), // out of order
            (1, &[0, 0]),                   // none
            (2, &[0, 0, 4, 3, 3, 3]),       // more sizes than there are
            (2, &[0, 0, u32::MAX]),         // far more
            (2, &[0, 50, 3]),               // larger than the file
            (2, &[0, 1, 1 << 22]),          // as many as the file has no bytes for
            (2, &[0, 0, 3, 3, 3, 50]),      // one behind the end
            (3, &[0, 1, 40]),               // a chunk without a place
            (3, &[0, 2, 40, u32::MAX]),     // behind the end
            (5, &[0, 1, 1, 0]),             // too few
            (5, &[0, u32::MAX, 1, 0]),      // more rows than there are
        ] {
            let mut tables = tables();
            let name: [u8; 4] = *tables[place][4..].first_chunk().unwrap();
            tables[place] = a_table(&name, numbers);
            let refused = read(&tables).unwrap_err();
            let many = place == 2 && numbers[2] == u32::MAX;
            assert_eq!(matches!(refused, Refusal::Unsupported(_)), many, "{place} {numbers:?}");
        }
        for absent in 0..4 {
            let mut tables = tables();
            tables.remove(absent);
            assert!(read(&tables).is_err(), "{absent}");
        }
        // Indices of missing samples are ignored.
        let mut keys = tables();
        keys[4] = a_table(b"stss", &[0, 3, 0, 2, 9]);
        assert!(read(&keys).unwrap()[1].is_key);
        // One place for all: 3 * 40 bytes of 100.
        let mut overlapping = tables();
        overlapping[1] = a_table(b"stsc", &[0, 1, 1, 1, 1]);
        overlapping[2] = a_table(b"stsz", &[0, 0, 3, 40, 40, 40]);
        overlapping[3] = a_table(b"stco", &[0, 3, 50, 50, 50]);
        assert!(read(&overlapping).unwrap_err().to_string().contains("overlap"));
    }
}
