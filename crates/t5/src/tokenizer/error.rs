//! What can go wrong between a tokenizer file and token ids.

use std::path::PathBuf;

/// Why a tokenizer could not be loaded, or a caption not encoded.
///
/// Every message is one line that names the file, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file system refused.
    #[error("{path}: cannot read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A folder without any tokenizer file.
    #[error("{path}: no tokenizer here: expected spiece.model or tokenizer.json", path = path.display())]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// Larger than any published tokenizer; refused before memory is spent on it.
    #[error("{path}: {what} is {found}, expected at most {limit}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large, with its unit.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// Not protobuf, cut short, or protobuf of another kind.
    #[error("{path}: not a complete SentencePiece model: {reason}", path = path.display())]
    NotSentencePiece {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A SentencePiece model or `tokenizer.json` of another algorithm.
    #[error("{path}: the model is {found}, expected Unigram (as T5 is)", path = path.display())]
    ModelKind {
        /// The file.
        path: PathBuf,
        /// The algorithm found.
        found: String,
    },
    /// No pieces at all.
    #[error("{path}: the vocabulary is empty, expected at least </s>, <pad> and <unk>", path = path.display())]
    EmptyVocabulary {
        /// The file.
        path: PathBuf,
    },
    /// One vocabulary entry is unusable.
    #[error("{path}: piece {index}: {reason}", path = path.display())]
    Piece {
        /// The file.
        path: PathBuf,
        /// Place in the vocabulary, which is the token id.
        index: usize,
        /// What was found and expected.
        reason: String,
    },
    /// The unknown, padding or end token is missing or contradictory, or an added token is
    /// unusable.
    #[error("{path}: {token}: {reason}", path = path.display())]
    SpecialToken {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// What was found and expected.
        reason: String,
    },
    /// The precompiled normalisation table is corrupt.
    #[error("{path}: precompiled_charsmap is corrupt: {reason}", path = path.display())]
    CharsMap {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A JSON file that cannot be parsed or that asks for something T5 does not have.
    #[error("{path}: {reason}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// `max_length` leaves no room for the end token.
    #[error("max_length is {found}, expected at least 1 (the end token)")]
    MaxLength {
        /// What was asked for.
        found: usize,
    },
    /// The tokenizer library refused a caption.
    #[error("cannot encode the caption: {reason}")]
    Encode {
        /// The library's answer.
        reason: String,
    },
}
