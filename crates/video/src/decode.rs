//! Decoders of video streams, behind one interface.
//!
//! A container hands over a stream's parameter sets and its samples in decoding order; a decoder
//! gives pictures in display order. The one here is pure Rust and young: all that others know of
//! it is [`Decode`].

use crate::{
    color::{Matrix, Planes},
    frames::MAX_SIDE,
    sps::{self, Sps},
};
use rusty_h264::{Decoder, YuvFrame};

/// A decoder of one stream.
pub(crate) trait Decode {
    /// Takes the next sample in decoding order and gives the pictures that can be shown by now.
    fn sample(&mut self, bytes: &[u8]) -> Result<Vec<Picture>, String>;

    /// Gives the pictures that are left after the last sample.
    fn finish(&mut self) -> Vec<Picture>;
}

/// A decoded picture, and how its colours are coded.
pub(crate) struct Picture {
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
    /// Pictures whose turn has not come, with their places in display order.
    waiting: Vec<(i32, Picture)>,
}

/// Most pictures that may wait for one that is decoded later: H.264 has no larger buffer (A.3.1).
const MOST_WAITING: usize = 16;

impl H264 {
    /// Starts with the parameter sets of the container.
    pub(crate) fn new<'a>(
        parameters: impl Iterator<Item = &'a [u8]>,
        length_size: usize,
    ) -> Result<Self, String> {
        let mut it = Self { decoder: Decoder::new(), length_size, stated: None, waiting: vec![] };
        let mut stream = Vec::new();
        for nal in parameters {
            it.append(nal, &mut stream)?;
        }
        it.decode(&stream)?;
        Ok(it)
    }

    /// Adds a NAL unit to a stream with start codes.
    fn append(&mut self, nal: &[u8], stream: &mut Vec<u8>) -> Result<(), String> {
        // The decoder would take what follows a start code as another unit, unseen by the checks.
        if nal.windows(3).any(|bytes| bytes == [0, 0, 1]) {
            return Err("damaged: a start code inside a NAL unit".into());
        }
        if nal.first().is_some_and(|header| header & 0x1f == sps::NAL_TYPE) {
            self.state(&Sps::parse(nal)?)?;
        }
        stream.extend([0, 0, 0, 1]);
        stream.extend(nal);
        Ok(())
    }

    /// Notes size and colours; they must not change.
    fn state(&mut self, sps: &Sps) -> Result<(), String> {
        let &Sps { width, height, colour, .. } = sps;
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(format!("its pictures are {height}x{width}, sides are at most {MAX_SIDE}"));
        }
        let matrix = Matrix::stated(colour).ok_or_else(|| {
            format!("its colours are coded in a way that is not known: {colour:?}")
        })?;
        match self.stated {
            Some((w, h, _)) if (w, h) != (width, height) => {
                Err(format!("its size changes from {h}x{w} to {height}x{width}"))
            }
            _ => {
                self.stated = Some((width, height, matrix));
                Ok(())
            }
        }
    }

    /// Decodes a piece of a stream with start codes.
    fn decode(&mut self, stream: &[u8]) -> Result<Vec<Picture>, String> {
        let mut shown = Vec::new();
        for unit in units(stream) {
            if is_key(unit) {
                shown.extend(self.finish());
            }
            let decoded = self.decoder.decode(unit).map_err(|error| error.to_string())?;
            let Some(YuvFrame { width, height, y, u, v }) = decoded else { continue };
            let (w, h, matrix) = self.stated.ok_or("a picture before its parameter set")?;
            let chroma = (height / 2) * (width / 2);
            let whole = y.len() == height * width && u.len() == chroma && v.len() == chroma;
            if (width, height) != (w, h) || !whole {
                return Err(format!("a picture of {height}x{width} in a stream of {h}x{w}"));
            }
            let planes = Planes { width, height, y, u, v };
            self.waiting.push((self.decoder.last_poc(), Picture { planes, matrix }));
            if self.waiting.len() > MOST_WAITING {
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
    fn sample(&mut self, mut bytes: &[u8]) -> Result<Vec<Picture>, String> {
        let mut stream = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            let (length, rest) = bytes
                .split_at_checked(self.length_size)
                .ok_or("truncated: a NAL unit without length")?;
            let length = length.iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
            let (nal, rest) =
                rest.split_at_checked(length).ok_or("truncated: a NAL unit is cut")?;
            self.append(nal, &mut stream)?;
            bytes = rest;
        }
        self.decode(&stream)
    }

    fn finish(&mut self) -> Vec<Picture> {
        // Stable: equal places keep the order of decoding.
        self.waiting.sort_by_key(|(place, _)| *place);
        self.waiting.drain(..).map(|(_, picture)| picture).collect()
    }
}

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
        let is_slice = stream.get(start + 4).is_some_and(|header| matches!(header & 0x1f, 1 | 5));
        if is_slice || end == stream.len() {
            units.extend(stream.get(begin..end));
            begin = end;
        }
    }
    units
}

/// Whether a unit holds a slice of a picture that starts anew (NAL type 5).
fn is_key(unit: &[u8]) -> bool {
    unit.windows(4).any(|bytes| bytes[..3] == [0, 0, 1] && bytes[3] & 0x1f == 5)
}
