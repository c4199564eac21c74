//! Scenes: shapes, colours, backgrounds and motions.

use opensora::nn::random::HostRng;
use serde::Serialize;
use std::fmt;

/// Defines an enum whose values have names in captions and reports.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        impl $name {
            /// All values.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// Returns the name: one word in lower case.
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

/// Returns true for triples that never appear in training clips: 18 of the 108.
///
/// The rule is a Latin square, motion = colour + 2 shape modulo 6. Each (shape, colour) pair lacks one of six
/// motions, each (shape, motion) pair one of six colours, and each (colour, motion) pair at most one of three
/// shapes, so that training shows every pair of values.
pub fn is_held_out(shape: Shape, colour: Colour, motion: Motion) -> bool {
    (colour as usize + 2 * shape as usize) % 6 == motion as usize
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
            let place = Place { x, y, radius: rng.uniform_in(0.12, 0.34) };
            (place, place)
        }
        Some(Motion::Growing | Motion::Shrinking) => {
            let (x, y) = (about(0.5, 0.08), about(0.5, 0.08));
            let small = Place { x, y, radius: about(0.12, 0.015) };
            let large = Place { x, y, radius: about(0.34, 0.03) };
            if motion == Some(Motion::Growing) { (small, large) } else { (large, small) }
        }
        Some(direction) => {
            let (near, far) = (about(0.27, 0.05), about(0.73, 0.05));
            let across = about(0.5, 0.15);
            let radius = about(0.195, 0.025);
            let (from, to) = match direction {
                Motion::Right | Motion::Down => (near, far),
                _ => (far, near),
            };
            let place = |along: f64| match direction {
                Motion::Left | Motion::Right => Place { x: along, y: across, radius },
                _ => Place { x: across, y: along, radius },
            };
            (place(from), place(to))
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
    use std::collections::HashMap;

    #[test]
    fn eighteen_triples_are_held_out_and_every_pair_is_still_seen() {
        assert_eq!(triples(is_held_out).len(), 18);
        let seen = triples(|shape, colour, motion| !is_held_out(shape, colour, motion));
        let mut pairs: HashMap<(&str, &str), usize> = HashMap::new();
        for &(shape, colour, motion) in &seen {
            let (shape, colour, motion) = (shape.name(), colour.name(), motion.name());
            for pair in [(shape, colour), (shape, motion), (colour, motion)] {
                *pairs.entry(pair).or_default() += 1;
            }
        }
        assert_eq!(pairs.len(), 18 + 18 + 36);
        for ((first, second), count) in pairs {
            let is_shape = Shape::ALL.iter().any(|shape| shape.name() == first);
            // Five of six motions or colours; two or three of three shapes.
            assert!(if is_shape { count == 5 } else { count >= 2 }, "{first} {second}: {count}");
        }
        for shape in Shape::ALL {
            assert_eq!(seen.iter().filter(|triple| triple.0 == shape).count(), 30);
        }
        for (colour, motion) in Colour::ALL.into_iter().zip(Motion::ALL) {
            assert_eq!(seen.iter().filter(|triple| triple.1 == colour).count(), 15);
            assert_eq!(seen.iter().filter(|triple| triple.2 == motion).count(), 15);
        }
    }

    #[test]
    fn places_are_in_their_ranges() {
        for index in 0..600 {
            let mut rng = Kind::Clip.rng(9, index);
            let motion = Motion::ALL[index as usize % 6];
            let labels = Labels {
                shape: Shape::Circle,
                colour: Colour::Red,
                background: Background::Gray,
                motion: Some(motion),
            };
            let Scene { start, end, object, .. } = Scene::draw(labels, &mut rng);
            let near = |value: f64, middle: f64, spread: f64| (value - middle).abs() <= spread;
            let (along, across) = match motion {
                Motion::Left | Motion::Right => ([start.x, end.x], [start.y, end.y]),
                _ => ([start.y, end.y], [start.x, end.x]),
            };
            let fits = match motion {
                Motion::Right | Motion::Down => {
                    near(along[0], 0.27, 0.05) && near(along[1], 0.73, 0.05)
                }
                Motion::Left | Motion::Up => {
                    near(along[0], 0.73, 0.05) && near(along[1], 0.27, 0.05)
                }
                Motion::Growing => near(start.radius, 0.12, 0.015) && near(end.radius, 0.34, 0.03),
                Motion::Shrinking => {
                    near(start.radius, 0.34, 0.03) && near(end.radius, 0.12, 0.015)
                }
            };
            assert!(fits, "{motion}: {start:?} {end:?}");
            if !matches!(motion, Motion::Growing | Motion::Shrinking) {
                assert!(near(across[0], 0.5, 0.15) && across[0] == across[1]);
                assert!(near(start.radius, 0.195, 0.025) && start.radius == end.radius);
            } else {
                assert!(near(start.x, 0.5, 0.08) && near(start.y, 0.5, 0.08));
                assert_eq!((start.x, start.y), (end.x, end.y));
            }
            assert!(object.iter().zip(Colour::Red.rgb()).all(|(&a, b)| a.abs_diff(b) <= 12));
        }
    }
}
