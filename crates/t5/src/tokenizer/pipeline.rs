//! Assembles the stages between a caption and token ids from checked parts.
//!
//! Source of the stages: huggingface/transformers v4.38.2, `convert_slow_tokenizer.py`
//! (`SpmConverter`, `T5Converter`). The stages are those of the `tokenizers` library.

use std::path::Path;

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper,
    PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
    models::unigram::Unigram,
    normalizers::{Precompiled, Replace, Sequence, Strip, replace::ReplacePattern},
    pre_tokenizers::{metaspace::Metaspace, sequence::Sequence as PreTokenizers},
};

use super::{
    charsmap,
    config::Config,
    error::TokenizerError,
    spiece::{MAX_VOCABULARY_BYTES, Spiece},
};

/// Text and score of a vocabulary entry.
pub(super) type Piece = (String, f64);

/// The library's tokenizer with exactly T5's stages.
pub(super) type Library =
    TokenizerImpl<Unigram, Sequence, PreTokenizers, PostProcessorWrapper, DecoderWrapper>;

/// The character of a word boundary in pieces.
pub(super) const WORD_BOUNDARY: char = '\u{2581}';
/// Runs of spaces become one word boundary.
pub(super) const SPACES: &str = " {2,}";
/// Longest accepted added token in bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// The parts of a tokenizer.
pub(super) struct Pipeline {
    pub(super) pieces: Vec<Piece>,
    pub(super) unk_id: usize,
    pub(super) byte_fallback: bool,
    pub(super) normalizers: Vec<NormalizerWrapper>,
    pub(super) pre_tokenizers: Vec<PreTokenizerWrapper>,
    pub(super) added: Vec<AddedToken>,
}

/// A tokenizer with the ids of its special tokens.
pub(super) struct Assembled {
    pub(super) library: Library,
    pub(super) pad_id: u32,
    pub(super) eos_id: u32,
    pub(super) unk_id: u32,
}

impl Pipeline {
    /// Converts a SentencePiece model.
    ///
    /// The model's `add_dummy_prefix`, `remove_extra_whitespaces` and piece types are ignored, as in the reference:
    /// words are always prefixed, runs of spaces are always collapsed, and control pieces can match text.
    pub(super) fn from_spiece(
        path: &Path,
        spiece: Spiece,
        config: Config,
    ) -> Result<Assembled, TokenizerError> {
        let Spiece { mut pieces, unk_id, eos_id, pad_id, charsmap } = spiece;
        let sentence_pieces = pieces.len();
        // `<extra_id_0>` is the last id.
        pieces.extend((0..config.extra_ids).rev().map(|i| (format!("<extra_id_{i}>"), 0.0)));

        let mut normalizers = Vec::with_capacity(3);
        if !charsmap.is_empty() {
            normalizers.push(precompiled(path, &charsmap)?.0);
        }
        normalizers.push(Strip::new(false, true).into());
        let spaces = Replace::new(ReplacePattern::Regex(SPACES.into()), WORD_BOUNDARY)
            .map_err(|source| library_error(path, "the rule for runs of spaces", source))?;
        normalizers.push(spaces.into());

        // The piece with the token's text, as in the reference; if there is none, the id that the model declares.
        let find = |text: &str, declared: Option<usize>| {
            let by_text = pieces.iter().position(|(piece, _)| piece == text);
            by_text.or(declared).ok_or_else(|| TokenizerError::SpecialToken {
                path: path.to_owned(),
                token: text.to_owned(),
                reason: format!("found neither among {sentence_pieces} pieces nor in trainer_spec"),
            })
        };
        let eos_id = find("</s>", eos_id)?;
        let pad_id = find(&config.pad_token, pad_id)?;

        // A named token that the model lacks gets no new id (in the reference it gets one that no T5 has an
        // embedding for); an additional token does.
        let known: std::collections::HashSet<&str> =
            pieces.iter().map(|(text, _)| text.as_str()).collect();
        let added = config
            .added
            .into_iter()
            .filter(|token| {
                let framing =
                    ["</s>", "<unk>", config.pad_token.as_str()].contains(&token.content.as_str());
                !framing || known.contains(token.content.as_str())
            })
            .collect();
        let metaspace = Metaspace::new(WORD_BOUNDARY, config.prepend, true);
        let pre_tokenizers = vec![metaspace.into()];
        let pipeline =
            Self { pieces, unk_id, byte_fallback: false, normalizers, pre_tokenizers, added };
        let library = pipeline.build(path)?;
        Ok(Assembled { library, pad_id: id(pad_id), eos_id: id(eos_id), unk_id: id(unk_id) })
    }

    /// Builds the library's tokenizer from checked parts.
    pub(super) fn build(self, path: &Path) -> Result<Library, TokenizerError> {
        let normalizer = Sequence::new(self.normalizers);
        let mut bytes = 0;
        for token in &self.added {
            bytes += check_added(path, token, &normalizer)?;
            // The library builds a search automaton of all added tokens, which takes many times their bytes.
            let what = "the size of the normalised added tokens in bytes";
            TokenizerError::check_size(path, what, bytes, MAX_VOCABULARY_BYTES)?;
        }
        let model = Unigram::from(self.pieces, Some(self.unk_id), self.byte_fallback)
            .map_err(|error| library_error(path, "unknown token", error))?;
        let mut library = Library::new(model);
        library
            .with_normalizer(Some(normalizer))
            .with_pre_tokenizer(Some(PreTokenizers::new(self.pre_tokenizers)));
        library.add_tokens(&self.added);
        Ok(library)
    }
}

/// Converts a vocabulary index to a token id; the number of pieces is limited to far less than `u32::MAX`.
pub(super) fn id(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Checks the normalisation table of a SentencePiece model and returns it as a stage, with the most bytes that it makes
/// of one byte of text.
pub(super) fn precompiled(
    path: &Path,
    table: &[u8],
) -> Result<(NormalizerWrapper, usize), TokenizerError> {
    let corrupt = |reason| TokenizerError::CharsMap { path: path.to_owned(), reason };
    let growth = charsmap::check(table).map_err(corrupt)?;
    let normalizer = Precompiled::from(table)
        .map_err(|error| library_error(path, "precompiled_charsmap is corrupt", error))?;
    Ok((normalizer.into(), growth))
}

/// Returns the error of a part of the tokenizer that the library rejects.
pub(super) fn library_error(
    path: &Path,
    part: impl Into<String>,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> TokenizerError {
    TokenizerError::Library { path: path.to_owned(), part: part.into(), source: error.into() }
}

/// Checks an added token and returns the length of its normalised text in bytes. The library searches for added tokens as
/// byte patterns; an empty pattern would match inside characters.
fn check_added(
    path: &Path,
    token: &AddedToken,
    normalizer: &Sequence,
) -> Result<usize, TokenizerError> {
    let name = || format!("added token {:?}", token.content.chars().take(40).collect::<String>());
    let bad =
        |reason| TokenizerError::SpecialToken { path: path.to_owned(), token: name(), reason };
    if token.content.is_empty() {
        return Err(bad("found an empty text".into()));
    }
    if token.content.len() > MAX_TOKEN_BYTES {
        let found = token.content.len();
        return Err(bad(format!("found {found} bytes, expected at most {MAX_TOKEN_BYTES}")));
    }
    if !token.normalized {
        return Ok(token.content.len());
    }
    let mut content = NormalizedString::from(token.content.as_str());
    normalizer.normalize(&mut content).map_err(|error| library_error(path, name(), error))?;
    if content.is_empty() {
        return Err(bad("it is empty after normalisation".into()));
    }
    Ok(content.len())
}
