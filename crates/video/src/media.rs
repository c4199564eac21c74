//! Reading of images and videos by their extensions.

use crate::{
    Frames, VideoError,
    frames::MAX_SIDE,
    png,
    reader::{Decoder, VideoReader},
};
use image::ColorType::{L16, La16, Rgb16, Rgba16};
use opensora_files::read::open_regular;
use std::{
    io::{self, BufRead, BufReader, Read, Seek},
    path::Path,
};

/// Extensions of images.
pub const IMAGES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pnm"];
/// Extensions of videos. Formats other than MP4 and GIF need the `ffmpeg` program.
pub const VIDEOS: [&str; 14] = [
    "mp4", "m4v", "mov", "gif", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "flv", "wmv",
    "3gp",
];

/// Maximum size of the frames of a clip in bytes.
pub(crate) const MAX_CLIP_BYTES: usize = 4 << 30;

/// First bytes of a JPEG: the start marker.
const JPEG: &[u8] = &[0xff, 0xd8];
/// Maximum memory for decoding an image in bytes.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// Contents of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// An image, as a clip of one frame.
    Image(Frames),
    /// A video: a file, or a folder of `frame_00000.png` and so on.
    Video(Frames),
}

impl Media {
    /// Reads a file or a folder of PNG frames. Videos are rotated upright and resized to square pixels.
    ///
    /// The format of an image is detected by its contents, because extensions are often wrong. As in Pillow's
    /// `convert("RGB")`, grey images become RGB, opacity is removed, the EXIF orientation is ignored, and of 16 bits in
    /// RGB the upper 8 remain. Of 16 bits in grey, the upper 8 remain as well.
    ///
    /// # Errors
    /// Returns an error if the extension is unknown or the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, VideoError> {
        if path.is_dir() {
            return png::read_folder(path).map(Self::Video);
        }
        let extension = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            video if VIDEOS.contains(&video) => all_frames(path).map(Self::Video),
            image if IMAGES.contains(&image) => still(path).map(Self::Image),
            _ => Err(VideoError::Media { path: path.into(), extension: extension.into() }),
        }
    }

    /// Returns the frames.
    pub fn frames(&self) -> &Frames {
        match self {
            Self::Image(frames) | Self::Video(frames) => frames,
        }
    }
}

fn all_frames(path: &Path) -> Result<Frames, VideoError> {
    let reader = VideoReader::open(path, Decoder::Auto)?.with_square_pixels()?;
    let (height, width) = (reader.info().height, reader.info().width);
    let (mut rgb, mut count) = (Vec::new(), 0);
    for frame in reader {
        rgb.extend(frame?.rgb);
        count += 1;
        if rgb.len() > MAX_CLIP_BYTES {
            let reason = "it has too many frames to hold in memory: split it into clips first";
            return Err(VideoError::decode(path, reason));
        }
    }
    Frames::from_rgb(rgb, [count, height, width])
        .map_err(|source| VideoError::Frames { path: path.into(), source })
}

/// Reads an image as a clip of one frame.
///
/// # Errors
/// Returns an error if the file cannot be read, is damaged, or is too large.
pub fn still(path: &Path) -> Result<Frames, VideoError> {
    let io = |source| VideoError::Io { path: path.into(), source };
    let mut file = BufReader::new(open_regular(path).map_err(io)?);
    // The decoder fills what is missing with grey.
    if file.fill_buf().map_err(io)?.starts_with(JPEG) && !has_end(&mut file).map_err(io)? {
        return Err(VideoError::decode(path, "the JPEG ends before its end marker"));
    }
    file.rewind().map_err(io)?;
    let mut reader = image::ImageReader::new(file).with_guessed_format().map_err(io)?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|error| VideoError::decode(path, error))?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let rgb = match decoded.color() {
        // The crate would round.
        L16 | La16 | Rgb16 | Rgba16 => {
            decoded.into_rgb16().into_raw().into_iter().map(|value| (value >> 8) as u8).collect()
        }
        _ => decoded.into_rgb8().into_raw(),
    };
    Frames::from_rgb(rgb, [1, height, width])
        .map_err(|source| VideoError::Frames { path: path.into(), source })
}

/// Returns true if a JPEG has an end marker after its segments and coded data. Those of images in a segment, such as
/// previews, do not count.
fn has_end(jpeg: &mut impl BufRead) -> io::Result<bool> {
    loop {
        jpeg.skip_until(0xff)?;
        let mut marker = [0xff];
        // Any number of fill bytes can be before a marker.
        while marker == [0xff] {
            if jpeg.read(&mut marker)? == 0 {
                return Ok(false);
            }
        }
        match marker {
            [0xd9] => return Ok(true),
            // A byte of coded data, and markers without a segment.
            [0x00 | 0x01 | 0xd0..=0xd8] => {}
            _ => {
                let mut length = [0; 2];
                if let Err(error) = jpeg.read_exact(&mut length) {
                    let is_end = error.kind() == io::ErrorKind::UnexpectedEof;
                    return if is_end { Ok(false) } else { Err(error) };
                }
                // It counts its own two bytes.
                let rest = u64::from(u16::from_be_bytes(length)).saturating_sub(2);
                io::copy(&mut jpeg.by_ref().take(rest), &mut io::sink())?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_jpeg_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8;
        let rgb: Vec<u8> = (0..3 * 64 * 64).map(noise).collect();
        let encoded = |rgb: &[u8], side: u32| {
            let mut jpeg = Vec::new();
            image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90)
                .encode(rgb, side, side, image::ExtendedColorType::Rgb8)
                .unwrap();
            jpeg
        };
        let whole = encoded(&rgb, 64);
        // A segment with a preview, which has an end marker of its own.
        let preview = encoded(&rgb[..3 * 8 * 8], 8);
        let length = u16::try_from(preview.len() + 2).unwrap().to_be_bytes();
        let with_preview = [&whole[..2], &[0xff, 0xe1], &length, &preview, &whole[2..]].concat();
        for (bytes, is_whole) in [
            (&whole[..], true),
            (&[&whole[..], b"more"].concat()[..], true),
            (&whole[..whole.len() / 2], false),
            (&whole[..whole.len() - 2], false),
            (&whole[..3], false),
            (&whole[..5], false),
            (&with_preview[..], true),
            (&with_preview[..with_preview.len() - 2], false),
            (&with_preview[..50], false),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(still(&path).is_ok(), is_whole, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn of_16_bits_the_upper_8_remain() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let file = std::fs::File::create(&path).unwrap();
        let mut encoder = ::png::Encoder::new(file, 1, 1);
        encoder.set_color(::png::ColorType::Rgb);
        encoder.set_depth(::png::BitDepth::Sixteen);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0x00, 0xff, 0x80, 0x00, 0xff, 0x01]).unwrap();
        writer.finish().unwrap();
        assert_eq!(still(&path).unwrap().data(), [0x00, 0x80, 0xff]);
        assert_eq!(still(&path).unwrap(), png::read(&path).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn pipes_are_no_images() {
        use std::process::Command;
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("a.png");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for refused in [still(&pipe), png::read(&pipe)] {
            let line = opensora_files::error_line(&refused.unwrap_err());
            assert!(line.contains("a pipe"), "{line}");
        }
    }
}
