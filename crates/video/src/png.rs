//! PNG: one image, or a folder of frames.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

/// Encodes one frame `[height, width, 3]` into `out`.
pub(crate) fn encode(
    rgb: &[u8],
    height: usize,
    width: usize,
    out: impl Write,
) -> Result<(), String> {
    let mut encoder = png::Encoder::new(out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(rgb).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())
}

/// Writes the frames of a clip as `frame_00000.png` and so on.
pub(crate) fn encode_folder(clip: &crate::Frames, folder: &Path) -> Result<(), String> {
    for (index, rgb) in clip.iter().enumerate() {
        let file = File::create(folder.join(format!("frame_{index:05}.png")))
            .map_err(|error| error.to_string())?;
        let mut file = BufWriter::new(file);
        encode(rgb, clip.height(), clip.width(), &mut file)?;
        file.flush().map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back_exactly() {
        let rgb: Vec<u8> = (0..3 * 7 * 5).map(|i| (i * 37 % 251) as u8).collect();
        let mut bytes = Vec::new();
        encode(&rgb, 7, 5, &mut bytes).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut read = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut read).unwrap();
        assert_eq!((info.width, info.height, read), (5, 7, rgb));
    }
}
