//! Captions that speak of what is seen, and not of the video.
//!
//! Source: hpcaitech/Open-Sora, `tools/datasets/csvutil.py` as it became after 1.0.0, `remove_caption_prefix`.
//! Deviations: openings are found in any case and whole words only, "In this video," may be followed
//! by another one, and a caption that ends with its opening becomes empty instead of an error.

use crate::{PrepareError, text::single_spaced};
use serde::Serialize;
use std::path::Path;

/// Openings that are dropped, unless others are given.
const BUILT_IN: &str = include_str!("openings.txt");

/// How captions begin that speak of the video.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Openings(Vec<Vec<Token>>);

/// A part of an opening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
enum Token {
    /// One of these words, in lower case.
    Word(Vec<String>),
    Comma,
}

impl Default for Openings {
    /// Those of English captioners; the list is `openings.txt` beside this source.
    fn default() -> Self {
        Self::parse(BUILT_IN)
    }
}

impl Openings {
    /// No openings.
    pub const NONE: Self = Self(Vec::new());

    /// One opening a line; empty lines and those that begin with `#` are none. Words with `|`
    /// between them stand for one another, and a word may end with a comma.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let tokens = |line: &str| {
            line.split_whitespace()
                .flat_map(|word| {
                    let bare = word.strip_suffix(',').unwrap_or(word);
                    let words = bare.split('|').filter(|word| !word.is_empty());
                    let words: Vec<_> = words.map(str::to_lowercase).collect();
                    let comma = (bare.len() < word.len()).then_some(Token::Comma);
                    (!words.is_empty()).then_some(Token::Word(words)).into_iter().chain(comma)
                })
                .collect::<Vec<_>>()
        };
        Self(lines.map(tokens).filter(|tokens| !tokens.is_empty()).collect())
    }

    /// Reads openings from a file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        let io = |source| PrepareError::Io { path: path.into(), source };
        Ok(Self::parse(&std::fs::read_to_string(path).map_err(io)?))
    }

    /// What follows the longest opening that `caption` begins with. Words stand apart by one space.
    fn after<'a>(&self, caption: &'a str) -> Option<&'a str> {
        self.0.iter().filter_map(|tokens| after(tokens, caption)).min_by_key(|rest| rest.len())
    }
}

/// What follows an opening.
fn after<'a>(tokens: &[Token], caption: &'a str) -> Option<&'a str> {
    let mut rest = caption;
    for token in tokens {
        rest = match token {
            Token::Comma => rest.strip_prefix(',')?,
            Token::Word(words) => {
                let text = rest.trim_start_matches(' ');
                // A hyphen or an apostrophe makes another word: "the video-maker shows".
                let inner = |letter: char| letter.is_alphanumeric() || "-'’_".contains(letter);
                let end = text.find(|letter| !inner(letter)).unwrap_or(text.len());
                let (word, rest) = text.split_at(end);
                words.contains(&word.to_lowercase()).then_some(rest)?
            }
        };
    }
    Some(rest)
}

/// A caption, cleaned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// What is left; it may be empty.
    pub text: String,
    /// Whether spaces, line breaks or control characters were more than one space between words.
    pub spaces: bool,
    /// Whether openings were dropped.
    pub openings: bool,
}

/// Puts one space between words, drops openings, and gives what is left a capital letter.
pub fn clean(caption: &str, openings: &Openings) -> Caption {
    let text = single_spaced(caption);
    let spaces = text != caption;
    let mut rest = text.as_str();
    while let Some(after) = openings.after(rest) {
        rest = after.trim_start_matches([' ', ',', ':', ';', '-', '–', '—']);
    }
    // What stood behind the opening alone, such as its full stop.
    if rest.len() < text.len() && !rest.contains(char::is_alphanumeric) {
        rest = "";
    }
    let openings = rest.len() < text.len();
    let text = if openings { capitalised(rest) } else { text };
    Caption { text, spaces, openings }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_dropped_and_nothing_else() {
        let openings = Openings::default();
        for (caption, expected) in [
            ("The video shows a red fox.", "A red fox."),
            ("this video features\n two  dogs", "Two dogs"),
            ("In this video, the clip shows that élan wins.", "Élan wins."),
            ("In the video, we can see a man.", "A man."),
            ("THE IMAGE IS of a lake", "A lake"),
            ("The video captures: fog", "Fog"),
            ("The video shows.", ""),
            ("In this video,", ""),
        ] {
            let cleaned = clean(caption, &openings);
            assert_eq!(cleaned.text, expected);
            assert!(cleaned.openings);
        }
        for caption in [
            "In the video game arcade, two boys play.",
            "The video-maker shows his camera.",
            "A video shows a fox on a wall.",
            "The videos show foxes",
            "the fox is red",
            "The",
            "",
            "...",
        ] {
            let kept = Caption { text: caption.into(), spaces: false, openings: false };
            assert_eq!(clean(caption, &openings), kept);
        }
    }

    #[test]
    fn spaces_are_single() {
        let cleaned = clean(" a\u{a0}fox,\r\n red\t\u{0} ", &Openings::default());
        assert_eq!(cleaned, Caption { text: "a fox, red".into(), spaces: true, openings: false });
        assert_eq!(clean(" \n ", &Openings::NONE).text, "");
    }

    #[test]
    fn openings_of_a_file_take_the_place_of_ours() {
        let openings = Openings::parse("# ours\n\nauf|in diesem|dem bild,\nman sieht\n , | \n");
        assert_eq!(clean("Auf dem Bild, man sieht ein Haus", &openings).text, "Ein Haus");
        assert_eq!(clean("The video shows a fox", &openings).text, "The video shows a fox");
        assert_eq!(
            clean("Auf dem Bildschirm läuft er", &openings).text,
            "Auf dem Bildschirm läuft er"
        );
        assert!(Openings::read(Path::new("/nowhere/openings.txt")).is_err());
    }
}
