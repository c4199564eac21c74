//! Removes openings such as "The video shows" from captions.
//!
//! Source: hpcaitech/Open-Sora, `tools/datasets/csvutil.py` as it became after 1.0.0, `remove_caption_prefix`.
//! Deviations: case is ignored, only whole words match, "In this video," can be followed by another
//! opening, and a caption that is only an opening becomes empty instead of an error.

use crate::{PrepareError, text::single_spaced};
use serde::Serialize;
use std::path::Path;

/// The built-in openings.
const BUILT_IN: &str = include_str!("openings.txt");

/// Openings of captions, such as "The video shows".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Openings(Vec<Vec<Token>>);

/// A word or comma of an opening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
enum Token {
    /// Any of these words, in lower case.
    Word(Vec<String>),
    Comma,
}

impl Default for Openings {
    /// Returns the built-in openings of English captions: `openings.txt` beside this source file.
    fn default() -> Self {
        Self::parse(BUILT_IN)
    }
}

impl Openings {
    /// No openings.
    pub const NONE: Self = Self(Vec::new());

    /// Parses openings, one per line. Empty lines and lines that start with `#` are ignored. `a|b`
    /// matches either word, and a word can end with a comma.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let tokens = |line: &str| {
            line.split_whitespace()
                .flat_map(|word| {
                    let bare = word.strip_suffix(COMMAS).unwrap_or(word);
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
    /// Returns an error if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        Ok(Self::parse(&std::fs::read_to_string(path).map_err(PrepareError::io(path))?))
    }

    /// Returns the text after the longest opening at the beginning of `caption`, whose words are separated
    /// by single spaces.
    fn after<'a>(&self, caption: &'a str) -> Option<&'a str> {
        self.0.iter().filter_map(|tokens| after(tokens, caption)).min_by_key(|rest| rest.len())
    }
}

/// Commas of Latin, Chinese, Japanese and Arabic text.
const COMMAS: [char; 4] = [',', '，', '、', '،'];

/// Returns true for spaces, punctuation and symbols. Marks and joiners are no letters, but parts of words.
fn is_break(letter: char) -> bool {
    letter.is_whitespace()
        || letter.is_ascii_punctuation()
        || matches!(letter, '«' | '»' | '¿' | '¡' | '،' | '؛' | '؟' | '।')
        // General punctuation without joiners, symbols, punctuation of Chinese and Japanese, and emoji.
        || matches!(letter, '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' | '\u{2190}'..='\u{2bff}')
        || matches!(letter, '\u{3000}'..='\u{303f}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}')
        || matches!(letter, '\u{1f000}'..='\u{1faff}')
}

/// Returns the text after an opening.
fn after<'a>(tokens: &[Token], caption: &'a str) -> Option<&'a str> {
    let mut rest = caption;
    for token in tokens {
        rest = match token {
            Token::Comma => rest.strip_prefix(COMMAS)?,
            Token::Word(words) => {
                let text = rest.trim_start_matches(' ');
                // A hyphen or apostrophe continues a word: "the video-maker shows".
                let ends = |letter: char| !"-'’_".contains(letter) && is_break(letter);
                let end = text.find(ends).unwrap_or(text.len());
                let (word, rest) = text.split_at(end);
                words.contains(&word.to_lowercase()).then_some(rest)?
            }
        };
    }
    Some(rest)
}

/// A cleaned caption, and the changes that were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// The cleaned text; it can be empty.
    pub text: String,
    /// True if spaces, line breaks or control characters were replaced by single spaces.
    pub spaces: bool,
    /// True if openings were removed.
    pub openings: bool,
}

/// Puts single spaces between words, removes openings, and capitalizes the remaining text.
pub fn clean(caption: &str, openings: &Openings) -> Caption {
    let text = single_spaced(caption);
    let spaces = text != caption;
    let mut rest = text.as_str();
    while let Some(after) = openings.after(rest) {
        rest = after.trim_start_matches(|letter| " ,:;-–—，、،：；".contains(letter));
    }
    // Only punctuation after the opening.
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
    fn openings_are_removed_and_nothing_else() {
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
    fn openings_of_a_file_replace_the_built_in_ones() {
        let openings = Openings::parse("# ours\n\nauf|in diesem|dem bild,\nman sieht\n , | \n");
        assert_eq!(clean("Auf dem Bild, man sieht ein Haus", &openings).text, "Ein Haus");
        assert_eq!(clean("The video shows a fox", &openings).text, "The video shows a fox");
        assert_eq!(
            clean("Auf dem Bildschirm läuft er", &openings).text,
            "Auf dem Bildschirm läuft er"
        );
        // Other commas, and words with marks.
        let openings = Openings::parse("在这个视频中，\nइस दृश्य में\n");
        assert_eq!(clean("在这个视频中，一只狐狸在跑", &openings).text, "一只狐狸在跑");
        assert_eq!(clean("इस दृश्य में एक लोमड़ी है", &openings).text, "एक लोमड़ी है");
        assert!(Openings::read(Path::new("/nowhere/openings.txt")).is_err());
    }
}
