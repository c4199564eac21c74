//! Text of captions.

/// Returns the words of a text with single spaces between them, without invisible characters other than joiners.
pub(crate) fn single_spaced(text: &str) -> String {
    // The joiners U+200C and U+200D are parts of words and emoji.
    let is_hidden = |c| matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}' | '\u{feff}');
    let is_gap = |c: char| c.is_whitespace() || c.is_control();
    let visible: String = text.chars().filter(|&c| !is_hidden(c)).collect();
    visible.split(is_gap).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Returns true if the text has a letter or digit, of any script.
#[cfg(any(test, feature = "caption"))]
pub(crate) fn has_words(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_separated_by_single_spaces() {
        assert_eq!(single_spaced(" a\u{a0}fox,\r\n\u{feff}red\t\u{0} "), "a fox, red");
        assert_eq!(single_spaced(" \n\u{200b}"), "");
        for text in ["می\u{200c}دود", "ශ\u{dca}\u{200d}රී", "👩\u{200d}🚀"] {
            assert_eq!(single_spaced(text), text);
        }
        assert!(has_words("...雾") && !has_words("...\u{2014}"));
    }
}
