//! Recognises shape, colour, background and motion in a clip by image analysis, frame by frame.
//!
//! The background of a frame is the median colour of its border. The object is the largest connected region with
//! another colour; its colour is the median of its inner pixels. Its shape is the one of the three that, drawn as
//! in the world (in a square box) with the same area and centroid, overlaps best. A clip has an attribute if more than
//! half of its frames have it. The motion follows from the displacement of the centroid and the change of area between
//! the first and the last quarter of the clip. A change of at most 20 % of the typical one is [`Motion::Still`]; between
//! 20 % and 40 % there is no verdict. Other attributes below a threshold have no verdict either.
//!
//! [`Stability`] measures how steady a clip is: variation of the area, overlap of neighbouring frames, flicker.

mod frame;
mod stability;

pub use stability::Stability;

use super::world::{Background, Colour, Motion, Shape};
use frame::{Frame, Object};
use opensora::video::Frames;
use serde::Serialize;

/// Recognised attributes of a clip; `None` for those that are not clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The object's shape in more than half of the frames.
    pub shape: Option<Shape>,
    /// The object's colour in more than half of the frames.
    pub colour: Option<Colour>,
    /// The background's colour in more than half of the frames.
    pub background: Option<Background>,
    /// The motion of the object; `None` also for a single frame.
    pub motion: Option<Motion>,
}

/// Recognised attributes of one frame; `None` for those that are not clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FrameVerdict {
    /// The object's shape.
    pub shape: Option<Shape>,
    /// The object's colour.
    pub colour: Option<Colour>,
    /// The background's colour.
    pub background: Option<Background>,
}

/// The result of [`judge`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// Attributes of the clip.
    pub verdict: Verdict,
    /// Attributes of each frame.
    pub frames: Vec<FrameVerdict>,
    /// Steadiness of the clip; `None` for a single frame, or if a frame shows no object.
    pub stability: Option<Stability>,
}

/// Typical displacement along an axis between the first and the last quarter of a clip, as a share of the side.
/// Compared with [`USUAL_GROWTH`] on equal terms.
const USUAL_SHIFT: f64 = 0.36;
/// Typical logarithm of the growth of the radius between the first and the last quarter of a clip.
const USUAL_GROWTH: f64 = 0.65;
/// Smallest motion, as a share of the typical one.
const LEAST_MOTION: f64 = 0.4;
/// Largest change that counts as [`Motion::Still`], as a share of the typical motion.
const STILL: f64 = 0.2;
/// Minimum ratio of the smaller to the larger displacement of a diagonal motion: the tangent of 22.5 degrees.
const DIAGONAL: f64 = 0.414;

/// Judges a clip or image of at least 32x32 pixels.
pub fn judge(clip: &Frames) -> Judgement {
    let size = [clip.height(), clip.width()];
    let found: Vec<Frame> = clip.iter().map(|rgb| Frame::of(rgb, size)).collect();
    let frames: Vec<FrameVerdict> = found.iter().map(|frame| frame.verdict(size)).collect();
    let visible = found.iter().filter(|frame| frame.object.is_some()).count();
    let verdict = Verdict {
        shape: majority(frames.iter().map(|frame| frame.shape)),
        colour: majority(frames.iter().map(|frame| frame.colour)),
        background: majority(frames.iter().map(|frame| frame.background)),
        motion: if 2 * visible > found.len() { motion(&found) } else { None },
    };
    Judgement { verdict, frames, stability: Stability::of(&found, size) }
}

/// Returns the motion between the first and the last quarter.
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
    let shift = right.abs().max(down.abs());
    if growth.abs().max(shift) <= STILL {
        return Some(Motion::Still);
    }
    if growth.abs().max(shift) < LEAST_MOTION {
        return None;
    }
    if growth.abs() > shift {
        return Some(if growth > 0.0 { Motion::Growing } else { Motion::Shrinking });
    }
    let [right, down] = [right, down]
        .map(|along| if along.abs() < DIAGONAL * shift { 0.0 } else { along.signum() });
    Motion::ALL.into_iter().find(|motion| motion.direction() == Some([right, down]))
}

/// Returns the value of more than half of the votes.
fn majority<N: Copy + PartialEq>(votes: impl ExactSizeIterator<Item = Option<N>>) -> Option<N> {
    let all = votes.len();
    let votes: Vec<N> = votes.flatten().collect();
    let count = |vote: N| votes.iter().filter(|&&other| other == vote).count();
    votes.iter().copied().find(|&vote| 2 * count(vote) > all)
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
        let Judgement { verdict, frames, stability } = judge(&still(12));
        let nothing = Verdict { shape: None, colour: None, background: None, motion: None };
        assert_eq!(verdict, Verdict { background: Some(Background::Black), ..nothing });
        assert_eq!((frames.len(), frames[3].shape, stability), (4, None, None));
    }

    #[test]
    fn a_shape_that_stays_is_still() {
        let scene = training_clip(2, 0).scene;
        let held = Scene { end: scene.start, ..scene };
        let verdict = judge(&render(&held, 8, [64, 64]).unwrap()).verdict;
        let still = Some(Motion::Still);
        assert_eq!((verdict.shape, verdict.motion), (Some(held.labels.shape), still));
        let image = judge(&render(&held, 1, [64, 64]).unwrap()).verdict;
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
        assert_eq!(judge(&clear).verdict.shape, Some(Shape::Square));
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
        let verdict = judge(&comb).verdict;
        assert_eq!((verdict.shape, verdict.colour), (None, Some(Colour::Red)));
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
        assert_eq!(judge(&two).verdict.shape, None);
    }
    #[test]
    fn stretched_shapes_are_other_shapes() {
        // A triangle twice as wide as it is high, and a bar: the world draws neither.
        let drawn = |inside: &dyn Fn(f64, f64) -> bool| {
            let pixels = (0..64 * 64).flat_map(|at| {
                let (x, y) = ((at % 64) as f64 - 32.0, (at / 64) as f64 - 32.0);
                if inside(x, y) { Colour::Red.rgb() } else { Background::White.rgb() }
            });
            let clip = Frames::from_rgb(pixels.collect(), [1, 64, 64]).unwrap();
            judge(&clip).verdict.shape
        };
        assert_eq!(
            drawn(&|x, y| y.abs() <= 8.0 && 2.0 * x.abs() <= y + 8.0),
            Some(Shape::Triangle)
        );
        assert_ne!(drawn(&|x, y| y.abs() <= 8.0 && x.abs() <= y + 8.0), Some(Shape::Triangle));
        assert_eq!(drawn(&|x, y| y.abs() <= 12.0 && x.abs() <= 12.0), Some(Shape::Square));
        assert_eq!(drawn(&|x, y| y.abs() <= 8.0 && x.abs() <= 20.0), None);
    }

    #[test]
    fn every_frame_is_judged() {
        let labels = |shape| Labels {
            shape,
            colour: Colour::Blue,
            background: Background::Gray,
            motion: None,
        };
        let still = |shape| {
            let scene = Scene::draw(labels(shape), &mut Kind::Still.rng(0, 0));
            render(&scene, 1, [48, 48]).unwrap().data().to_vec()
        };
        let shapes = [Shape::Square, Shape::Circle, Shape::Square, Shape::Square];
        let clip = Frames::from_rgb(shapes.map(still).concat(), [4, 48, 48]).unwrap();
        let found = judge(&clip);
        let seen: Vec<_> = found.frames.iter().filter_map(|frame| frame.shape).collect();
        assert_eq!((seen, found.verdict.shape), (shapes.to_vec(), Some(Shape::Square)));
        // Half of the frames are no majority.
        let shapes = [Shape::Square, Shape::Circle, Shape::Circle, Shape::Square];
        let clip = Frames::from_rgb(shapes.map(still).concat(), [4, 48, 48]).unwrap();
        assert_eq!(judge(&clip).verdict.shape, None);
    }
}
