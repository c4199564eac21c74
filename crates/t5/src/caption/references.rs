//! HTML's named and numeric character references, as Python's `html.unescape` reads them.
//!
//! Source: CPython 3.11.7, `html/__init__.py`.

use super::patterns::compile;
use entities::ENTITIES;
use regex::{Captures, Regex};
use std::{collections::HashMap, sync::LazyLock};

/// Entities by name without the ampersand, such as `amp;` and `amp`.
static NAMED: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    ENTITIES.iter().map(|entity| (&entity.entity[1..], entity.characters)).collect()
});

/// Returns the named entity. Names end with a semicolon, except those of HTML 4.
pub(super) fn named(name: &str) -> Option<&'static str> {
    NAMED.get(name).copied()
}

/// Returns all named entities.
pub(super) fn all_named() -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMED.iter().map(|(name, characters)| (*name, *characters))
}

static CHARREF: LazyLock<Regex> =
    LazyLock::new(|| compile(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)"));

/// Decodes the references of a text, as Python's `html.unescape` does.
pub(super) fn unescape(text: &str) -> String {
    if !text.contains('&') {
        return text.to_string();
    }
    CHARREF
        .replace_all(text, |found: &Captures<'_>| {
            let reference = found.get(1).map_or("", |group| group.as_str());
            match reference.strip_prefix('#') {
                Some(number) => numeric(number.trim_end_matches(';')),
                None => named_or_prefix(reference),
            }
        })
        .into_owned()
}

/// Decodes the longest name at the start of `reference` and keeps the rest.
fn named_or_prefix(reference: &str) -> String {
    if let Some(characters) = named(reference) {
        return characters.to_string();
    }
    let ends = reference.char_indices().map(|(end, _)| end).skip(2).collect::<Vec<_>>();
    for end in ends.into_iter().rev() {
        if let Some(characters) = named(&reference[..end]) {
            return format!("{characters}{}", &reference[end..]);
        }
    }
    format!("&{reference}")
}

/// Decodes a number without `#` and `;` to its character, by the rules of HTML5.
fn numeric(number: &str) -> String {
    let code = parse_number(number);
    match code {
        0x0d => "\r".into(),
        0x80..=0x9f => windows_1252(code as u8).into(),
        // Controls and code points that are not characters.
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ if code & 0xfffe == 0xfffe && (0x1_0000..=0x10_ffff).contains(&code) => String::new(),
        0xfffe | 0xffff => String::new(),
        _ => character(code),
    }
}

/// Parses a decimal number, or a hexadecimal number after `x`; saturates on overflow.
pub(super) fn parse_number(number: &str) -> u32 {
    let parsed = match number.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => number.parse(),
    };
    parsed.unwrap_or(u32::MAX)
}

/// Returns the character; U+FFFD for invalid code points and for the null character.
pub(super) fn character(code: u32) -> String {
    char::from_u32(code).filter(|&c| c != '\0').unwrap_or('\u{fffd}').to_string()
}

/// Decodes byte 0x80 to 0x9F in Windows-1252; undefined bytes are returned as code points.
pub(super) fn windows_1252(byte: u8) -> char {
    let page = super::mojibake_tables::CODE_PAGES
        .iter()
        .find(|page| page.name == "windows-1252")
        .expect("the table has it");
    page.upper.chars().nth(usize::from(byte) - 0x80).unwrap_or(byte.into())
}
