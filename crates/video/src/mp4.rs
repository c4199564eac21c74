//! H.264 in MP4.
//!
//! Written for every player: 8-bit 4:2:0, High profile, no B-frames (so that decoding order is
//! display order), header first. The codec is pure Rust and young; it stays behind this file.

use crate::{
    Frames, VideoError, boxes,
    color::{Matrix, Planes},
    frames::MAX_SIDE,
};
use muxide::api::{MuxerBuilder, VideoCodec};
use rusty_h264::{Decoder, Encoder, EncoderConfig, Preset, YuvFrame};
use std::{
    io::{Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
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
    let macroblocks = (height.div_ceil(16) * width.div_ceil(16)) as u64;
    let rate = macroblocks as f64 * fps;
    LEVELS
        .iter()
        .find(|(_, size, per_second)| macroblocks <= *size && rate <= *per_second as f64)
        .map(|(level, ..)| *level)
}

/// Fails where no player could show such a video.
pub(crate) fn check(height: usize, width: usize, fps: f64) -> Result<(), String> {
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
        muxer
            .write_video(index as f64 / fps, unit, is_keyframe(unit))
            .map_err(|error| error.to_string())?;
    }
    muxer.finish_in_place().map_err(|error| error.to_string())
}

/// Whether an access unit in Annex B form holds an IDR slice (NAL type 5).
fn is_keyframe(unit: &[u8]) -> bool {
    unit.windows(4).any(|bytes| bytes[..3] == [0, 0, 1] && bytes[3] & 0x1f == 5)
}

/// Most bytes of an MP4 that are read: far above any clip here.
const MAX_FILE: u64 = 1 << 30;
/// Most bytes of decoded pictures.
const MAX_DECODED: usize = 4 << 30;

/// Reads the H.264 video of an MP4: frames in display order, and frames per second.
///
/// The size is that of the decoded pictures, and the colour matrix the one that players assume
/// (see [`crate::color`]).
///
/// # Errors
/// Where the file cannot be read, holds no H.264 track, is damaged, or is larger than what is
/// reasonable for a clip.
pub fn read(path: &Path) -> Result<(Frames, f64), VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io)?;
    let decode = |reason: String| VideoError::Decode { path: path.into(), reason };
    // Container and codec come from strangers and their readers are young: a panic in one of them
    // is a damaged file.
    let (rgb, shape, fps) = catch_unwind(AssertUnwindSafe(|| decode_bytes(&bytes)))
        .unwrap_or_else(|_| Err("the decoder gave up on damaged data".into()))
        .map_err(decode)?;
    let frames = Frames::from_rgb(rgb, shape)
        .map_err(|source| VideoError::Frames { path: path.into(), source })?;
    Ok((frames, fps))
}

fn decode_bytes(bytes: &[u8]) -> Result<(Vec<u8>, [usize; 3], f64), String> {
    boxes::check(bytes)?;
    let mp4 = re_mp4::Mp4::read_bytes(bytes).map_err(|error| format!("no MP4: {error}"))?;
    let track = mp4
        .tracks()
        .values()
        .find(|track| track.kind == Some(re_mp4::TrackKind::Video))
        .ok_or("it holds no video track")?;
    let re_mp4::StsdBoxContent::Avc1(avc1) = &track.trak(&mp4).mdia.minf.stbl.stsd.contents else {
        return Err("its video is not H.264".into());
    };

    let mut stream = Vec::with_capacity(bytes.len());
    let avcc = &avc1.avcc;
    for parameters in avcc.sequence_parameter_sets.iter().chain(&avcc.picture_parameter_sets) {
        stream.extend([0, 0, 0, 1]);
        stream.extend(&parameters.bytes);
    }
    let length_size = usize::from(avcc.length_size_minus_one & 3) + 1;
    for sample in &track.samples {
        let end = sample.offset.checked_add(sample.size).ok_or("a sample's place overflows")?;
        let (start, end) = (sample.offset as usize, end as usize);
        let unit = bytes.get(start..end).ok_or("truncated: a sample lies behind the end")?;
        to_annex_b(unit, length_size, &mut stream)?;
    }

    let pictures = Decoder::new().decode_stream(&stream).map_err(|error| error.to_string())?;
    let first = pictures.first().ok_or("it holds no pictures")?;
    let (width, height) = (first.width, first.height);
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(format!("its pictures are {height}x{width}"));
    }
    let size = pictures.len().checked_mul(3 * width * height).filter(|&size| size <= MAX_DECODED);
    let matrix = Matrix::assumed_for(height);
    let mut rgb = Vec::with_capacity(size.ok_or("its pictures are too many to hold")?);
    let count = pictures.len();
    for YuvFrame { width: w, height: h, y, u, v } in pictures {
        if (w, h) != (width, height) {
            return Err(format!("its size changes from {height}x{width} to {h}x{w}"));
        }
        // Planes of an odd side do not come from here; a decoder may still crop to one.
        if w % 2 != 0 || h % 2 != 0 || u.len() < (w / 2) * (h / 2) || v.len() < (w / 2) * (h / 2) {
            return Err(format!("its pictures have odd sides, {h}x{w}"));
        }
        rgb.extend(matrix.rgb(&Planes { width: w, height: h, y, u, v }));
    }
    let seconds = track.duration as f64 / track.timescale as f64;
    let fps = track.samples.len() as f64 / seconds;
    if !fps.is_finite() || fps <= 0.0 {
        return Err(format!("its duration is {seconds} seconds"));
    }
    // Durations are whole ticks: take the round number behind them where there is one.
    let fps = if (fps - fps.round()).abs() < 1e-3 { fps.round() } else { fps };
    Ok((rgb, [count, height, width], fps))
}

/// Length-prefixed NAL units to start codes.
fn to_annex_b(mut unit: &[u8], length_size: usize, out: &mut Vec<u8>) -> Result<(), String> {
    while !unit.is_empty() {
        let (length, rest) =
            unit.split_at_checked(length_size).ok_or("truncated: a NAL unit without length")?;
        let length = length.iter().fold(0usize, |length, &byte| length << 8 | usize::from(byte));
        let (nal, rest) = rest.split_at_checked(length).ok_or("truncated: a NAL unit is cut")?;
        out.extend([0, 0, 0, 1]);
        out.extend(nal);
        unit = rest;
    }
    Ok(())
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
    fn odd_sides_gain_a_row_or_column() {
        let file = written(&clip(2, 17, 31), 8.0);
        let (read, _) = super::read(file.path()).unwrap();
        assert_eq!((read.height(), read.width()), (18, 32));
    }

    #[test]
    fn damaged_files_are_refused_and_never_panic() {
        let file = written(&clip(3, 32, 32), 8.0);
        let bytes = std::fs::read(file.path()).unwrap();
        let damaged = tempfile::NamedTempFile::new().unwrap();
        for length in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
            std::fs::write(damaged.path(), &bytes[..length]).unwrap();
            let error = super::read(damaged.path()).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        for position in (0..bytes.len()).step_by(bytes.len() / 150 + 1) {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0xff;
            std::fs::write(damaged.path(), flipped).unwrap();
            // Most flips still decode to some picture; none may panic through.
            let _ = super::read(damaged.path());
        }
    }

    #[test]
    fn levels_grow_with_size_and_rate() {
        assert_eq!(level(256, 256, 8.0), Some(30));
        assert_eq!(level(1080, 1920, 30.0), Some(40));
        assert_eq!(level(16_384, 16_384, 60.0), None);
    }
}
