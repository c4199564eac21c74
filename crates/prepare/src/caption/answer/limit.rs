//! Cuts captions at limits of tokens and characters.

use crate::text::has_words;
use serde::{Deserialize, Serialize};

/// Maximum length of a caption in characters.
pub const MAX_CHARACTERS: usize = 10_000;

/// A caption, and the limit at which it was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(crate) struct Caption {
    pub(crate) text: String,
    /// `None` for a whole caption.
    pub(crate) cut: Option<Limit>,
}

/// The limit at which a caption was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// The limit of tokens of the answer.
    MaxTokens,
    /// [`MAX_CHARACTERS`].
    Characters,
}

impl Limit {
    /// Returns the limit's name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::Characters => "characters",
        }
    }
}

/// A caption as journals record it: only the text if it is whole.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Whole(String),
    Cut { text: String, cut: Limit },
}

impl From<Written> for Caption {
    fn from(written: Written) -> Self {
        match written {
            Written::Whole(text) => Self { text, cut: None },
            Written::Cut { text, cut } => Self { text, cut: Some(cut) },
        }
    }
}

impl From<Caption> for Written {
    fn from(Caption { text, cut }: Caption) -> Self {
        match cut {
            None => Self::Whole(text),
            Some(cut) => Self::Cut { text, cut },
        }
    }
}

impl Caption {
    /// Cuts a text of one line. `ended` is true if the server ended it at the limit of tokens. Servers can
    /// ignore that limit, so texts with more words than tokens are cut as well: a word has at least one
    /// token.
    pub(super) fn within(text: String, max_tokens: usize, ended: bool) -> Self {
        let words = text.match_indices(' ').nth(max_tokens.saturating_sub(1)).map(|(end, _)| end);
        let characters = text.char_indices().nth(MAX_CHARACTERS).map(|(end, _)| end);
        let (end, cut) = match (words, characters) {
            (Some(words), characters) if characters.is_none_or(|end| words <= end) => {
                (words, Limit::MaxTokens)
            }
            (_, Some(end)) => (end, Limit::Characters),
            _ if ended => (text.len(), Limit::MaxTokens),
            _ => return Self { text, cut: None },
        };
        Self { text: whole_sentences(&text[..end]).into(), cut: Some(cut) }
    }
}

/// Returns the whole sentences of a cut text, or its whole words if it is part of one sentence.
fn whole_sentences(text: &str) -> &str {
    const ENDS: [char; 6] = ['.', '!', '?', '\u{3002}', '\u{ff01}', '\u{ff1f}'];
    let last = text.char_indices().rev().find(|&(at, mark)| {
        let rest = &text[at + mark.len_utf8()..];
        let is_wide = mark.len_utf8() > 1;
        ENDS.contains(&mark) && (is_wide || rest.is_empty() || rest.starts_with([' ', '"', '\'']))
    });
    if let Some((at, mark)) = last
        && has_words(&text[..at])
    {
        return &text[..at + mark.len_utf8()];
    }
    text.rsplit_once(' ').map_or(text, |(whole, _)| whole.trim_end_matches([' ', ',', ';', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_cut_at_sentences_and_marked() {
        let within = |text: &str, max, ended| {
            let Caption { text, cut } = Caption::within(text.into(), max, ended);
            (text, cut.map(Limit::name))
        };
        let cut = Some("max_tokens");
        assert_eq!(within("A fox runs.", 3, false), ("A fox runs.".into(), None));
        assert_eq!(within("A fox runs. It ju", 9, true), ("A fox runs.".into(), cut));
        assert_eq!(within("A fox, a do", 9, true), ("A fox, a".into(), cut));
        assert_eq!(within("A", 9, true), ("A".into(), cut));
        assert_eq!(within("A fox runs. It jumps. It", 4, false), ("A fox runs.".into(), cut));
        assert_eq!(within("\u{96fe}\u{3002}\u{96fe}", 9, true), ("\u{96fe}\u{3002}".into(), cut));
        let (text, cut) = within(&"\u{96fe}".repeat(MAX_CHARACTERS + 1), 9, false);
        assert_eq!((text.chars().count(), cut), (MAX_CHARACTERS, Some("characters")));
        let (text, cut) = within(&"fog. ".repeat(MAX_CHARACTERS), usize::MAX, false);
        assert!(text.len() <= MAX_CHARACTERS && text.ends_with("fog."));
        assert_eq!(cut, Some("characters"));
    }

    #[test]
    fn journals_hold_whole_captions_as_text() {
        let json = |caption: &Caption| serde_json::to_string(caption).unwrap();
        let whole = Caption { text: "A fox".into(), cut: None };
        assert_eq!(json(&whole), "\"A fox\"");
        let cut = Caption { cut: Some(Limit::MaxTokens), ..whole.clone() };
        assert_eq!(json(&cut), r#"{"text":"A fox","cut":"max_tokens"}"#);
        for caption in [whole, cut] {
            assert_eq!(serde_json::from_str::<Caption>(&json(&caption)).unwrap(), caption);
        }
    }
}
