//! Python's patterns on Rust's engines.
//!
//! Python's `\w` is letters and numbers (not marks), its `\s` has four separators more, and its
//! `\b` follows its `\w`. Patterns are written with `<w>` (inside a class), `<d>`, `<D>`, `<s>`,
//! `<S>` and `<b>`, which stand for Python's meaning.

use fancy_regex::{Regex, RegexBuilder};

/// Members of Python's `\w`.
const WORD: &str = r"\p{L}\p{N}_";

/// A pattern and what replaces its matches.
pub(super) struct Rule {
    pattern: Regex,
    replacement: String,
    /// One of these is part of every match: a text without any needs no search. Empty for none.
    needs: &'static [&'static str],
}

impl Rule {
    /// `re.sub`.
    pub(super) fn apply(&self, text: String) -> String {
        if !self.needs.is_empty() && !self.needs.iter().any(|needed| text.contains(needed)) {
            return text;
        }
        // Without a limit on backtracking the engine has no error to give.
        match self.pattern.try_replacen(&text, 0, self.replacement.as_str()) {
            Ok(replaced) => replaced.into_owned(),
            Err(_) => text,
        }
    }
}

/// Compiles pairs of pattern and replacement.
///
/// # Panics
/// Where a pattern is no pattern; they are all constants of this crate.
pub(super) fn rules(pairs: &[(&str, &str)]) -> Vec<Rule> {
    pairs
        .iter()
        .map(|(pattern, replacement)| Rule {
            pattern: compile(pattern),
            replacement: replacement.to_string(),
            needs: &[],
        })
        .collect()
}

impl Rule {
    /// Only texts with one of `needs` are searched.
    pub(super) fn with_needs(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }
}

/// Compiles one pattern.
///
/// # Panics
/// As [`rules`].
pub(super) fn compile(pattern: &str) -> Regex {
    let boundary = format!("(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))");
    let pattern = pattern
        .replace("<b>", &boundary)
        .replace("<w>", WORD)
        .replace("<d>", r"\p{Nd}")
        .replace("<D>", r"\P{Nd}")
        .replace("<s>", r"[\s\x1c-\x1f]")
        .replace("<S>", r"[^\s\x1c-\x1f]");
    RegexBuilder::new(&pattern)
        .backtrack_limit(usize::MAX)
        .build()
        .expect("the patterns are constants")
}
