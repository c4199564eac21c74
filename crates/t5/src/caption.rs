//! Caption cleaning, as the captions of the published models' training were cleaned.
//!
//! Source: huggingface/diffusers (Apache-2.0), `pipelines/deepfloyd_if/pipeline_if.py`, class `IFPipeline`:
//! `_text_preprocessing` and `_clean_caption`. hpcaitech/Open-Sora v1.0.0 has the same steps in
//! `opensora/models/text_encoder/t5.py` (`text_preprocessing`, `clean_caption`, `basic_clean`), whose header names
//! PixArt-alpha and the AGPL (PixArt-alpha's repository is under Apache-2.0, commit cac2fd3). The one difference, followed
//! here, is that Open-Sora strips the text after ftfy and `html.unescape`.
//! Libraries that these call: Python's `re`, `html`, `html.parser` and `urllib`, BeautifulSoup 4.15 (`html`) and ftfy
//! 6.3 (`mojibake`).
//!
//! Quirks of the reference, kept: cleaning runs twice; it comes before tokenisation, so special
//! tokens typed in a prompt are removed as tags; lower-casing comes before the repair of wrongly
//! decoded text, so most of that is destroyed rather than repaired; `+` becomes a space; Chinese
//! characters are removed.
//!
//! Every pattern takes time linear in the caption; some of the reference's are quadratic.

mod html;
mod mojibake;
mod mojibake_tables;
mod patterns;
mod references;
mod unicode;

use patterns::Rule;
use std::sync::LazyLock;
use unicode::{lower, strip};

/// Cleans a caption with both passes of the reference.
pub fn text_preprocessing(caption: &str) -> String {
    clean_caption(&clean_caption(caption))
}

/// Runs one pass of cleaning.
pub fn clean_caption(caption: &str) -> String {
    let mut text = lower(strip(&unquote_plus(caption)));
    text = text.replace("<person>", "person");
    text = apply(&BEFORE_HTML, text);
    text = html::text(&text);
    text = apply(&AFTER_HTML, text);
    // this-is-my-cute-cat / this_is_my_cute_cat
    if text.matches(['-', '_']).count() > 3 {
        text = text.replace(['-', '_'], " ");
    }
    text = basic_clean(&text);
    text = apply(&LAST, text);
    strip(&text).to_string()
}

/// Applies ftfy, then decodes HTML entities twice.
fn basic_clean(text: &str) -> String {
    let text = mojibake::fix_text(text);
    let text = references::unescape(&references::unescape(&text));
    strip(&text).to_string()
}

/// Decodes a URL as Python's `urllib.parse.unquote_plus`: replaces `+` by a space and decodes `%xx` as
/// UTF-8, together with the ASCII characters around it. Invalid UTF-8 becomes U+FFFD.
fn unquote_plus(text: &str) -> String {
    let text = text.replace('+', " ");
    if !text.contains('%') {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let ascii = rest.find(|c: char| !c.is_ascii()).unwrap_or(rest.len());
        out.push_str(&String::from_utf8_lossy(&percent_decode(&rest.as_bytes()[..ascii])));
        rest = &rest[ascii..];
        let other = rest.find(|c: char| c.is_ascii()).unwrap_or(rest.len());
        out.push_str(&rest[..other]);
        rest = &rest[other..];
    }
    out
}

fn percent_decode(ascii: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(ascii.len());
    let mut i = 0;
    while i < ascii.len() {
        let digits = ascii.get(i + 1).zip(ascii.get(i + 2)).filter(|_| ascii[i] == b'%');
        match digits.and_then(|(&high, &low)| Some((hex(high)?, hex(low)?))) {
            Some((high, low)) => {
                out.push(high << 4 | low);
                i += 3;
            }
            None => {
                out.push(ascii[i]);
                i += 1;
            }
        }
    }
    out
}

fn rules(pairs: &[(&str, &'static str)]) -> Vec<Rule> {
    pairs.iter().map(|(pattern, replacement)| Rule::new(pattern, replacement)).collect()
}

/// Returns true for characters that cleaning removes: CJK strokes to unified ideographs.
pub(crate) fn is_ideograph(c: char) -> bool {
    ('\u{31c0}'..='\u{9fff}').contains(&c)
}

fn apply(rules: &[Rule], text: String) -> String {
    rules.iter().fold(text, |text, rule| rule.apply(text))
}

static BEFORE_HTML: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    // Not followed by an "@", which is matched but not consumed.
    const SITE: &str = r"([a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?)(?:[^@]|\z)";
    rules(&[
        (&format!(r"\b(?:(https?:(?:/{{1,3}}|[a-zA-Z0-9%]))|{SITE})"), ""),
        // Quirk: "www:" with a colon.
        (&format!(r"\b(?:(www:(?:/{{1,3}}|[a-zA-Z0-9%]))|{SITE})"), ""),
    ])
});

static AFTER_HTML: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        // @nickname
        (r"@\w+\b", ""),
        // The characters of `is_ideograph`
        (r"[\u{31c0}-\u{9fff}]+", ""),
        // all kinds of dashes
        (
            concat!(
                r"[\u{2D}\u{58A}\u{5BE}\u{1400}\u{1806}\u{2010}-\u{2015}\u{2E17}\u{2E1A}\u{2E3A}",
                r"\u{2E3B}\u{2E40}\u{301C}\u{3030}\u{30A0}\u{FE31}\u{FE32}\u{FE58}\u{FE63}\u{FF0D}]+"
            ),
            "-",
        ),
        // quotation marks to one kind
        (r"[`´«»“”¨]", "\""),
        (r"[‘’]", "'"),
        (r"&quot;?", ""),
        (r"&amp", ""),
        // IP addresses
        (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
        // article ids
        (r"\d:\d\d\s+\z", ""),
        // the two characters \n
        (r"\\n", " "),
        // #123, #12345.., 123456..
        (r"#\d{1,3}\b", ""),
        (r"#\d{5,}\b", ""),
        (r"\b\d{6,}\b", ""),
        // file names
        (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
        (r#"["']{2,}"#, "\""),
        (r"\.{2,}", " "),
        // ***AUSVERKAUFT***, #AUSVERKAUFT
        (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
        // " . "
        (r"\s+\.\s+", " "),
    ])
});

static LAST: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        // jc6640, jc6640vc, 6640vc231
        (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
        (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
        (r"\b\d+[a-zA-Z]+\d+\b", ""),
        (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
        (r"(?:free\s)?download(?:\sfree)?", ""),
        (r"\bclick\b\s(?:for|on)\s\w+", ""),
        (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simage[s]?)?", ""),
        (r"\bpage\s+\d+\b", ""),
        // j2d1a2a...
        (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
        // 320x240; the second x is Cyrillic
        (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
        (r"\b\s+\:\s+", ": "),
        (r"(\D[,\./])\b", "$1 "),
        (r"\s+", " "),
        // The reference strips here and discards the result.
        (r#"^["']([\s\S]+)["']\z"#, "$1"),
        (r"^['_,\-:;]", ""),
        (r"['_,\-:+]\z", ""),
        (r"^\.\S+\z", ""),
    ])
});

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(file: &str, input: &str, output: &str) -> Vec<(String, String)> {
        let path = format!("{}/tests/fixtures/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let field = |case: &serde_json::Value, name| case[name].as_str().unwrap().to_string();
        cases.iter().map(|case| (field(case, input), field(case, output))).collect()
    }

    #[test]
    fn captions_are_cleaned_as_by_the_reference() {
        let golden = "caption-clean/expected.json";
        for (input, want) in pairs(golden, "input", "output") {
            assert_eq!(text_preprocessing(&input), want, "{input:?}");
        }
        for (input, want) in pairs(golden, "input", "after_one_pass") {
            assert_eq!(clean_caption(&input), want, "{input:?}");
        }
    }

    /// The README beside the file names their source.
    #[test]
    fn fuzzed_captions_are_cleaned_as_by_the_reference() {
        let cases = pairs("caption/fuzz.json", "input", "output");
        assert_eq!(cases.len(), 500);
        for (input, want) in cases {
            assert_eq!(text_preprocessing(&input), want, "{input:?}");
        }
    }

    /// The README beside the file names their source.
    #[test]
    fn corner_cases_are_cleaned_as_by_the_reference() {
        let cases = pairs("caption/corners.json", "input", "output");
        assert_eq!(cases.len(), 200);
        for (input, want) in cases {
            assert_eq!(text_preprocessing(&input), want, "{input:?}");
        }
    }

    #[test]
    fn percent_signs_are_decoded_with_their_neighbours() {
        for (quoted, plain) in [
            ("a+b", "a b"),
            ("100%", "100%"),
            ("%41%zz%4", "A%zz%4"),
            ("caf%C3%A9", "café"),
            ("%C3é%A9", "\u{fffd}é\u{fffd}"),
            ("%E2%82x", "\u{fffd}x"),
        ] {
            assert_eq!(unquote_plus(quoted), plain);
        }
    }

    #[test]
    fn long_captions_take_little_time() {
        let started = std::time::Instant::now();
        for piece in
            ["a walk in the woods, ", "a.", "a-", "1.", "<a ", "<b>", "&#", "x", "1a", "é¼"]
        {
            text_preprocessing(&piece.repeat(10_000 / piece.len()));
        }
        // It takes about two seconds on a busy machine.
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }
}
