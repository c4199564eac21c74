//! Images and videos by their endings.

use crate::{
    Frames, VideoError,
    frames::MAX_SIDE,
    png,
    reader::{Decoder, VideoReader},
};
use std::path::Path;

/// Endings that are read as images.
pub const IMAGES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pnm"];
/// Endings that are read as videos, and folders as frames; others than MP4's and GIF's are read
/// through the `ffmpeg` program where they are not decoded here.
pub const VIDEOS: [&str; 14] = [
    "mp4", "m4v", "mov", "gif", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "flv", "wmv",
    "3gp",
];

/// Most bytes that the pictures of a clip may take: far above any clip here.
const MAX_CLIP_BYTES: usize = 4 << 30;

/// Most bytes that decoding an image may take.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// One picture, as a clip of one frame.
    Image(Frames),
    /// A video: a file, or a folder of `frame_00000.png` and so on.
    Video(Frames),
}

impl Media {
    /// Reads all of a file or folder. Videos come upright and in square pixels.
    ///
    /// An image's kind goes by its content, as many files have the ending of another kind. Greys
    /// become RGB, 16 bits become 8, opacity is dropped, and rotations that a camera noted are not
    /// made: as Pillow's `convert("RGB")`.
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

    /// Its frames.
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
            let reason = "its pictures are too many to hold: cut it into clips first";
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
