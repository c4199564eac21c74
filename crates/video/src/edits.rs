//! Edit lists of an MP4: the part of a track that is shown (ISO/IEC 14496-12, 8.6.6).
//!
//! A file that was cut without re-encoding keeps all frames from the key frame before the cut and hides the
//! first of these by an edit. Supported is one edit, after empty edits that delay the video; other lists need
//! the `ffmpeg` program.

use crate::{boxes::Numbers, refusal::Refusal};
use std::ops::Range;

/// Media time of an empty edit.
const EMPTY: i64 = -1;
/// Normal speed as 16.16 fixed point.
const USUAL: u32 = 1 << 16;

/// Returns the range of shown times in ticks of the track, by the content of an `elst` box, which may be empty.
/// `timescale` and `movie` are the ticks per second of the track and of the movie.
pub(crate) fn window(elst: &[u8], timescale: u32, movie: u32) -> Result<Range<i64>, Refusal> {
    if elst.is_empty() {
        return Ok(i64::MIN..i64::MAX);
    }
    let is_long = elst.first() == Some(&1);
    let bytes = if is_long { 20 } else { 12 };
    let rows = elst.u32_at(4).and_then(|count| {
        let length = (count as usize).checked_mul(bytes)?;
        elst.get(8..)?.get(..length)
    });
    let rows = rows.ok_or_else(|| {
        Refusal::unusable("damaged: table 'elst' declares more entries than it has")
    })?;
    let mut shown = None;
    for row in rows.chunks_exact(bytes) {
        let (duration, time, rate) = fields(row, is_long).unwrap_or_default();
        if time == EMPTY && shown.is_none() {
            continue;
        }
        if shown.is_some() || rate != USUAL || time < 0 || duration == 0 || movie == 0 {
            return Err(Refusal::unsupported("an edit list that does more than cut out one part"));
        }
        // Rounded to the nearest tick, as in FFmpeg.
        let (duration, movie) = (u128::from(duration), u128::from(movie));
        let ticks = (2 * duration * u128::from(timescale) + movie) / (2 * movie);
        shown = Some(time..time.saturating_add(i64::try_from(ticks).unwrap_or(i64::MAX)));
    }
    // Only empty edits, which delay the video.
    Ok(shown.unwrap_or(i64::MIN..i64::MAX))
}

/// Returns the duration in ticks of the movie, the time in ticks of the track, and the speed.
fn fields(row: &[u8], is_long: bool) -> Option<(u64, i64, u32)> {
    Some(match is_long {
        true => (row.u64_at(0)?, row.u64_at(8)?.cast_signed(), row.u32_at(16)?),
        false => (row.u32_at(0)?.into(), row.u32_at(4)?.cast_signed().into(), row.u32_at(8)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Range<i64> = i64::MIN..i64::MAX;
    const NOTHING: u32 = u32::MAX;

    /// Of edits in version 0, 600 ticks of the movie and 90,000 of the track in a second.
    fn read(edits: &[[u32; 3]]) -> Result<Range<i64>, Refusal> {
        let numbers = [0, edits.len() as u32].into_iter().chain(edits.iter().flatten().copied());
        window(&numbers.flat_map(u32::to_be_bytes).collect::<Vec<_>>(), 90_000, 600)
    }

    #[test]
    fn one_edit_is_a_window() {
        assert_eq!(window(b"", 1, 1).unwrap(), ALL);
        assert_eq!(read(&[[600, 1024, USUAL]]).unwrap(), 1024..91_024);
        // A delay changes nothing of what is shown, alone it shows all.
        let delay = [300, NOTHING, USUAL];
        assert_eq!(read(&[delay, delay, [1, 7, USUAL]]).unwrap(), 7..157);
        assert_eq!(read(&[delay]).unwrap(), ALL);
        assert_eq!(read(&[]).unwrap(), ALL);
        // A table of version 1.
        let mut long = vec![1, 0, 0, 0, 0, 0, 0, 1];
        long.extend(u64::MAX.to_be_bytes());
        long.extend(5u64.to_be_bytes());
        long.extend(USUAL.to_be_bytes());
        assert_eq!(window(&long, 1, 1).unwrap(), 5..i64::MAX);
        // Rounded to the nearest: 1/600 s are 16.67 ticks.
        assert_eq!(window(&long_of(1), 10_000, 600).unwrap(), 0..17);
    }

    fn long_of(duration: u32) -> Vec<u8> {
        [0, 1, duration, 0, USUAL].iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    #[test]
    fn other_edits_need_the_program() {
        for edits in [
            &[[600, 0, USUAL], [600, 600, USUAL]][..],
            &[[600, 0, USUAL], [600, NOTHING, USUAL]],
            &[[600, 0, 2 * USUAL]],
            &[[600, 0, 0]],
            &[[600, NOTHING - 1, USUAL]],
            &[[0, 0, USUAL]],
        ] {
            assert!(matches!(read(edits), Err(Refusal::Unsupported(_))), "{edits:?}");
        }
        assert!(matches!(window(&[0; 7], 1, 1), Err(Refusal::Unusable(_))));
        let lying = [0, 0, 0, 0, 255, 255, 255, 255, 0, 0];
        assert!(matches!(window(&lying, 1, 1), Err(Refusal::Unusable(_))));
        assert!(matches!(window(&long_of(1), 1, 0), Err(Refusal::Unsupported(_))));
    }
}
