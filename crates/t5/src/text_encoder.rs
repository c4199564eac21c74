//! Prompts to states and mask: cleaning, tokens, encoder.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/text_encoder/t5.py`, classes `T5Embedder`
//! (`get_text_embeddings`) and `T5Encoder`.

use crate::{
    LoadError, StreamedT5Encoder, T5Config, T5Encoder, T5Model, T5Tokenizer, TokenIds,
    TokenizerError, caption::text_preprocessing,
};
use burn::tensor::{Device, FloatDType, Tensor};
use opensora_checkpoint::{Checkpoint, CheckpointError, ImportReport, PublishedModel};
use opensora_nn::mask::TokenMask;
use std::path::Path;

/// Tokenizer and encoder of one published folder.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: T5Tokenizer,
    encoder: Box<dyn T5Model>,
    max_length: usize,
}

/// What a denoiser is told of a batch of prompts.
#[derive(Debug, Clone)]
pub struct PromptStates {
    /// States `[B, L, d_model]`, of the padded positions too.
    pub states: Tensor<3>,
    /// The positions that hold the prompt, `[B, L]`.
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

/// Why prompts could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextEncodeError {
    /// There is nothing to encode.
    #[error("no prompt was given")]
    NoPrompt,
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer is of another model than the encoder.
    #[error(
        "the tokenizer gives id {id}, but the encoder's vocabulary has {vocab_size} rows: they are \
         not of one model"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// The weights cannot be read any more.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl TextEncoder {
    /// Loads a folder in the published layout: `config.json`, `spiece.model` (or
    /// `tokenizer.json`) and the weights. Prompts are padded and cut to `max_length` tokens.
    ///
    /// # Errors
    /// Where one of the files is missing, damaged or does not fit the others.
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

    /// As [`load`](Self::load), but every [`encode`](Self::encode) reads the weights anew, block by
    /// block: the way to encode all prompts at once with a fraction of the memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
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

    /// Sizes of the encoder.
    pub fn config(&self) -> &T5Config {
        self.encoder.config()
    }

    /// The tokens of a prompt after cleaning.
    ///
    /// # Errors
    /// Where the tokenizer refuses or is not of this encoder's model.
    pub fn tokenize(&self, prompt: &str) -> Result<TokenIds, TextEncodeError> {
        let tokens = self.tokenizer.encode(&text_preprocessing(prompt), self.max_length)?;
        let vocab_size = self.config().vocab_size;
        match tokens.ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(TextEncodeError::Vocabulary { id, vocab_size }),
            None => Ok(tokens),
        }
    }

    /// Returns the words of a prompt that the tokenizer does not know, after cleaning; see
    /// [`T5Tokenizer::unknown_words`].
    ///
    /// # Errors
    /// Returns an error if the tokenizer rejects a word.
    pub fn unknown_words(&self, prompt: &str) -> Result<Vec<String>, TextEncodeError> {
        Ok(self.tokenizer.unknown_words(&text_preprocessing(prompt))?)
    }

    /// Cleans, tokenizes and encodes `prompts`: `[B, L, d_model]` and mask. An empty prompt is one
    /// end token.
    ///
    /// # Errors
    /// Where there is no prompt, one cannot be tokenized, or streamed weights cannot be read.
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

/// What a folder holds. The small files first: what is wrong with them should not cost the large
/// one's time.
fn open(folder: &Path) -> Result<(T5Config, T5Tokenizer, Checkpoint), LoadError> {
    let config = T5Config::read(&folder.join("config.json"))?;
    let tokenizer = T5Tokenizer::from_path(folder)?;
    Ok((config, tokenizer, Checkpoint::open(folder)?))
}
