//! Bytes and foreign text as text for names and messages.

use std::{
    error::Error,
    fmt::{Display, Write},
};

/// Characters that [`one_line`] gives at most, before the `...` of a cut.
const MAX_CHARS: usize = 400;

/// Most characters of an error with its causes: a row's list of unknown keys or paths may be long.
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

/// Returns text from a file, a library or a server as it can stand in a message: one line, with
/// control characters and marks that turn the direction of text escaped, cut after 400 characters.
///
/// ```
/// assert_eq!(opensora_files::one_line("bad key 'a\nb'"), r"bad key 'a\nb'");
/// ```
pub fn one_line(text: impl Display) -> String {
    limited(&text.to_string(), MAX_CHARS)
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
/// Libraries often repeat a cause in the message of the error around it, or begin a cause's message with the
/// name that the message around it has given already: each text appears once. Control characters
/// are escaped and the line is cut off, as in [`one_line`].
pub fn error_line(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut last = String::new();
    for cause in std::iter::successors(Some(error), |&error| error.source()) {
        let cause = cause.to_string();
        if line.contains(&cause) {
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

/// Line and paragraph separators, and marks of direction.
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
        let long = Wrapped { message: "x", source: std::io::Error::other("ü".repeat(9000)) };
        assert_eq!(error_line(&long).chars().count(), MAX_ERROR_CHARS + 3);
    }

    #[test]
    fn text_becomes_one_bounded_line() {
        assert_eq!(
            one_line(" ü\r\n\tb\u{1b}[31m\u{2028}\u{202e}\n"),
            "ü\\r\\n\\tb\\u{1b}[31m\\u{2028}\\u{202e}"
        );
        assert_eq!(one_line("ü".repeat(MAX_CHARS)).chars().count(), MAX_CHARS);
        let cut = one_line("ü".repeat(MAX_CHARS + 1));
        assert!(cut.ends_with("ü...") && cut.chars().count() == MAX_CHARS + 3);
    }
}
