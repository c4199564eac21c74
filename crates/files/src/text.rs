//! Text for names and messages: hexadecimal digits, and untrusted text and errors on one line.

use std::{
    error::Error,
    fmt::{Display, Write},
};

/// Maximum number of characters of [`one_line`], without the `...` that marks a cut.
const MAX_CHARS: usize = 400;

/// Maximum number of characters of [`error_line`], which may list many keys or paths.
const MAX_ERROR_CHARS: usize = 4000;

/// Returns bytes as lower-case hexadecimal digits, as digests are written.
///
/// ```
/// assert_eq!(opensora_files::hex(&[0, 255, 26]), "00ff1a");
/// ```
pub fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// Returns untrusted text on one line for a message. Control characters and bidirectional marks are escaped,
/// and the text is cut after 400 characters.
///
/// ```
/// assert_eq!(opensora_files::one_line("bad key 'a\nb'"), r"bad key 'a\nb'");
/// ```
pub fn one_line(text: impl Display) -> String {
    limited(&text.to_string(), MAX_CHARS)
}

/// Returns true if `line` ends with the cause, or contains it. A single word must stand at the end: it may be
/// part of a path.
fn repeats(line: &str, cause: &str) -> bool {
    match line.strip_suffix(cause) {
        Some(before) => before.is_empty() || before.ends_with([' ', '(']),
        None => cause.contains(' ') && line.contains(cause),
    }
}

fn limited(text: &str, max_chars: usize) -> String {
    let mut line = String::new();
    for (index, shown) in text.trim().chars().enumerate() {
        if index == max_chars {
            line.push_str("...");
            break;
        }
        if shown.is_control() || breaks_a_line(shown) {
            line.extend(shown.escape_default());
        } else {
            line.push(shown);
        }
    }
    line
}

/// Returns an error and its causes on one line, joined by ": ".
///
/// Text that an error repeats from its cause appears once. Control characters are escaped, and the line is cut
/// after 4000 characters.
///
/// ```
/// use opensora_files::{error_line, read::read_text};
/// use std::path::Path;
///
/// let error = read_text(Path::new("missing.json"), 100).unwrap_err();
/// assert!(error_line(&error).starts_with("No such file"));
/// ```
pub fn error_line(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut last = String::new();
    for cause in std::iter::successors(Some(error), |&error| error.source()) {
        let cause = cause.to_string();
        if repeats(&line, &cause) {
            continue;
        }
        if !last.is_empty() && cause.starts_with(&last) {
            line.truncate(line.len() - last.len());
        } else if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
        last = cause;
    }
    let line = line.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    limited(&line, MAX_ERROR_CHARS)
}

/// Returns true for line and paragraph separators and bidirectional marks.
fn breaks_a_line(shown: char) -> bool {
    matches!(shown, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Wrapped {
        message: &'static str,
        source: std::io::Error,
    }

    fn wrapped(message: &'static str) -> Wrapped {
        Wrapped { message, source: std::io::Error::other("disk is full\nor gone") }
    }

    #[test]
    fn an_error_line_holds_each_text_once() {
        let full = "clip.mp4: disk is full or gone";
        assert_eq!(error_line(&wrapped("clip.mp4")), full);
        // A message that repeats its cause.
        assert_eq!(error_line(&wrapped("clip.mp4: disk is full\nor gone")), full);
        // A cause that begins with the text around it.
        assert_eq!(error_line(&wrapped("disk is")), "disk is full or gone");
        // A word that is part of the path is not said yet.
        let word = Wrapped {
            message: "/damaged/a.mp4: cannot decode",
            source: std::io::Error::other("damaged"),
        };
        assert_eq!(error_line(&word), "/damaged/a.mp4: cannot decode: damaged");
        let long = Wrapped { message: "x", source: std::io::Error::other("ü".repeat(9000)) };
        assert_eq!(error_line(&long).chars().count(), MAX_ERROR_CHARS + 3);
    }

    #[test]
    fn digits_are_lower_case_and_two_a_byte() {
        assert_eq!((hex(&[0, 255, 26]), hex(&[])), ("00ff1a".into(), String::new()));
    }

    #[test]
    fn text_becomes_one_bounded_line() {
        assert_eq!(
            one_line(" ü\r\n\tb\u{1b}[31m\u{2028}\u{202e}\n"),
            "ü\\r\\n\\tb\\u{1b}[31m\\u{2028}\\u{202e}"
        );
        assert_eq!(one_line("ü".repeat(MAX_CHARS)).chars().count(), MAX_CHARS);
        for mark in ['\u{200e}', '\u{200f}', '\u{2029}', '\u{202a}', '\u{2066}', '\u{2069}'] {
            assert_eq!(one_line(format!("a{mark}b")), format!("a{}b", mark.escape_default()));
        }
        assert_eq!(one_line("a\u{200d}b\u{2065}"), "a\u{200d}b\u{2065}");
        let cut = one_line("ü".repeat(MAX_CHARS + 1));
        assert!(cut.ends_with("ü...") && cut.chars().count() == MAX_CHARS + 3);
    }
}
