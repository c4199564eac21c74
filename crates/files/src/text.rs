//! Bytes and foreign text as text for names and messages.

use std::fmt::{Display, Write};

/// Characters that [`one_line`] gives at most, before the `...` of a cut.
const MAX_CHARS: usize = 400;

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
    let text = text.to_string();
    let mut line = String::new();
    for (index, shown) in text.trim().chars().enumerate() {
        if index == MAX_CHARS {
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

/// Line and paragraph separators, and marks of direction.
fn breaks_a_line(shown: char) -> bool {
    matches!(shown, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

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
