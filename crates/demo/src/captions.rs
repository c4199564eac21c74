//! Captions of scenes: shape, colour, background and, for clips, the motion.
//!
//! Templates contain `{shape}`, `{colour}`, `{background}`, and `{moves}` ("slides right") or
//! `{moving}` ("sliding right"). Some templates are reserved for evaluation: sentences that training captions
//! do not have, with words that they do have. Words have British and American spellings ("grey", "gray").

use super::world::{Background, Labels, Motion, Shape};
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

/// Caption templates of training clips that do not name the background.
pub const SHORT_CLIP_TEMPLATES: [&str; 4] = [
    "a {colour} {shape} {moves}",
    "a {colour} {shape} {moving}",
    "a {colour} {shape} is {moving}",
    "the {colour} {shape} {moves}",
];

/// Caption templates of training images that do not name the background.
pub const SHORT_STILL_TEMPLATES: [&str; 2] =
    ["a {colour} {shape}", "a picture of a {colour} {shape}"];

/// One of this many training captions does not name the background, and one of this many ends with a full stop.
const RARE: usize = 8;

/// Returns the names of a shape.
pub fn shape_words(shape: Shape) -> &'static [&'static str] {
    match shape {
        Shape::Circle => &["circle", "disc", "disk", "ball"],
        Shape::Square => &["square", "box", "cube"],
        Shape::Triangle => &["triangle"],
    }
}

/// Returns the names of a background's colour.
pub fn background_words(background: Background) -> &'static [&'static str] {
    match background {
        Background::Black => &["black"],
        Background::White => &["white"],
        Background::Gray => &["gray", "grey"],
        Background::Brown => &["brown"],
    }
}

/// Endings of a colour's name in front of a shape: "red", "red-coloured", "red-colored". Repeated entries are weights: 8 of
/// 10 such names have no ending.
const COLOUR_ENDINGS: [&str; 10] = ["", "", "", "", "", "", "", "", "-coloured", "-colored"];

/// Returns the phrases for a motion, as `{moves}` and as `{moving}`.
#[allow(clippy::too_many_lines, reason = "a table")]
pub fn motion_phrases(motion: Motion) -> &'static [(&'static str, &'static str)] {
    match motion {
        Motion::Left => &[
            ("moves to the left", "moving to the left"),
            ("moves left", "moving left"),
            ("moves leftwards", "moving leftwards"),
            ("goes left", "going left"),
            ("slides left", "sliding left"),
            ("slides to the left", "sliding to the left"),
            ("drifts leftward", "drifting leftward"),
        ],
        Motion::Right => &[
            ("moves to the right", "moving to the right"),
            ("moves right", "moving right"),
            ("moves rightwards", "moving rightwards"),
            ("goes right", "going right"),
            ("slides right", "sliding right"),
            ("slides to the right", "sliding to the right"),
            ("drifts rightward", "drifting rightward"),
        ],
        Motion::Up => &[
            ("moves up", "moving up"),
            ("moves upwards", "moving upwards"),
            ("moves upward", "moving upward"),
            ("rises", "rising"),
            ("goes up", "going up"),
            ("slides up", "sliding up"),
            ("drifts upward", "drifting upward"),
        ],
        Motion::Down => &[
            ("moves down", "moving down"),
            ("moves downwards", "moving downwards"),
            ("moves downward", "moving downward"),
            ("falls", "falling"),
            ("sinks", "sinking"),
            ("goes down", "going down"),
            ("slides down", "sliding down"),
            ("drifts downward", "drifting downward"),
        ],
        Motion::Growing => &[
            ("grows", "growing"),
            ("gets bigger", "getting bigger"),
            ("gets larger", "getting larger"),
            ("becomes larger", "becoming larger"),
            ("becomes bigger", "becoming bigger"),
            ("expands", "expanding"),
        ],
        Motion::Shrinking => &[
            ("shrinks", "shrinking"),
            ("gets smaller", "getting smaller"),
            ("becomes smaller", "becoming smaller"),
            ("contracts", "contracting"),
        ],
        Motion::Still => &[
            ("stays still", "staying still"),
            ("stands still", "standing still"),
            ("does not move", "not moving"),
            ("rests", "resting"),
        ],
        Motion::UpLeft => &[
            ("moves up and left", "moving up and left"),
            ("moves up and to the left", "moving up and to the left"),
            ("moves diagonally up and left", "moving diagonally up and left"),
            ("slides up left", "sliding up left"),
            ("drifts to the upper left", "drifting to the upper left"),
            ("moves towards the top left", "moving towards the top left"),
        ],
        Motion::UpRight => &[
            ("moves up and right", "moving up and right"),
            ("moves up and to the right", "moving up and to the right"),
            ("moves diagonally up and right", "moving diagonally up and right"),
            ("slides up right", "sliding up right"),
            ("drifts to the upper right", "drifting to the upper right"),
            ("moves towards the top right", "moving towards the top right"),
        ],
        Motion::DownLeft => &[
            ("moves down and left", "moving down and left"),
            ("moves down and to the left", "moving down and to the left"),
            ("moves diagonally down and left", "moving diagonally down and left"),
            ("slides down left", "sliding down left"),
            ("drifts to the lower left", "drifting to the lower left"),
            ("moves towards the bottom left", "moving towards the bottom left"),
        ],
        Motion::DownRight => &[
            ("moves down and right", "moving down and right"),
            ("moves down and to the right", "moving down and to the right"),
            ("moves diagonally down and right", "moving diagonally down and right"),
            ("slides down right", "sliding down right"),
            ("drifts to the lower right", "drifting to the lower right"),
            ("moves towards the bottom right", "moving towards the bottom right"),
        ],
    }
}

/// Returns a caption for training, with random template and words.
pub fn training(labels: &Labels, rng: &mut HostRng) -> String {
    let is_clip = labels.motion.is_some();
    let templates: &[&str] = match (is_clip, rng.below(RARE) == 0) {
        (true, false) => &CLIP_TEMPLATES,
        (true, true) => &SHORT_CLIP_TEMPLATES,
        (false, false) => &STILL_TEMPLATES,
        (false, true) => &SHORT_STILL_TEMPLATES,
    };
    let end = if rng.below(RARE) == 0 { "." } else { "" };
    let template = rng.choose(templates);
    fill(template, labels, rng) + end
}

/// Returns a caption that names shape, colour, background and, for clips, the motion, with a template of training captions.
pub fn complete(labels: &Labels, rng: &mut HostRng) -> String {
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
    let colour = labels.colour.name();
    let ending = rng.choose(&COLOUR_ENDINGS);
    let background = rng.choose(background_words(labels.background));
    let mut text = template
        .replace("{colour} {shape}", &format!("{colour}{ending} {shape}"))
        .replace("{shape}", shape)
        .replace("{colour}", colour)
        .replace("{background}", background)
        .replace("a orange", "an orange");
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
        for (templates, motions, backgrounds) in [
            (&CLIP_TEMPLATES[..], 1, 1),
            (&SHORT_CLIP_TEMPLATES, 1, 0),
            (&EVALUATION_CLIP_TEMPLATES, 1, 1),
            (&STILL_TEMPLATES, 0, 1),
            (&SHORT_STILL_TEMPLATES, 0, 0),
            (&EVALUATION_STILL_TEMPLATES, 0, 1),
        ] {
            assert_eq!(templates.iter().collect::<HashSet<_>>().len(), templates.len());
            for template in templates {
                assert_eq!(count(template, "{shape}"), 1, "{template}");
                assert_eq!(count(template, "{colour}"), 1, "{template}");
                assert_eq!(count(template, "{background}"), backgrounds, "{template}");
                assert_eq!(count(template, "{moves}") + count(template, "{moving}"), motions);
            }
        }
    }

    #[test]
    fn some_captions_do_not_name_the_background_or_end_with_a_full_stop() {
        use crate::draw::training_clip;
        let clips: Vec<_> = (0..2000).map(|index| training_clip(5, index)).collect();
        let share = |of: &dyn Fn(&crate::Captioned) -> bool| {
            clips.iter().filter(|clip| of(clip)).count() as f64 / clips.len() as f64
        };
        let short = share(&|clip| {
            let names = background_words(clip.scene.labels.background);
            !names.iter().any(|name| clip.caption.contains(name))
        });
        let stopped = share(&|clip| clip.caption.ends_with('.'));
        assert!((0.09..0.16).contains(&short), "{short}");
        assert!((0.09..0.16).contains(&stopped), "{stopped}");
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
