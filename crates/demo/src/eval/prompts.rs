//! The prompts of an evaluation.

use crate::{Background, Kind, Labels, captions, is_held_out, triples};
use serde::Serialize;
use std::str::FromStr;

/// A set of (shape, colour, motion) triples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptSet {
    /// Triples that no training clip shows.
    #[default]
    HeldOut,
    /// Triples that training clips show.
    Seen,
    /// All triples.
    All,
}

impl PromptSet {
    /// Returns the name of the set on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::HeldOut => "held-out",
            Self::Seen => "seen",
            Self::All => "all",
        }
    }
}

impl FromStr for PromptSet {
    type Err = PromptSetError;

    fn from_str(text: &str) -> Result<Self, PromptSetError> {
        [Self::HeldOut, Self::Seen, Self::All]
            .into_iter()
            .find(|set| set.name() == text)
            .ok_or_else(|| PromptSetError(text.into()))
    }
}

/// Error for an unknown set of prompts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown set of prompts '{0}': expected held-out, seen or all")]
pub struct PromptSetError(String);

/// A prompt with its labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DemoPrompt {
    /// The prompt.
    pub text: String,
    /// The labels; the motion is always `Some`.
    pub labels: Labels,
    /// True if training captions never use the template.
    pub is_new_sentence: bool,
}

/// Returns `count` prompts: rounds over the triples of the set, each in another order and with every triple on
/// another background. About half of them use templates that training never uses.
pub fn demo_prompts(set: PromptSet, count: usize, seed: u64) -> Vec<DemoPrompt> {
    let triples = triples(|shape, colour, motion| match set {
        PromptSet::HeldOut => is_held_out(shape, colour, motion),
        PromptSet::Seen => !is_held_out(shape, colour, motion),
        PromptSet::All => true,
    });
    let mut prompts = Vec::with_capacity(count);
    for round in 0..count.div_ceil(triples.len()) {
        let order = Kind::PromptOrder.rng(seed, round as u64).permutation(triples.len());
        for which in order.into_iter().take(count - prompts.len()) {
            let (shape, colour, motion) = triples[which];
            let background = Background::ALL[(which + round) % Background::ALL.len()];
            let labels = Labels { shape, colour, background, motion: Some(motion) };
            let mut rng = Kind::Prompt.rng(seed, prompts.len() as u64);
            let is_new_sentence = rng.below(2) == 0;
            let text = if is_new_sentence {
                captions::evaluation(&labels, &mut rng)
            } else {
                captions::complete(&labels, &mut rng)
            };
            prompts.push(DemoPrompt { text, labels, is_new_sentence });
        }
    }
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_default_has_every_held_out_triple_on_every_background_equally_often() {
        let prompts = demo_prompts(PromptSet::HeldOut, 216, 42);
        assert_eq!(prompts.len(), 216);
        let mut counts: HashMap<Labels, usize> = HashMap::new();
        for prompt in &prompts {
            let Labels { shape, colour, motion, .. } = prompt.labels;
            assert!(is_held_out(shape, colour, motion.unwrap()), "{prompt:?}");
            assert!(prompt.text.contains(colour.name()), "{prompt:?}");
            *counts.entry(prompt.labels).or_default() += 1;
        }
        assert_eq!(counts.len(), 108);
        assert!(counts.values().all(|&count| count == 2));
        let new = prompts.iter().filter(|prompt| prompt.is_new_sentence).count();
        assert!((80..=136).contains(&new), "{new}");
    }

    #[test]
    fn a_set_is_a_function_of_its_seed() {
        for set in [PromptSet::HeldOut, PromptSet::Seen, PromptSet::All] {
            assert_eq!(demo_prompts(set, 31, 1), demo_prompts(set, 31, 1));
            assert_ne!(demo_prompts(set, 31, 1), demo_prompts(set, 31, 2));
            assert_eq!(demo_prompts(set, 31, 1)[..7], demo_prompts(set, 7, 1));
            assert_eq!(set.name().parse(), Ok(set));
        }
        let seen = demo_prompts(PromptSet::Seen, 270, 1);
        let unique: std::collections::HashSet<_> =
            seen.iter().map(|p| (p.labels.shape, p.labels.colour, p.labels.motion)).collect();
        assert_eq!(unique.len(), 270);
    }
}
