//! Resizing of 8-bit images, bit-exact with Pillow.
//!
//! Two passes, horizontal first, each rounded to bytes. Weights are fixed-point numbers of 22 bits, and the
//! filter's support grows when the image shrinks.
//!
//! Source: python-pillow/Pillow 10 to 13, `src/libImaging/Resample.c`, `ImagingResample`, for the
//! box that is the whole image.

use std::ops::Range;

/// Fractional bits of a weight: 32 bits minus eight of the pixel and two for sums.
const PRECISION: u32 = 32 - 8 - 2;

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The mean of the covered pixels.
    Box,
    /// Cubic convolution with a = -0.5.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// Sizes of a resized image and of the part to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resize {
    /// Height and width of the source image.
    pub source: [usize; 2],
    /// Height and width of the whole resized image.
    pub resized: [usize; 2],
    /// First row and column of the part.
    pub offset: [usize; 2],
    /// Height and width of the part.
    pub size: [usize; 2],
}

impl Resize {
    /// Returns the parameters for the whole resized image, from `source` to `resized` (heights and widths).
    pub fn whole(source: [usize; 2], resized: [usize; 2]) -> Self {
        Self { source, resized, offset: [0, 0], size: resized }
    }

    /// Resizes `[H, W, 3]` bytes and returns the part, `[H, W, 3]`.
    ///
    /// ```
    /// use opensora_video::pillow::{Filter, Resize};
    ///
    /// let grey = [90; 3 * 4 * 4];
    /// assert_eq!(Resize::whole([4, 4], [2, 2]).apply(&grey, Filter::Box), [90; 3 * 2 * 2]);
    /// ```
    ///
    /// # Panics
    /// Panics if the image does not have the size `source`, or if the part is not inside the resized image.
    pub fn apply(&self, rgb: &[u8], filter: Filter) -> Vec<u8> {
        let Self { source: [height, width], resized, offset, size } = *self;
        assert_eq!(rgb.len(), 3 * height * width, "an image of another size");
        assert!((0..2).all(|axis| offset[axis] + size[axis] <= resized[axis]), "a part outside");
        let taps = |axis: usize| {
            let part = offset[axis]..offset[axis] + size[axis];
            Taps::of(self.source[axis], resized[axis], part, filter)
        };
        let (rows, columns) = (taps(0), taps(1));
        // Rows that do not contribute to the part are skipped.
        let first = rows.iter().map(|taps| taps.begin).min().unwrap_or(0);
        let end = rows.iter().map(|taps| taps.begin + taps.weights.len()).max().unwrap_or(0);

        let mut narrow = Vec::with_capacity(3 * (end - first) * size[1]);
        for row in rgb[3 * width * first..3 * width * end].chunks_exact(3 * width) {
            for taps in &columns {
                narrow.extend((0..3).map(|channel| taps.sum(|x| row[3 * x + channel])));
            }
        }
        let mut out = Vec::with_capacity(3 * size[0] * size[1]);
        for taps in &rows {
            let value = |y: usize, at: usize| narrow[(y - first) * 3 * size[1] + at];
            out.extend((0..3 * size[1]).map(|at| taps.sum(|y| value(y, at))));
        }
        out
    }
}

/// The source pixels of one row or column of the result, with their weights.
struct Taps {
    begin: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn of(source: usize, resized: usize, part: Range<usize>, filter: Filter) -> Vec<Self> {
        if source == resized {
            // Pillow skips a pass that does not change the size.
            return part.map(|begin| Self { begin, weights: vec![1 << PRECISION] }).collect();
        }
        let scale = source as f64 / resized as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let one = |index: usize| {
            let center = (index as f64 + 0.5) * scale;
            // Casts truncate, as in C, and saturate at zero.
            let begin = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            let weight = |x: usize| filter.weight((x as f64 - center + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (begin..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| {
                let share = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = share * f64::from(1 << PRECISION);
                (scaled + 0.5f64.copysign(scaled)) as i32
            };
            Self { begin, weights: weights.iter().map(fixed).collect() }
        };
        part.map(one).collect()
    }

    fn sum(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let half = 1 << (PRECISION - 1);
        let sum = self
            .weights
            .iter()
            .enumerate()
            .fold(half, |sum, (k, weight)| sum + weight * i32::from(pixel(self.begin + k)));
        (sum >> PRECISION).clamp(0, 255) as u8
    }
}
