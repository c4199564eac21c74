//! Extracts the text of HTML, as BeautifulSoup does.
//!
//! Source: CPython 3.11.7, `html/parser.py` (`HTMLParser.goahead` without `convert_charrefs`),
//! and `_markupbase.py`; BeautifulSoup 4.15, `builder/_htmlparser.py`
//! and `BeautifulSoup.text`. No tree is built: the parser only tracks the open elements that determine whether
//! their text is part of the document's text.
//!
//! Deviation: markup that makes the reference fail is text here (`<![` with an unknown word), and a
//! numeric reference with more than the 4300 digits that Python converts is U+FFFD.
//! Later Python versions parse comments and broken tags differently.

use super::{
    patterns::{SPACE, compile},
    references::{character, named, parse_number, windows_1252},
    unicode::{is_space, lower, strip},
};
use regex::Regex;
use std::sync::LazyLock;

/// Elements without content.
const EMPTY_ELEMENTS: [&str; 24] = [
    "menuitem", "spacer", "hr", "input", "br", "frame", "nextid", "base", "area", "meta", "keygen",
    "bgsound", "image", "track", "wbr", "isindex", "col", "source", "basefont", "command", "param",
    "img", "embed", "link",
];
/// Elements whose text is not part of the document's text.
const SILENT_ELEMENTS: [&str; 5] = ["rt", "rp", "style", "script", "template"];
/// Elements whose content is not parsed (raw text).
const RAW_ELEMENTS: [&str; 2] = ["script", "style"];

/// Returns the text of a document.
pub(super) fn text(document: &str) -> String {
    if !document.contains(['<', '&']) {
        return collapse_blank(document).to_string();
    }
    let mut parser = Parser::default();
    match parser.run(document) {
        Ok(()) => parser.finish(),
        Err(Rejected) => document.to_string(),
    }
}

/// Replaces a blank string by one space or line break, as BeautifulSoup does.
fn collapse_blank(text: &str) -> &str {
    if text.is_empty() || text.contains(|c| !matches!(c, ' ' | '\n' | '\t' | '\x0c' | '\r')) {
        text
    } else if text.contains('\n') {
        "\n"
    } else {
        " "
    }
}

/// Error for markup on which the reference fails.
struct Rejected;

#[derive(Default)]
struct Parser {
    out: String,
    /// Text since the last tag.
    pending: String,
    open: Vec<String>,
    /// End tags of empty elements that are closed already.
    closed_empty: Vec<String>,
    /// The open raw text element.
    raw: Option<String>,
}

macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| compile(&$pattern.replace("<s>", SPACE)));
    };
}
pattern!(ENTITY, r"\A&([a-zA-Z][-.a-zA-Z0-9]*)[^a-zA-Z0-9]");
pattern!(NUMBER, r"\A&#(?:[0-9]+|[xX][0-9a-fA-F]+)[^0-9a-fA-F]");
pattern!(TAG_NAME, r"\A([a-zA-Z][^\t\n\r\x0c />\x00]*)");
pattern!(END_TAG, r"\A</<s>*([a-zA-Z][-.a-zA-Z0-9:_]*)<s>*>");
pattern!(COMMENT_CLOSE, r"--<s>*>");
pattern!(SECTION_NAME, r"\A([a-zA-Z][-_.a-zA-Z0-9]*)<s>*");
pattern!(SECTION_CLOSE, r"\]<s>*\]<s>*>");
pattern!(OFFICE_SECTION_CLOSE, r"\]<s>*>");

/// Returns the end of the first match in `text`.
fn match_end(pattern: &Regex, text: &str) -> Option<usize> {
    pattern.find(text).map(|found| found.end())
}

fn capture<'t>(pattern: &Regex, text: &'t str) -> Option<(&'t str, usize)> {
    let captures = pattern.captures(text)?;
    Some((captures.get(1)?.as_str(), captures.get(0)?.end()))
}

impl Parser {
    /// Parses the document, then the unparsed rest again, with the knowledge that nothing follows.
    fn run(&mut self, document: &str) -> Result<(), Rejected> {
        let rest = self.go_ahead(document, 0, false)?;
        let rest = self.go_ahead(document, rest, true)?;
        if self.raw.is_none() {
            self.data(&document[rest..]);
        }
        Ok(())
    }

    /// Parses from `i` and returns the position where it stopped. Unless `end`, it stops at markup that may be
    /// incomplete.
    fn go_ahead(&mut self, document: &str, mut i: usize, end: bool) -> Result<usize, Rejected> {
        while i < document.len() {
            let rest = &document[i..];
            let next = match &self.raw {
                // In raw text, only the element's end tag is markup.
                Some(raw) => match find_raw_end(rest, raw) {
                    Some(at) => at,
                    None => break,
                },
                None => rest.find(['<', '&']).unwrap_or(rest.len()),
            };
            self.data(&rest[..next]);
            i += next;
            let rest = &document[i..];
            if rest.is_empty() {
                break;
            }
            if let Some(behind) = rest.strip_prefix('<') {
                match self.markup(document, i)? {
                    Step::To(k) => i = k,
                    Step::Text => {
                        self.data("<");
                        i += 1;
                    }
                    Step::Wait => break,
                    Step::Incomplete if !end => break,
                    Step::Incomplete => {
                        let k = match behind.find('>') {
                            Some(at) => at + 2,
                            None => behind.find('<').map_or(1, |at| at + 1),
                        };
                        self.data(&rest[..k]);
                        i += k;
                    }
                }
            } else if rest.starts_with("&#") {
                match match_end(&NUMBER, rest) {
                    Some(k) => {
                        let last = rest[..k].chars().next_back().map_or(0, char::len_utf8);
                        self.number_reference(&rest[2..k - last]);
                        i += if rest[..k].ends_with(';') { k } else { k - last };
                    }
                    None => {
                        if rest.contains(';') {
                            self.data("&#");
                            i += 2;
                        }
                        break;
                    }
                }
            } else {
                match capture(&ENTITY, rest) {
                    Some((name, k)) => {
                        match named(&format!("{name};")) {
                            Some(characters) => self.data(characters),
                            None => self.data(&format!("&{name}")),
                        }
                        let last = rest[..k].chars().next_back().map_or(0, char::len_utf8);
                        i += if rest[..k].ends_with(';') { k } else { k - last };
                    }
                    None => {
                        let letter = rest[1..].chars().next();
                        if letter.is_some_and(|c| c.is_ascii_alphabetic() || c == '#') {
                            // A reference that may continue after the end of the text.
                            if end && rest.chars().count() == 2 {
                                i += 1;
                            }
                            break;
                        } else if letter.is_some() {
                            self.data("&");
                            i += 1;
                        } else {
                            break;
                        }
                    }
                }
            }
        }
        Ok(i)
    }

    /// Decodes a numeric reference as BeautifulSoup does; text can follow the digits.
    fn number_reference(&mut self, number: &str) {
        let code = parse_number(number);
        let characters = match code {
            0x80..=0x9f => windows_1252(code as u8).to_string(),
            _ => character(code),
        };
        self.data(&characters);
    }

    /// Parses the markup that starts with `<` at `i`.
    fn markup(&mut self, document: &str, i: usize) -> Result<Step, Rejected> {
        let rest = &document[i..];
        if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            Ok(self.start_tag(document, i))
        } else if rest.starts_with("</") {
            Ok(self.end_tag(document, i))
        } else if let Some(comment) = rest.strip_prefix("<!--") {
            Ok(self.silent(match_end(&COMMENT_CLOSE, comment).map(|end| i + 4 + end)))
        } else if rest.starts_with("<?") {
            Ok(self.silent(rest.find('>').map(|end| i + end + 1)))
        } else if rest.starts_with("<![") {
            self.marked_section(rest, i)
        } else if rest.starts_with("<!") {
            // A document type declaration or a bogus comment.
            let from = if rest.get(..9).is_some_and(|s| s.eq_ignore_ascii_case("<!doctype")) {
                9
            } else {
                2
            };
            Ok(self.silent(rest[from..].find('>').map(|end| i + from + end + 1)))
        } else if rest.len() > 1 {
            Ok(Step::Text)
        } else {
            Ok(Step::Wait)
        }
    }

    /// Skips markup without text up to `end`.
    fn silent(&mut self, end: Option<usize>) -> Step {
        match end {
            Some(end) => {
                self.end_data();
                Step::To(end)
            }
            None => Step::Incomplete,
        }
    }

    fn marked_section(&mut self, rest: &str, i: usize) -> Result<Step, Rejected> {
        let Some((name, end)) = capture(&SECTION_NAME, &rest[3..]) else {
            return if rest.len() == 3 { Ok(Step::Incomplete) } else { Err(Rejected) };
        };
        if 3 + end == rest.len() {
            return Ok(Step::Incomplete);
        }
        let name = name.to_ascii_lowercase();
        let close: &Regex = match name.as_str() {
            "temp" | "cdata" | "ignore" | "include" | "rcdata" => &SECTION_CLOSE,
            "if" | "else" | "endif" => &OFFICE_SECTION_CLOSE,
            _ => return Err(Rejected),
        };
        let Some(found) = close.find(&rest[3..]) else {
            return Ok(Step::Incomplete);
        };
        self.end_data();
        let content = &rest[3..3 + found.start()];
        if content.get(..6).is_some_and(|s| s.eq_ignore_ascii_case("cdata[")) {
            // Text even inside elements whose text is ignored. Quirk: an empty section becomes a space.
            let content = &content[6..];
            let kept = self.keeps_space();
            self.out.push_str(match content {
                "" if !kept => " ",
                _ if kept => content,
                _ => collapse_blank(content),
            });
        }
        Ok(Step::To(i + 3 + found.end()))
    }

    fn start_tag(&mut self, document: &str, i: usize) -> Step {
        let Some(end) = whole_start_tag(document, i) else { return Step::Incomplete };
        let Some((name, name_end)) = capture(&TAG_NAME, &document[i + 1..]) else {
            return Step::Incomplete;
        };
        let name = lower(name);
        let mut k = i + 1 + name_end;
        k += separators_end(&document[k..]);
        while k < end {
            match attribute_end(document, k) {
                Some(next) => k = next,
                None => break,
            }
        }
        let close = if k <= end { strip(&document[k..end]) } else { "" };
        if close != ">" && close != "/>" {
            self.data(&document[i..end]);
            return Step::To(end);
        }
        self.end_data();
        self.open.push(name.clone());
        if close == "/>" {
            self.close(&name);
        } else {
            if EMPTY_ELEMENTS.contains(&name.as_str()) {
                self.close(&name);
                self.closed_empty.push(name.clone());
            }
            if RAW_ELEMENTS.contains(&name.as_str()) {
                self.raw = Some(name);
            }
        }
        Step::To(end)
    }

    fn end_tag(&mut self, document: &str, i: usize) -> Step {
        let rest = &document[i..];
        let Some(gt) = rest[1..].find('>') else { return Step::Incomplete };
        let mut end = i + gt + 2;
        let name = match capture(&END_TAG, rest) {
            Some((name, _)) => {
                let name = lower(name);
                if self.raw.as_ref().is_some_and(|raw| *raw != name) {
                    self.data(&document[i..end]);
                    return Step::To(end);
                }
                self.raw = None;
                name
            }
            None if self.raw.is_some() => {
                self.data(&document[i..end]);
                return Step::To(end);
            }
            None => match capture(&TAG_NAME, &rest[2..]) {
                Some((name, name_end)) => {
                    let from = i + 2 + name_end;
                    match document[from..].find('>') {
                        Some(gt) => end = from + gt + 1,
                        // Python's find would return -1, and the parser would restart at the beginning. This is
                        // unreachable: a `>` was found, and names do not contain one.
                        None => return Step::Incomplete,
                    }
                    lower(name)
                }
                None if rest.starts_with("</>") => return Step::To(i + 3),
                None => return self.silent(rest[2..].find('>').map(|at| i + 2 + at + 1)),
            },
        };
        if let Some(at) = self.closed_empty.iter().position(|closed| *closed == name) {
            self.closed_empty.remove(at);
        } else {
            self.end_data();
            self.close(&name);
        }
        Step::To(end)
    }

    /// Closes the innermost open element with this name and all elements inside it.
    fn close(&mut self, name: &str) {
        if let Some(at) = self.open.iter().rposition(|open| open == name) {
            self.open.truncate(at);
        }
    }

    fn data(&mut self, text: &str) {
        self.pending.push_str(text);
    }

    /// Ends a text node.
    fn end_data(&mut self) {
        let text = std::mem::take(&mut self.pending);
        let silent = self.open.iter().any(|open| SILENT_ELEMENTS.contains(&open.as_str()));
        if !silent {
            self.out.push_str(if self.keeps_space() { &text } else { collapse_blank(&text) });
        }
    }

    /// Returns true if blank text is kept unchanged here.
    fn keeps_space(&self) -> bool {
        self.open.iter().any(|open| open == "pre" || open == "textarea")
    }

    fn finish(mut self) -> String {
        self.end_data();
        self.out
    }
}

/// How parsing continues after a `<`.
enum Step {
    /// Parsing continues at this position.
    To(usize),
    /// The `<` is text.
    Text,
    /// The text may continue after its end: stop.
    Wait,
    /// The markup is incomplete.
    Incomplete,
}

/// Returns the position of the end tag of the raw text element `raw`.
fn find_raw_end(rest: &str, raw: &str) -> Option<usize> {
    let lower = rest.to_ascii_lowercase();
    lower
        .match_indices("</")
        .map(|(at, _)| at)
        .find(|&at| lower[at + 2..].trim_start_matches(is_space).starts_with(raw))
}

/// Returns the length of a separator of attributes: white space, and slashes that do not close the tag.
fn separators_end(text: &str) -> usize {
    let mut rest = text;
    loop {
        let next = rest.trim_start_matches(is_space);
        match next.strip_prefix('/') {
            Some(after) if !after.starts_with('>') => rest = after,
            _ => return text.len() - next.len(),
        }
    }
}

/// Returns the end of the attribute at `k`, including its value and the separator; `None` if there is no
/// attribute. An attribute starts after white space, a slash or a quotation mark.
fn attribute_end(document: &str, k: usize) -> Option<usize> {
    let (before, rest) = document.split_at_checked(k)?;
    if !before.ends_with(|c| is_space(c) || matches!(c, '\'' | '"' | '/')) {
        return None;
    }
    let first = rest.chars().next().filter(|&c| !is_space(c) && c != '/' && c != '>')?;
    let name_end = rest[first.len_utf8()..]
        .find(|c| is_space(c) || matches!(c, '/' | '=' | '>'))
        .map_or(rest.len(), |at| first.len_utf8() + at);
    let value_end = name_end + value_end(&rest[name_end..]).unwrap_or(0);
    Some(k + value_end + separators_end(&rest[value_end..]))
}

/// Returns the length of an equals sign and the value after it, if there is one.
fn value_end(text: &str) -> Option<usize> {
    let skip = |from: usize, skipped: fn(char) -> bool| {
        text[from..].find(|c| !skipped(c)).map_or(text.len(), |at| from + at)
    };
    let bare = |from| skip(from, |c| c != '>' && !is_space(c));
    let equals = skip(0, is_space);
    let behind = skip(equals, |c| c == '=');
    if behind == equals {
        return None;
    }
    let value = skip(behind, is_space);
    match text[value..].chars().next() {
        Some(quote @ ('\'' | '"')) => match text[value + 1..].find(quote) {
            Some(at) => Some(value + 1 + at + 1),
            // The quotation mark is never closed. There is no value except the white space before it, or a value
            // from the second of several equals signs.
            None if value > behind => Some(value),
            None if behind > equals + 1 => Some(bare(behind - 1)),
            None => None,
        },
        _ => Some(bare(value)),
    }
}

/// Returns a start tag up to its `>`; `None` if it is incomplete.
fn whole_start_tag(document: &str, i: usize) -> Option<usize> {
    let (_, name_end) = capture(&TAG_NAME, &document[i + 1..])?;
    let mut j = i + 1 + name_end;
    let separators = document[j..].find(|c| !is_space(c) && c != '/');
    j = separators.map_or(document.len(), |at| j + at);
    while let Some(next) = attribute_end(document, j) {
        j = next;
    }
    match document[j..].chars().next() {
        Some('>') => Some(j + 1),
        Some('/') if document[j..].starts_with("/>") => Some(j + 2),
        None | Some('/' | '=') => None,
        Some(c) if c.is_ascii_alphabetic() => None,
        Some(_) => Some(j),
    }
}
