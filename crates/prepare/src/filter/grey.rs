//! Small grey frames, on which motion, brightness and hashes are measured.

use image::GrayImage;

/// Shorter side of scaled frames in pixels; smaller frames are not scaled.
pub(crate) const SHORT_SIDE: usize = 128;

/// An image of luma in [0, 1], `[H, W]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grey {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) luma: Vec<f32>,
}

impl Grey {
    /// Returns the mean luma.
    pub(crate) fn mean(&self) -> f64 {
        self.luma.iter().map(|&luma| f64::from(luma)).sum::<f64>() / self.luma.len() as f64
    }

    /// Returns the mean absolute difference to an image of the same size.
    pub(crate) fn difference(&self, other: &Self) -> f64 {
        let pairs = self.luma.iter().zip(&other.luma);
        let sum: f64 = pairs.map(|(a, b)| f64::from((a - b).abs())).sum();
        sum / self.luma.len() as f64
    }

    /// Returns the image at half the size: means of 2x2 pixels, without an odd last row or column.
    pub(crate) fn halved(&self) -> Self {
        let (width, height) = (self.width / 2, self.height / 2);
        let mut luma = Vec::with_capacity(width * height);
        for rows in self.luma.chunks_exact(2 * self.width) {
            let (upper, lower) = rows.split_at(self.width);
            let blocks = upper.chunks_exact(2).zip(lower.chunks_exact(2));
            luma.extend(blocks.map(|(u, l)| (u[0] + u[1] + l[0] + l[1]) / 4.0));
        }
        Self { width, height, luma }
    }

    /// Returns the image in bytes.
    pub(crate) fn to_bytes(&self) -> GrayImage {
        GrayImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let luma = self.luma[y as usize * self.width + x as usize];
            image::Luma([(luma * 255.0).round() as u8])
        })
    }
}

/// Scales RGB frames of one size down to grey images: each pixel is the area-weighted mean of the pixels
/// that it covers.
pub(crate) struct Shrink {
    source_width: usize,
    rows: Vec<Span>,
    columns: Vec<Span>,
}

/// The source rows or columns of one row or column of the result, with weights.
struct Span {
    first: usize,
    weights: Vec<f32>,
}

impl Shrink {
    /// Plans the scaling of frames of this size.
    pub(crate) fn new(height: usize, width: usize) -> Self {
        let scale = SHORT_SIDE as f64 / height.min(width).max(1) as f64;
        let small = |side: usize| match scale < 1.0 {
            true => ((side as f64 * scale).round() as usize).max(1),
            false => side,
        };
        Self {
            source_width: width,
            rows: spans(height, small(height)),
            columns: spans(width, small(width)),
        }
    }

    /// Scales `[H, W, 3]` bytes.
    pub(crate) fn apply(&self, rgb: &[u8]) -> Grey {
        let (width, height) = (self.columns.len(), self.rows.len());
        let mut narrow = Vec::new();
        let mut wide = Vec::with_capacity(self.source_width);
        for row in rgb.chunks_exact(3 * self.source_width) {
            wide.clear();
            wide.extend(row.chunks_exact(3).map(luma));
            narrow.extend(self.columns.iter().map(|span| {
                let covered = &wide[span.first..span.first + span.weights.len()];
                covered.iter().zip(&span.weights).map(|(luma, weight)| luma * weight).sum::<f32>()
            }));
        }
        let mut small = vec![0.0; width * height];
        for (row, span) in small.chunks_exact_mut(width).zip(&self.rows) {
            let covered = narrow.chunks_exact(width).skip(span.first);
            for (from, weight) in covered.zip(&span.weights) {
                row.iter_mut().zip(from).for_each(|(sum, luma)| *sum += luma * weight);
            }
        }
        Grey { width, height, luma: small }
    }
}

/// Returns the pixels that `small` equal parts of `side` pixels cover.
fn spans(side: usize, small: usize) -> Vec<Span> {
    let size = side as f64 / small as f64;
    let span = |index: usize| {
        let (begin, end) = (index as f64 * size, (index + 1) as f64 * size);
        let (first, last) = (begin as usize, (end.ceil() as usize).min(side));
        let share = |at: usize| (end.min((at + 1) as f64) - begin.max(at as f64)).max(0.0) / size;
        Span { first, weights: (first..last).map(|at| share(at) as f32).collect() }
    };
    (0..small).map(span).collect()
}

/// Returns the luma of ITU-R BT.601, in [0, 1].
fn luma(rgb: &[u8]) -> f32 {
    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(f32::from);
    (0.299 * r + 0.587 * g + 0.114 * b) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_keeps_the_mean_and_small_frames_their_size() {
        // A ramp over the columns of an image whose sides are not multiples of the scaled ones.
        let (height, width) = (300, 451);
        let ramp = |x: usize| (x * 255 / width) as u8;
        let rgb: Vec<u8> =
            (0..height).flat_map(|_| (0..width).flat_map(|x| [ramp(x); 3])).collect();
        let expected = (0..width).map(|x| f64::from(ramp(x))).sum::<f64>() / width as f64 / 255.0;
        let grey = Shrink::new(height, width).apply(&rgb);
        assert_eq!((grey.height, grey.width), (128, 192));
        assert!((grey.mean() - expected).abs() < 1e-4, "{} {expected}", grey.mean());
        assert!(grey.luma.windows(2).take(191).all(|pair| pair[1] > pair[0]));
        assert_eq!(grey.difference(&grey), 0.0);

        let tiny = Shrink::new(2, 3).apply(&[0, 0, 0, 255, 255, 255].repeat(3));
        assert_eq!((tiny.height, tiny.width), (2, 3));
        assert!((tiny.mean() - 0.5).abs() < 1e-6);
        assert_eq!(tiny.to_bytes().into_raw(), [0, 255, 0, 255, 0, 255]);
        let half = tiny.halved();
        assert_eq!((half.height, half.width), (1, 1));
        assert!((half.mean() - 0.5).abs() < 1e-6);
    }
}
