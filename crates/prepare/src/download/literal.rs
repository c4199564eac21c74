//! Parses Python literals in the cells of lists.
//!
//! Supports lists, tuples, strings, numbers, `True`, `False` and `None` as `repr` prints them. Numbers are
//! kept as text, so that columns of a list are copied unchanged.
//!
//! Source: The Python Language Reference, "Lexical analysis", string literals and escape sequences.
//! Deviation: escapes that Python does not interpret (`"\q"`) and names (`"\N{...}"`) are errors.

use std::{iter::Peekable, str::Chars};

/// Maximum nesting depth of lists; lists of videos have three levels.
const MAX_DEPTH: usize = 16;

/// A parsed Python literal: list, string, number or name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Literal {
    /// A list or a tuple.
    List(Vec<Literal>),
    /// A string, without quotes and escapes.
    Text(String),
    /// A number or a name, as written.
    Bare(String),
}

impl Literal {
    /// Parses one value with nothing but blanks after it. An error is one line with the unexpected text and
    /// its position, counted in characters from 1.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text.chars().peekable(), at: 1 };
        let value = parser.value(0)?;
        parser.blanks();
        match parser.rest.peek() {
            None => Ok(value),
            Some(&more) => Err(parser.wrong(&format!("{more:?} after the value"))),
        }
    }

    /// Returns the items of a list; `None` for other values.
    pub(crate) fn into_list(self) -> Option<Vec<Self>> {
        if let Self::List(items) = self { Some(items) } else { None }
    }

    /// Returns the value as text of a column: strings without quotes, lists as Python prints them.
    pub(crate) fn into_field(self) -> String {
        match self {
            Self::Text(text) | Self::Bare(text) => text,
            list @ Self::List(_) => list.written(),
        }
    }

    fn written(&self) -> String {
        match self {
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(Self::written).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Text(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
            Self::Bare(text) => text.clone(),
        }
    }
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    /// Position of the next character, from 1.
    at: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        self.at += usize::from(self.rest.peek().is_some());
        self.rest.next()
    }

    fn wrong(&self, found: &str) -> String {
        format!("not a Python literal: {found} at character {}", self.at)
    }

    fn blanks(&mut self) {
        while self.rest.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\n' | '\r')) {
            self.next();
        }
    }

    fn value(&mut self, depth: usize) -> Result<Literal, String> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(&format!("more than {MAX_DEPTH} lists in each other")));
        }
        self.blanks();
        match self.rest.peek().copied() {
            None => Err(self.wrong("the end")),
            Some('[') => self.list(']', depth),
            Some('(') => self.list(')', depth),
            Some(quote @ ('\'' | '"')) => self.text(quote),
            Some(_) => self.bare(),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Result<Literal, String> {
        self.next();
        let mut items = vec![];
        loop {
            self.blanks();
            if self.rest.peek() == Some(&close) {
                self.next();
                return Ok(Literal::List(items));
            }
            items.push(self.value(depth + 1)?);
            self.blanks();
            match self.rest.peek().copied() {
                Some(',') => drop(self.next()),
                Some(found) if found == close => {}
                Some(found) => {
                    return Err(self.wrong(&format!("{found:?} instead of ',' or {close:?}")));
                }
                None => return Err(self.wrong("the end of the text in a list")),
            }
        }
    }

    fn text(&mut self, quote: char) -> Result<Literal, String> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.wrong("the end of the text in a string")),
                Some('\n' | '\r') => return Err(self.wrong("a line break in a string")),
                Some('\\') => text.extend(self.escape()?),
                Some(c) if c == quote => return Ok(Literal::Text(text)),
                Some(c) => text.push(c),
            }
        }
    }

    /// Returns the character of an escape whose backslash was read; `None` for a line continuation.
    fn escape(&mut self) -> Result<Option<char>, String> {
        let Some(kind) = self.next() else {
            return Err(self.wrong("the end of the text in an escape"));
        };
        Ok(Some(match kind {
            '\n' => return Ok(None),
            '\\' | '\'' | '"' => kind,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => self.hexadecimal(2)?,
            'u' => self.hexadecimal(4)?,
            'U' => self.hexadecimal(8)?,
            '0'..='7' => self.octal(kind),
            other => return Err(self.wrong(&format!("the escape \\{other}"))),
        }))
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<char, String> {
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.rest.peek().and_then(|c| c.to_digit(16));
            let Some(digit) = digit else {
                return Err(self.wrong("an escape with too few digits"));
            };
            code = code * 16 + digit;
            self.next();
        }
        char::from_u32(code).ok_or_else(|| self.wrong("an escape that is no character"))
    }

    /// Parses up to three octal digits, the first of which was read.
    fn octal(&mut self, first: char) -> char {
        let mut code = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit) = self.rest.peek().and_then(|c| c.to_digit(8)) else { break };
            code = code * 8 + digit;
            self.next();
        }
        // At most 0o777, which is a valid character.
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn bare(&mut self) -> Result<Literal, String> {
        let mut text = String::new();
        while let Some(&c) = self.rest.peek()
            && (c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_'))
        {
            text.push(c);
            self.next();
        }
        let is_name = matches!(text.as_str(), "True" | "False" | "None");
        if is_name || text.parse::<f64>().is_ok() {
            return Ok(Literal::Bare(text));
        }
        let found = self.rest.peek().filter(|_| text.is_empty()).map(char::to_string);
        Err(self.wrong(&format!("{:?}", found.unwrap_or(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        let items = Literal::parse(text).unwrap().into_list().unwrap();
        items.into_iter().map(Literal::into_field).collect()
    }

    #[test]
    fn quotes_and_escapes_match_python() {
        // Each left side is Python's `repr` of the right side.
        assert_eq!(
            texts(r#"['A fox.', "It's red.", 'Say "it\'s".', '[1, 2]', 'a, b']"#),
            ["A fox.", "It's red.", "Say \"it's\".", "[1, 2]", "a, b"]
        );
        assert_eq!(
            texts(r"['a\\n\n\t', '\xe9\u2028\U0001f98a', '\x00\07', '🦊', '']"),
            ["a\\n\n\t", "\u{e9}\u{2028}\u{1f98a}", "\0\u{7}", "🦊", ""]
        );
        assert_eq!(texts("[0.451416015625, -1e-05, True, None, nan]").len(), 5);
        assert_eq!(texts(" ( [ 'a' , 1, ], ( ), ) "), ["['a', 1]", "[]"]);
    }

    #[test]
    fn invalid_literals_are_rejected_with_their_position() {
        for (text, words) in [
            ("", "the end at character 1"),
            ("['a'", "the end of the text in a list"),
            ("['a", "the end of the text in a string"),
            ("['a' 'b']", "'\\'' instead of ','"),
            ("['a'] x", "'x' after the value"),
            (r"['\q']", r"the escape \q"),
            (r"['\xg1']", "too few digits"),
            (r"['\ud83d']", "no character"),
            ("[a]", "\"a\" at character 3"),
            ("[__import__('os')]", "\"__import__\""),
            ("{'a': 1}", "\"{\" at character 1"),
            ("['a\nb']", "a line break"),
        ] {
            let error = Literal::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(Literal::parse(&"[".repeat(100_000)).unwrap_err().contains("in each other"));
    }

    #[test]
    fn printed_lists_can_be_parsed() {
        let text = r"[['0:00:00.000', 'it\'s \\'], [1.5]]";
        let literal = Literal::parse(text).unwrap();
        assert_eq!(literal.clone().into_field(), text);
        assert_eq!(Literal::parse(&literal.into_field()).unwrap(), Literal::parse(text).unwrap());
    }
}
