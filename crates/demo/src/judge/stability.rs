//! Measures how steady the object and the colours of a clip are.

use super::frame::{Frame, Object, distance};
use serde::Serialize;

/// Steadiness of a clip in which every frame shows an object.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stability {
    /// Standard deviation of the object's area over the frames, as a share of the mean area.
    pub area_variation: f64,
    /// Mean overlap (intersection over union) of the objects of neighbouring frames, moved onto each other by whole
    /// pixels.
    pub overlap: f64,
    /// Mean RGB distance between the object's colours in neighbouring frames, of 255 per channel.
    pub colour_flicker: f64,
    /// Mean RGB distance between the background's colours in neighbouring frames, of 255 per channel.
    pub background_flicker: f64,
}

impl Stability {
    /// Measures the frames of a clip of `size` (height, width).
    pub(super) fn of(frames: &[Frame], size: [usize; 2]) -> Option<Self> {
        let objects: Vec<&Object> =
            frames.iter().map(|frame| frame.object.as_ref()).collect::<Option<_>>()?;
        if frames.len() < 2 {
            return None;
        }
        let count = objects.len() as f64;
        let mean = objects.iter().map(|object| object.area).sum::<f64>() / count;
        let variance =
            objects.iter().map(|object| (object.area - mean).powi(2)).sum::<f64>() / count;
        let pairs = objects.windows(2);
        Some(Self {
            area_variation: variance.sqrt() / mean,
            overlap: average(pairs.clone().map(|pair| overlap(pair[0], pair[1], size))),
            colour_flicker: average(pairs.map(|pair| distance(pair[0].colour, pair[1].colour))),
            background_flicker: average(
                frames.windows(2).map(|pair| distance(pair[0].background, pair[1].background)),
            ),
        })
    }
}

fn average(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// Returns the intersection over the union of the pixels that two objects cover by at least one half, with the centroid of
/// `next` moved onto that of `object` by whole pixels.
fn overlap(object: &Object, next: &Object, [height, width]: [usize; 2]) -> f64 {
    let [right, down] =
        [0, 1].map(|axis| (next.centroid[axis] - object.centroid[axis]).round() as isize);
    let is_covered = |object: &Object, x: isize, y: isize| {
        let inside = (0..width as isize).contains(&x) && (0..height as isize).contains(&y);
        inside && object.cover[y as usize * width + x as usize] >= 0.5
    };
    let (mut both, mut either) = (0usize, 0usize);
    // Beyond the frame as well: the moved object may extend there.
    for y in -(height as isize)..2 * height as isize {
        for x in -(width as isize)..2 * width as isize {
            let first = is_covered(object, x, y);
            let second = is_covered(next, x + right, y + down);
            both += usize::from(first && second);
            either += usize::from(first || second);
        }
    }
    both as f64 / either.max(1) as f64
}

#[cfg(test)]
mod tests {
    use crate::{Background, Colour, Labels, Motion, Scene, Shape, draw::Kind, judge, render};

    fn scene(motion: Motion) -> Scene {
        let labels = Labels {
            shape: Shape::Square,
            colour: Colour::Green,
            background: Background::White,
            motion: Some(motion),
        };
        Scene::draw(labels, &mut Kind::Clip.rng(1, 0))
    }

    #[test]
    fn a_clip_that_does_not_change_is_steady() {
        let scene = scene(Motion::Left);
        let held = Scene { end: scene.start, ..scene };
        let stability = judge(&render(&held, 4, [48, 48]).unwrap()).stability.unwrap();
        let expected = [0.0, 1.0, 0.0, 0.0];
        let super::Stability { area_variation, overlap, colour_flicker, background_flicker } =
            stability;
        for (found, expected) in
            [area_variation, overlap, colour_flicker, background_flicker].into_iter().zip(expected)
        {
            assert!((found - expected).abs() < 1e-9, "{stability:?}");
        }
        assert_eq!(judge(&render(&held, 1, [48, 48]).unwrap()).stability, None);
    }

    #[test]
    fn changes_of_size_and_colour_are_measured() {
        // The radius grows from 0.1 to 0.2: two areas of which one is four times the other.
        let mut growing = scene(Motion::Growing);
        (growing.start.radius, growing.end.radius) = (0.1, 0.2);
        let clip = render(&growing, 2, [96, 96]).unwrap();
        let stability = judge(&clip).stability.unwrap();
        assert!((stability.area_variation - 0.6).abs() < 0.02, "{stability:?}");
        assert!((stability.overlap - 0.25).abs() < 0.03, "{stability:?}");

        // Every other frame has a background that is darker by 30 in each channel.
        let scene = scene(Motion::Left);
        let held = Scene { end: scene.start, ..scene };
        let dark = Scene { background: held.background.map(|c| c - 30), ..held.clone() };
        let still = |scene: &Scene| render(scene, 1, [48, 48]).unwrap().data().to_vec();
        let pixels = [still(&held), still(&dark), still(&held)].concat();
        let clip = opensora::video::Frames::from_rgb(pixels, [3, 48, 48]).unwrap();
        let stability = judge(&clip).stability.unwrap();
        assert!((stability.background_flicker - 30.0 * 3f64.sqrt()).abs() < 0.1, "{stability:?}");
        assert!(stability.colour_flicker < 0.1, "{stability:?}");
    }
}
