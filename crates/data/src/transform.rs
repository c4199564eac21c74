//! Pixels of clips: resized so that they cover the wanted size, cut about their centre, in [-1, 1].
//!
//! Videos are resized bilinearly without antialiasing, images by Pillow's [`opensora_video::pillow`].
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/utils.py`, `get_transforms_video`,
//! `get_transforms_image` and `center_crop_arr`; `opensora/datasets/video_transforms.py`,
//! `UCFCenterCropVideo`. Deviations:
//!
//! - Where rounding makes the resized video one pixel shorter than the wanted size, the reference
//!   fails (for 256 pixels: videos whose shorter side is 161, 187, 196, ...). Here that side has
//!   the wanted size.
//! - Sizes need not be square: the scale is then the smallest that covers both sides. For squares
//!   that is the reference's, which goes by the shorter side.

use opensora_video::{
    Frames,
    pillow::{Filter, Resize},
};

/// Where the pixels of a clip lie in those of its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResizeCrop {
    /// Height and width of the file's pictures.
    pub source: [usize; 2],
    /// What they are multiplied by.
    pub scale: f64,
    /// Height and width of the pictures when resized.
    pub resized: [usize; 2],
    /// First row and column of these that are kept.
    pub offset: [usize; 2],
    /// Height and width that are kept.
    pub size: [usize; 2],
}

impl ResizeCrop {
    /// The way of videos; sizes are height and width.
    pub fn of_video(source: [usize; 2], size: [usize; 2]) -> Self {
        let half = |rest: usize| (rest as f64 / 2.0).round_ties_even() as usize;
        Self::new(source, size, f64::floor, half)
    }

    /// The way of images; sizes are height and width.
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

    /// The same without cutting.
    pub fn whole(self) -> Self {
        Self { offset: [0, 0], size: self.resized, ..self }
    }
}

/// Turns frames of a video into `[3, T, H, W]` in [0, 1], row-major, `T` being the number of
/// `indices`.
///
/// # Panics
/// Where an index is behind the last frame, or `place` is of another source size.
pub fn video(frames: &Frames, indices: &[usize], place: &ResizeCrop, flip: bool) -> Vec<f32> {
    let [height, width] = place.source;
    assert_eq!([frames.height(), frames.width()], place.source, "frames of another size");
    let (rows, mut columns) = (taps(place, 0), taps(place, 1));
    if flip {
        // Mirrored before it is resized, which is not the same as after.
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

/// Two source pixels and their weights.
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

/// `align_corners=False` with a stated scale factor: coordinates go by the factor, and not by the
/// ratio of the sizes, which rounding has changed. In f32, as PyTorch computes them.
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

/// Resizes and cuts an image `[H, W, 3]`; returns `[H, W, 3]` bytes of `size`.
///
/// While it is at least twice too large, it is halved by the mean of four pixels; then bicubic
/// with antialiasing.
///
/// # Panics
/// Where the image is not of `source` height and width, or one of the sizes has a zero.
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

/// `[H, W, 3]` bytes as `[3, T, H, W]` in [0, 1], the image `num_frames` times.
pub fn repeat(rgb: &[u8], num_frames: usize) -> Vec<f32> {
    let plane = |channel: usize| rgb.iter().skip(channel).step_by(3).map(|&b| f32::from(b) / 255.0);
    (0..3).flat_map(|channel| (0..num_frames).flat_map(move |_| plane(channel))).collect()
}

/// [0, 1] to [-1, 1].
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
    fn a_clip_is_the_middle_of_the_whole_resized_video() {
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
    fn every_side_gives_the_wanted_size() {
        for source in 1..2000 {
            for size in [16, 24, 256, 512] {
                for place in [
                    ResizeCrop::of_video([source, source + 7], [size, size]),
                    ResizeCrop::of_image([source + 7, source], [size, 2 * size]),
                ] {
                    assert!((0..2).all(|k| place.offset[k] + place.size[k] <= place.resized[k]));
                    // One side fits, but for the pixel that rounding may add.
                    assert!((0..2).any(|k| place.resized[k] - place.size[k] <= 1), "{place:?}");
                }
            }
        }
    }
}
