//! A video clip in memory: [`Frames`].

use crate::{VideoError, VideoSpec, Writer};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Maximum width and height of a clip in pixels, close to the limit of H.264.
pub const MAX_SIDE: usize = 16_384;

/// An uncompressed clip: `[T, H, W, 3]` bytes of RGB, row-major.
///
/// ```
/// use opensora_video::Frames;
///
/// // Two red frames of 4x6 pixels.
/// let clip = Frames::from_rgb([255, 0, 0].repeat(2 * 4 * 6), [2, 4, 6])?;
/// assert_eq!((clip.len(), clip.height(), clip.width()), (2, 4, 6));
/// assert_eq!(clip.frame(1).map(<[u8]>::len), Some(4 * 6 * 3));
/// # Ok::<(), opensora_video::FramesError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// An error of creating a clip.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramesError {
    /// The shape is invalid.
    #[error(
        "found the shape {shape:?} ({axes}), expected three channels, at least one frame, and sides of \
         1 to {MAX_SIDE} pixels"
    )]
    Shape {
        /// The shape.
        shape: [usize; 4],
        /// Names of the axes.
        axes: &'static str,
    },
    /// The number of values does not match the shape.
    #[error("a clip of shape {shape:?} has {expected} values, {found} were given")]
    Values {
        /// The shape.
        shape: [usize; 4],
        /// Number of values of the shape.
        expected: usize,
        /// Number of given values.
        found: usize,
    },
}

/// Checks a shape and returns its number of values.
fn count(
    shape: [usize; 4],
    [frames, height, width, channels]: [usize; 4],
    axes: &'static str,
) -> Result<usize, FramesError> {
    let side = |pixels: usize| (1..=MAX_SIDE).contains(&pixels);
    let sane = frames > 0 && side(height) && side(width) && channels == 3;
    let values = frames.checked_mul(height * width).and_then(|pixels| pixels.checked_mul(3));
    values.filter(|_| sane).ok_or(FramesError::Shape { shape, axes })
}

impl Frames {
    /// Creates a clip from `[T, H, W, 3]` bytes.
    ///
    /// # Errors
    /// Returns an error if the shape is invalid or does not match the number of bytes.
    pub fn from_rgb(
        data: Vec<u8>,
        [frames, height, width]: [usize; 3],
    ) -> Result<Self, FramesError> {
        let shape = [frames, height, width, 3];
        let expected = count(shape, shape, "[T, H, W, 3]")?;
        if data.len() != expected {
            return Err(FramesError::Values { shape, expected, found: data.len() });
        }
        Ok(Self { width, height, data })
    }

    /// Creates a clip from values `[3, T, H, W]` in [-1, 1]. As in the reference, values are clamped, mapped to
    /// [0, 1], multiplied by 255, and rounded by adding a half and truncating. NaN becomes black.
    ///
    /// Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/utils.py`, `save_sample`, and
    /// torchvision's `save_image` and `write_video`.
    ///
    /// # Errors
    /// Returns an error if the shape is invalid or does not match the number of values.
    pub fn from_signed(values: &[f32], shape: [usize; 4]) -> Result<Self, FramesError> {
        let [channels, frames, height, width] = shape;
        let expected = count(shape, [frames, height, width, channels], "[3, T, H, W]")?;
        if values.len() != expected {
            return Err(FramesError::Values { shape, expected, found: values.len() });
        }
        let plane = frames * height * width;
        let mut data = vec![0; expected];
        for (pixel, rgb) in data.chunks_exact_mut(3).enumerate() {
            for (channel, byte) in rgb.iter_mut().enumerate() {
                *byte = quantise(values[channel * plane + pixel]);
            }
        }
        Ok(Self { width, height, data })
    }

    /// Writes the clip atomically, in the format of the path's extension
    /// ([`Format::of`](crate::Format::of)): MP4, GIF, PNG for a single frame, or a folder of PNG frames without
    /// an extension. Returns the path of the output, which ends in `.png` for a single frame.
    ///
    /// # Errors
    /// Returns an error if the format is unknown or cannot hold the clip, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>, fps: f64) -> Result<PathBuf, VideoError> {
        let spec = VideoSpec { frames: self.len(), width: self.width, height: self.height, fps };
        Writer::open(path.as_ref(), &spec)?.write(self, &Value::Null)
    }

    /// Returns the number of frames, at least one.
    #[allow(clippy::len_without_is_empty, reason = "a clip has at least one frame")]
    pub fn len(&self) -> usize {
        self.data.len() / (3 * self.width * self.height)
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns all bytes, `[T, H, W, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns one frame, `[H, W, 3]`; `None` after the last.
    pub fn frame(&self, index: usize) -> Option<&[u8]> {
        self.iter().nth(index)
    }

    /// Iterates over the frames, `[H, W, 3]` each.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.data.chunks_exact(3 * self.width * self.height)
    }
}

/// Converts `x` in [-1, 1] to a byte.
fn quantise(x: f32) -> u8 {
    // torchvision: (x - low) / (high - low), then * 255 + 0.5, clamp, truncate.
    let unit = (x.clamp(-1.0, 1.0) + 1.0) / 2.0;
    (unit * 255.0 + 0.5).clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_as_the_reference_does() {
        for (x, byte) in [
            (-1.0, 0),
            (-2.0, 0),
            (1.0, 255),
            (9.0, 255),
            (0.0, 128),
            (-0.002, 127),
            (0.5, 191),
            // About a step, 3.5 / 255: the sum in f32 lies just below it.
            (6.99 / 255.0 - 1.0, 3),
            (7.0 / 255.0 - 1.0, 3),
            (7.01 / 255.0 - 1.0, 4),
            (f32::NAN, 0),
            (f32::INFINITY, 255),
            (f32::NEG_INFINITY, 0),
        ] {
            assert_eq!(quantise(x), byte, "{x}");
        }
        // Every byte comes back from its own value.
        for byte in 0..=255u8 {
            assert_eq!(quantise(byte as f32 / 127.5 - 1.0), byte);
        }
    }

    #[test]
    fn channels_become_the_last_axis() {
        // [3, T=1, H=1, W=2]: red, green, blue planes of two pixels.
        let clip = Frames::from_signed(&[-1.0, 1.0, 1.0, -1.0, 0.0, 0.0], [3, 1, 1, 2]).unwrap();
        assert_eq!(clip.data(), [0, 255, 128, 255, 0, 128]);
        assert_eq!((clip.len(), clip.height(), clip.width()), (1, 1, 2));
        assert_eq!((clip.frame(0), clip.frame(1)), (Some(clip.data()), None));
    }

    #[test]
    fn a_clip_is_saved_in_the_format_of_its_ending() {
        let folder = tempfile::tempdir().unwrap();
        let clip = Frames::from_rgb(vec![90; 2 * 16 * 32 * 3], [2, 16, 32]).unwrap();
        for (name, magic) in [("fox.mp4", &b"ftyp"[..]), ("fox.gif", b"GIF8")] {
            let path = clip.save(folder.path().join(name), 8.0).unwrap();
            assert_eq!(path, folder.path().join(name));
            let bytes = std::fs::read(path).unwrap();
            assert!(bytes[..8].windows(4).any(|window| window == magic), "{name}");
        }
        let frames = clip.save(folder.path().join("frames"), 8.0).unwrap();
        assert_eq!(std::fs::read_dir(frames).unwrap().count(), 2);
        let refused = clip.save(folder.path().join("fox.webm"), 8.0).unwrap_err();
        assert!(matches!(refused, VideoError::Format { .. }), "{refused}");
        let still = Frames::from_rgb(vec![90; 16 * 32 * 3], [1, 16, 32]).unwrap();
        let path = still.save(folder.path().join("still.mp4"), 8.0).unwrap();
        assert_eq!(path, folder.path().join("still.png"));
        // No record and nothing half-written.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn shapes_that_are_no_clips_are_refused() {
        for shape in [[3, 0, 2, 2], [3, 1, 0, 2], [4, 1, 2, 2], [3, 1, 2, MAX_SIDE + 1]] {
            let refused = Frames::from_signed(&[], shape).unwrap_err();
            assert!(matches!(refused, FramesError::Shape { .. }), "{refused}");
        }
        let huge = Frames::from_rgb(vec![], [usize::MAX, 16, 16]).unwrap_err();
        assert!(matches!(huge, FramesError::Shape { .. }));
        let short = Frames::from_rgb(vec![0; 11], [1, 2, 2]).unwrap_err();
        assert!(matches!(short, FramesError::Values { expected: 12, found: 11, .. }));
    }
}
