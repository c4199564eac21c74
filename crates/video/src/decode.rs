//! The interface of video decoders, and the decoder of H.264.
//!
//! A decoder gets the parameter sets and the samples of a stream in decoding order and returns frames in
//! display order. The trait [`Decode`] isolates the library, which is young, from the other modules.

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
    /// Decodes the next sample, which has the display time `time`. Returns the frames that can be displayed.
    fn sample(&mut self, bytes: &[u8], time: i64) -> Result<Vec<Picture>, Refusal>;

    /// Returns the remaining frames after the last sample.
    fn finish(&mut self) -> Vec<Picture>;

    /// Returns the pixel aspect that the stream has stated so far.
    fn aspect(&self) -> Option<PixelAspect>;
}

/// A decoded frame and its colour matrix.
pub(crate) struct Picture {
    /// Display time of the sample.
    pub(crate) time: i64,
    pub(crate) planes: Planes,
    pub(crate) matrix: Matrix,
}

/// A decoder of H.264 with length-prefixed NAL units, as in an MP4.
pub(crate) struct H264 {
    decoder: Decoder,
    /// Bytes of a length.
    length_size: usize,
    /// Size and colour matrix of the last parameter set.
    stated: Option<(usize, usize, Matrix)>,
    /// Colour description of the container, used if the stream has none.
    colour: Option<Colour>,
    aspect: Option<PixelAspect>,
    /// Frames that are not displayed yet, with their picture order counts.
    waiting: Vec<(i32, Picture)>,
    /// Maximum number of waiting frames.
    most_waiting: usize,
}

/// Maximum number of waiting frames: the largest buffer of H.264 (A.3.1).
const MOST_WAITING: usize = 16;
/// Maximum number of macroblocks of a frame at the highest level (6.2, table A-1). A few bytes can declare
/// large frames.
const MOST_MACROBLOCKS: usize = 139_264;
/// Maximum number of macroblocks of all buffered frames at the highest level.
const MOST_BUFFERED: usize = 696_320;

impl H264 {
    /// Creates a decoder with the parameter sets of the container.
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

    /// Appends a NAL unit with a start code to `stream`.
    fn append(&mut self, nal: &[u8], stream: &mut Vec<u8>) -> Result<(), Refusal> {
        // The decoder would read another unit after a start code, which was not checked.
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

    /// Stores size and colours; the size must not change.
    fn state(&mut self, sps: &Sps) -> Result<(), Refusal> {
        let &Sps { width, height, colour, aspect, .. } = sps;
        let macroblocks = width.div_ceil(16).saturating_mul(height.div_ceil(16));
        if width > MAX_SIDE || height > MAX_SIDE || macroblocks > MOST_MACROBLOCKS {
            return Err(Refusal::unusable(format!(
                "its frames have {height}x{width} pixels, more than any level of H.264 allows"
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
                "frames whose size changes from {h}x{w} to {height}x{width}"
            ))),
            _ => {
                self.stated = Some((width, height, matrix));
                Ok(())
            }
        }
    }

    /// Decodes a part of a stream with start codes.
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
                .ok_or_else(|| Refusal::unusable("damaged: a frame before its parameter set"))?;
            let chroma = (height / 2) * (width / 2);
            let whole = y.len() == height * width && u.len() == chroma && v.len() == chroma;
            if (width, height) != (w, h) || !whole {
                return Err(Refusal::unusable(format!(
                    "damaged: a frame of {height}x{width} in a stream of {h}x{w}"
                )));
            }
            let planes = Planes { width, height, y, u, v };
            self.waiting.push((self.decoder.last_poc(), Picture { time, planes, matrix }));
            if self.waiting.len() > self.most_waiting {
                // The first minimum: equal counts keep the decoding order.
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
        // A stable sort: equal counts keep the decoding order.
        self.waiting.sort_by_key(|(place, _)| *place);
        self.waiting.drain(..).map(|(_, picture)| picture).collect()
    }

    fn aspect(&self) -> Option<PixelAspect> {
        self.aspect
    }
}

/// Converts an error of the decoder. A file that the decoder calls unsupported may also be damaged; the
/// `ffmpeg` program conceals such frames.
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

/// Splits a sample into its first NAL unit, which follows a length of `length_size` bytes, and the rest.
fn first_nal(sample: &[u8], length_size: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = sample.split_at_checked(length_size)?;
    rest.split_at_checked(length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
}

/// Returns true if a sample is an IDR picture: later samples do not depend on earlier ones.
pub(crate) fn begins_anew(mut sample: &[u8], length_size: usize) -> bool {
    while let Some((nal, rest)) = first_nal(sample, length_size) {
        if nal.first().is_some_and(|header| header & 0x1f == KEY) {
            return true;
        }
        sample = rest;
    }
    false
}

/// Type of a NAL unit with a slice of an IDR picture.
const KEY: u8 = 5;

/// Splits a stream with start codes of four bytes (as [`H264::append`] writes them) after every slice, because
/// the decoder accepts one slice per call.
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

/// Returns true if a unit contains a slice of an IDR picture (NAL type 5).
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
