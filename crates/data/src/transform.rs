//! Resizing, cropping and normalising of pixels: a clip covers the wanted size, is cropped at its centre,
//! and has values in [-1, 1].
//!
//! Videos are resized bilinearly without antialiasing, images by Pillow's [`opensora_video::pillow`].
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/utils.py`, `get_transforms_video`,
//! `get_transforms_image` and `center_crop_arr`; `opensora/datasets/video_transforms.py`,
//! `UCFCenterCropVideo`. Deviations:
//!
//! - If rounding makes the resized video one pixel shorter than the wanted size, the reference fails (for
//!   256 pixels: videos whose shorter side is 161, 187, 196, ...). Here that side gets the wanted size.
//! - Sizes need not be square: the scale is the smallest that covers both sides. For squares it equals the
//!   reference's scale, which is that of the shorter side.

use opensora_video::{
    Frames,
    pillow::{Filter, Resize},
};

/// Resize and crop of the images or frames of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResizeCrop {
    /// Height and width of the file's images or frames.
    pub source: [usize; 2],
    /// Factor of both sides.
    pub scale: f64,
    /// Height and width after resizing.
    pub resized: [usize; 2],
    /// First row and column of the crop in the resized image.
    pub offset: [usize; 2],
    /// Height and width of the crop.
    pub size: [usize; 2],
}

impl ResizeCrop {
    /// Returns the resize and crop of a video from `source` to `size`, each height and width.
    pub fn of_video(source: [usize; 2], size: [usize; 2]) -> Self {
        let half = |rest: usize| (rest as f64 / 2.0).round_ties_even() as usize;
        Self::new(source, size, f64::floor, half)
    }

    /// Returns the resize and crop of an image from `source` to `size`, each height and width.
    pub fn of_image(source: [usize; 2], size: [usize; 2]) -> Self {
        Self::new(source, size, f64::round_ties_even, |rest| rest / 2)
    }

    fn new(
        source: [usize; 2],
        size: [usize; 2],
        round: fn(f64) -> f64,
        half: fn(usize) -> usize,
    ) -> Self {
        let ratio = |axis: usize| size[axis] as f64 / source[axis] as f64;
        let scale = ratio(0).max(ratio(1));
        let resized =
            [0, 1].map(|axis| (round(source[axis] as f64 * scale) as usize).max(size[axis]));
        let offset = [0, 1].map(|axis| half(resized[axis] - size[axis]));
        Self { source, scale, resized, offset, size }
    }

    /// Returns the same resizing without the crop.
    pub fn whole(self) -> Self {
        Self { offset: [0, 0], size: self.resized, ..self }
    }
}

/// Returns the frames at `indices`, mirrored if `flip`, resized and cropped as `place` says, as `[3, T,
/// H, W]` in [0, 1], row-major.
///
/// # Panics
/// Panics if an index is beyond the last frame, or `place` has another source size.
pub fn video(frames: &Frames, indices: &[usize], place: &ResizeCrop, flip: bool) -> Vec<f32> {
    let [height, width] = place.source;
    assert_eq!([frames.height(), frames.width()], place.source, "frames of another size");
    let (rows, mut columns) = (taps(place, 0), taps(place, 1));
    if flip {
        // Mirrored before resizing, which differs from mirroring afterwards.
        for tap in &mut columns {
            (tap.low, tap.high) = (width - 1 - tap.low, width - 1 - tap.high);
        }
    }
    let unit: [f32; 256] = std::array::from_fn(|byte| byte as f32 / 255.0);
    let area = height * width * 3;
    let mut out = Vec::with_capacity(3 * indices.len() * place.size[0] * place.size[1]);
    for channel in 0..3 {
        for &index in indices {
            let frame = &frames.data()[index * area..(index + 1) * area];
            let pixel =
                |y: usize, x: usize| unit[usize::from(frame[(y * width + x) * 3 + channel])];
            for row in &rows {
                out.extend(columns.iter().map(|column| {
                    let across = |y| column.mix(pixel(y, column.low), pixel(y, column.high));
                    row.mix(across(row.low), across(row.high))
                }));
            }
        }
    }
    out
}

/// Two source pixels and their weights in an interpolated pixel.
struct Tap {
    low: usize,
    high: usize,
    weights: [f32; 2],
}

impl Tap {
    fn mix(&self, low: f32, high: f32) -> f32 {
        low * self.weights[0] + high * self.weights[1]
    }
}

/// Returns the taps of bilinear interpolation as PyTorch computes them in f32 with `align_corners=False`
/// and a given scale factor: coordinates use the factor, not the ratio of the rounded sizes.
fn taps(place: &ResizeCrop, axis: usize) -> Vec<Tap> {
    let step = (1.0 / place.scale) as f32;
    let last = place.source[axis] - 1;
    let begin = place.offset[axis];
    (begin..begin + place.size[axis])
        .map(|index| {
            let at = (step * (index as f32 + 0.5) - 0.5).max(0.0);
            let low = (at as usize).min(last);
            let high = (low + 1).min(last);
            let share = (at - low as f32).clamp(0.0, 1.0);
            Tap { low, high, weights: [1.0 - share, share] }
        })
        .collect()
}

/// Resizes and crops an image `[H, W, 3]` from `source` to `size`; returns `[H, W, 3]` bytes.
///
/// While both sides are at least twice as long as wanted, the image is halved by the mean of four
/// pixels. The rest is bicubic interpolation with antialiasing.
///
/// # Panics
/// Panics if the image is not of `source` height and width, or a size has a zero.
pub fn image(rgb: &[u8], source: [usize; 2], size: [usize; 2]) -> Vec<u8> {
    assert!(source.iter().chain(&size).all(|&side| side > 0), "a side without pixels");
    let (mut rgb, mut source) = (std::borrow::Cow::Borrowed(rgb), source);
    while source[0] >= 2 * size[0] && source[1] >= 2 * size[1] {
        let half = source.map(|side| side / 2);
        rgb = Resize::whole(source, half).apply(&rgb, Filter::Box).into();
        source = half;
    }
    let ResizeCrop { source, resized, offset, size, .. } = ResizeCrop::of_image(source, size);
    Resize { source, resized, offset, size }.apply(&rgb, Filter::Bicubic)
}

/// Returns an image of `[H, W, 3]` bytes `num_frames` times as `[3, T, H, W]` in [0, 1].
pub fn repeat(rgb: &[u8], num_frames: usize) -> Vec<f32> {
    let plane = |channel: usize| rgb.iter().skip(channel).step_by(3).map(|&b| f32::from(b) / 255.0);
    (0..3).flat_map(|channel| (0..num_frames).flat_map(move |_| plane(channel))).collect()
}

/// Maps values from [0, 1] to [-1, 1].
pub fn normalize(values: &mut [f32]) {
    for value in values {
        *value = (*value - 0.5) / 0.5;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip([height, width]: [usize; 2]) -> Frames {
        let bytes = (0..2 * height * width * 3).map(|at| (at * 37 % 251) as u8).collect();
        Frames::from_rgb(bytes, [2, height, width]).unwrap()
    }

    #[test]
    fn a_clip_is_the_centre_of_the_resized_video() {
        let frames = clip([21, 50]);
        let place = ResizeCrop::of_video([21, 50], [16, 24]);
        // 24 / 50 would leave 10 rows: the scale is 16 / 21, and 38 columns of which 7 go in front.
        assert_eq!((place.resized, place.offset), ([16, 38], [0, 7]));
        let whole = video(&frames, &[0, 1], &place.whole(), false);
        let part = video(&frames, &[1], &place, false);
        for channel in 0..3 {
            for y in 0..16 {
                let from = ((channel * 2 + 1) * 16 + y) * 38 + 7;
                let to = (channel * 16 + y) * 24;
                assert_eq!(part[to..to + 24], whole[from..from + 24]);
            }
        }
    }

    #[test]
    fn a_video_of_the_wanted_size_is_unchanged_and_mirrors_exactly() {
        let frames = clip([8, 8]);
        let place = ResizeCrop::of_video([8, 8], [8, 8]);
        let [plain, flipped] = [false, true].map(|flip| video(&frames, &[1], &place, flip));
        let byte = |channel, y, x| frames.data()[((8 + y) * 8 + x) * 3 + channel];
        for at in 0..3 * 64 {
            let (channel, y, x) = (at / 64, at / 8 % 8, at % 8);
            assert_eq!(plain[at], f32::from(byte(channel, y, x)) / 255.0);
            assert_eq!(flipped[at], f32::from(byte(channel, y, 7 - x)) / 255.0);
        }
    }

    #[test]
    fn every_source_size_gives_the_wanted_size() {
        for source in 1..2000 {
            for size in [16, 24, 256, 512] {
                for place in [
                    ResizeCrop::of_video([source, source + 7], [size, size]),
                    ResizeCrop::of_image([source + 7, source], [size, 2 * size]),
                ] {
                    assert!((0..2).all(|k| place.offset[k] + place.size[k] <= place.resized[k]));
                    // One side fits, except for a pixel that rounding may add.
                    assert!((0..2).any(|k| place.resized[k] - place.size[k] <= 1), "{place:?}");
                }
            }
        }
    }
}
