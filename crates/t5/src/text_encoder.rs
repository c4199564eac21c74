//! The text encoder: prompts to states and mask, by cleaning, tokenizing and encoding.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/text_encoder/t5.py`, classes `T5Embedder`
//! (`get_text_embeddings`) and `T5Encoder`.

use crate::{
    LoadError, StreamedT5Encoder, T5Config, T5Encoder, T5Model, T5Tokenizer, TokenIds,
    TokenizerError,
    caption::{is_ideograph, text_preprocessing},
};
use burn::tensor::{Device, FloatDType, Tensor};
use opensora_checkpoint::{Checkpoint, CheckpointError, ImportReport, PublishedModel};
use opensora_nn::mask::TokenMask;
use std::path::Path;

/// The tokenizer and the encoder of one published folder.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: T5Tokenizer,
    encoder: Box<dyn T5Model>,
    max_length: usize,
}

/// The encoded prompts of a batch, the condition of a denoiser.
#[derive(Debug, Clone)]
pub struct PromptStates {
    /// States `[B, L, d_model]`, including those of padded positions.
    pub states: Tensor<3>,
    /// The positions of the prompt's tokens, `[B, L]`.
    pub mask: TokenMask,
}

impl PromptStates {
    /// Returns the states and masks of the prompts in `range`.
    ///
    /// # Panics
    /// Panics if `range` is empty or beyond the batch.
    pub fn select(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            states: self.states.clone().narrow(0, range.start, range.len()),
            mask: self.mask.select(range.start, range.end),
        }
    }
}

/// Error for prompts that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextEncodeError {
    /// An empty list of prompts.
    #[error("no prompt was given")]
    NoPrompt,
    /// The error of the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A tokenizer that belongs to another model than the encoder.
    #[error(
        "the tokenizer gives id {id}, but the encoder's vocabulary has {vocab_size} rows: they do \
         not belong to one model"
    )]
    Vocabulary {
        /// The token id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// The streamed weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl TextEncoder {
    /// Loads a folder in the published layout: `config.json`, `spiece.model` (or
    /// `tokenizer.json`) and the weights. Prompts are padded and cut to `max_length` tokens.
    ///
    /// # Errors
    /// Returns an error if one of the files is missing, damaged or does not fit the others.
    pub fn load(
        folder: &Path,
        max_length: usize,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let (config, tokenizer, checkpoint) = open(folder)?;
        let (encoder, report) = T5Encoder::load(&config, &checkpoint, dtype, device)?;
        Ok((Self { tokenizer, encoder: Box::new(encoder), max_length }, report))
    }

    /// Opens a folder as [`load`](Self::load) does, but every [`encode`](Self::encode) reads the weights again,
    /// block by block. This encodes many prompts in one call with a fraction of the memory.
    ///
    /// # Errors
    /// Returns the errors of [`load`](Self::load).
    pub fn stream(
        folder: &Path,
        max_length: usize,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<(Self, ImportReport), LoadError> {
        let (config, tokenizer, checkpoint) = open(folder)?;
        let (encoder, report) = StreamedT5Encoder::open(&config, checkpoint, dtype, device)?;
        Ok((Self { tokenizer, encoder: Box::new(encoder), max_length }, report))
    }

    /// Returns the configuration of the encoder.
    pub fn config(&self) -> &T5Config {
        self.encoder.config()
    }

    /// Returns the tokens of a prompt after cleaning.
    ///
    /// # Errors
    /// Returns an error if the tokenizer fails or belongs to another model than the encoder.
    pub fn tokenize(&self, prompt: &str) -> Result<TokenIds, TextEncodeError> {
        let tokens = self.tokenizer.encode(&text_preprocessing(prompt), self.max_length)?;
        let vocab_size = self.config().vocab_size;
        match tokens.ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(TextEncodeError::Vocabulary { id, vocab_size }),
            None => Ok(tokens),
        }
    }

    /// Returns the words of a prompt that the encoder does not know, each once: words from which cleaning removes ideographs
    /// (all words if nothing of the prompt remains), then the unknown words after cleaning; see
    /// [`T5Tokenizer::unknown_words`].
    ///
    /// # Errors
    /// Returns an error if the tokenizer rejects a word.
    pub fn unknown_words(&self, prompt: &str) -> Result<Vec<String>, TextEncodeError> {
        let cleaned = text_preprocessing(prompt);
        let is_removed = |word: &&str| cleaned.is_empty() || word.contains(is_ideograph);
        let mut words: Vec<String> = Vec::new();
        for word in prompt.split_whitespace().filter(is_removed) {
            if !words.iter().any(|known| known == word) {
                words.push(word.into());
            }
        }
        words.extend(self.tokenizer.unknown_words(&cleaned)?);
        Ok(words)
    }

    /// Cleans, tokenizes and encodes `prompts`; returns states `[B, L, d_model]` and mask. An empty prompt is one
    /// end token.
    ///
    /// # Errors
    /// Returns an error if there is no prompt, a prompt cannot be tokenized, or streamed weights cannot be read.
    pub fn encode(&self, prompts: &[impl AsRef<str>]) -> Result<PromptStates, TextEncodeError> {
        let mut ids = Vec::with_capacity(prompts.len());
        let mut rows = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let tokens = self.tokenize(prompt.as_ref())?;
            ids.push(tokens.ids);
            rows.push(tokens.mask);
        }
        let mask = TokenMask::new(rows).ok_or(TextEncodeError::NoPrompt)?;
        let states = self.encoder.encode_ids(&ids, Some(&mask))?;
        Ok(PromptStates { states, mask })
    }
}

/// Opens the files of a folder, the small ones first, so that their errors are reported before time is spent on
/// the weights.
fn open(folder: &Path) -> Result<(T5Config, T5Tokenizer, Checkpoint), LoadError> {
    let config = T5Config::read(&folder.join("config.json"))?;
    let tokenizer = T5Tokenizer::from_path(folder)?;
    Ok((config, tokenizer, Checkpoint::open(folder)?))
}
