//! Draws of scenes: training clips, images and videos of several shots, each a function of (seed, index).

use crate::{
    captions,
    world::{Background, Colour, Labels, Scene, Shape, is_held_out, triples},
};
use opensora::nn::random::{HostRng, Purpose};

/// A scene with its caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Captioned {
    /// The scene.
    pub scene: Scene,
    /// The caption of the scene.
    pub caption: String,
}

/// Kind of a draw; draws of different kinds use different random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Training clips.
    Clip = 0,
    /// Training images.
    Still = 1,
    /// Prompts of an evaluation.
    Prompt = 2,
    /// Orders of the rounds of prompts.
    PromptOrder = 3,
    /// Real clips of an evaluation.
    RealClip = 4,
    /// Videos of several shots.
    Film = 5,
}

impl Kind {
    /// Returns the random number generator of item `index`.
    pub fn rng(self, seed: u64, index: u64) -> HostRng {
        HostRng::new(seed, Purpose::DemoWorld, index, self as u64)
    }
}

/// Returns training clip `index` of a seed: a triple that is not held out, on any background.
pub fn training_clip(seed: u64, index: u64) -> Captioned {
    let mut rng = Kind::Clip.rng(seed, index);
    let seen = triples(|shape, colour, motion| !is_held_out(shape, colour, motion));
    let &(shape, colour, motion) = rng.choose(&seen);
    let background = *rng.choose(&Background::ALL);
    let labels = Labels { shape, colour, background, motion: Some(motion) };
    captioned(labels, &mut rng)
}

/// Returns training image `index` of a seed: any shape and colour on any background.
pub fn training_still(seed: u64, index: u64) -> Captioned {
    let mut rng = Kind::Still.rng(seed, index);
    let labels = Labels {
        shape: *rng.choose(&Shape::ALL),
        colour: *rng.choose(&Colour::ALL),
        background: *rng.choose(&Background::ALL),
        motion: None,
    };
    captioned(labels, &mut rng)
}

/// Returns the shots of video `index` of a seed: triples that are not held out. Neighbouring shots have different
/// backgrounds, so that every cut is visible.
pub fn film(seed: u64, index: u64, shots: usize) -> Vec<Captioned> {
    let mut rng = Kind::Film.rng(seed, index);
    let seen = triples(|shape, colour, motion| !is_held_out(shape, colour, motion));
    let mut before = None;
    (0..shots)
        .map(|_| {
            let &(shape, colour, motion) = rng.choose(&seen);
            let others: Vec<Background> =
                Background::ALL.into_iter().filter(|&other| Some(other) != before).collect();
            let background = *rng.choose(&others);
            before = Some(background);
            captioned(Labels { shape, colour, background, motion: Some(motion) }, &mut rng)
        })
        .collect()
}

fn captioned(labels: Labels, rng: &mut HostRng) -> Captioned {
    let scene = Scene::draw(labels, rng);
    Captioned { scene, caption: captions::training(&labels, rng) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Motion;
    use std::collections::HashSet;

    #[test]
    fn a_clip_depends_on_its_seed_and_index_only() {
        assert_eq!(training_clip(3, 17), training_clip(3, 17));
        assert_ne!(training_clip(3, 17), training_clip(3, 18));
        assert_ne!(training_clip(3, 17), training_clip(4, 17));
    }

    #[test]
    fn training_clips_show_all_but_the_held_out_triples() {
        let labels: Vec<Labels> = (0..4000).map(|i| training_clip(0, i).scene.labels).collect();
        let seen: HashSet<_> =
            labels.iter().map(|l| (l.shape, l.colour, l.motion.unwrap())).collect();
        assert_eq!(seen.len(), 270);
        assert!(seen.iter().all(|&(shape, colour, motion)| !is_held_out(shape, colour, motion)));
        for background in Background::ALL {
            let count = labels.iter().filter(|l| l.background == background).count();
            assert!((800..1200).contains(&count), "{background}: {count}");
        }
    }

    #[test]
    fn neighbouring_shots_have_different_backgrounds() {
        let shots = film(4, 0, 40);
        assert_eq!((shots.len(), &shots), (40, &film(4, 0, 40)));
        for pair in shots.windows(2) {
            assert_ne!(pair[0].scene.labels.background, pair[1].scene.labels.background);
        }
        assert_ne!(film(4, 1, 2), film(4, 0, 2));
    }

    #[test]
    fn captions_name_everything() {
        for index in 0..1000 {
            let clip = training_clip(1, index);
            let still = training_still(1, index);
            for Captioned { scene, caption } in [&clip, &still] {
                let words: HashSet<&str> = caption
                    .split([' ', ',', '.', ':', '-'])
                    .filter(|word| !word.is_empty())
                    .collect();
                let Labels { shape, colour, background, motion } = scene.labels;
                assert!(words.contains(colour.name()), "{caption}");
                assert!(!caption.contains("a orange"), "{caption}");
                let names = captions::shape_words(shape);
                assert!(names.iter().any(|word| words.contains(word)), "{caption}");
                // If the caption names a background, it is the scene's.
                for other in Background::ALL {
                    let names = captions::background_words(other);
                    let is_told = names.iter().any(|word| words.contains(word));
                    assert!(!is_told || other == background, "{caption}");
                }
                // "moves up" is a part of "moves up and left": the longest phrase decides.
                let told = Motion::ALL.into_iter().filter_map(|motion| {
                    captions::motion_phrases(motion)
                        .iter()
                        .flat_map(|&(moves, moving)| [moves, moving])
                        .filter(|phrase| caption.contains(phrase))
                        .map(|phrase| (phrase.len(), motion))
                        .max()
                });
                assert_eq!(told.max().map(|found| found.1), motion, "{caption}");
            }
        }
    }
}
