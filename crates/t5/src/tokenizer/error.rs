//! The errors of loading a tokenizer and of encoding a caption.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
};

use opensora_files::one_line;

/// An error of one of the libraries that read tokenizers.
type Cause = Box<dyn Error + Send + Sync>;

/// Error for a tokenizer that cannot be loaded, or a caption that cannot be encoded.
///
/// Every message is one line that names the file, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{path}: cannot read", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A folder without any tokenizer file.
    #[error("{path}: no tokenizer here: expected spiece.model or tokenizer.json", path = path.display())]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// A file that is larger than any published tokenizer. It is rejected before memory is allocated for
    /// it.
    #[error("{path}: {what} is {found}, expected at most {limit}", path = path.display())]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// The quantity that is too large, with its unit.
        what: &'static str,
        /// The value in the file.
        found: u64,
        /// The largest accepted value.
        limit: u64,
    },
    /// A file that is truncated, or protobuf of another kind.
    #[error("{path}: not a complete SentencePiece model: {reason}", path = path.display())]
    NotSentencePiece {
        /// Path of the file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A file that is not protobuf, or truncated.
    #[error("{path}: not a complete SentencePiece model", path = path.display())]
    Protobuf {
        /// Path of the file.
        path: PathBuf,
        /// The decoder's error.
        source: prost::DecodeError,
    },
    /// A SentencePiece model or `tokenizer.json` of another algorithm.
    #[error("{path}: the model is {found}, expected Unigram (as T5 is)", path = path.display())]
    ModelKind {
        /// Path of the file.
        path: PathBuf,
        /// The algorithm of the file.
        found: String,
    },
    /// A vocabulary without pieces.
    #[error("{path}: the vocabulary is empty, expected at least </s>, <pad> and <unk>", path = path.display())]
    EmptyVocabulary {
        /// Path of the file.
        path: PathBuf,
    },
    /// An invalid vocabulary entry.
    #[error("{path}: piece {index}: {reason}", path = path.display())]
    Piece {
        /// Path of the file.
        path: PathBuf,
        /// Index in the vocabulary, which is the token id.
        index: usize,
        /// What was found and expected.
        reason: String,
    },
    /// A missing or contradictory unknown, padding or end token, or an invalid added token.
    #[error("{path}: {token}: {reason}", path = path.display())]
    SpecialToken {
        /// Path of the file.
        path: PathBuf,
        /// The token.
        token: String,
        /// What was found and expected.
        reason: String,
    },
    /// A corrupt precompiled normalisation table.
    #[error("{path}: precompiled_charsmap is corrupt: {reason}", path = path.display())]
    CharsMap {
        /// Path of the file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A JSON file with a setting that T5 does not have.
    #[error("{path}: {reason}", path = path.display())]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// The file is not valid JSON.
    #[error("{path}: {problem}", path = path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// What cannot be parsed.
        problem: &'static str,
        /// The parser's error.
        source: JsonError,
    },
    /// A part of a tokenizer that the tokenizer library rejects.
    #[error("{path}: {part}", path = path.display())]
    Library {
        /// Path of the file.
        path: PathBuf,
        /// The part.
        part: String,
        /// The library's error.
        source: Cause,
    },
    /// A `max_length` that is too small for the end token.
    #[error("max_length is {found}, expected at least 1 (the end token)")]
    MaxLength {
        /// The given length.
        found: usize,
    },
    /// The tokenizer library cannot encode a caption.
    #[error("cannot encode the caption")]
    Encode {
        /// The library's error.
        source: Cause,
    },
}

impl TokenizerError {
    /// Returns an error if `found` is larger than `limit`; `what` names the quantity with its unit.
    pub(super) fn check_size(
        path: &Path,
        what: &'static str,
        found: usize,
        limit: usize,
    ) -> Result<(), Self> {
        if found <= limit {
            return Ok(());
        }
        let (found, limit) = (found as u64, limit as u64);
        Err(Self::TooLarge { path: path.to_owned(), what, found, limit })
    }
}

/// An error of the JSON parser, displayed on one line of limited length whatever the file contains.
#[derive(Debug)]
pub struct JsonError(pub serde_json::Error);

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.0))
    }
}

impl Error for JsonError {}
