//! Animated GIF: 256 colours a frame, endless.

use crate::Frames;
use std::io::Write;

/// Ticks of a GIF's clock in a second; players slow delays below two ticks down.
const TICKS: f64 = 100.0;

/// Fails where GIF cannot hold the size or rate.
pub(crate) fn check(height: usize, width: usize, fps: f64) -> Result<(), String> {
    if height > usize::from(u16::MAX) || width > usize::from(u16::MAX) {
        return Err(format!("GIF cannot hold {height}x{width} pixels"));
    }
    let delay = (TICKS / fps).round();
    if !(2.0..=f64::from(u16::MAX)).contains(&delay) {
        return Err(format!("GIF cannot show {fps} frames a second: 0.002 to 50 are possible"));
    }
    Ok(())
}

/// Encodes a clip into `out`; the rate is rounded to the nearest hundredth of a second a frame.
pub(crate) fn encode(clip: &Frames, fps: f64, out: impl Write) -> Result<(), String> {
    let (width, height) = (clip.width() as u16, clip.height() as u16);
    let text = |error: gif::EncodingError| error.to_string();
    let mut encoder = gif::Encoder::new(out, width, height, &[]).map_err(text)?;
    encoder.set_repeat(gif::Repeat::Infinite).map_err(text)?;
    for rgb in clip.iter() {
        // 1 is the slowest and best choice of colours, 30 the fastest.
        let mut frame = gif::Frame::from_rgb_speed(width, height, rgb, 10);
        frame.delay = (TICKS / fps).round() as u16;
        encoder.write_frame(&frame).map_err(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_colours_come_back_exactly() {
        let mut data = Vec::new();
        for t in 0..3u8 {
            data.extend((0..20u8).flat_map(|pixel| [pixel * 10, t * 100, 255 - pixel]));
        }
        let clip = Frames::from_rgb(data.clone(), [3, 4, 5]).unwrap();
        let mut bytes = Vec::new();
        encode(&clip, 8.0, &mut bytes).unwrap();

        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(bytes.as_slice()).unwrap();
        let mut read = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            // 12.5 hundredths of a second, rounded away from zero.
            assert_eq!(frame.delay, 13);
            read.extend(frame.buffer.chunks(4).flat_map(|rgba| rgba[..3].to_vec()));
        }
        assert_eq!(read, data);
    }

    #[test]
    fn rates_beyond_the_clock_are_refused() {
        assert!(check(64, 64, 8.0).is_ok() && check(64, 64, 90.0).is_err());
        assert!(check(70_000, 64, 8.0).is_err());
    }
}
