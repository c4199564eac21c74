//! Scenes: shapes, colours, backgrounds and motions.

use opensora::nn::random::HostRng;
use serde::Serialize;
use std::fmt;

/// Defines an enum whose values have names in captions and reports.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        impl $name {
            /// All values.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// Returns the name, in lower case; a direction of two words is joined by a hyphen.
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

named! {
    /// A shape. Its bounding box is a square of twice the radius.
    Shape {
        /// A disc.
        Circle = "circle",
        /// An axis-aligned square.
        Square = "square",
        /// A triangle that points up, as high as it is wide.
        Triangle = "triangle",
    }
}

named! {
    /// An object's colour.
    Colour {
        /// Red.
        Red = "red",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Yellow.
        Yellow = "yellow",
        /// Magenta.
        Magenta = "magenta",
        /// Cyan.
        Cyan = "cyan",
        /// Orange.
        Orange = "orange",
        /// Purple.
        Purple = "purple",
        /// Pink.
        Pink = "pink",
    }
}

named! {
    /// The colour of a background; no object has one of these.
    Background {
        /// Black.
        Black = "black",
        /// White.
        White = "white",
        /// Gray.
        Gray = "gray",
        /// Brown.
        Brown = "brown",
    }
}

named! {
    /// The motion of an object over a clip.
    Motion {
        /// Moves to the left.
        Left = "left",
        /// Moves to the right.
        Right = "right",
        /// Moves up.
        Up = "up",
        /// Moves down.
        Down = "down",
        /// Grows.
        Growing = "growing",
        /// Shrinks.
        Shrinking = "shrinking",
        /// Neither moves nor changes size.
        Still = "still",
        /// Moves up and to the left, by similar distances.
        UpLeft = "up-left",
        /// Moves up and to the right.
        UpRight = "up-right",
        /// Moves down and to the left.
        DownLeft = "down-left",
        /// Moves down and to the right.
        DownRight = "down-right",
    }
}

impl Colour {
    /// Returns the mean sRGB value; scenes vary around it.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [230, 20, 20],
            Self::Green => [20, 200, 20],
            Self::Blue => [20, 20, 230],
            Self::Yellow => [230, 230, 20],
            Self::Magenta => [230, 20, 230],
            Self::Cyan => [20, 230, 230],
            Self::Orange => [245, 140, 20],
            Self::Purple => [130, 30, 190],
            Self::Pink => [250, 150, 195],
        }
    }
}

impl Background {
    /// Returns the mean sRGB value; scenes vary around it.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Black => [12, 12, 12],
            Self::White => [243, 243, 243],
            Self::Gray => [128, 128, 128],
            Self::Brown => [120, 72, 30],
        }
    }
}

impl Motion {
    /// Returns the signs of the displacement, `[right, down]`: 1, 0 or -1. `None` if the motion does not translate the
    /// object.
    pub fn direction(self) -> Option<[f64; 2]> {
        Some(match self {
            Self::Left => [-1.0, 0.0],
            Self::Right => [1.0, 0.0],
            Self::Up => [0.0, -1.0],
            Self::Down => [0.0, 1.0],
            Self::UpLeft => [-1.0, -1.0],
            Self::UpRight => [1.0, -1.0],
            Self::DownLeft => [-1.0, 1.0],
            Self::DownRight => [1.0, 1.0],
            Self::Growing | Self::Shrinking | Self::Still => return None,
        })
    }
}

/// Returns true for triples that never appear in training clips: 27 of the 297.
///
/// The rule is motion = colour + 3 shape modulo 11. Each (shape, colour) pair lacks one of eleven motions, each
/// (shape, motion) pair at most one of nine colours, and each (colour, motion) pair at most one of three shapes, so
/// that training shows every pair of values.
pub fn is_held_out(shape: Shape, colour: Colour, motion: Motion) -> bool {
    (colour as usize + 3 * shape as usize) % Motion::ALL.len() == motion as usize
}

/// Returns the triples for which `keep` returns true, in a fixed order.
pub fn triples(keep: impl Fn(Shape, Colour, Motion) -> bool) -> Vec<(Shape, Colour, Motion)> {
    let mut kept = Vec::new();
    for shape in Shape::ALL {
        for colour in Colour::ALL {
            kept.extend(
                Motion::ALL
                    .into_iter()
                    .filter(|&motion| keep(shape, colour, motion))
                    .map(|motion| (shape, colour, motion)),
            );
        }
    }
    kept
}

/// Attributes of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Labels {
    /// The object's shape.
    pub shape: Shape,
    /// The object's colour.
    pub colour: Colour,
    /// The background's colour.
    pub background: Background,
    /// The motion of the object; `None` for an image.
    pub motion: Option<Motion>,
}

/// Position and size of an object, as fractions of the frame, from the upper left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Distance of the centre from the left.
    pub x: f64,
    /// Distance of the centre from the top.
    pub y: f64,
    /// Half of the width.
    pub radius: f64,
}

/// A scene with all its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// The attributes.
    pub labels: Labels,
    /// The object's colour, sRGB.
    pub object: [u8; 3],
    /// The background's colour, sRGB.
    pub background: [u8; 3],
    /// Place of the object in the first frame.
    pub start: Place,
    /// Place of the object in the last frame; the motion is uniform.
    pub end: Place,
}

/// Largest deviation of each channel of a colour, of 255.
const COLOUR_JITTER: f64 = 12.0;

impl Scene {
    /// Draws the parameters of a scene with these labels.
    pub fn draw(labels: Labels, rng: &mut HostRng) -> Self {
        let (start, end) = places(labels.motion, rng);
        Self {
            labels,
            object: jitter(labels.colour.rgb(), rng),
            background: jitter(labels.background.rgb(), rng),
            start,
            end,
        }
    }

    /// Returns the place of the object at `time`: 0 in the first frame and 1 in the last.
    pub fn at(&self, time: f64) -> Place {
        let between = |start: f64, end: f64| start + (end - start) * time;
        Place {
            x: between(self.start.x, self.end.x),
            y: between(self.start.y, self.end.y),
            radius: between(self.start.radius, self.end.radius),
        }
    }
}

/// Draws the first and the last place of an object.
fn places(motion: Option<Motion>, rng: &mut HostRng) -> (Place, Place) {
    let mut about = |middle: f64, spread: f64| rng.uniform_in(middle - spread, middle + spread);
    match motion {
        None => {
            let (x, y) = (about(0.5, 0.2), about(0.5, 0.2));
            let place = Place { x, y, radius: about(0.24, 0.11) };
            (place, place)
        }
        Some(Motion::Still) => {
            let (x, y) = (about(0.5, 0.15), about(0.5, 0.15));
            let place = Place { x, y, radius: about(0.24, 0.06) };
            (place, place)
        }
        Some(motion @ (Motion::Growing | Motion::Shrinking)) => {
            let (x, y) = (about(0.5, 0.08), about(0.5, 0.08));
            let small = Place { x, y, radius: about(0.15, 0.015) };
            let large = Place { x, y, radius: about(0.34, 0.03) };
            if motion == Motion::Growing { (small, large) } else { (large, small) }
        }
        Some(motion) => {
            let mut along = |direction: f64| {
                let (near, far) = (about(0.28, 0.04), about(0.72, 0.04));
                let across = about(0.5, 0.15);
                if direction > 0.0 {
                    (near, far)
                } else if direction < 0.0 {
                    (far, near)
                } else {
                    (across, across)
                }
            };
            let [right, down] = motion.direction().unwrap_or_default();
            let ((left, right), (top, bottom)) = (along(right), along(down));
            let radius = about(0.21, 0.025);
            (Place { x: left, y: top, radius }, Place { x: right, y: bottom, radius })
        }
    }
}

fn jitter(rgb: [u8; 3], rng: &mut HostRng) -> [u8; 3] {
    // Saturating at 0 and 255.
    rgb.map(|c| (f64::from(c) + rng.uniform_in(-COLOUR_JITTER, COLOUR_JITTER)).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn twenty_seven_triples_are_held_out_and_every_pair_is_still_seen() {
        assert_eq!(triples(is_held_out).len(), 27);
        let seen = triples(|shape, colour, motion| !is_held_out(shape, colour, motion));
        assert_eq!(seen.len(), 270);
        let count = |matches: &dyn Fn(&(Shape, Colour, Motion)) -> bool| {
            seen.iter().filter(|triple| matches(triple)).count()
        };
        for colour in Colour::ALL {
            for shape in Shape::ALL {
                assert_eq!(count(&|triple| (triple.0, triple.1) == (shape, colour)), 10);
            }
            for motion in Motion::ALL {
                let shapes = count(&|triple| (triple.1, triple.2) == (colour, motion));
                assert!(shapes >= 2, "{colour} {motion}: {shapes}");
            }
        }
        for shape in Shape::ALL {
            for motion in Motion::ALL {
                let colours = count(&|triple| (triple.0, triple.2) == (shape, motion));
                assert!(colours >= 8, "{shape} {motion}: {colours}");
            }
        }
        for motion in Motion::ALL {
            let held_out = triples(is_held_out).iter().filter(|triple| triple.2 == motion).count();
            assert!((2..=3).contains(&held_out), "{motion}: {held_out}");
        }
    }

    #[test]
    fn colours_differ_from_each_other_and_from_backgrounds() {
        let all: Vec<[u8; 3]> = Colour::ALL
            .map(Colour::rgb)
            .into_iter()
            .chain(Background::ALL.map(Background::rgb))
            .collect();
        for (index, a) in all.iter().enumerate() {
            for b in &all[index + 1..] {
                let square = |c: usize| (f64::from(a[c]) - f64::from(b[c])).powi(2);
                let distance = (0..3).map(square).sum::<f64>().sqrt();
                assert!(distance >= 90.0, "{a:?} {b:?}: {distance}");
            }
        }
    }

    #[test]
    fn places_are_in_their_ranges() {
        for index in 0..1100 {
            let mut rng = Kind::Clip.rng(9, index);
            let motion = Motion::ALL[index as usize % Motion::ALL.len()];
            let labels = Labels {
                shape: Shape::Circle,
                colour: Colour::Red,
                background: Background::Gray,
                motion: Some(motion),
            };
            let Scene { start, end, object, .. } = Scene::draw(labels, &mut rng);
            let near = |value: f64, middle: f64, spread: f64| (value - middle).abs() <= spread;
            let fits = match (motion, motion.direction()) {
                (_, Some([right, down])) => {
                    let axes = [(start.x, end.x, right), (start.y, end.y, down)];
                    start.radius == end.radius
                        && near(start.radius, 0.21, 0.025)
                        && axes.into_iter().all(|(from, to, direction)| {
                            if direction == 0.0 {
                                near(from, 0.5, 0.15) && from == to
                            } else {
                                near(from, 0.5 - 0.22 * direction, 0.04)
                                    && near(to, 0.5 + 0.22 * direction, 0.04)
                            }
                        })
                }
                (Motion::Growing | Motion::Shrinking, _) => {
                    let growing = motion == Motion::Growing;
                    let (small, large) = if growing { (start, end) } else { (end, start) };
                    near(small.radius, 0.15, 0.015)
                        && near(large.radius, 0.34, 0.03)
                        && (start.x, start.y) == (end.x, end.y)
                        && [start.x, start.y].into_iter().all(|at| near(at, 0.5, 0.08))
                }
                _ => {
                    start == end
                        && near(start.radius, 0.24, 0.06)
                        && [start.x, start.y].into_iter().all(|at| near(at, 0.5, 0.15))
                }
            };
            assert!(fits, "{motion}: {start:?} {end:?}");
            // Objects are inside the frame, in the first and in the last one.
            for Place { x, y, radius } in [start, end] {
                let inside = [x, y].into_iter().all(|at| at >= radius && at + radius <= 1.0);
                assert!(inside, "{motion}: {start:?} {end:?}");
            }
            assert!(object.iter().zip(Colour::Red.rgb()).all(|(&a, b)| a.abs_diff(b) <= 12));
        }
    }
}
