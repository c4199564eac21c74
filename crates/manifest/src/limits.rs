//! Upper limits of what the readers accept, so that no file can fill the memory by one line.
//!
//! A caption of Open-Sora is cut at 120 tokens; no published set of captions comes near these limits.

/// Longest caption or prompt, in characters.
pub const MAX_CAPTION_CHARS: usize = 10_000;

/// Longest field of a table, in bytes.
pub const MAX_FIELD_BYTES: usize = 1 << 20;

/// Longest row of a CSV table, in bytes of its fields.
pub const MAX_ROW_BYTES: usize = 8 << 20;

/// Most columns of a table.
pub const MAX_COLUMNS: usize = 4096;

/// Largest prompt file, in bytes.
pub const MAX_PROMPT_FILE_BYTES: u64 = 64 << 20;
