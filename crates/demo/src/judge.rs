//! Recognises shape, colour, background and motion in a clip by image analysis.
//!
//! The background is the median colour of the border. The object is the largest connected region with another
//! colour; its colour is the median of its inner pixels. Its shape is the one of the three that, drawn with the
//! same area, centroid and aspect ratio, overlaps best. The motion follows from the displacement of the
//! centroid and the change of area between the first and the last quarter of the clip. Attributes below a
//! threshold have no verdict.

use super::{
    render::coverage,
    world::{Background, Colour, Motion, Shape},
};
use opensora::video::Frames;
use serde::Serialize;

/// Recognised attributes of a clip; `None` for those that are not clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The object's shape.
    pub shape: Option<Shape>,
    /// The object's colour.
    pub colour: Option<Colour>,
    /// The background's colour.
    pub background: Option<Background>,
    /// The motion of the object; `None` also if it does not move.
    pub motion: Option<Motion>,
}

/// Smallest RGB distance between object and background; noise and compression artefacts are below.
const LEAST_CONTRAST: f64 = 60.0;
/// Largest RGB distance between a colour and its reference value.
const FURTHEST_COLOUR: f64 = 110.0;
/// Smallest area of an object as a share of the frame; the smallest object of the data set covers 0.022.
const LEAST_AREA: f64 = 0.006;
/// Largest area of other regions, as a share of the area of the object.
const MOST_APART: f64 = 0.25;
/// Largest difference between object and shape, as a share of the area of the object.
const MOST_MISMATCH: f64 = 0.35;
/// Typical displacement between the first and the last quarter of a clip, as a share of the side. Compared with
/// [`USUAL_GROWTH`] on equal terms.
const USUAL_SHIFT: f64 = 0.38;
/// Typical logarithm of the growth of the radius between the first and the last quarter of a clip.
const USUAL_GROWTH: f64 = 0.8;
/// Smallest motion, as a share of the typical one.
const LEAST_MOTION: f64 = 0.4;

/// Judges a clip or image of at least 32x32 pixels.
pub fn judge(clip: &Frames) -> Verdict {
    let size = [clip.height(), clip.width()];
    let frames: Vec<Frame> = clip.iter().map(|rgb| Frame::of(rgb, size)).collect();
    let objects: Vec<&Object> = frames.iter().filter_map(|frame| frame.object.as_ref()).collect();
    // The object has to be visible in more than half of the frames.
    let present = 2 * objects.len() > frames.len();
    Verdict {
        shape: if present { shape(&objects, size) } else { None },
        colour: if present { most_frequent(objects.iter().map(|o| o.colour)) } else { None },
        background: most_frequent(frames.iter().map(|frame| frame.background)),
        motion: if present { motion(&frames) } else { None },
    }
}

/// Background and object of one frame.
struct Frame {
    background: Option<Background>,
    object: Option<Object>,
}

/// The object of a frame.
struct Object {
    colour: Option<Colour>,
    /// Approximate coverage of each pixel, in [0, 1].
    cover: Vec<f32>,
    /// Sum of `cover` as a share of the frame.
    area: f64,
    /// (x, y) in pixels.
    centroid: [f64; 2],
    /// (x, y) as fractions of the frame.
    place: [f64; 2],
    /// Ratio of the standard deviation along y to that along x.
    aspect: f64,
    /// True if other regions are small.
    alone: bool,
}

impl Frame {
    fn of(rgb: &[u8], size: [usize; 2]) -> Self {
        let border = border(size);
        let background = median(rgb, border.into_iter());
        Self {
            background: nearest(background, Background::ALL.map(|b| (b, b.rgb()))),
            object: Object::find(rgb, size, background),
        }
    }
}

impl Object {
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
        let (mut area, mut sums, mut squares) = (0.0, [0.0; 2], [0.0; 2]);
        for &at in &object {
            let weight = f64::from(cover[at]);
            area += weight;
            for (axis, at) in [at % width, at / width].into_iter().enumerate() {
                let at = at as f64 + 0.5;
                sums[axis] += weight * at;
                squares[axis] += weight * at * at;
            }
        }
        if area <= 0.0 {
            return None;
        }
        let centroid = sums.map(|sum| sum / area);
        let deviation =
            |axis: usize| (squares[axis] / area - centroid[axis] * centroid[axis]).max(1e-6).sqrt();
        Some(Self {
            colour: nearest(colour, Colour::ALL.map(|c| (c, c.rgb()))),
            area: area / (height * width) as f64,
            place: [centroid[0] / width as f64, centroid[1] / height as f64],
            aspect: deviation(1) / deviation(0),
            alone: (apart as f64) <= MOST_APART * object.len() as f64,
            centroid,
            cover,
        })
    }

    /// Returns the sum of differences to a shape of the same area, centroid and aspect ratio.
    fn mismatch(&self, shape: Shape, size: [usize; 2]) -> f64 {
        // With half sides (a, b) of its box: the area in a b, b/a by the aspect of the deviations,
        // and how far the centroid lies below the box's middle in b.
        let (share, proportion, below) = match shape {
            Shape::Circle => (std::f64::consts::PI, 1.0, 0.0),
            Shape::Square => (4.0, 1.0, 0.0),
            // Deviations of a triangle: a / sqrt(6) and b sqrt(2) / 3.
            Shape::Triangle => (2.0, 0.75f64.sqrt(), 1.0 / 3.0),
        };
        let product = self.area * (size[0] * size[1]) as f64 / share;
        let ratio = (self.aspect * proportion).clamp(0.1, 10.0);
        let half = [(product / ratio).sqrt(), (product * ratio).sqrt()];
        let centre = [self.centroid[0], self.centroid[1] - below * half[1]];
        let ideal = coverage(shape, centre, half, size);
        ideal.iter().zip(&self.cover).map(|(a, b)| f64::from((a - b).abs())).sum()
    }
}

/// Returns the shape that fits best over all frames.
fn shape(objects: &[&Object], size: [usize; 2]) -> Option<Shape> {
    if 2 * objects.iter().filter(|object| object.alone).count() <= objects.len() {
        return None;
    }
    let pixels = (size[0] * size[1]) as f64;
    let area: f64 = objects.iter().map(|object| object.area * pixels).sum();
    let fits = Shape::ALL.map(|shape| {
        let mismatch: f64 = objects.iter().map(|object| object.mismatch(shape, size)).sum();
        (shape, mismatch / area)
    });
    let best = fits.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 <= MOST_MISMATCH).then_some(best.0)
}

/// Returns the largest change between the first and the last quarter.
fn motion(frames: &[Frame]) -> Option<Motion> {
    let quarter = (frames.len() / 4).max(1);
    if frames.len() < 2 {
        return None;
    }
    let mean = |frames: &[Frame], value: &dyn Fn(&Object) -> f64| {
        let values: Vec<f64> =
            frames.iter().filter_map(|frame| frame.object.as_ref()).map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let (first, last) = (&frames[..quarter], &frames[frames.len() - quarter..]);
    let change = |value: &dyn Fn(&Object) -> f64| Some(mean(last, value)? - mean(first, value)?);
    let right = change(&|object| object.place[0])? / USUAL_SHIFT;
    let down = change(&|object| object.place[1])? / USUAL_SHIFT;
    // Half the logarithm of the area is that of the radius.
    let growth = change(&|object| object.area.ln() / 2.0)? / USUAL_GROWTH;
    let (motion, strength) = [
        (Motion::Right, right),
        (Motion::Left, -right),
        (Motion::Down, down),
        (Motion::Up, -down),
        (Motion::Growing, growth),
        (Motion::Shrinking, -growth),
    ]
    .into_iter()
    .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (strength >= LEAST_MOTION).then_some(motion)
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

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (0..3).map(|c| (a[c] - b[c]) * (a[c] - b[c])).sum::<f64>().sqrt()
}

/// Returns the name of the colour of `palette` that is nearest to `colour` (RGB, 0 to 255), if it is
/// within [`FURTHEST_COLOUR`].
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

/// Returns the most frequent value; `None` values are ignored.
fn most_frequent<N: Copy + PartialEq>(votes: impl Iterator<Item = Option<N>>) -> Option<N> {
    let votes: Vec<N> = votes.flatten().collect();
    votes.iter().copied().max_by_key(|vote| votes.iter().filter(|other| *other == vote).count())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Labels, Scene, render, training_clip};

    fn still(colour: u8) -> Frames {
        Frames::from_rgb(vec![colour; 4 * 32 * 32 * 3], [4, 32, 32]).unwrap()
    }

    #[test]
    fn an_empty_clip_has_no_object() {
        let verdict = judge(&still(12));
        let nothing = Verdict { shape: None, colour: None, background: None, motion: None };
        assert_eq!(verdict, Verdict { background: Some(Background::Black), ..nothing });
    }

    #[test]
    fn a_shape_that_stays_has_no_motion() {
        let scene = training_clip(2, 0).scene;
        let held = Scene { end: scene.start, ..scene };
        let verdict = judge(&render(&held, 8, [64, 64]).unwrap());
        assert_eq!((verdict.shape, verdict.motion), (Some(held.labels.shape), None));
        let image = judge(&render(&held, 1, [64, 64]).unwrap());
        assert_eq!((image.colour, image.motion), (Some(held.labels.colour), None));
    }

    #[test]
    fn other_shapes_and_two_objects_have_no_verdict() {
        let labels = Labels {
            shape: Shape::Square,
            colour: Colour::Red,
            background: Background::White,
            motion: None,
        };
        let scene = Scene::draw(labels, &mut Kind::Still.rng(0, 0));
        let clear = render(&scene, 4, [64, 64]).unwrap();
        assert_eq!(judge(&clear).shape, Some(Shape::Square));
        // Three bars of the object's colour, joined: no shape of the three.
        let mut data = Vec::new();
        for _ in 0..4 {
            for at in 0..64 * 64 {
                let (y, x) = (at / 64, at % 64);
                let bar = (10..54).contains(&x) && (10..54).contains(&y);
                let comb = bar && (y < 14 || x % 14 < 5);
                data.extend(if comb { scene.object } else { scene.background });
            }
        }
        let comb = Frames::from_rgb(data, [4, 64, 64]).unwrap();
        assert_eq!((judge(&comb).shape, judge(&comb).colour), (None, Some(Colour::Red)));
        // Two squares.
        let mut data = Vec::new();
        for _ in 0..4 {
            for at in 0..64 * 64 {
                let (y, x) = (at / 64, at % 64);
                let square = (20..40).contains(&y) && (x % 32 > 5 && x % 32 < 26);
                data.extend(if square { scene.object } else { scene.background });
            }
        }
        let two = Frames::from_rgb(data, [4, 64, 64]).unwrap();
        assert_eq!(judge(&two).shape, None);
    }
}
