//! Python's `re.sub` on the `regex` crate, which takes linear time where Python backtracks.
//!
//! Both take the leftmost match and prefer alternatives in the written order, so they find the same matches. But
//! `\w`, `\d`, `\s` and `\b` differ: Python's `\w` matches letters and numbers but not marks, its `\s` matches
//! four more ASCII separators, and Python 3.11 does not know characters that were added after Unicode 14. So
//! patterns run on a [`mask`] of the text.

use regex::Regex;
use std::{borrow::Cow, sync::LazyLock};

/// Python's `\w` without `_`, as a class for patterns that run on the text and not on its mask.
pub(super) const ALPHANUMERIC: &str = r"[[\p{L}\p{N}]&&\p{Age=14.0}]";
/// Python's `\s`, as a class for patterns that run on the text and not on its mask.
pub(super) const SPACE: &str = r"[\s\x1c-\x1f]";

/// A pattern and the replacement of its matches.
pub(super) struct Rule {
    pattern: Regex,
    /// True if the pattern contains classes that differ, so that it runs on the mask. Other patterns can contain
    /// any character.
    masked: bool,
    /// True if the first group is kept before `replacement`.
    keep: bool,
    replacement: &'static str,
}

impl Rule {
    /// Compiles a pattern. A replacement that starts with `$1` keeps the first group. Otherwise, if a group took
    /// part in a match, only the group is replaced, and the rest of the match is a lookahead.
    ///
    /// # Panics
    /// Panics if the pattern is invalid; all patterns are constants of this crate.
    pub(super) fn new(pattern: &str, replacement: &'static str) -> Self {
        let stripped = replacement.strip_prefix("$1");
        Self {
            pattern: compile(pattern),
            masked: [r"\w", r"\d", r"\D", r"\s", r"\S", r"\b"].iter().any(|c| pattern.contains(c)),
            keep: stripped.is_some(),
            replacement: stripped.unwrap_or(replacement),
        }
    }

    /// Replaces all matches, as Python's `re.sub` does.
    pub(super) fn apply(&self, text: String) -> String {
        let mask = if self.masked { mask(&text) } else { Cow::Borrowed(text.as_str()) };
        let mut out = String::new();
        let mut copied = 0;
        while let Some((replaced, kept)) = self.next_match(&mask, copied) {
            out.push_str(&text[copied..replaced.start]);
            out.push_str(&text[kept]);
            out.push_str(self.replacement);
            copied = replaced.end;
        }
        if copied == 0 {
            return text;
        }
        out + &text[copied..]
    }

    /// Returns the next match from `from`: the range to replace and the range to keep.
    fn next_match(&self, mask: &str, from: usize) -> Option<(Span, Span)> {
        if self.pattern.captures_len() == 1 {
            let whole = self.pattern.find_at(mask, from)?.range();
            return Some((whole.clone(), whole.start..whole.start));
        }
        let captures = self.pattern.captures_at(mask, from)?;
        let whole = captures.get(0)?.range();
        let group = captures.iter().skip(1).flatten().next().map(|group| group.range());
        match group {
            Some(group) if self.keep => Some((whole, group)),
            Some(group) => Some((group.clone(), group.start..group.start)),
            None => Some((whole.clone(), whole.start..whole.start)),
        }
    }
}

type Span = std::ops::Range<usize>;

/// Compiles a pattern.
///
/// # Panics
/// Panics if the pattern is invalid.
pub(super) fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns are constants")
}

/// Returns the text with every character whose class differs between Rust and Python replaced by a character of
/// the right class with the same length in UTF-8. Byte positions are those of the text.
fn mask(text: &str) -> Cow<'_, str> {
    /// Characters that are words or digits only for Rust; those that are only for Python; separators that are
    /// white space only for Python.
    static DIFFERENT: LazyLock<Regex> = LazyLock::new(|| {
        let word = format!("[{ALPHANUMERIC}_]");
        compile(&format!(r"([\w--{word}])|([{word}--\w])|[\x1c-\x1f]"))
    });
    DIFFERENT.replace_all(text, |found: &regex::Captures<'_>| {
        let length = found[0].len();
        match (found.get(1), found.get(2)) {
            (Some(_), _) => ["-", "¦", "‡", "😀"][length - 1],
            (_, Some(_)) => ["w", "é", "ก", "𐐨"][length - 1],
            _ => "\t",
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_python() {
        let sub = |pattern, text: &str| Rule::new(pattern, "").apply(text.into());
        // A superscript is a letter or number; a combining accent and a joiner are not.
        assert_eq!(sub(r"\w+", "a²b½e\u{301}_\u{200d}"), "\u{301}\u{200d}");
        assert_eq!(sub(r"\b2\b", "2² 2\u{301} 2"), "2² \u{301} ");
        assert_eq!(sub(r"\s", "a\x1c\u{a0}b\u{200b}"), "ab\u{200b}");
        assert_eq!(sub(r"\d+", "1٣²"), "²");
        // A letter and a digit of Unicode 15 and 16.
        assert_eq!(sub(r"\w", "\u{1c89}\u{11f50}"), "\u{1c89}\u{11f50}");
    }

    #[test]
    fn groups_are_kept_or_replaced() {
        assert_eq!(Rule::new("(a)b", "$1-").apply("abcab".into()), "a-ca-");
        assert_eq!(Rule::new(r"(a+)(?:[^!]|\z)", "").apply("aa! aab a".into()), "a! b ");
    }
}
