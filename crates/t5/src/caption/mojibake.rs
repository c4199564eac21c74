//! Repairs text that was decoded with the wrong encoding (mojibake), and other errors of web text.
//!
//! Source: rspeer/python-ftfy 6.3.1 (Apache-2.0), `fix_text` with its default configuration:
//! `ftfy/__init__.py`, `fixes.py`, `badness.py`, `chardata.py`. Not ported: surrogates, which Rust's
//! strings cannot contain, and the splitting of lines over a million characters.

use super::{
    mojibake_tables::*,
    patterns::{ALPHANUMERIC, SPACE, compile},
    references,
    unicode::nfc,
};
use regex::{Captures, Regex};
use std::{borrow::Cow, collections::HashMap, sync::LazyLock};
use unicode_normalization::UnicodeNormalization;

/// Repairs a text as ftfy's `fix_text` does.
pub(super) fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // From the first line that may contain a tag, entities are not decoded.
    let mut entities = true;
    for line in text.split_inclusive('\n') {
        entities &= !line.contains('<');
        out.push_str(&fix_line(line, entities));
    }
    out
}

/// Applies all fixes until the text does not change.
fn fix_line(line: &str, entities: bool) -> String {
    let mut text = line.to_string();
    loop {
        let before = text.clone();
        if entities {
            text = unescape_html(&text);
        }
        text = fix_encoding(&text);
        text = fix_c1_controls(&text);
        text = text.chars().map(unwrap_ligature_and_width).collect();
        text = text.chars().map(uncurl).collect();
        text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        text = TERMINAL_ESCAPE.replace_all(&text, "").into_owned();
        text.retain(|c| !is_stray_control(c));
        text = nfc(&text);
        if text == before {
            return text;
        }
    }
}

static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| compile(r"\x1b\[(?:[\d&&\p{Age=14.0}]|;)*[a-zA-Z]"));

static ENTITY: LazyLock<Regex> = LazyLock::new(|| compile(r"&#?[0-9A-Za-z]{1,24};"));

/// Entities whose names were upper-cased by a program, where that is unambiguous.
static CAPITAL_ENTITIES: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    references::all_named()
        .filter(|(name, _)| name.ends_with(';') && *name == name.to_lowercase())
        .map(|(name, characters)| (name.to_uppercase(), characters.to_uppercase()))
        .filter(|(name, _)| {
            let entity = format!("&{name}");
            references::unescape(&entity) == entity
        })
        .collect()
});

/// Decodes entities that end with a semicolon.
fn unescape_html(text: &str) -> String {
    if !text.contains('&') {
        return text.to_string();
    }
    ENTITY
        .replace_all(text, |found: &Captures<'_>| -> String {
            let entity = &found[0];
            if let Some(characters) = references::named(&entity[1..]) {
                return characters.to_string();
            }
            if let Some(characters) = CAPITAL_ENTITIES.get(&entity[1..]) {
                return characters.clone();
            }
            let plain =
                if entity.starts_with("&#") { references::unescape(entity) } else { entity.into() };
            if plain.contains(';') { entity.to_string() } else { plain }
        })
        .into_owned()
}

/// Fixes the encoding step by step until the text does not change.
fn fix_encoding(text: &str) -> String {
    let mut text = text.to_string();
    loop {
        let fixed = fix_encoding_once(&text);
        match fixed {
            Cow::Borrowed(_) => return text,
            Cow::Owned(fixed) if fixed == text => return text,
            Cow::Owned(fixed) => text = fixed,
        }
    }
}

fn fix_encoding_once(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || !is_bad(text) {
        return Cow::Borrowed(text);
    }
    let mut latin_1 = false;
    for page in &CODE_PAGES {
        let Some(mut bytes) = encode(text, page) else { continue };
        latin_1 |= page.name == "latin-1";
        if page.name != "macroman" && ALTERED_UTF8.is_match(&bytes) {
            bytes = restore_byte_a0(&bytes);
        }
        if page.sloppy {
            bytes = LOSSY_UTF8.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        if let Some(decoded) = decode_utf8_variants(&bytes) {
            return Cow::Owned(decoded);
        }
    }
    let repaired = decode_inconsistent_utf8(text);
    if repaired != text {
        return Cow::Owned(repaired);
    }
    if latin_1 {
        // The reference looks for "windows-1252" among names that all start with "sloppy-", so it always treats
        // C1 controls here. Undefined bytes end the repair.
        let decoded: Option<String> = text.chars().map(windows_1252_strict).collect();
        if let Some(decoded) = decoded.filter(|decoded| decoded != text) {
            return Cow::Owned(decoded);
        }
    }
    if text.contains(|c| ('\u{80}'..='\u{9f}').contains(&c)) {
        return Cow::Owned(fix_c1_controls(text));
    }
    Cow::Borrowed(text)
}

/// Decodes a Latin-1 character as a byte of Windows-1252.
fn windows_1252_strict(c: char) -> Option<char> {
    match c as u32 {
        0x81 | 0x8d | 0x8f | 0x90 | 0x9d => None,
        0x80..=0x9f => CODE_PAGES[1].upper.chars().nth(c as usize - 0x80),
        _ => Some(c),
    }
}

/// Replaces C1 controls by the characters of Windows-1252 with the same bytes.
fn fix_c1_controls(text: &str) -> String {
    text.chars().map(|c| windows_1252_strict(c).unwrap_or(c)).collect()
}

/// Encodes `text` in a code page; `None` if a character is missing there.
fn encode(text: &str, page: &CodePage) -> Option<Vec<u8>> {
    let upper: HashMap<char, u8> = page.upper.chars().zip(0x80..=0xff).collect();
    text.chars()
        .map(|c| match c {
            '\u{fffd}' if page.sloppy => Some(0x1a),
            '\x1a' if page.sloppy => None,
            c if c.is_ascii() => Some(c as u8),
            c => upper.get(&c).copied(),
        })
        .collect()
}

/// Decodes UTF-8. If one of their lead bytes occurs, surrogate pairs of three bytes each and a null of two bytes
/// are accepted too.
///
/// Quirk: a line break at the end of the text replaces a missing last byte.
fn decode_utf8_variants(bytes: &[u8]) -> Option<String> {
    if !bytes.contains(&0xed) && !bytes.contains(&0xc0) {
        return String::from_utf8(bytes.to_vec()).ok();
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i..] {
            [0xc0, 0x80, ..] | [0xc0, b'\n'] => {
                plain.push(0);
                i += 2;
            }
            [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d, ..]
                if matches!(d, 0x80..=0xbf) || (d == b'\n' && i + 6 == bytes.len()) =>
            {
                let bits = |byte: u8, mask: u8| u32::from(byte & mask);
                let code = 0x1_0000
                    + (bits(a, 0x0f) << 16)
                    + (bits(b, 0x3f) << 10)
                    + (bits(c, 0x0f) << 6)
                    + bits(d, 0x3f);
                plain.extend(char::from_u32(code)?.to_string().bytes());
                i += 6;
            }
            _ => {
                plain.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(plain).ok()
}

macro_rules! bytes_pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<regex::bytes::Regex> = LazyLock::new(|| {
            regex::bytes::Regex::new($pattern).expect("the patterns are constants")
        });
    };
}

bytes_pattern!(
    ALTERED_UTF8,
    concat!(
        r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9] ",
        r"|[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]",
        r"|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] ",
        r"|\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] "
    )
);
bytes_pattern!(
    LOSSY_UTF8,
    concat!(
        r"(?-u)[\xc2-\xdf]\x1a|[\xc2-\xc3][?]",
        r"|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a"
    )
);

/// Restores byte A0 where a program replaced it by a space and the result is UTF-8.
fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    // "Ã " between words is "à" and a space, except in some Portuguese words.
    let mut spaced = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let behind = bytes.get(i + 2..).unwrap_or_default();
        let joined = [b" ".as_slice(), b"quele", b"quela", b"quilo", b"s "];
        if bytes[i..].starts_with(b"\xc3 ") && !behind.starts_with(joined[0]) {
            let word = joined[1..].iter().find(|word| behind.starts_with(word));
            if word.is_none() {
                spaced.extend(b"\xc3\xa0 ");
                i += 2;
                continue;
            }
        }
        spaced.push(bytes[i]);
        i += 1;
    }
    ALTERED_UTF8
        .replace_all(&spaced, |found: &regex::bytes::Captures<'_>| -> Vec<u8> {
            found[0].iter().map(|&byte| if byte == b' ' { 0xa0 } else { byte }).collect()
        })
        .into_owned()
}

/// A character that looks like a lead byte of UTF-8, with its continuation bytes.
static UTF8_SEQUENCE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "(?:[{UTF8_FIRST_OF_2}][{UTF8_CONTINUATION}]\
         |[{UTF8_FIRST_OF_3}][{UTF8_CONTINUATION}]{{2}}\
         |[{UTF8_FIRST_OF_4}][{UTF8_CONTINUATION}]{{3}})"
    )
});

/// Repairs parts that look like wrongly decoded UTF-8, inside text that is otherwise correct.
fn decode_inconsistent_utf8(text: &str) -> String {
    static FIRST: LazyLock<Regex> = LazyLock::new(|| compile(&UTF8_SEQUENCE));
    static RUN: LazyLock<Regex> = LazyLock::new(|| compile(&format!(r"\A{}+", *UTF8_SEQUENCE)));
    static INSIDE: LazyLock<Regex> =
        LazyLock::new(|| compile(&format!("[{UTF8_CONTINUATION_STRICT}]")));
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    let mut from = 0;
    while let Some(first) = FIRST.find_at(text, from) {
        let start = first.start();
        let mut before = text[..start].chars();
        let inside =
            before.next_back().is_some_and(|c| INSIDE.is_match(c.encode_utf8(&mut [0; 4])));
        let run = RUN.find(&text[start..]).filter(|_| !inside);
        let Some(run) = run else {
            from = start + text[start..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        from = start + run.end();
        let part = run.as_str();
        // The whole text was tried before.
        if part.len() < text.len() && is_bad(part) {
            out.push_str(&text[copied..start]);
            out.push_str(&fix_encoding(part));
            copied = from;
        }
    }
    out + &text[copied..]
}

/// Returns true if the text contains sequences that are much more likely mojibake than intended.
fn is_bad(text: &str) -> bool {
    BADNESS.is_match(text)
}

static BADNESS: LazyLock<Regex> = LazyLock::new(|| {
    let accented = format!("{LOWER_ACCENTED}{UPPER_ACCENTED}");
    let punctuation = format!("{START_PUNCTUATION}{END_PUNCTUATION}");
    let unlikely = format!("{accented}{BOX}{punctuation}{CURRENCY}{NUMERIC}{LAW}");
    let arabic = format!("[ØÙ][{COMMON}{CURRENCY}{BAD}{NUMERIC}{START_PUNCTUATION}ŸŠ®°µ»]");
    let between = format!("[{C1}{BAD}{punctuation}{CURRENCY}°");
    let alternatives = [
        format!("[{C1}]"),
        format!("[{BAD}{unlikely}][{BAD}]"),
        format!("[a-zA-Z][{LOWER_COMMON}{UPPER_COMMON}][{BAD}]"),
        format!("[{BAD}][{unlikely}]"),
        format!(
            "[{LOWER_ACCENTED}{LOWER_COMMON}{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{UPPER_ACCENTED}]"
        ),
        format!("[{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{LOWER_ACCENTED}]"),
        format!("[{LOWER_ACCENTED}{BOX}{END_PUNCTUATION}][{CURRENCY}]"),
        format!("{SPACE}[{UPPER_ACCENTED}][{CURRENCY}]"),
        format!("[{UPPER_ACCENTED}{BOX}][{NUMERIC}{LAW}]"),
        format!("[{accented}{BOX}{CURRENCY}{END_PUNCTUATION}][{START_PUNCTUATION}][{NUMERIC}]"),
        format!(
            "[{accented}{CURRENCY}{NUMERIC}{BOX}{LAW}][{END_PUNCTUATION}][{START_PUNCTUATION}]"
        ),
        format!("[{CURRENCY}{NUMERIC}{BOX}][{START_PUNCTUATION}]"),
        format!("[a-z][{UPPER_ACCENTED}][{START_PUNCTUATION}{CURRENCY}]"),
        format!("[{BOX}][{KAOMOJI}]"),
        format!("[{accented}{CURRENCY}{NUMERIC}{punctuation}{LAW}][{BOX}]"),
        format!("[{BOX}][{END_PUNCTUATION}]"),
        format!("[{accented}][{punctuation}][{ALPHANUMERIC}_]"),
        // the ligature before a character other than a letter
        "[Œœ][^A-Za-z]".into(),
        format!("[{UPPER_ACCENTED}]°"),
        // two characters in Windows-1252
        format!(r"[ÂÃÎÐ][€œŠš¢£Ÿž\xa0\xad®©°·»{punctuation}–—´]"),
        "×[²³]".into(),
        // Arabic in Windows-1252
        format!("{arabic}{arabic}"),
        // South Asian alphabets
        "à[²µ¹¼½¾]".into(),
        // MacRoman
        "√[±∂†≠®™´≤≥¥µø]".into(),
        "≈[°¢]".into(),
        "‚Ä[ìîïòôúùû†°¢π]".into(),
        "‚[âó][àä°ê]".into(),
        // Windows-1251
        "вЂ".into(),
        format!("[ВГРС]{between}µ][ВГРС]"),
        "ГўВЂВ.[A-Za-z ]".into(),
        // à, á and the no-break space in Windows-1252
        r"Ã[\xa0¡]".into(),
        format!("[a-z]{SPACE}?[ÃÂ] "),
        "^[ÃÂ] ".into(),
        format!("[a-z.,?!{END_PUNCTUATION}]Â[ {punctuation}]"),
        // Windows-1253
        r"β€[™\xa0Ά\xad®°]".into(),
        format!("[ΒΓΞΟ]{between}][ΒΓΞΟ]"),
        // Windows-1257
        "ā€".into(),
    ];
    compile(&alternatives.join("|"))
});

/// Replaces ligatures of Latin letters by their letters, and half and full width forms by the usual forms.
fn unwrap_ligature_and_width(c: char) -> String {
    let letters = match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        '\u{3000}' => " ",
        '\u{ff01}'..='\u{ffef}' => return std::iter::once(c).nfkc().collect(),
        _ => return c.to_string(),
    };
    letters.to_string()
}

/// Replaces curly quotation marks by straight ones.
fn uncurl(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => c,
    }
}

/// Returns true for control characters without a meaning in text.
fn is_stray_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x08'
            | '\x0b'
            | '\x0e'..='\x1f'
            | '\x7f'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
    )
}
