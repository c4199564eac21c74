//! The video track of an MP4, read from the header.

use crate::{
    aspect::PixelAspect,
    boxes::{self, Name, Numbers, boxes, find, need},
    edits,
    orientation::Orientation,
    refusal::Refusal,
    sps::Colour,
    tables::{self, Sample},
};
use std::{
    io::{Read, Seek},
    ops::Range,
};

/// The first video track of a file.
#[derive(Debug)]
pub(crate) struct Track {
    /// Ticks per second.
    pub(crate) timescale: u32,
    /// Samples in decoding order.
    pub(crate) samples: Vec<Sample>,
    /// Parameter sets of H.264 as NAL units.
    pub(crate) parameters: Vec<Vec<u8>>,
    /// Size in bytes of the length before a NAL unit.
    pub(crate) length_size: usize,
    /// Times of the shown frames in ticks of the track.
    pub(crate) window: Range<i64>,
    /// Orientation of stored frames.
    pub(crate) orientation: Orientation,
    /// Pixel aspect of stored frames, if the container states it.
    pub(crate) aspect: Option<PixelAspect>,
    /// Colour description, if the container states it.
    pub(crate) colour: Option<Colour>,
}

impl Track {
    /// Reads the header of a file of `length` bytes.
    pub(crate) fn read(file: &mut (impl Read + Seek), length: u64) -> Result<Self, Refusal> {
        let moov = boxes::read_header(file, length)?;
        let movie = Movie::read(&moov)?;
        let trak = first_video(&moov)?;
        let mdia = need(trak, &[b"mdia"])?;
        let stbl = need(mdia, &[b"minf", b"stbl"])?;
        let entry = Entry::read(need(stbl, &[b"stsd"])?)?;

        let mdhd = need(mdia, &[b"mdhd"])?;
        let timescale = mdhd.u32_at(if mdhd.first() == Some(&1) { 20 } else { 12 });
        let timescale = timescale.filter(|&ticks| ticks > 0).ok_or_else(|| {
            Refusal::unusable("damaged: its track (box 'mdhd') has no ticks per second")
        })?;
        let header = Header::read(need(trak, &[b"tkhd"])?, movie.matrix);
        let edits = match find(trak, b"edts")? {
            Some(edts) => find(edts, b"elst")?,
            None => None,
        };
        let window = edits::window(edits.unwrap_or_default(), timescale, movie.timescale)?;
        let [width, height] = entry.size;
        let scaled = || header.aspect(width.into(), height.into());
        Ok(Self {
            timescale,
            samples: tables::samples(stbl, length)?,
            parameters: entry.parameters,
            length_size: entry.length_size,
            window,
            orientation: Orientation::of_matrix(header.matrix),
            aspect: entry.aspect.or_else(scaled),
            colour: entry.colour,
        })
    }
}

/// Properties of the movie, common to all tracks.
struct Movie {
    timescale: u32,
    matrix: [i32; 4],
}

impl Movie {
    fn read(moov: &[u8]) -> Result<Self, Refusal> {
        if find(moov, b"cmov")?.is_some() {
            return Err(Refusal::unsupported("a compressed MP4 header"));
        }
        let mvhd = need(moov, &[b"mvhd"])?;
        let (timescale, at) = if mvhd.first() == Some(&1) { (20, 48) } else { (12, 36) };
        Ok(Self {
            timescale: mvhd.u32_at(timescale).unwrap_or_default(),
            matrix: matrix(mvhd, at).unwrap_or([ONE, 0, 0, ONE]),
        })
    }
}

/// 1 in 16.16.
const ONE: i32 = 1 << 16;

/// Returns the elements `a, b, c, d` of a matrix (six numbers of 16.16, three of 2.30).
fn matrix(content: &[u8], at: usize) -> Option<[i32; 4]> {
    let factor = |place: usize| content.u32_at(at + 4 * place).map(u32::cast_signed);
    Some([factor(0)?, factor(1)?, factor(3)?, factor(4)?])
}

/// The header of a track (`tkhd`).
struct Header {
    /// Product of the matrices of track and movie.
    matrix: [i32; 4],
    /// Width and height in whole pixels.
    size: [u64; 2],
}

impl Header {
    fn read(tkhd: &[u8], [p, q, r, s]: [i32; 4]) -> Self {
        let at = if tkhd.first() == Some(&1) { 52 } else { 40 };
        let [a, b, c, d] = matrix(tkhd, at).unwrap_or([ONE, 0, 0, ONE]);
        // Products are rounded one by one, as in FFmpeg.
        let sum = |(x, y): (i32, i32), (z, w): (i32, i32)| {
            let product = |x: i32, y: i32| (i64::from(x) * i64::from(y)) >> 16;
            let bounds = (i64::from(i32::MIN), i64::from(i32::MAX));
            (product(x, y) + product(z, w)).clamp(bounds.0, bounds.1) as i32
        };
        let matrix =
            [sum((a, p), (b, r)), sum((a, q), (b, s)), sum((c, p), (d, r)), sum((c, q), (d, s))];
        let side = |at: usize| u64::from(tkhd.u32_at(at).unwrap_or_default() >> 16);
        Self { matrix, size: [side(at + 36), side(at + 40)] }
    }

    /// Returns the pixel aspect by the scaling matrix or, without scaling, by the ratio of the track size to the
    /// frame size.
    ///
    /// Source: FFmpeg, `libavformat/mov.c`, `mov_read_tkhd` and `mov_read_trak`.
    fn aspect(&self, width: u64, height: u64) -> Option<PixelAspect> {
        let [a, b, c, d] = self.matrix.map(f64::from);
        let (x, y) = (a.hypot(c), b.hypot(d));
        let range = 1.0..f64::from(1 << 24);
        if range.contains(&x) && range.contains(&y) && (x / y - 1.0).abs() > 0.01 {
            return PixelAspect::stated(x.round() as u64, y.round() as u64);
        }
        let [track_width, track_height] = self.size;
        if self.size == [width, height] {
            return None;
        }
        PixelAspect::stated(height * track_width, width * track_height)
    }
}

/// Returns the content of the track that `ffmpeg` and OpenCV use: the first video track that is not a chapter
/// track.
fn first_video(moov: &[u8]) -> Result<&[u8], Refusal> {
    let mut traks = Vec::new();
    let mut chapters = Vec::new();
    for found in boxes(moov) {
        let (name, trak) = found?;
        if name == *b"trak" {
            traks.push(trak);
            if let Some(references) = find(trak, b"tref")?
                && let Some(ids) = find(references, b"chap")?
            {
                chapters.extend(ids.as_chunks::<4>().0.iter().map(|id| u32::from_be_bytes(*id)));
            }
        }
    }
    for trak in traks {
        let tkhd = need(trak, &[b"tkhd"])?;
        let id = tkhd.u32_at(if tkhd.first() == Some(&1) { 20 } else { 12 });
        let handler = need(trak, &[b"mdia", b"hdlr"])?;
        let is_video = handler.get(8..12) == Some(b"vide");
        if is_video && !id.is_some_and(|id| chapters.contains(&id)) {
            return Ok(trak);
        }
    }
    Err(Refusal::unusable("it has no video track"))
}

/// The sample description (`stsd`): how frames are coded.
struct Entry {
    /// Width and height.
    size: [u16; 2],
    parameters: Vec<Vec<u8>>,
    length_size: usize,
    aspect: Option<PixelAspect>,
    colour: Option<Colour>,
}

impl Entry {
    fn read(stsd: &[u8]) -> Result<Self, Refusal> {
        /// Size in bytes of the fields before the inner boxes.
        const BEFORE: usize = 78;
        let damaged = |what: &str| Refusal::unusable(format!("damaged: {what} is cut short"));
        let mut entries = boxes(stsd.get(8..).unwrap_or_default());
        let (name, entry) = entries.next().ok_or_else(|| damaged("its description"))??;
        if !matches!(&name, b"avc1" | b"avc3") {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(Refusal::unsupported(format!("video coded as {name:?}")));
        }
        if stsd.u32_at(4) != Some(1) {
            return Err(Refusal::unsupported("a video whose coding changes on the way"));
        }
        let (Some(width), Some(height)) = (entry.u16_at(24), entry.u16_at(26)) else {
            return Err(damaged("its description"));
        };
        let inside = entry.get(BEFORE..).ok_or_else(|| damaged("its description"))?;
        let avcc = need(inside, &[b"avcC"])?;
        let (parameters, length_size) =
            parameters(avcc).ok_or_else(|| damaged("a parameter set"))?;
        let aspect = find(inside, b"pasp")?
            .and_then(|pasp| PixelAspect::stated(pasp.u32_at(0)?.into(), pasp.u32_at(4)?.into()));
        let colour = find(inside, b"colr")?.and_then(colour);
        Ok(Self { size: [width, height], parameters, length_size, aspect, colour })
    }
}

/// Returns the colour description of a `colr` box that uses the codes of H.264.
fn colour(colr: &[u8]) -> Option<Colour> {
    let kind: &Name = colr.first_chunk()?;
    let full_range = match kind {
        b"nclx" => colr.get(10)? >> 7 == 1,
        b"nclc" => false,
        _ => return None,
    };
    Some(Colour { matrix: u8::try_from(colr.u16_at(8)?).ok()?, full_range })
}

/// Returns the parameter sets of an `avcC` box and the size of a length in bytes.
fn parameters(avcc: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let length_size = usize::from(avcc.get(4)? & 3) + 1;
    let mut sets = Vec::new();
    let mut at = 5;
    // First sequence, then picture parameter sets.
    for mask in [0x1f, 0xff] {
        let count = avcc.get(at)? & mask;
        at += 1;
        for _ in 0..count {
            let length = usize::from(avcc.u16_at(at)?);
            sets.push(avcc.get(at + 2..at + 2 + length)?.to_vec());
            at += 2 + length;
        }
    }
    Some((sets, length_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::make::{a_box, a_table};
    use std::io::Cursor;

    const UPRIGHT: [u32; 9] = [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30];
    /// Counterclockwise.
    const TURNED: [u32; 9] = [0, 0xffff_0000, 0, 1 << 16, 0, 0, 0, 0, 1 << 30];

    /// A description of pictures of 40x30 by a name, with these boxes inside.
    fn entry(name: &Name, inside: &[u8]) -> Vec<u8> {
        let mut fields = [0; 78];
        (fields[25], fields[27]) = (40, 30);
        let entry = a_box(name, &[&fields, inside].concat());
        a_box(b"stsd", &[&[0, 0, 0, 0, 0, 0, 0, 1], entry.as_slice()].concat())
    }

    /// One set of two bytes of each kind.
    fn avcc() -> Vec<u8> {
        a_box(b"avcC", &[1, 77, 0, 30, 255, 0xe1, 0, 2, 9, 9, 1, 0, 2, 8, 8])
    }

    fn track(handler: &Name, id: u32, matrix: [u32; 9], stsd: &[u8], more: &[u8]) -> Vec<u8> {
        let mut numbers = vec![0, 0, 0, id];
        numbers.extend([0; 6]);
        numbers.extend(matrix);
        numbers.extend([40 << 16, 30 << 16]);
        let mdhd = a_table(b"mdhd", &[0, 0, 0, 10, 6, 0]);
        let hdlr = a_box(b"hdlr", &[&[0; 8], handler.as_slice(), &[0; 13]].concat());
        let stbl = [stsd.to_vec(), tables::tests::tables().concat()].concat();
        let minf = a_box(b"minf", &a_box(b"stbl", &stbl));
        let mdia = a_box(b"mdia", &[mdhd, hdlr, minf].concat());
        a_box(b"trak", &[a_table(b"tkhd", &numbers), more.to_vec(), mdia].concat())
    }

    fn avc1(inside: &[u8]) -> Vec<u8> {
        entry(b"avc1", &[avcc().as_slice(), inside].concat())
    }

    fn read(matrix: [u32; 9], tracks: &[Vec<u8>]) -> Result<Track, Refusal> {
        let mut numbers = vec![0, 0, 0, 1000, 600, 0, 0, 0, 0];
        numbers.extend(matrix);
        let moov = [a_table(b"mvhd", &numbers), tracks.concat()].concat();
        let file = [a_box(b"moov", &moov), a_box(b"mdat", &[0; 99])].concat();
        Track::read(&mut Cursor::new(&file), file.len() as u64)
    }

    #[test]
    fn a_track_is_read() {
        let track = read(UPRIGHT, &[track(b"vide", 1, UPRIGHT, &avc1(b""), b"")]).unwrap();
        assert_eq!((track.timescale, track.samples.len(), track.length_size), (10, 3, 4));
        assert_eq!(track.parameters, [[9, 9], [8, 8]]);
        assert!(track.orientation.is_as_stored() && track.aspect.is_none());
        assert_eq!((track.window, track.colour), (i64::MIN..i64::MAX, None));
    }

    #[test]
    fn the_first_video_track_counts() {
        let video = |id| track(b"vide", id, UPRIGHT, &avc1(b""), b"");
        let sound = track(b"soun", 1, UPRIGHT, &entry(b"mp4a", b""), b"");
        let chapters = a_box(b"tref", &a_table(b"chap", &[2]));
        let with_chapters = track(b"soun", 1, UPRIGHT, &entry(b"mp4a", b""), &chapters);
        let hevc = track(b"vide", 2, UPRIGHT, &entry(b"hvc1", b""), b"");
        assert!(read(UPRIGHT, &[sound.clone(), video(2), hevc.clone()]).is_ok());
        // Pictures of chapters are no video.
        assert!(read(UPRIGHT, &[with_chapters, hevc.clone(), video(3)]).is_ok());
        let refused = read(UPRIGHT, &[hevc, video(3)]).unwrap_err();
        assert!(matches!(&refused, Refusal::Unsupported(found) if found.contains("hvc1")));
        let refused = read(UPRIGHT, &[sound]).unwrap_err().to_string();
        assert!(refused.contains("no video track"), "{refused}");
    }

    #[test]
    fn turns_of_the_track_and_the_movie_add_up() {
        let turned = |movie, track_matrix| {
            let tracks = [track(b"vide", 1, track_matrix, &avc1(b""), b"")];
            read(movie, &tracks).unwrap().orientation
        };
        assert_eq!(turned(UPRIGHT, TURNED), turned(TURNED, UPRIGHT));
        let expected = Orientation { transposed: true, mirrored_x: false, mirrored_y: true };
        assert_eq!(turned(UPRIGHT, TURNED), expected);
        let half_turn = Orientation { transposed: false, mirrored_x: true, mirrored_y: true };
        assert_eq!(turned(TURNED, TURNED), half_turn);
    }

    #[test]
    fn pixels_may_be_stated_to_be_wide() {
        let pasp = a_box(b"pasp", &[0, 0, 0, 4, 0, 0, 0, 3]);
        let wide = |matrix, inside: &[u8]| {
            let tracks = [track(b"vide", 1, matrix, &avc1(inside), b"")];
            read(UPRIGHT, &tracks).unwrap().aspect
        };
        assert_eq!(wide(UPRIGHT, &pasp), PixelAspect::stated(4, 3));
        let mut matrix = UPRIGHT;
        matrix[0] *= 2;
        assert_eq!(wide(matrix, b""), PixelAspect::stated(2, 1));
        assert_eq!(wide(matrix, &pasp), PixelAspect::stated(4, 3));
        let header = Header { matrix: [ONE, 0, 0, ONE], size: [80, 30] };
        assert_eq!(header.aspect(40, 30), PixelAspect::stated(2, 1));
    }

    #[test]
    fn colours_may_be_stated_in_the_container() {
        let colr = |content: &[u8]| {
            let tracks = [track(b"vide", 1, UPRIGHT, &avc1(&a_box(b"colr", content)), b"")];
            read(UPRIGHT, &tracks).unwrap().colour
        };
        let expected = |full_range| Some(Colour { matrix: 9, full_range });
        assert_eq!(colr(b"nclx\0\x09\0\x10\0\x09\x80"), expected(true));
        assert_eq!(colr(b"nclx\0\x09\0\x10\0\x09\0"), expected(false));
        assert_eq!(colr(b"nclc\0\x09\0\x10\0\x09"), expected(false));
        assert_eq!(colr(b"prof\0\x09\0\x10\0\x09"), None);
    }

    #[test]
    fn parameter_sets_are_whole() {
        let whole = &avcc()[8..];
        for length in 0..whole.len() {
            assert!(parameters(&whole[..length]).is_none(), "{length}");
            let short = entry(b"avc1", &a_box(b"avcC", &whole[..length]));
            assert!(read(UPRIGHT, &[track(b"vide", 1, UPRIGHT, &short, b"")]).is_err());
        }
        let two = {
            let mut stsd = avc1(b"");
            stsd[15] = 2;
            stsd
        };
        let refused = read(UPRIGHT, &[track(b"vide", 1, UPRIGHT, &two, b"")]).unwrap_err();
        assert!(matches!(refused, Refusal::Unsupported(_)));
    }
}
