//! Writing and reading of H.264 in MP4.
//!
//! Written files suit every player: 8-bit 4:2:0, High profile, no B-frames (decoding order is display order),
//! header first, colours stated in the stream. 4:2:0 does not support odd sides, not even by cropping, which
//! H.264 counts in chroma samples: such clips are rejected.
//!
//! Reading is limited to [`MAX_DECODED`] bytes of frames and to files without fragments. Edit lists and
//! rotations of the container are applied ([`crate::reader`]).

use crate::{
    Frames, VideoError, boxes,
    color::{Matrix, Planes},
    error::Cause,
    in_process::Stream,
    metadata, sps,
};
use muxide::api::{MuxerBuilder, MuxerError, VideoCodec};
use opensora_files::read::open_regular;
use rusty_h264::{Encoder, EncoderConfig, Preset, YuvFrame};
use std::{io::Write, path::Path};

/// Quantizer of the encoder: high quality, because clips are short.
const QP: u8 = 18;

/// `level_idc` with its maximum macroblocks per frame and per second (H.264, table A-1).
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

/// Returns the lowest level for a size and rate; `None` if H.264 has none.
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

/// Returns an error if H.264 4:2:0 does not support the size or rate.
pub(crate) fn check(height: usize, width: usize, fps: f64) -> Result<(), String> {
    if !height.is_multiple_of(2) || !width.is_multiple_of(2) {
        return Err(format!(
            "MP4 (H.264 4:2:0) needs even sides, found {height}x{width}: use even sides, .gif or \
             PNG"
        ));
    }
    match level(height, width, fps) {
        Some(_) => Ok(()),
        None => Err(format!("H.264 has no level for {height}x{width} at {fps} frames per second")),
    }
}

/// Encodes a clip, with a comment in the header if given. Comments of more than 1 MiB are omitted.
pub(crate) fn encode_with(
    clip: &Frames,
    fps: f64,
    comment: Option<&str>,
    mut out: impl Write,
) -> Result<(), Cause> {
    let Some(comment) = comment.filter(|comment| comment.len() <= metadata::MAX_COMMENT) else {
        return encode(clip, fps, out);
    };
    let mut plain = Vec::new();
    encode(clip, fps, &mut plain)?;
    let commented = metadata::with_comment(&plain, comment)?;
    Ok(out.write_all(&commented)?)
}

/// Returns the comment in the header of an MP4, if any. Files written by [`Writer`](crate::Writer) contain the
/// record of how the clip was made, as JSON.
///
/// # Errors
/// Returns an error if the file cannot be read or is not a complete MP4.
pub fn comment(path: &Path) -> Result<Option<String>, VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    let mut file = open_regular(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    boxes::read_header(&mut file, length)
        .and_then(|moov| metadata::comment(&moov))
        .map_err(|refused| refused.of(path))
}

/// Encodes a clip.
pub(crate) fn encode(clip: &Frames, fps: f64, out: impl Write) -> Result<(), Cause> {
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
    let encoder = Encoder::new(config)?;
    let units = encoder.encode_all(&pictures)?;
    if units.len() != pictures.len() {
        return Err(format!(
            "{} frames were encoded to {} access units",
            pictures.len(),
            units.len()
        )
        .into());
    }

    let mut muxer = MuxerBuilder::new(out)
        .video(VideoCodec::H264, width as u32, height as u32, fps)
        .with_fast_start(true)
        .build()?;
    for (index, unit) in units.iter().enumerate() {
        let (unit, is_key) = with_colour(unit, Matrix::code_for(height))?;
        muxer.write_video(index as f64 / fps, &unit, is_key).map_err(cause)?;
    }
    muxer.finish_in_place().map_err(cause)
}

/// Returns the error of the operating system in an error of the muxer, which does not name it as its source.
fn cause(error: MuxerError) -> Cause {
    match error {
        MuxerError::Io(error) => error.into(),
        error => error.into(),
    }
}

/// Adds the colour description to the parameter sets among a frame's NAL units. Returns the units with start
/// codes, and true for an IDR picture (NAL type 5).
fn with_colour(unit: &[u8], matrix: u8) -> Result<(Vec<u8>, bool), Cause> {
    let starts: Vec<usize> = unit
        .windows(3)
        .enumerate()
        .filter(|(_, bytes)| *bytes == [0, 0, 1])
        .map(|(i, _)| i)
        .collect();
    let (mut out, mut is_key) = (Vec::with_capacity(unit.len() + 32), false);
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(unit.len());
        // A unit ends with a set bit; zeros after it belong to the next start code.
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

/// Maximum size of the decoded frames of [`read`] in bytes.
pub const MAX_DECODED: usize = 4 << 30;

/// Reads the H.264 video of an MP4. Returns the frames in display order and the mean frames per second, 0 if
/// unknown.
///
/// Size and colours are those of the stream; an unspecified colour matrix is BT.601. Pixels equal those of the
/// `ffmpeg` program ([`crate::yuv`]).
///
/// # Errors
/// Returns an error if the file cannot be read, has no H.264 track, is damaged, or is too large; and
/// [`VideoError::NeedsFfmpeg`] if it uses features that are not decoded in this process.
pub fn read(path: &Path) -> Result<(Frames, f64), VideoError> {
    let mut stream = Stream::open(path).map_err(|refused| refused.of(path))?;
    let (mut rgb, mut shape) = (Vec::new(), [0; 3]);
    while let Some(frame) = stream.next_picture().map_err(|refused| refused.of(path))? {
        let Planes { height, width, .. } = frame.planes;
        shape = [shape[0] + 1, height, width];
        if rgb.len() + 3 * height * width > MAX_DECODED {
            return Err(VideoError::decode(path, "it has too many frames to hold in memory"));
        }
        rgb.extend(frame.matrix.rgb(&frame.planes));
    }
    let frames = Frames::from_rgb(rgb, shape)
        .map_err(|source| VideoError::Frames { path: path.into(), source })?;
    Ok((frames, stream.info.fps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;

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

    #[test]
    fn an_error_of_the_output_is_the_cause() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = encode(&clip(2, 64, 64), 8.0, Full).unwrap_err();
        let found = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(found, Some(std::io::ErrorKind::StorageFull));
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
            // A single frame has no rate; the writer writes it as PNG.
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
    fn comments_are_read_by_others_and_change_no_frame() {
        let clip = clip(3, 16, 16);
        let text = "{\"prompt\":\"Füchse; a = b\",\"seed\":7}";
        let mut file = tempfile::NamedTempFile::new().unwrap();
        encode_with(&clip, 8.0, Some(text), &mut file).unwrap();
        assert_eq!(comment(file.path()).unwrap().as_deref(), Some(text));
        let plain = written(&clip, 8.0);
        assert_eq!(comment(plain.path()).unwrap(), None);
        let (with, without) = (read(file.path()).unwrap(), read(plain.path()).unwrap());
        assert!(with == without);
        let long = "x".repeat(metadata::MAX_COMMENT + 1);
        let mut left_out = Vec::new();
        encode_with(&clip, 8.0, Some(&long), &mut left_out).unwrap();
        assert_eq!(left_out, std::fs::read(plain.path()).unwrap());

        let program = crate::ffmpeg::Programs::default().ffprobe;
        let said = std::process::Command::new(program)
            .args(["-v", "error", "-show_entries", "format_tags=comment", "-of", "json"])
            .arg(file.path())
            .output();
        let Ok(said) = said else {
            eprintln!("not compared: ffprobe is not installed");
            return;
        };
        let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(said["format"]["tags"]["comment"], text);
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
            let error = error_line(&super::read(damaged.path()).unwrap_err());
            assert!(!error.contains('\n'), "{error}");
        }
        for position in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut flipped = bytes.clone();
                flipped[position] ^= flip;
                std::fs::write(damaged.path(), flipped).unwrap();
                // Many flips decode to some frame; none may panic, and none may
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
