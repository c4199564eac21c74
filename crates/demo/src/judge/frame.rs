//! Recognises background, object and shape in one frame.

use super::FrameVerdict;
use crate::{
    render::coverage,
    world::{Background, Colour, Shape},
};

/// Smallest RGB distance between object and background; noise and compression artefacts are below.
const LEAST_CONTRAST: f64 = 60.0;
/// Largest RGB distance between a colour and its reference value.
const FURTHEST_COLOUR: f64 = 110.0;
/// Smallest area of an object as a share of the frame; the smallest object of the data set covers 0.034.
const LEAST_AREA: f64 = 0.006;
/// Largest area of other regions, as a share of the area of the object.
const MOST_APART: f64 = 0.25;
/// Largest difference between object and shape, as a share of the area of the object. The three shapes differ from
/// each other by 0.18 (circle, square) and 0.37 (triangle, others): the nearest one decides, and this limit rejects
/// objects that resemble none.
const MOST_MISMATCH: f64 = 0.5;

/// Background and object of one frame.
pub(super) struct Frame {
    /// Median RGB value of the border.
    pub(super) background: [f64; 3],
    pub(super) object: Option<Object>,
}

/// The object of a frame.
pub(super) struct Object {
    /// Median RGB value of the inner pixels.
    pub(super) colour: [f64; 3],
    /// Approximate coverage of each pixel, in [0, 1].
    pub(super) cover: Vec<f32>,
    /// Sum of `cover` as a share of the frame.
    pub(super) area: f64,
    /// (x, y) in pixels.
    pub(super) centroid: [f64; 2],
    /// (x, y) as fractions of the frame.
    pub(super) place: [f64; 2],
    /// True if other regions are small.
    alone: bool,
}

impl Frame {
    /// Finds background and object of `rgb`, `[height, width, 3]`.
    pub(super) fn of(rgb: &[u8], size: [usize; 2]) -> Self {
        let background = median(rgb, border(size).into_iter());
        Self { background, object: Object::find(rgb, size, background) }
    }

    /// Returns the attributes of the frame.
    pub(super) fn verdict(&self, size: [usize; 2]) -> FrameVerdict {
        let object = self.object.as_ref();
        FrameVerdict {
            shape: object.and_then(|object| object.shape(size)),
            colour: object
                .and_then(|object| nearest(object.colour, Colour::ALL.map(|c| (c, c.rgb())))),
            background: nearest(self.background, Background::ALL.map(|b| (b, b.rgb()))),
        }
    }
}

impl Object {
    /// Finds the largest region whose colour differs from the background.
    fn find(rgb: &[u8], size: [usize; 2], background: [f64; 3]) -> Option<Self> {
        let [height, width] = size;
        let differs: Vec<f64> =
            rgb.chunks_exact(3).map(|pixel| distance(as_f64(pixel), background)).collect();
        let mask: Vec<bool> = differs.iter().map(|&distance| distance > LEAST_CONTRAST).collect();
        let (object, apart) = largest_part(&mask, size);
        if (object.len() as f64) < LEAST_AREA * (height * width) as f64 {
            return None;
        }
        // The half of the pixels with the largest difference has no blurred edges.
        let mut strengths: Vec<f64> = object.iter().map(|&at| differs[at]).collect();
        let middle = strengths.len() / 2;
        strengths.select_nth_unstable_by(middle, f64::total_cmp);
        let inner = object.iter().copied().filter(|&at| differs[at] >= strengths[middle]);
        let colour = median(rgb, inner);

        let toward: Vec<f64> = (0..3).map(|c| colour[c] - background[c]).collect();
        let full = toward.iter().map(|t| t * t).sum::<f64>().max(1.0);
        let mut cover = vec![0.0f32; height * width];
        for &at in &object {
            let pixel = as_f64(&rgb[3 * at..][..3]);
            let along: f64 = (0..3).map(|c| (pixel[c] - background[c]) * toward[c]).sum();
            // Doubling the contrast around one half compensates a part of the blur.
            cover[at] = (2.0 * along / full - 0.5).clamp(0.0, 1.0) as f32;
        }
        let (mut area, mut sums) = (0.0, [0.0; 2]);
        for &at in &object {
            let weight = f64::from(cover[at]);
            area += weight;
            for (axis, at) in [at % width, at / width].into_iter().enumerate() {
                sums[axis] += weight * (at as f64 + 0.5);
            }
        }
        if area <= 0.0 {
            return None;
        }
        let centroid = sums.map(|sum| sum / area);
        Some(Self {
            colour,
            area: area / (height * width) as f64,
            place: [centroid[0] / width as f64, centroid[1] / height as f64],
            alone: (apart as f64) <= MOST_APART * object.len() as f64,
            centroid,
            cover,
        })
    }

    /// Returns the shape that overlaps best, drawn with the same area and centroid.
    fn shape(&self, size: [usize; 2]) -> Option<Shape> {
        if !self.alone {
            return None;
        }
        let fits = Shape::ALL.map(|shape| (shape, self.mismatch(shape, size)));
        let best = fits.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        (best.1 <= MOST_MISMATCH).then_some(best.0)
    }

    /// Returns the sum of differences to a shape of the same area and centroid, as a share of the area. The box of
    /// the shape is a square, as the world draws it: a wider or higher object is another shape.
    fn mismatch(&self, shape: Shape, size: [usize; 2]) -> f64 {
        // Area of the shape in a box of half side 1; distance of its centroid below the middle of the box.
        let (share, below) = match shape {
            Shape::Circle => (std::f64::consts::PI, 0.0),
            Shape::Square => (4.0, 0.0),
            Shape::Triangle => (2.0, 1.0 / 3.0),
        };
        let area = self.area * (size[0] * size[1]) as f64;
        let half = (area / share).sqrt();
        let centre = [self.centroid[0], self.centroid[1] - below * half];
        let ideal = coverage(shape, centre, [half; 2], size);
        let differences = ideal.iter().zip(&self.cover).map(|(a, b)| f64::from((a - b).abs()));
        differences.sum::<f64>() / area
    }
}

/// Returns the indices of the pixels of the border, whose width is 1/32 of the side.
fn border([height, width]: [usize; 2]) -> Vec<usize> {
    let depth = (height.min(width) / 32).max(1);
    let outer = |at: usize, side: usize| at < depth || at + depth >= side;
    (0..height * width).filter(|at| outer(at / width, height) || outer(at % width, width)).collect()
}

/// Returns the median of each channel over the pixels at `indices`, which must not be empty.
fn median(rgb: &[u8], indices: impl Iterator<Item = usize> + Clone) -> [f64; 3] {
    [0, 1, 2].map(|channel| {
        let mut values: Vec<u8> = indices.clone().map(|at| rgb[3 * at + channel]).collect();
        let middle = values.len() / 2;
        f64::from(*values.select_nth_unstable(middle).1)
    })
}

fn as_f64(pixel: &[u8]) -> [f64; 3] {
    [0, 1, 2].map(|channel| f64::from(pixel[channel]))
}

/// Returns the Euclidean distance of two RGB values.
pub(super) fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (0..3).map(|c| (a[c] - b[c]) * (a[c] - b[c])).sum::<f64>().sqrt()
}

/// Returns the name of the nearest colour within the threshold.
fn nearest<N: Copy, const COUNT: usize>(
    colour: [f64; 3],
    palette: [(N, [u8; 3]); COUNT],
) -> Option<N> {
    palette
        .map(|(name, rgb)| (name, distance(colour, rgb.map(f64::from))))
        .into_iter()
        .filter(|named| named.1 <= FURTHEST_COLOUR)
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|named| named.0)
}

/// Returns the largest connected region of a mask `[height, width]`, and the number of pixels of the others.
fn largest_part(mask: &[bool], [height, width]: [usize; 2]) -> (Vec<usize>, usize) {
    let mut seen = vec![false; mask.len()];
    let (mut largest, mut total) = (Vec::new(), 0);
    for start in 0..mask.len() {
        if !mask[start] || seen[start] {
            continue;
        }
        seen[start] = true;
        let mut part = vec![start];
        let mut next = 0;
        while next < part.len() {
            let at = part[next];
            next += 1;
            let (y, x) = (at / width, at % width);
            for (there, neighbour) in [
                (x > 0, at.wrapping_sub(1)),
                (x + 1 < width, at + 1),
                (y > 0, at.wrapping_sub(width)),
                (y + 1 < height, at + width),
            ] {
                if there && mask[neighbour] && !seen[neighbour] {
                    seen[neighbour] = true;
                    part.push(neighbour);
                }
            }
        }
        total += part.len();
        if part.len() > largest.len() {
            largest = part;
        }
    }
    let apart = total - largest.len();
    (largest, apart)
}
