//! Checks the precompiled normalisation table of SentencePiece before the library uses it.
//!
//! Layout (google/sentencepiece v0.2.0, `src/normalizer.cc`, `DecodePrecompiledCharsMap`): the byte
//! length of a double-array trie as little-endian `u32`, the trie's `u32` units, then
//! NUL-terminated UTF-8 replacements; a trie value is the byte offset of a replacement.
//!
//! The reader of the `spm_precompiled` crate, which `tokenizers` uses, allocates the declared length and indexes
//! without checks: with a corrupt table it would panic in the middle of a caption. Here every state that a text can
//! reach is visited once, so that the library does not panic on an accepted table.

use std::collections::VecDeque;

/// Largest accepted table (the published ones are below 300 kB).
const MAX_BYTES: usize = 4 << 20;
/// Longest accepted replacement in bytes. NFKC's longest (U+FDFA) has 33. Without a limit, a corrupt table could
/// replace every character of a caption by megabytes.
const MAX_REPLACEMENT_BYTES: usize = 256;

/// Checks a table and returns its growth: the most bytes that it makes of one byte of text, at least 1 (the published
/// table: 11, of U+FDFA). The error is a description of the problem.
pub(super) fn check(charsmap: &[u8]) -> Result<usize, String> {
    if charsmap.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, expected at most {MAX_BYTES}", charsmap.len()));
    }
    let (declared, rest) = charsmap
        .split_first_chunk::<4>()
        .ok_or_else(|| format!("it has {} bytes, expected at least 4", charsmap.len()))?;
    let trie_bytes = u32::from_le_bytes(*declared) as usize;
    if trie_bytes == 0 || !trie_bytes.is_multiple_of(4) {
        return Err(format!("its trie has {trie_bytes} bytes, expected a positive multiple of 4"));
    }
    let (trie, replacements) = rest
        .split_at_checked(trie_bytes)
        .ok_or_else(|| format!("its trie should have {trie_bytes} bytes, found {}", rest.len()))?;
    let replacements = std::str::from_utf8(replacements)
        .map_err(|e| format!("its replacements are not UTF-8: {e}"))?;
    let units: Vec<Unit> =
        trie.chunks_exact(4).map(|b| Unit(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
    walk(&units, replacements)
}

/// One unit of a darts-clone double array.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        (self.0 >> 8) & 1 == 1
    }
    fn value(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }
    fn label(self) -> u32 {
        self.0 & 0x8000_00ff
    }
    fn offset(self) -> usize {
        ((self.0 >> 10) as usize) << ((self.0 & (1 << 9)) >> 6)
    }
}

/// Visits every state that is reachable from the root by any bytes, and returns the table's growth. Returns an error if
/// a state is outside the table or its replacement is invalid.
fn walk(units: &[Unit], replacements: &str) -> Result<usize, String> {
    // From a state the reader indexes `state ^ byte` for any byte, so all these units must exist.
    let in_bounds = |state: usize| {
        if state | 0xff < units.len() {
            return Ok(state);
        }
        Err(format!("its trie leads to unit {}, expected below {}", state | 0xff, units.len()))
    };
    let root = in_bounds(units.first().map_or(0, |unit| unit.offset()))?;
    let mut seen = vec![false; units.len()];
    seen[root] = true;
    let mut growth = 1usize;
    // Breadth first: several texts can lead to a state of a corrupt table, and the shortest one grows most. The reader
    // never replaces a shorter text than the one that leads to the replacement.
    let mut open = VecDeque::from([(root, 0usize)]);
    while let Some((state, depth)) = open.pop_front() {
        let length = depth + 1;
        for byte in 1..=0xff_u32 {
            let at = state ^ byte as usize;
            let unit = units[at];
            if unit.label() != byte {
                continue;
            }
            let next = in_bounds(at ^ unit.offset())?;
            if unit.has_leaf() {
                let bytes = replacement_bytes(replacements, units[next].value())?;
                growth = growth.max(bytes.div_ceil(length));
            }
            if !std::mem::replace(&mut seen[next], true) {
                open.push_back((next, length));
            }
        }
    }
    Ok(growth)
}

/// Returns the length of the replacement that starts at byte `at`.
fn replacement_bytes(replacements: &str, at: usize) -> Result<usize, String> {
    let text = replacements.get(at..).ok_or_else(|| {
        format!("a replacement starts at byte {at}, which is not the start of a character")
    })?;
    let bytes = text.bytes().take(MAX_REPLACEMENT_BYTES + 1).take_while(|&b| b != 0).count();
    if bytes > MAX_REPLACEMENT_BYTES {
        return Err(format!(
            "the replacement at byte {at} is longer than {MAX_REPLACEMENT_BYTES} bytes"
        ));
    }
    Ok(bytes)
}
