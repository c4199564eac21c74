//! Writing and reading of PNG images and folders of PNG frames.

use crate::{Frames, VideoError, error::Cause, frames::MAX_SIDE, media::MAX_CLIP_BYTES};
use opensora_files::{AtomicFile, Existing, read::open_regular};
use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

/// Encodes one frame `[height, width, 3]`.
pub(crate) fn encode(
    rgb: &[u8],
    height: usize,
    width: usize,
    out: impl Write,
) -> Result<(), Cause> {
    let mut encoder = png::Encoder::new(out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    Ok(writer.finish()?)
}

/// Writes the first frame of `still` atomically.
///
/// # Errors
/// Returns an error if the file cannot be written. An existing file stays on failure.
pub fn write(path: &Path, still: &Frames) -> Result<(), VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    let frame = &still.data()[..3 * still.height() * still.width()];
    let mut file = AtomicFile::create(path, Existing::Replace).map_err(io)?;
    let mut out = BufWriter::new(&mut file);
    encode(frame, still.height(), still.width(), &mut out)
        .map_err(|source| VideoError::Encode { path: path.into(), source })?;
    out.flush().map_err(io)?;
    drop(out);
    file.commit().map_err(io)
}

/// Writes the frames of a clip as `frame_00000.png` and so on.
pub(crate) fn encode_folder(clip: &Frames, folder: &Path) -> Result<(), Cause> {
    for (index, rgb) in clip.iter().enumerate() {
        let mut file = BufWriter::new(File::create(folder.join(format!("frame_{index:05}.png")))?);
        encode(rgb, clip.height(), clip.width(), &mut file)?;
        file.flush()?;
    }
    Ok(())
}

/// Reads an image as a clip of one frame. Grey becomes RGB, 16 bits become 8, and opacity is removed.
///
/// # Errors
/// Returns an error if the file cannot be read or is damaged, or if the image is too large.
pub fn read(path: &Path) -> Result<Frames, VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    let file = BufReader::new(open_regular(path).map_err(io)?);
    let (rgb, [height, width]) = decode(file).map_err(|error| VideoError::decode(path, error))?;
    Frames::from_rgb(rgb, [1, height, width])
        .map_err(|source| VideoError::Frames { path: path.into(), source })
}

/// Reads the frames of a folder, `frame_00000.png` and so on without gaps.
///
/// # Errors
/// Returns an error if the first frame is missing, a frame is not a PNG image, sizes differ, or the frames are larger
/// than 4 GiB.
pub fn read_folder(path: &Path) -> Result<Frames, VideoError> {
    let name = |index: usize| -> PathBuf { path.join(format!("frame_{index:05}.png")) };
    let first = read(&name(0))?;
    let (height, width) = (first.height(), first.width());
    let mut data = first.data().to_vec();
    let mut count = 1;
    while name(count).exists() {
        let frame = read(&name(count))?;
        if (frame.height(), frame.width()) != (height, width) {
            let reason = format!(
                "it is {}x{}, but the frames before it are {height}x{width}",
                frame.height(),
                frame.width()
            );
            return Err(VideoError::decode(&name(count), reason));
        }
        if data.len() + frame.data().len() > MAX_CLIP_BYTES {
            let reason = "it has too many frames to hold in memory: split it into folders first";
            return Err(VideoError::decode(path, reason));
        }
        data.extend(frame.data());
        count += 1;
    }
    Frames::from_rgb(data, [count, height, width])
        .map_err(|source| VideoError::Frames { path: path.into(), source })
}

/// Decodes an image. Returns RGB and `[height, width]`.
fn decode(file: impl BufRead + Seek) -> Result<(Vec<u8>, [usize; 2]), Cause> {
    // Four bytes for each pixel of the largest image.
    let mut decoder = png::Decoder::new_with_limits(file, png::Limits { bytes: 1 << 30 });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width > MAX_SIDE || height > MAX_SIDE {
        let reason =
            format!("it has {height}x{width} pixels, expected sides of at most {MAX_SIDE}");
        return Err(reason.into());
    }
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels)?;
    pixels.truncate(info.buffer_size());
    let rgb = match info.color_type.samples() {
        3 => pixels,
        4 => pixels.chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect(),
        samples => pixels.chunks_exact(samples).flat_map(|grey| [grey[0]; 3]).collect(),
    };
    Ok((rgb, [height, width]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;
    use std::io::Cursor;

    fn pixels(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 37 % 251) as u8).collect()
    }

    #[test]
    fn pixels_come_back_exactly() {
        let rgb = pixels(3 * 7 * 5);
        let mut bytes = Vec::new();
        encode(&rgb, 7, 5, &mut bytes).unwrap();
        assert_eq!(decode(Cursor::new(bytes)).unwrap(), (rgb, [7, 5]));
    }

    #[test]
    fn images_are_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("still.png");
        let clip = Frames::from_rgb(pixels(2 * 3 * 4 * 6), [2, 4, 6]).unwrap();
        for _ in 0..2 {
            write(&path, &clip).unwrap();
        }
        assert_eq!(read(&path).unwrap().data(), clip.frame(0).unwrap());
        std::fs::create_dir(folder.path().join("taken.png")).unwrap();
        let error = write(&folder.path().join("taken.png"), &clip).unwrap_err();
        assert!(matches!(error, VideoError::Io { .. }), "{error}");
        assert!(write(&folder.path().join("none/still.png"), &clip).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn other_kinds_become_rgb() {
        let written = |kind: png::ColorType, pixels: &[u8]| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
            encoder.set_color(kind);
            encoder.write_header().unwrap().write_image_data(pixels).unwrap();
            decode(Cursor::new(bytes)).unwrap().0
        };
        assert_eq!(written(png::ColorType::Grayscale, &[5, 9]), [5, 5, 5, 9, 9, 9]);
        assert_eq!(written(png::ColorType::GrayscaleAlpha, &[5, 0, 9, 7]), [5, 5, 5, 9, 9, 9]);
        assert_eq!(written(png::ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 255]), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn folders_come_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let clip = Frames::from_rgb(pixels(12 * 3 * 4 * 6), [12, 4, 6]).unwrap();
        encode_folder(&clip, folder.path()).unwrap();
        assert_eq!(read_folder(folder.path()).unwrap(), clip);

        let other = File::create(folder.path().join("frame_00003.png")).unwrap();
        encode(&pixels(3 * 2 * 2), 2, 2, other).unwrap();
        let error = error_line(&read_folder(folder.path()).unwrap_err());
        assert!(error.contains("frame_00003.png") && error.contains("2x2"), "{error}");
        assert!(read_folder(&folder.path().join("none")).is_err());
    }

    #[test]
    fn damaged_files_never_panic() {
        let mut bytes = Vec::new();
        encode(&pixels(3 * 7 * 5), 7, 5, &mut bytes).unwrap();
        for length in 0..bytes.len() {
            // The last four bytes are the checksum of an empty chunk.
            assert!(decode(Cursor::new(&bytes[..length])).is_err() || length + 12 >= bytes.len());
        }
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0xff;
            let _ = decode(Cursor::new(flipped));
        }
    }
}
