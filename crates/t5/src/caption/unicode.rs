//! Python 3.11's functions of characters, which follow Unicode 14.

use super::patterns::compile;
use regex::Regex;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization;

/// Returns true for white space, as Python's `str.isspace` does.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Removes white space at both ends, as Python's `str.strip` does.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Converts to lower case, as Python's `str.lower` does.
pub(super) fn lower(text: &str) -> String {
    by_known_parts(text, |part| part.to_lowercase())
}

/// Normalises to NFC, as Python's `unicodedata.normalize` does.
pub(super) fn nfc(text: &str) -> String {
    by_known_parts(text, |part| part.nfc().collect())
}

/// Applies `change` to the parts between characters that were added after Unicode 14. Those characters are kept:
/// for Python they have no properties, so they have no case, do not combine and end a word.
fn by_known_parts(text: &str, change: impl Fn(&str) -> String) -> String {
    static UNKNOWN: LazyLock<Regex> = LazyLock::new(|| compile(r"\P{Age=14.0}"));
    if text.is_ascii() {
        return change(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for unknown in UNKNOWN.find_iter(text) {
        out.push_str(&change(&text[done..unknown.start()]));
        out.push_str(unknown.as_str());
        done = unknown.end();
    }
    out + &change(&text[done..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_case_is_that_of_python() {
        for (text, want) in [
            ("İI", "i̇i"),
            ("ΟΔΟΣ ΣΑΣ.", "οδος σας."),
            // Garay was added in Unicode 16: for Python not a letter, so the sigma before it ends a word.
            ("ΑΣ\u{10d50}", "ας\u{10d50}"),
        ] {
            assert_eq!(lower(text), want);
        }
    }

    #[test]
    fn letters_and_marks_are_composed() {
        assert_eq!(nfc("e\u{301}\u{1c89}"), "é\u{1c89}");
    }
}
