//! Upper limits of fields, rows and files, which bound the memory of the readers.
//!
//! Open-Sora truncates captions at 120 tokens; published captions are far below these limits.

/// Maximum length of a caption or prompt in characters.
pub const MAX_CAPTION_CHARS: usize = 10_000;

/// Maximum size of a field in bytes.
pub const MAX_FIELD_BYTES: usize = 1 << 20;

/// Maximum size of all fields of a CSV row in bytes.
pub const MAX_ROW_BYTES: usize = 8 << 20;

/// Maximum number of columns.
pub const MAX_COLUMNS: usize = 4096;

/// Maximum size of a prompt file in bytes.
pub const MAX_PROMPT_FILE_BYTES: u64 = 64 << 20;
