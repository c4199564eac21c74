//! Reading of images and videos by their extensions.

use crate::{
    Frames, VideoError,
    frames::MAX_SIDE,
    png,
    reader::{Decoder, VideoReader},
};
use opensora_files::read::open_regular;
use std::path::Path;

/// Extensions of images.
pub const IMAGES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pnm"];
/// Extensions of videos. Formats other than MP4 and GIF need the `ffmpeg` program.
pub const VIDEOS: [&str; 14] = [
    "mp4", "m4v", "mov", "gif", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "flv", "wmv",
    "3gp",
];

/// Maximum size of the frames of a clip in bytes.
pub(crate) const MAX_CLIP_BYTES: usize = 4 << 30;

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
    /// `convert("RGB")`, grey images become RGB, 16 bits become 8, opacity is removed, and the EXIF orientation
    /// is ignored.
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
    // Opening a pipe would wait for its writer.
    drop(open_regular(path).map_err(io)?);
    let mut reader = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(io)?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|error| VideoError::decode(path, error))?;
    let rgb = decoded.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Frames::from_rgb(rgb.into_raw(), [1, height, width])
        .map_err(|source| VideoError::Frames { path: path.into(), source })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn pipes_are_no_images() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("a.png");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for refused in [still(&pipe), png::read(&pipe)] {
            let line = opensora_files::error_line(&refused.unwrap_err());
            assert!(line.contains("a pipe"), "{line}");
        }
    }
}
