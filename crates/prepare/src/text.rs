//! Text of captions.

/// Returns the words of a text with one space between two; characters that cannot be seen are left out.
pub(crate) fn single_spaced(text: &str) -> String {
    let is_hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    let is_gap = |c: char| c.is_whitespace() || c.is_control();
    let visible: String = text.chars().filter(|&c| !is_hidden(c)).collect();
    visible.split(is_gap).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Returns true if there is a letter or a digit, of any script.
#[cfg(any(test, feature = "caption"))]
pub(crate) fn has_words(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_one_space_apart() {
        assert_eq!(single_spaced(" a\u{a0}fox,\r\n\u{feff}red\t\u{0} "), "a fox, red");
        assert_eq!(single_spaced(" \n\u{200b}"), "");
        assert!(has_words("...雾") && !has_words("...\u{2014}"));
    }
}
