//! Captions of scenes: shape, colour, background and, for clips, the motion.
//!
//! Templates contain `{shape}`, `{colour}`, `{background}`, and `{moves}` ("slides right") or
//! `{moving}` ("sliding right"). Some templates are reserved for evaluation: sentences that training captions
//! do not have, with words that they do have.

use super::world::{Labels, Motion, Shape};
use opensora::nn::random::HostRng;

/// Caption templates of training clips.
pub const CLIP_TEMPLATES: [&str; 16] = [
    "a {colour} {shape} {moves} on a {background} background",
    "a {colour} {shape} {moving} on a {background} background",
    "a {colour} {shape} {moves} over {background}",
    "the {colour} {shape} {moves} against a {background} backdrop",
    "{colour} {shape} {moving}, {background} background",
    "on a {background} background, a {colour} {shape} {moves}",
    "against a {background} backdrop, a {colour} {shape} is {moving}",
    "a {colour} {shape} is {moving} over a {background} background",
    "a video of a {colour} {shape} {moving} on {background}",
    "there is a {colour} {shape} that {moves} on a {background} background",
    "a {shape} in {colour} {moves} against {background}",
    "a clip in which a {colour} {shape} {moves} in front of a {background} background",
    "one {colour} {shape} {moves} on a plain {background} backdrop",
    "a {background} background with a {colour} {shape} {moving}",
    "the {shape} is {colour} and {moves}, the background is {background}",
    "over a plain {background} background, the {colour} {shape} is {moving}",
];

/// Caption templates of clips, for evaluation only.
pub const EVALUATION_CLIP_TEMPLATES: [&str; 3] = [
    "in front of a {background} background, the {colour} {shape} is {moving}",
    "a video in which a {colour} {shape} {moves} over a plain {background} backdrop",
    "there is one {shape} in {colour} {moving} against {background}",
];

/// Caption templates of training images.
pub const STILL_TEMPLATES: [&str; 10] = [
    "a {colour} {shape} on a {background} background",
    "a {colour} {shape} over {background}",
    "the {colour} {shape} against a {background} backdrop",
    "{colour} {shape}, {background} background",
    "on a {background} background, a {colour} {shape}",
    "a picture of a {colour} {shape} on {background}",
    "there is a {colour} {shape} in front of a {background} background",
    "a {shape} in {colour} against {background}",
    "a {background} background with a {colour} {shape}",
    "the {shape} is {colour}, the background is {background}",
];

/// Caption templates of images, for evaluation only.
pub const EVALUATION_STILL_TEMPLATES: [&str; 2] = [
    "a picture of a {colour} {shape} against a {background} backdrop",
    "in front of a {background} background, there is a {colour} {shape}",
];

/// Returns the names of a shape.
pub fn shape_words(shape: Shape) -> &'static [&'static str] {
    match shape {
        Shape::Circle => &["circle", "disc"],
        Shape::Square => &["square", "box"],
        Shape::Triangle => &["triangle"],
    }
}

/// Returns the phrases for a motion, as `{moves}` and as `{moving}`.
pub fn motion_phrases(motion: Motion) -> &'static [(&'static str, &'static str)] {
    match motion {
        Motion::Left => &[
            ("moves to the left", "moving to the left"),
            ("moves left", "moving left"),
            ("slides left", "sliding left"),
            ("drifts leftward", "drifting leftward"),
        ],
        Motion::Right => &[
            ("moves to the right", "moving to the right"),
            ("moves right", "moving right"),
            ("slides right", "sliding right"),
            ("drifts rightward", "drifting rightward"),
        ],
        Motion::Up => &[
            ("moves up", "moving up"),
            ("rises", "rising"),
            ("slides up", "sliding up"),
            ("drifts upward", "drifting upward"),
        ],
        Motion::Down => &[
            ("moves down", "moving down"),
            ("falls", "falling"),
            ("slides down", "sliding down"),
            ("drifts downward", "drifting downward"),
        ],
        Motion::Growing => &[
            ("grows", "growing"),
            ("gets bigger", "getting bigger"),
            ("becomes larger", "becoming larger"),
        ],
        Motion::Shrinking => &[
            ("shrinks", "shrinking"),
            ("gets smaller", "getting smaller"),
            ("becomes smaller", "becoming smaller"),
        ],
    }
}

/// Returns a caption for training, with random template and words.
pub fn training(labels: &Labels, rng: &mut HostRng) -> String {
    let templates: &[&str] =
        if labels.motion.is_some() { &CLIP_TEMPLATES } else { &STILL_TEMPLATES };
    let template = rng.choose(templates);
    fill(template, labels, rng)
}

/// Returns a caption for evaluation, with a template that training never uses.
pub fn evaluation(labels: &Labels, rng: &mut HostRng) -> String {
    let templates: &[&str] = match labels.motion {
        Some(_) => &EVALUATION_CLIP_TEMPLATES,
        None => &EVALUATION_STILL_TEMPLATES,
    };
    let template = rng.choose(templates);
    fill(template, labels, rng)
}

fn fill(template: &str, labels: &Labels, rng: &mut HostRng) -> String {
    let shape = rng.choose(shape_words(labels.shape));
    let mut text = template
        .replace("{shape}", shape)
        .replace("{colour}", labels.colour.name())
        .replace("{background}", labels.background.name());
    if let Some(motion) = labels.motion {
        let (moves, moving) = rng.choose(motion_phrases(motion));
        text = text.replace("{moves}", moves).replace("{moving}", moving);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn words(templates: &[&'static str]) -> HashSet<&'static str> {
        templates.iter().flat_map(|template| template.split([' ', ','])).collect()
    }

    #[test]
    fn templates_have_one_place_for_everything() {
        let count = |template: &str, place: &str| template.matches(place).count();
        for (templates, motions) in [
            (&CLIP_TEMPLATES[..], 1),
            (&EVALUATION_CLIP_TEMPLATES, 1),
            (&STILL_TEMPLATES, 0),
            (&EVALUATION_STILL_TEMPLATES, 0),
        ] {
            assert_eq!(templates.iter().collect::<HashSet<_>>().len(), templates.len());
            for template in templates {
                for place in ["{shape}", "{colour}", "{background}"] {
                    assert_eq!(count(template, place), 1, "{template}");
                }
                assert_eq!(count(template, "{moves}") + count(template, "{moving}"), motions);
            }
        }
    }

    #[test]
    fn templates_for_evaluation_are_new_sentences_of_known_words() {
        for (kept, training) in [
            (&EVALUATION_CLIP_TEMPLATES[..], &CLIP_TEMPLATES[..]),
            (&EVALUATION_STILL_TEMPLATES, &STILL_TEMPLATES),
        ] {
            assert!(words(kept).is_subset(&words(training)));
            assert!(kept.iter().all(|template| !training.contains(template)));
        }
    }
}
