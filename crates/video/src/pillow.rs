//! Resizing of 8-bit images by Pillow's arithmetic.
//!
//! Two passes, rows first, each rounded to bytes; weights are fixed-point numbers of 22 bits whose
//! support widens where the image shrinks. Results are equal to Pillow's byte for byte, which
//! libraries with other roundings are not.
//!
//! Source: python-pillow/Pillow 10 to 13, `src/libImaging/Resample.c`, `ImagingResample`, for the
//! box that is the whole image.

use std::ops::Range;

/// Bits of a weight behind the point: of 32, eight are the pixel's and two are room for sums.
const PRECISION: u32 = 32 - 8 - 2;

/// What a pixel is weighed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The mean of what a pixel covers.
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

/// A resized image of which a part is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resize {
    /// Height and width of the image.
    pub source: [usize; 2],
    /// Height and width of all of the result.
    pub resized: [usize; 2],
    /// First row and column of the part that is wanted.
    pub offset: [usize; 2],
    /// Height and width of that part.
    pub size: [usize; 2],
}

impl Resize {
    /// All of the result.
    pub fn whole(source: [usize; 2], resized: [usize; 2]) -> Self {
        Self { source, resized, offset: [0, 0], size: resized }
    }

    /// Resizes `[H, W, 3]` bytes; returns the part of `size`, `[H, W, 3]`.
    ///
    /// # Panics
    /// Where the image is not of `source`, or the part is not inside the result.
    pub fn apply(&self, rgb: &[u8], filter: Filter) -> Vec<u8> {
        let Self { source: [height, width], resized, offset, size } = *self;
        assert_eq!(rgb.len(), 3 * height * width, "an image of another size");
        assert!((0..2).all(|axis| offset[axis] + size[axis] <= resized[axis]), "a part outside");
        let taps = |axis: usize| {
            let part = offset[axis]..offset[axis] + size[axis];
            Taps::of(self.source[axis], resized[axis], part, filter)
        };
        let (rows, columns) = (taps(0), taps(1));
        // Rows that no row of the part looks at are left out.
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

/// What one row or column of the result is made of.
struct Taps {
    begin: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn of(source: usize, resized: usize, part: Range<usize>, filter: Filter) -> Vec<Self> {
        if source == resized {
            // Pillow leaves out a pass that changes no size.
            return part.map(|begin| Self { begin, weights: vec![1 << PRECISION] }).collect();
        }
        let scale = source as f64 / resized as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let one = |index: usize| {
            let center = (index as f64 + 0.5) * scale;
            // Casts cut off, as in C; below zero they stop at zero.
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
