//! Decoders of video streams, behind one interface.
//!
//! A container hands over a stream's parameter sets and its samples in decoding order; a decoder
//! gives pictures in display order. The one here is pure Rust and young: all that others know of
//! it is [`Decode`].

use crate::{
    aspect::PixelAspect,
    color::{Matrix, Planes},
    frames::MAX_SIDE,
    refusal::Refusal,
    sps::{self, Colour, Sps},
};
use rusty_h264::{DecodeError, Decoder, YuvFrame};

/// A decoder of one stream.
pub(crate) trait Decode {
    /// Takes the next sample in decoding order, which is shown at a time, and gives the pictures that
    /// can be shown by now.
    fn sample(&mut self, bytes: &[u8], time: i64) -> Result<Vec<Picture>, Refusal>;

    /// Gives the pictures that are left after the last sample.
    fn finish(&mut self) -> Vec<Picture>;

    /// Pixel aspect that the stream itself has stated by now.
    fn aspect(&self) -> Option<PixelAspect>;
}

/// A decoded picture, and how its colours are coded.
pub(crate) struct Picture {
    /// The time of its sample.
    pub(crate) time: i64,
    pub(crate) planes: Planes,
    pub(crate) matrix: Matrix,
}

/// H.264 with NAL units behind their lengths, as in an MP4.
pub(crate) struct H264 {
    decoder: Decoder,
    /// Bytes of a length.
    length_size: usize,
    /// Size and colours, once a parameter set has stated them.
    stated: Option<(usize, usize, Matrix)>,
    /// Colours that the container states; the stream's own come first.
    colour: Option<Colour>,
    aspect: Option<PixelAspect>,
    /// Pictures whose turn has not come, with their places in display order.
    waiting: Vec<(i32, Picture)>,
    /// Most of them.
    most_waiting: usize,
}

/// Most pictures that may wait for one that is decoded later: H.264 has no larger buffer (A.3.1).
const MOST_WAITING: usize = 16;
/// Most macroblocks of a picture, and of all pictures in the buffer, at the highest level (6.2, table
/// Few bytes can state large pictures.
const MOST_MACROBLOCKS: usize = 139_264;
const MOST_BUFFERED: usize = 696_320;

impl H264 {
    /// Starts with the parameter sets of the container.
    pub(crate) fn new<'a>(
        parameters: impl Iterator<Item = &'a [u8]>,
        length_size: usize,
        colour: Option<Colour>,
    ) -> Result<Self, Refusal> {
        let mut it = Self {
            decoder: Decoder::new(),
            length_size,
            stated: None,
            colour,
            aspect: None,
            waiting: vec![],
            most_waiting: MOST_WAITING,
        };
        let mut stream = Vec::new();
        for nal in parameters {
            it.append(nal, &mut stream)?;
        }
        it.decode(&stream, 0)?;
        Ok(it)
    }

    /// Adds a NAL unit to a stream with start codes.
    fn append(&mut self, nal: &[u8], stream: &mut Vec<u8>) -> Result<(), Refusal> {
        // The decoder would take what follows a start code as another unit, unseen by the checks.
        if nal.windows(3).any(|bytes| bytes == [0, 0, 1]) {
            return Err(Refusal::unusable("damaged: a start code inside a NAL unit"));
        }
        if nal.first().is_some_and(|header| header & 0x1f == sps::NAL_TYPE) {
            self.state(&Sps::parse(nal)?)?;
        }
        stream.extend([0, 0, 0, 1]);
        stream.extend(nal);
        Ok(())
    }

    /// Notes size and colours; the size must not change.
    fn state(&mut self, sps: &Sps) -> Result<(), Refusal> {
        let &Sps { width, height, colour, aspect, .. } = sps;
        let macroblocks = width.div_ceil(16).saturating_mul(height.div_ceil(16));
        if width > MAX_SIDE || height > MAX_SIDE || macroblocks > MOST_MACROBLOCKS {
            return Err(Refusal::unusable(format!(
                "its pictures are {height}x{width}, larger than H.264 allows at any level"
            )));
        }
        self.most_waiting = MOST_WAITING.min(MOST_BUFFERED / macroblocks.max(1));
        let colour = match (colour, self.colour) {
            (Some(own), Some(container)) if own.matrix == Matrix::UNSTATED => {
                Some(Colour { matrix: container.matrix, ..own })
            }
            (own, container) => own.or(container),
        };
        let matrix = Matrix::stated(colour).ok_or_else(|| {
            let code = colour.map_or(Matrix::UNSTATED, |colour| colour.matrix);
            Refusal::unsupported(format!("colours of matrix {code}"))
        })?;
        self.aspect = aspect;
        match self.stated {
            Some((w, h, _)) if (w, h) != (width, height) => Err(Refusal::unsupported(format!(
                "pictures whose size changes from {h}x{w} to {height}x{width}"
            ))),
            _ => {
                self.stated = Some((width, height, matrix));
                Ok(())
            }
        }
    }

    /// Decodes a piece of a stream with start codes.
    fn decode(&mut self, stream: &[u8], time: i64) -> Result<Vec<Picture>, Refusal> {
        let mut shown = Vec::new();
        for unit in units(stream) {
            if is_key(unit) {
                shown.extend(self.finish());
            }
            let decoded = self.decoder.decode(unit).map_err(refusal)?;
            let Some(YuvFrame { width, height, y, u, v }) = decoded else { continue };
            let (w, h, matrix) = self
                .stated
                .ok_or_else(|| Refusal::unusable("damaged: a picture before its parameter set"))?;
            let chroma = (height / 2) * (width / 2);
            let whole = y.len() == height * width && u.len() == chroma && v.len() == chroma;
            if (width, height) != (w, h) || !whole {
                return Err(Refusal::unusable(format!(
                    "damaged: a picture of {height}x{width} in a stream of {h}x{w}"
                )));
            }
            let planes = Planes { width, height, y, u, v };
            self.waiting.push((self.decoder.last_poc(), Picture { time, planes, matrix }));
            if self.waiting.len() > self.most_waiting {
                // The first of those with the least place: equal ones keep the order of decoding.
                let places = self.waiting.iter().enumerate();
                let first = places.min_by_key(|(_, (place, _))| *place).map_or(0, |(at, _)| at);
                shown.push(self.waiting.remove(first).1);
            }
        }
        Ok(shown)
    }
}

impl Decode for H264 {
    fn sample(&mut self, mut bytes: &[u8], time: i64) -> Result<Vec<Picture>, Refusal> {
        let cut = || Refusal::unusable("truncated: a NAL unit is cut");
        let mut stream = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            let (nal, rest) = first_nal(bytes, self.length_size).ok_or_else(cut)?;
            self.append(nal, &mut stream)?;
            bytes = rest;
        }
        self.decode(&stream, time)
    }

    fn finish(&mut self) -> Vec<Picture> {
        // Stable: equal places keep the order of decoding.
        self.waiting.sort_by_key(|(place, _)| *place);
        self.waiting.drain(..).map(|(_, picture)| picture).collect()
    }

    fn aspect(&self) -> Option<PixelAspect> {
        self.aspect
    }
}

/// What an error of the decoder says about the file. (What it calls unsupported may be damaged as
/// well; the `ffmpeg` program conceals such pictures.)
fn refusal(error: DecodeError) -> Refusal {
    match error {
        DecodeError::Unsupported(what) => Refusal::unsupported(format!("H.264 with {what}")),
        DecodeError::Internal(_) => Refusal::unsupported(format!("H.264 ({error})")),
        _ => Refusal::unusable(Damaged(error)),
    }
}

/// A stream that the decoder rejects.
#[derive(Debug, thiserror::Error)]
#[error("damaged")]
struct Damaged(#[source] DecodeError);

/// The first NAL unit of a sample, behind a length of so many bytes, and the rest.
fn first_nal(sample: &[u8], length_size: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = sample.split_at_checked(length_size)?;
    rest.split_at_checked(length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
}

/// Returns true if a sample begins anew: nothing after it needs what was decoded before.
pub(crate) fn begins_anew(mut sample: &[u8], length_size: usize) -> bool {
    while let Some((nal, rest)) = first_nal(sample, length_size) {
        if nal.first().is_some_and(|header| header & 0x1f == KEY) {
            return true;
        }
        sample = rest;
    }
    false
}

/// Type of a NAL unit that holds a slice of a picture that begins anew (IDR).
const KEY: u8 = 5;

/// Cuts a stream with start codes (four bytes each, as [`H264::append`] writes them) behind every
/// slice, which is what the decoder takes at once.
fn units(stream: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = (0..stream.len().saturating_sub(3))
        .filter(|&at| stream[at..at + 4] == [0, 0, 0, 1])
        .collect();
    let mut units = Vec::new();
    let mut begin = 0;
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(stream.len());
        let is_slice = stream.get(start + 4).is_some_and(|header| matches!(header & 0x1f, 1 | KEY));
        if is_slice || end == stream.len() {
            units.extend(stream.get(begin..end));
            begin = end;
        }
    }
    units
}

/// Whether a unit holds a slice of a picture that starts anew (NAL type 5).
fn is_key(unit: &[u8]) -> bool {
    unit.windows(4).any(|bytes| bytes[..3] == [0, 0, 1] && bytes[3] & 0x1f == KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_no_larger_than_a_level_allows() {
        let waiting = |columns, rows| {
            let mut decoder = H264::new(std::iter::empty(), 4, None)?;
            decoder.state(&Sps::parse(&sps::tests::example_of(columns, rows))?)?;
            Ok::<_, Refusal>(decoder.most_waiting)
        };
        // 320x240, 3840x2160 and 8192x4320.
        assert_eq!(
            [(20, 15), (240, 135), (512, 270)].map(|(w, h)| waiting(w, h).unwrap()),
            [16, 16, 5]
        );
        for (columns, rows) in [(512, 273), (1025, 1), (1, 1025), (1 << 20, 1 << 11)] {
            let refused = waiting(columns, rows).unwrap_err();
            assert!(matches!(refused, Refusal::Unusable(_)), "{refused}");
        }
    }

    #[test]
    fn samples_begin_anew_with_an_idr_picture() {
        // A delimiter and a slice, behind lengths of two bytes.
        let sample = |kind: u8| [0, 2, 9, 16, 0, 1, kind];
        assert!(begins_anew(&sample(0x65), 2) && !begins_anew(&sample(0x41), 2));
        assert!(!begins_anew(&sample(0x65), 4) && !begins_anew(b"", 2));
        assert!(!begins_anew(&sample(0x65)[..6], 2));
    }
}
