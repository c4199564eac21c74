//! Writing and reading of animated GIF files.

use crate::{Frames, VideoError, error::Cause, frames::MAX_SIDE};
use opensora_files::read::open_regular;
use std::{
    io::{BufReader, Read, Write},
    path::Path,
};

/// Ticks per second of a GIF. Players slow down delays below two ticks.
const TICKS: f64 = 100.0;
/// Delay that players use for files with a delay below two ticks.
const USUAL_DELAY: u64 = 10;
/// Number of pixels of a frame from which its palette is computed (about 0.2 s).
const LOOKED_AT: usize = 1 << 16;
/// Maximum size of a decoded file in bytes of RGB.
const MAX_DECODED: usize = 4 << 30;

/// Returns an error if GIF does not support the size or rate.
pub(crate) fn check(height: usize, width: usize, fps: f64) -> Result<(), String> {
    if height > usize::from(u16::MAX) || width > usize::from(u16::MAX) {
        return Err(format!("GIF does not support {height}x{width} pixels"));
    }
    // The delay of a frame is 2 to 65,535 ticks.
    if !(TICKS / f64::from(u16::MAX)..=TICKS / 2.0).contains(&fps) {
        return Err(format!("GIF does not support {fps} frames per second, expected 0.002 to 50"));
    }
    Ok(())
}

/// Encodes a clip as an endless animation with 256 colours per frame. Frames begin at the hundredth of a second
/// nearest to their time, so that rounding errors do not accumulate: 8 frames per second last 13, 12, 13, ...
/// ticks.
pub(crate) fn encode(clip: &Frames, fps: f64, out: impl Write) -> Result<(), Cause> {
    let (width, height) = (clip.width() as u16, clip.height() as u16);
    let begin = |index: usize| (index as f64 * TICKS / fps).round();
    let mut encoder = gif::Encoder::new(out, width, height, &[])?;
    encoder.set_repeat(gif::Repeat::Infinite)?;
    for (index, rgb) in clip.iter().enumerate() {
        // The speed is the step between sampled pixels, at most 30.
        let speed = (rgb.len() / 3 / LOOKED_AT).clamp(1, 30) as i32;
        let mut frame = gif::Frame::from_rgb_speed(width, height, rgb, speed);
        frame.delay = (begin(index + 1) - begin(index)) as u16;
        encoder.write_frame(&frame)?;
    }
    Ok(())
}

/// Reads a GIF. Returns the shown frames (transparent pixels keep the previous colour, initially black) and the
/// mean frames per second.
///
/// # Errors
/// Returns an error if the file cannot be read, is damaged, or is too large.
pub fn read(path: &Path) -> Result<(Frames, f64), VideoError> {
    let Timed { frames, times, duration } = read_timed(path)?;
    let fps = times.len() as f64 / duration;
    Ok((frames, fps))
}

/// The frames of a GIF with their times.
pub(crate) struct Timed {
    pub(crate) frames: Frames,
    /// Time of each frame in seconds.
    pub(crate) times: Vec<f64>,
    /// End of the last frame in seconds.
    pub(crate) duration: f64,
}

/// Reads a GIF as [`read`], with the time of each frame.
pub(crate) fn read_timed(path: &Path) -> Result<Timed, VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    let file = BufReader::new(open_regular(path).map_err(io)?);
    let (rgb, shape, starts, end) =
        decode(file).map_err(|error| VideoError::decode(path, error))?;
    let frames = Frames::from_rgb(rgb, shape)
        .map_err(|source| VideoError::Frames { path: path.into(), source })?;
    let seconds = |ticks: u64| ticks as f64 / TICKS;
    let times = starts.into_iter().map(seconds).collect();
    Ok(Timed { frames, times, duration: seconds(end) })
}

/// RGB, shape, start of each frame and end of the last frame in ticks.
type Decoded = (Vec<u8>, [usize; 3], Vec<u64>, u64);

fn decode(file: impl Read) -> Result<Decoded, Cause> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    // Rejects frames larger than the screen, which limits the memory of hostile files.
    options.check_frame_consistency(true);
    let mut decoder = options.read_info(file)?;
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(
            format!("it has {height}x{width} pixels, expected sides of 1 to {MAX_SIDE}").into()
        );
    }
    let mut screen = vec![0; 3 * height * width];
    let (mut rgb, mut starts, mut ticks) = (Vec::new(), Vec::new(), 0);
    while let Some(frame) = decoder.read_next_frame()? {
        if rgb.len() + screen.len() > MAX_DECODED {
            return Err("it has too many frames to hold in memory".into());
        }
        let before = (frame.dispose == gif::DisposalMethod::Previous).then(|| screen.clone());
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let columns = usize::from(frame.width).max(1);
        // Offset on the screen of a pixel of the frame; `None` outside the screen.
        let place = |index: usize| {
            let (row, column) = (top + index / columns, left + index % columns);
            (row < height && column < width).then(|| 3 * (row * width + column))
        };
        for (index, rgba) in frame.buffer.chunks_exact(4).enumerate() {
            if let Some(at) = place(index).filter(|_| rgba[3] > 0) {
                screen[at..at + 3].copy_from_slice(&rgba[..3]);
            }
        }
        rgb.extend(&screen);
        starts.push(ticks);
        ticks += if frame.delay < 2 { USUAL_DELAY } else { frame.delay.into() };
        if let Some(before) = before {
            screen = before;
        } else if frame.dispose == gif::DisposalMethod::Background {
            for at in (0..frame.buffer.len() / 4).filter_map(place) {
                screen[at..at + 3].fill(0);
            }
        }
    }
    if starts.is_empty() {
        return Err("it has no frames".into());
    }
    Ok((rgb, [starts.len(), height, width], starts, ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few_colours(frames: u8) -> Frames {
        let data = (0..frames).flat_map(|t| {
            (0..20u8).flat_map(move |pixel| [pixel * 10, t.wrapping_mul(100), 255 - pixel])
        });
        Frames::from_rgb(data.collect(), [frames.into(), 4, 5]).unwrap()
    }

    #[test]
    fn few_colours_come_back_exactly() {
        let clip = few_colours(8);
        let mut bytes = Vec::new();
        encode(&clip, 8.0, &mut bytes).unwrap();
        let (read, shape, starts, end) = decode(bytes.as_slice()).unwrap();
        assert_eq!((read.as_slice(), shape), (clip.data(), [8, 4, 5]));
        // Twelve and a half ticks each: the delays differ, their sum does not.
        assert_eq!((starts, end), (vec![0, 13, 25, 38, 50, 63, 75, 88], 100));
    }

    #[test]
    fn many_colours_come_back_nearly() {
        let soft = |i: usize| (127.5 + 100.0 * (i as f32 * 0.05).sin()) as u8;
        let data =
            (0..2 * 64 * 64).flat_map(|i| [soft(i % 64), soft(i / 64), soft(i % 64 + i / 64)]);
        let clip = Frames::from_rgb(data.collect(), [2, 64, 64]).unwrap();
        let mut bytes = Vec::new();
        encode(&clip, 12.0, &mut bytes).unwrap();
        let (read, ..) = decode(bytes.as_slice()).unwrap();
        let error: f64 =
            read.iter().zip(clip.data()).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
        let psnr = 10.0 * (255.0 * 255.0 / (error / read.len() as f64)).log10();
        // 256 colours; a palette of another frame would be below 20 dB.
        assert!(psnr > 30.0, "{psnr} dB");
    }

    #[test]
    fn frames_are_laid_over_each_other() {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, 2, 1, &[9, 9, 9, 50, 60, 70]).unwrap();
        for (left, width, pixels, dispose) in [
            (0, 2, vec![0, 0], gif::DisposalMethod::Keep),
            (1, 1, vec![1], gif::DisposalMethod::Previous),
            (0, 1, vec![1], gif::DisposalMethod::Background),
            (1, 1, vec![1], gif::DisposalMethod::Keep),
        ] {
            let frame = gif::Frame { left, width, height: 1, dispose, ..Default::default() };
            encoder.write_frame(&gif::Frame { buffer: pixels.into(), ..frame }).unwrap();
        }
        drop(encoder);
        let (read, shape, _, end) = decode(bytes.as_slice()).unwrap();
        let (grey, blue, black) = ([9, 9, 9], [50, 60, 70], [0; 3]);
        let shown = [[grey, grey], [grey, blue], [blue, grey], [black, blue]];
        assert_eq!((read, shape, end), (shown.concat().concat(), [4, 1, 2], 40));
    }

    #[test]
    fn damaged_files_never_panic() {
        let mut bytes = Vec::new();
        encode(&few_colours(2), 8.0, &mut bytes).unwrap();
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length]);
        }
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0xff;
            let _ = decode(flipped.as_slice());
        }
        assert!(decode(&bytes[..10]).is_err() && decode(&b""[..]).is_err());
    }

    #[test]
    fn rates_beyond_the_clock_are_refused() {
        assert!(check(64, 64, 8.0).is_ok() && check(64, 64, 90.0).is_err());
        assert!(check(64, 64, 0.001).is_err() && check(70_000, 64, 8.0).is_err());
    }
}
