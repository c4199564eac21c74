//! Detection of the delimiter and of other text formats by the first line.

use crate::header;

/// Delimiter of a table, and the offset of its first record.
#[derive(Debug, PartialEq)]
pub(crate) struct Dialect {
    pub(crate) delimiter: u8,
    /// Bytes before the first record.
    pub(crate) skip: usize,
}

const DELIMITERS: [u8; 4] = *b",;\t|";

/// Extensions that mark the first field of the first row as a file.
const ENDINGS: [&str; 18] = [
    "mp4", "mov", "m4v", "mkv", "webm", "avi", "gif", "png", "jpg", "jpeg", "webp", "bmp", "mpg",
    "mpeg", "ts", "wmv", "flv", "tiff",
];

/// Returns the dialect of a file that begins with `text`. The delimiter is the one in Excel's first line
/// `sep=;`, else the one that makes the first line a header, else the one after a file name, else a comma.
pub(crate) fn of(text: &str) -> Dialect {
    let line = &text[..text.find(['\n', '\r']).unwrap_or(text.len())];
    let says = line.strip_prefix("sep=").map(str::as_bytes);
    if let Some(&[delimiter]) = says
        && DELIMITERS.contains(&delimiter)
    {
        let end = if text[line.len()..].starts_with("\r\n") { 2 } else { 1 };
        return Dialect { delimiter, skip: (line.len() + end).min(text.len()) };
    }
    let found = DELIMITERS.into_iter().find(|&delimiter| {
        let fields = split(line, delimiter);
        let names: Vec<&str> = fields.iter().map(|field| field.trim_matches('"')).collect();
        header::is_header(&names) || header::looks_like_header(&names)
    });
    let after_file = || {
        let first = DELIMITERS.into_iter().filter_map(|delimiter| {
            let field = split(line, delimiter).first()?.len();
            (field < line.len()).then_some((field, delimiter))
        });
        let (end, delimiter) = first.min()?;
        is_file(line[..end].trim_matches('"')).then_some(delimiter)
    };
    Dialect { delimiter: found.or_else(after_file).unwrap_or(b','), skip: 0 }
}

/// Returns true if the only field of a row contains another delimiter and is not a file.
pub(crate) fn has_other_delimiter(field: &str) -> bool {
    field.contains([';', '\t', '|']) && !is_file(field)
}

/// Returns the problem if `text` begins a file of another text format than CSV.
pub(crate) fn foreign(text: &str) -> Option<String> {
    let what = format_of(text)?;
    Some(format!("found {what}, expected CSV with the columns path and text"))
}

/// Returns the format of a file that begins with `text` if the file is JSON or HTML.
pub(crate) fn format_of(text: &str) -> Option<&'static str> {
    let start = text.trim_start();
    let list = start.strip_prefix('[').map(str::trim_start);
    let is_json = start.starts_with("{\"") || list.is_some_and(|rest| rest.starts_with('{'));
    let is_page = start
        .get(..5)
        .is_some_and(|tag| tag.eq_ignore_ascii_case("<html") || tag.eq_ignore_ascii_case("<!doc"));
    if is_json { Some("JSON") } else { is_page.then_some("a web page") }
}

/// Returns the fields of a line, with their quotes.
fn split(line: &str, delimiter: u8) -> Vec<&str> {
    let mut within = false;
    line.split(|c| {
        within ^= c == '"';
        !within && c == char::from(delimiter)
    })
    .collect()
}

/// Returns true for a file name with a known extension.
pub(crate) fn is_file(field: &str) -> bool {
    let ending = field.rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_found_in_the_first_line() {
        for (text, delimiter, skip) in [
            ("path,text\n", b',', 0),
            ("path;text\na.mp4;x, y\n", b';', 0),
            ("video_path\tcaption\n", b'\t', 0),
            // Without the tab, an alias of `url`.
            ("video\turl\nfox\thttps://a.example/fox.mp4\n", b'\t', 0),
            ("image\tpath\n", b'\t', 0),
            ("\"path\"|\"text\"", b'|', 0),
            ("id;url;note\n", b';', 0),
            ("prompt;seed\n", b';', 0),
            ("sep=;\r\npath;text\r\n", b';', 7),
            ("sep=\t\npath\ttext\n", b'\t', 6),
            ("a.mp4;A fox, red\n", b';', 0),
            ("\"a;b.mp4\";A fox\n", b';', 0),
            ("a.MP4\tA fox, red; old\n", b'\t', 0),
            ("a.mp4,A fox; red\n", b',', 0),
            ("my;file.mp4,A fox\n", b',', 0),
            ("frames/0001,A fox; red\n", b',', 0),
            ("frames/0001;text\n", b',', 0),
            ("text\n", b',', 0),
            ("a.mp4\n", b',', 0),
            ("", b',', 0),
        ] {
            assert_eq!(of(text), Dialect { delimiter, skip }, "{text:?}");
        }
    }

    #[test]
    fn a_delimiter_in_the_name_of_a_file_is_no_delimiter() {
        assert!(has_other_delimiter("a;b") && has_other_delimiter("a.mp4\tA fox"));
        assert!(!has_other_delimiter("a;b.mp4") && !has_other_delimiter("a.mp4"));
        assert!(!has_other_delimiter("a, b"));
    }

    #[test]
    fn other_formats_of_text_are_named() {
        for (text, what) in [
            ("[\n  {\"path\": \"a.mp4\"}]", "JSON"),
            ("{\"path\": \"a.mp4\"}\n", "JSON"),
            ("<!DOCTYPE html><html>", "web page"),
        ] {
            let found = foreign(text).unwrap();
            assert!(found.contains(what), "{found}");
        }
        assert_eq!(foreign("[group] a.mp4,fox\n"), None);
        assert_eq!(foreign("{a}.mp4,fox\n"), None);
    }
}
