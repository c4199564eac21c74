//! H.264 in MP4.
//!
//! Written for every player: 8-bit 4:2:0, High profile, no B-frames (so that decoding order is
//! display order), header first, colours stated in the stream. 4:2:0 has no odd sides, not even by
//! cropping, which H.264 counts in chroma samples: such clips are refused.
//!
//! Read within bounds: no more than [`MAX_FILE`] bytes of file, [`MAX_DECODED`] bytes of pictures,
//! and only files that are not fragmented. Edit lists are not applied.

use crate::{
    Frames, VideoError, boxes,
    color::{Matrix, Planes},
    decode::{Decode, H264, Picture},
    reader::VideoInfo,
    sps,
};
use muxide::api::{MuxerBuilder, VideoCodec};
use rusty_h264::{Encoder, EncoderConfig, Preset, YuvFrame};
use std::{
    collections::VecDeque,
    io::{Read, Write},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    vec,
};

/// Quantiser of the encoder: visually close to the source, since clips are short.
const QP: u8 = 18;

/// Macroblocks in a picture and in a second that a level admits (H.264 table A-1), by `level_idc`.
const LEVELS: [(u8, u64, u64); 9] = [
    (30, 1_620, 40_500),
    (31, 3_600, 108_000),
    (32, 5_120, 216_000),
    (40, 8_192, 245_760),
    (42, 8_704, 522_240),
    (50, 22_080, 589_824),
    (51, 36_864, 983_040),
    (52, 36_864, 2_073_600),
    (62, 139_264, 16_711_680),
];

/// The lowest level for a size and rate; `None` where H.264 has none.
fn level(height: usize, width: usize, fps: f64) -> Option<u8> {
    let (rows, columns) = (height.div_ceil(16) as u64, width.div_ceil(16) as u64);
    let (macroblocks, longest) = (rows * columns, rows.max(columns));
    let rate = macroblocks as f64 * fps;
    LEVELS
        .iter()
        .find(|(_, size, per_second)| {
            macroblocks <= *size && longest * longest <= 8 * size && rate <= *per_second as f64
        })
        .map(|(level, ..)| *level)
}

/// Fails where no player could show such a video.
pub(crate) fn check(height: usize, width: usize, fps: f64) -> Result<(), String> {
    if !height.is_multiple_of(2) || !width.is_multiple_of(2) {
        return Err(format!(
            "MP4 (H.264 4:2:0) holds even sides only, found {height}x{width}: choose even ones, \
             or .gif or PNG"
        ));
    }
    match level(height, width, fps) {
        Some(_) => Ok(()),
        None => Err(format!("H.264 has no level for {height}x{width} at {fps} frames a second")),
    }
}

/// Encodes a clip into `out`.
pub(crate) fn encode(clip: &Frames, fps: f64, out: impl Write) -> Result<(), String> {
    let matrix = Matrix::assumed_for(clip.height());
    let pictures: Vec<YuvFrame> = clip
        .iter()
        .map(|rgb| {
            let Planes { width, height, y, u, v } = matrix.planes(rgb, clip.height(), clip.width());
            YuvFrame { width, height, y, u, v }
        })
        .collect();
    let (width, height) = (pictures[0].width, pictures[0].height);

    let mut config = EncoderConfig::new(width, height);
    config.level_idc = level(height, width, fps).ok_or("no level of H.264 fits")?;
    config.qp = QP;
    config.framerate = fps as f32;
    config.preset = Preset::Balanced;
    config.bframes = 0;
    let encoder = Encoder::new(config).map_err(|error| error.to_string())?;
    let units = encoder.encode_all(&pictures).map_err(|error| error.to_string())?;
    if units.len() != pictures.len() {
        return Err(format!("{} frames gave {} pictures", pictures.len(), units.len()));
    }

    let mut muxer = MuxerBuilder::new(out)
        .video(VideoCodec::H264, width as u32, height as u32, fps)
        .with_fast_start(true)
        .build()
        .map_err(|error| error.to_string())?;
    for (index, unit) in units.iter().enumerate() {
        let (unit, is_key) = with_colour(unit, Matrix::code_for(height))?;
        muxer.write_video(index as f64 / fps, &unit, is_key).map_err(|error| error.to_string())?;
    }
    muxer.finish_in_place().map_err(|error| error.to_string())
}

/// A picture's NAL units behind start codes, with the colours stated in its parameter sets; and
/// whether the picture needs no other one (NAL type 5).
fn with_colour(unit: &[u8], matrix: u8) -> Result<(Vec<u8>, bool), String> {
    let starts: Vec<usize> = unit
        .windows(3)
        .enumerate()
        .filter(|(_, bytes)| *bytes == [0, 0, 1])
        .map(|(i, _)| i)
        .collect();
    let (mut out, mut is_key) = (Vec::with_capacity(unit.len() + 32), false);
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(unit.len());
        // A unit ends with a bit that is set; zeros behind it belong to the next start code.
        let nal = unit.get(start + 3..end).unwrap_or_default();
        let nal = &nal[..nal.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)];
        let Some(header) = nal.first() else { continue };
        out.extend([0, 0, 0, 1]);
        match header & 0x1f {
            sps::NAL_TYPE => out.extend(sps::with_colour(nal, matrix)?),
            kind => {
                is_key |= kind == 5;
                out.extend(nal);
            }
        }
    }
    Ok((out, is_key))
}

/// Most bytes of an MP4 that are read: they are held while its pictures are decoded.
pub const MAX_FILE: u64 = 1 << 30;
/// Most bytes of decoded pictures that [`read`] holds.
pub const MAX_DECODED: usize = 4 << 30;

/// Reads the H.264 video of an MP4: frames in display order, and frames per second (of a stream
/// whose frames last unequally long: their mean).
///
/// Size and colours are those that the stream states; where it states no colour matrix, BT.601.
/// Pixels are those of the `ffmpeg` program ([`crate::yuv`]).
///
/// # Errors
/// Where the file cannot be read, holds no H.264 track, is fragmented or damaged, or is larger
/// than what is reasonable for a clip.
pub fn read(path: &Path) -> Result<(Frames, f64), VideoError> {
    let decode = |reason: String| VideoError::Decode { path: path.into(), reason };
    let mut stream = Stream::open(path)?;
    let (mut rgb, mut shape) = (Vec::new(), [0; 3]);
    while let Some((picture, _)) = stream.next_picture().map_err(decode)? {
        let Planes { height, width, .. } = picture.planes;
        shape = [shape[0] + 1, height, width];
        if rgb.len() + 3 * height * width > MAX_DECODED {
            return Err(decode("its pictures are too many to hold".into()));
        }
        rgb.extend(picture.matrix.rgb(&picture.planes));
    }
    let frames = Frames::from_rgb(rgb, shape)
        .map_err(|source| VideoError::Frames { path: path.into(), source })?;
    Ok((frames, stream.info.fps))
}

/// The video of an MP4, decoded picture by picture. What is held is the file and the pictures
/// whose turn has not come.
pub(crate) struct Stream {
    bytes: Vec<u8>,
    /// Samples in decoding order.
    samples: vec::IntoIter<Range<usize>>,
    /// Seconds at which pictures are shown, in display order, the first at 0.
    times: vec::IntoIter<f64>,
    decoder: Box<dyn Decode + Send>,
    /// Decoded, and their turn has come.
    shown: VecDeque<Picture>,
    pub(crate) info: VideoInfo,
}

impl Stream {
    /// Opens a file and decodes its first picture.
    ///
    /// # Errors
    /// Those of [`read`], as far as they can be seen by then.
    pub(crate) fn open(path: &Path) -> Result<Self, VideoError> {
        let io = |source| VideoError::Io { path: path.into(), source };
        let decode = |reason: String| VideoError::Decode { path: path.into(), reason };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(decode(format!("it has more than {MAX_FILE} bytes")));
        }
        let mut stream = guarded(|| Self::of(bytes)).map_err(decode)?;
        stream.fill().map_err(decode)?;
        let first = stream.shown.front().ok_or_else(|| decode("it holds no pictures".into()))?;
        (stream.info.height, stream.info.width) = (first.planes.height, first.planes.width);
        Ok(stream)
    }

    fn of(mut bytes: Vec<u8>) -> Result<Self, String> {
        boxes::reduce(&mut bytes)?;
        let mp4 = re_mp4::Mp4::read_bytes(&bytes).map_err(|error| format!("no MP4: {error}"))?;
        let track = mp4.tracks().values().next().ok_or("it holds no video track")?;
        let stsd = &track.trak(&mp4).mdia.minf.stbl.stsd.contents;
        let re_mp4::StsdBoxContent::Avc1(avc1) = stsd else {
            return Err("its video is not H.264".into());
        };
        let avcc = &avc1.avcc;
        let sets = avcc.sequence_parameter_sets.iter().chain(&avcc.picture_parameter_sets);
        let length_size = usize::from(avcc.length_size_minus_one & 3) + 1;
        let decoder = H264::new(sets.map(|set| set.bytes.as_slice()), length_size)?;

        let place = |sample: &re_mp4::Sample| {
            let end = sample.offset.checked_add(sample.size).ok_or("a sample's place overflows")?;
            let place = usize::try_from(sample.offset).ok().zip(usize::try_from(end).ok());
            let place = place.map(|(start, end)| start..end);
            place
                .filter(|place| place.end <= bytes.len())
                .ok_or("truncated: a sample lies behind the end")
        };
        let samples: Vec<_> = track.samples.iter().map(place).collect::<Result<_, _>>()?;
        let mut ticks: Vec<i64> =
            track.samples.iter().map(|sample| sample.composition_timestamp).collect();
        ticks.sort_unstable();
        let first = ticks.first().copied().unwrap_or(0);
        let second = track.timescale as f64;
        let times: Vec<f64> =
            ticks.iter().map(|&at| at.saturating_sub(first) as f64 / second).collect();

        let seconds = track.duration as f64 / second;
        let fps = samples.len() as f64 / seconds;
        if !fps.is_finite() || fps <= 0.0 {
            return Err(format!("its duration is {seconds} seconds"));
        }
        // Durations are whole ticks: take the round number behind them where there is one.
        let whole = fps.round();
        let fps = if whole >= 1.0 && (fps - whole).abs() < 1e-3 { whole } else { fps };
        let info = VideoInfo {
            width: 0,
            height: 0,
            fps,
            num_frames: Some(samples.len()),
            duration: Some(seconds),
            codec: "h264".into(),
        };
        let (samples, times) = (samples.into_iter(), times.into_iter());
        let shown = VecDeque::new();
        Ok(Self { bytes, samples, times, decoder: Box::new(decoder), shown, info })
    }

    /// The next picture in display order and its seconds from the first; `None` after the last.
    pub(crate) fn next_picture(&mut self) -> Result<Option<(Picture, f64)>, String> {
        self.fill()?;
        // Each sample is one picture; a damaged stream may hold more, whose time is not known.
        Ok(self.shown.pop_front().map(|picture| {
            let time = self.times.next().unwrap_or_default();
            (picture, time)
        }))
    }

    /// Decodes until a picture's turn has come or there is none left.
    fn fill(&mut self) -> Result<(), String> {
        let Self { bytes, samples, decoder, shown, .. } = self;
        guarded(|| {
            while shown.is_empty() {
                let Some(place) = samples.next() else {
                    shown.extend(decoder.finish());
                    break;
                };
                shown.extend(decoder.sample(&bytes[place])?);
            }
            Ok(())
        })
    }
}

/// Container and codec come from strangers and their readers are young: a panic in one of them is a
/// damaged file.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the decoder gave up on damaged data".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soft pattern that moves, as an encoder likes it.
    fn clip(frames: usize, height: usize, width: usize) -> Frames {
        let mut data = Vec::new();
        for t in 0..frames {
            for y in 0..height {
                for x in 0..width {
                    let wave = |p: f32| (127.5 + 100.0 * (p * 0.2).sin()) as u8;
                    data.extend([wave(x as f32 + t as f32), wave(y as f32), wave((x + y) as f32)]);
                }
            }
        }
        Frames::from_rgb(data, [frames, height, width]).unwrap()
    }

    fn halved_colour(clip: &Frames) -> Frames {
        let (height, width) = (clip.height(), clip.width());
        let matrix = Matrix::assumed_for(height);
        let rgb = clip.iter().flat_map(|rgb| matrix.rgb(&matrix.planes(rgb, height, width)));
        Frames::from_rgb(rgb.collect(), [clip.len(), height, width]).unwrap()
    }

    fn written(clip: &Frames, fps: f64) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        encode(clip, fps, &mut file).unwrap();
        file
    }

    fn psnr(a: &Frames, b: &Frames) -> f64 {
        let error: f64 =
            a.data().iter().zip(b.data()).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
        10.0 * (255.0 * 255.0 / (error / a.data().len() as f64)).log10()
    }

    #[test]
    fn clips_come_back() {
        for (frames, height, width, fps) in
            [(2, 16, 16, 8.0), (16, 64, 48, 8.0), (5, 40, 72, 12.0), (3, 34, 18, 23.976)]
        {
            let clip = clip(frames, height, width);
            let file = written(&clip, fps);
            let (read, read_fps) = super::read(file.path()).unwrap();
            assert_eq!((read.len(), read.height(), read.width()), (frames, height, width));
            assert!((read_fps - fps).abs() < 1e-2, "{read_fps} {fps}");
            // Against what 4:2:0 can hold at best: the rest is the encoder's loss. A shifted or
            // garbled picture is below 20 dB.
            let psnr = psnr(&halved_colour(&clip), &read);
            assert!(psnr > 38.0, "{frames}x{height}x{width}: {psnr} dB");
        }
    }

    #[test]
    fn every_number_of_frames_is_kept() {
        // Across the encoder's lookahead and its second key picture.
        for frames in [1, 2, 3, 39, 41, 130, 257] {
            let file = written(&clip(frames, 16, 16), 30.0);
            let (read, fps) = super::read(file.path()).unwrap();
            assert_eq!(read.len(), frames);
            // A single frame has no rate; the writer makes a PNG of it.
            assert!(frames == 1 || (fps - 30.0).abs() < 1e-9, "{frames}: {fps}");
        }
    }

    #[test]
    fn colours_are_stated() {
        for (height, matrix) in [(64, 6), (720, 1)] {
            let file = written(&clip(2, height, 32), 8.0);
            let bytes = std::fs::read(file.path()).unwrap();
            // The parameter set in the header, behind `avcC` and its six bytes and length.
            let at = bytes.windows(4).position(|name| name == b"avcC").unwrap() + 10;
            let length = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let sps = sps::Sps::parse(&bytes[at + 2..at + 2 + length]).unwrap();
            assert_eq!(sps.colour, Some(sps::Colour { matrix, full_range: false }));
            assert_eq!((sps.height, sps.width), (height, 32));
        }
    }

    #[test]
    fn the_header_comes_first() {
        let file = written(&clip(3, 16, 16), 8.0);
        let bytes = std::fs::read(file.path()).unwrap();
        let at = |name: &[u8; 4]| bytes.windows(4).position(|bytes| bytes == name).unwrap();
        assert!(at(b"moov") < at(b"mdat"));
    }

    #[test]
    fn flat_colours_come_back_as_they_were() {
        // A wrong matrix or range on one of the two ways would shift them by far more.
        for height in [64, 720] {
            for rgb in [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255; 3], [0; 3], [200, 120, 40]] {
                let clip = Frames::from_rgb(rgb.repeat(2 * height * 32), [2, height, 32]).unwrap();
                let (read, _) = super::read(written(&clip, 8.0).path()).unwrap();
                for (a, b) in clip.data().iter().zip(read.data()) {
                    assert!(a.abs_diff(*b) <= 4, "{rgb:?} became {:?}", &read.data()[..3]);
                }
            }
        }
    }

    #[test]
    fn odd_sides_are_refused() {
        for (height, width) in [(17, 32), (16, 31)] {
            let refused = check(height, width, 8.0).unwrap_err();
            assert!(refused.contains(&format!("{height}x{width}")), "{refused}");
        }
        assert_eq!(check(2, 2, 8.0), Ok(()));
    }

    #[test]
    fn damaged_files_are_refused_and_never_panic() {
        let file = written(&clip(3, 16, 16), 8.0);
        let bytes = std::fs::read(file.path()).unwrap();
        let damaged = tempfile::NamedTempFile::new().unwrap();
        for length in 0..bytes.len() {
            std::fs::write(damaged.path(), &bytes[..length]).unwrap();
            let error = super::read(damaged.path()).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        for position in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut flipped = bytes.clone();
                flipped[position] ^= flip;
                std::fs::write(damaged.path(), flipped).unwrap();
                // Many flips still decode to some picture; none may panic through, and none may
                // make a picture of another size than the stream's own statement.
                if let Ok((read, fps)) = super::read(damaged.path()) {
                    assert!(read.len() <= 3 && fps > 0.0);
                }
            }
        }
    }

    #[test]
    fn levels_grow_with_size_and_rate() {
        assert_eq!(level(256, 256, 8.0), Some(30));
        assert_eq!(level(1080, 1920, 30.0), Some(40));
        assert_eq!(level(16_384, 16_384, 60.0), None);
        // Few macroblocks, but too many in a row for the lowest level.
        assert_eq!(level(16, 2048, 8.0), Some(31));
    }
}
