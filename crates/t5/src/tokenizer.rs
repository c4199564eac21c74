//! The T5 tokenizer: captions to padded token ids, from the published `spiece.model` or a `tokenizer.json`.
//!
//! Source: huggingface/transformers v4.38.2, `convert_slow_tokenizer.py` (`SpmConverter`,
//! `T5Converter`) and `models/t5/tokenization_t5_fast.py` (`T5TokenizerFast`), which the reference
//! gets from `AutoTokenizer`; called as hpcaitech/Open-Sora v1.0.0 does in
//! `opensora/models/text_encoder/t5.py` (`T5Embedder.get_text_embeddings`): `max_length`, padding
//! and truncation to it, special tokens added.
//!
//! The stages: special tokens in the caption are split off; the rest is normalised by the model's precompiled
//! table, stripped on the right, runs of spaces are collapsed, and the text is split into words at U+2581; each
//! word becomes the best-scoring pieces of the Unigram model; `</s>` is appended.
//!
//! Quirks of the published tokenizer, kept:
//! - `</s>` is appended even if a caption ends with a literal `</s>`;
//! - the precompiled table is applied per grapheme, so stacked combining marks can give other pieces than with
//!   SentencePiece;
//! - a run of unknown characters is one unknown token.
//!
//! Deviations: the end token is appended and the length limited here instead of by the library's post-processor
//! (same ids); in a folder with both files, `spiece.model` is read, the file that is published for T5 v1.1.

mod charsmap;
mod config;
mod error;
mod files;
pub mod fit;
mod json;
mod pipeline;
mod spiece;
#[cfg(test)]
mod tests;

use std::{fmt, path::Path};

pub use error::{JsonError, TokenizerError};

use config::Config;
use pipeline::{Assembled, Library, Pipeline};

/// Largest accepted `spiece.model` in bytes (T5: 0.8 MB, mT5: 4.3 MB).
const MAX_SPIECE_BYTES: u64 = 16 << 20;
/// Largest accepted `tokenizer.json` in bytes (T5: 2.4 MB, mT5: 16 MB).
const MAX_JSON_BYTES: u64 = 32 << 20;

/// Largest vocabulary in which single letters mean that a word is unknown. Fitted vocabularies have hundreds of
/// tokens; published ones have 32 000, from which every word can be composed.
const MOST_WHOLE_WORDS: usize = 4096;

/// The token ids of one caption, and a mask of those that are not padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// `max_length` ids: the pieces, the end token, padding.
    pub ids: Vec<u32>,
    /// `max_length` flags: true for pieces and the end token, false for padding.
    pub mask: Vec<bool>,
}

/// A T5 tokenizer, which maps captions to token ids.
pub struct T5Tokenizer {
    library: Library,
    vocab_size: usize,
    pad_id: u32,
    eos_id: u32,
    unk_id: u32,
}

impl fmt::Debug for T5Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("T5Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("pad_id", &self.pad_id)
            .field("eos_id", &self.eos_id)
            .field("unk_id", &self.unk_id)
            .finish_non_exhaustive()
    }
}

impl T5Tokenizer {
    /// Loads a folder in the published layout (`spiece.model`, or `tokenizer.json` if there is none), or one of
    /// the two files. A file that does not end in `.json` is read as a SentencePiece model.
    ///
    /// # Errors
    /// Returns [`TokenizerError::NoTokenizer`] for a folder without either file, and the errors of
    /// [`from_spiece`](Self::from_spiece) and [`from_tokenizer_json`](Self::from_tokenizer_json).
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        if path.is_dir() {
            let (spiece, json) = (path.join("spiece.model"), path.join("tokenizer.json"));
            return if spiece.exists() {
                Self::from_spiece(&spiece)
            } else if json.exists() {
                Self::from_tokenizer_json(&json)
            } else {
                Err(TokenizerError::NoTokenizer { path: path.to_owned() })
            };
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            Self::from_tokenizer_json(path)
        } else {
            Self::from_spiece(path)
        }
    }

    /// Loads a SentencePiece Unigram model. `tokenizer_config.json` and `special_tokens_map.json`
    /// beside it set the number of extra ids and the special tokens; without them there are 100
    /// extra ids.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a complete SentencePiece Unigram model, its vocabulary
    /// or normalisation table is corrupt, a special token is missing, or a configuration file is invalid.
    pub fn from_spiece(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes = files::read(path, MAX_SPIECE_BYTES)?;
        let spiece = spiece::parse(path, &bytes)?;
        let config = Config::read(folder(path))?;
        Pipeline::from_spiece(path, spiece, config).map(Self::from)
    }

    /// Loads a `tokenizer.json` as transformers exports it for T5. The text of the padding token is read from the
    /// configuration files beside it (default `<pad>`); everything else is in the file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not JSON, describes another pipeline than T5's, or has
    /// corrupt parts.
    pub fn from_tokenizer_json(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes = files::read(path, MAX_JSON_BYTES)?;
        let config = Config::read(folder(path))?;
        json::parse(path, &bytes, &config.pad_token).map(Self::from)
    }

    /// Returns the number of tokens, extra ids included (32 100 for the published T5, whose embedding table is
    /// larger). Every id is smaller.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the id of padding (published: 0).
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Returns the id of the end token (published: 1).
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// Returns the id of unknown text (published: 2).
    pub fn unk_id(&self) -> u32 {
        self.unk_id
    }

    /// Returns the id of a piece or added token, such as `<extra_id_0>`; `None` if there is none.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// Tokenizes one caption to exactly `max_length` ids: at most `max_length - 1` pieces, the end
    /// token, padding on the right.
    ///
    /// # Errors
    /// Returns [`TokenizerError::MaxLength`] for a `max_length` of 0.
    pub fn encode(&self, caption: &str, max_length: usize) -> Result<TokenIds, TokenizerError> {
        let room =
            max_length.checked_sub(1).ok_or(TokenizerError::MaxLength { found: max_length })?;
        let encoding = self
            .library
            .encode_fast(caption, false)
            .map_err(|source| TokenizerError::Encode { source })?;
        let mut ids: Vec<u32> = encoding.get_ids().iter().take(room).copied().collect();
        ids.push(self.eos_id);
        let mut mask = vec![true; ids.len()];
        ids.resize(max_length, self.pad_id);
        mask.resize(max_length, false);
        Ok(TokenIds { ids, mask })
    }

    /// Returns the unknown words of a caption, each once, in order: words with a piece that is the unknown token,
    /// and for a vocabulary of whole words (see [`fit`]) words that are split into letters.
    ///
    /// # Errors
    /// Returns an error if the tokenizer rejects a word.
    pub fn unknown_words(&self, caption: &str) -> Result<Vec<String>, TokenizerError> {
        let fail = |source: tokenizers::Error| TokenizerError::Encode { source };
        let spells = self.vocab_size <= MOST_WHOLE_WORDS;
        let mut unknown: Vec<String> = Vec::new();
        // Pieces never cross a space, so a single word has the same pieces as in its caption.
        for word in caption.split_whitespace() {
            let name = word.trim_matches(|c: char| !c.is_alphanumeric());
            if name.is_empty() || unknown.iter().any(|known| known == name) {
                continue;
            }
            let encoding = self.library.encode_fast(word, false).map_err(fail)?;
            let is_unknown = encoding.get_ids().iter().any(|&id| {
                id == self.unk_id || spells && self.library.id_to_token(id).is_some_and(is_letter)
            });
            if is_unknown {
                unknown.push(name.to_string());
            }
        }
        Ok(unknown)
    }

    /// Tokenizes captions one by one; the result has one entry for each.
    ///
    /// # Errors
    /// Returns the errors of [`encode`](Self::encode).
    pub fn encode_batch(
        &self,
        captions: &[impl AsRef<str>],
        max_length: usize,
    ) -> Result<Vec<TokenIds>, TokenizerError> {
        captions.iter().map(|caption| self.encode(caption.as_ref(), max_length)).collect()
    }
}

/// Returns true for a piece of one letter or digit that does not start a word.
fn is_letter(piece: String) -> bool {
    let mut chars = piece.chars();
    matches!((chars.next(), chars.next()), (Some(c), None) if c.is_alphanumeric())
}

impl From<Assembled> for T5Tokenizer {
    fn from(Assembled { library, pad_id, eos_id, unk_id }: Assembled) -> Self {
        let vocab_size = library.get_vocab_size(true);
        Self { library, vocab_size, pad_id, eos_id, unk_id }
    }
}

/// Returns the folder of a file.
fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
