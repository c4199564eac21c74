//! The text encoder's training, as the loop sees it: captions in, masked tokens guessed.

use crate::{
    error::TrainError,
    masked_tokens::{Guessing, MaskedTokens},
    parameters::Graph,
    task::{Cost, Evaluation, Task},
};
use burn::tensor::FloatDType;
use opensora_data::{DataError, Manifest, Source};
use opensora_nn::mask::TokenMask;
use opensora_t5::{
    T5Encoder, T5Tokenizer, TokenIds, caption::text_preprocessing, tokenizer::fit::fit_tokenizer,
};
use std::path::Path;

/// The captions of a manifest as tokens.
pub struct CaptionSource {
    tokenizer: T5Tokenizer,
    tokens: Vec<TokenIds>,
}

impl CaptionSource {
    /// Tokenizes the captions with the tokenizer in `folder`. Where there is none, one of at most
    /// `vocab_size` tokens is fitted to them and saved there first.
    ///
    /// # Errors
    /// Where a tokenizer cannot be fitted or read, or gives ids beyond `vocab_size`.
    pub fn new(
        manifest: &Manifest,
        vocab_size: usize,
        max_length: usize,
        folder: &Path,
    ) -> Result<Self, TrainError> {
        let captions = || manifest.rows.iter().map(|row| row.caption.as_str());
        if !folder.join("tokenizer.json").exists() {
            fit_tokenizer(captions(), vocab_size).and_then(|fitted| fitted.save(folder))?;
        }
        let tokenizer = T5Tokenizer::from_path(folder)?;
        let tokens = captions()
            .map(|caption| tokenizer.encode(&text_preprocessing(caption), max_length))
            .collect::<Result<Vec<_>, _>>()?;
        let largest = tokens.iter().flat_map(|tokens| &tokens.ids).max();
        if let Some(id) = largest.filter(|&&id| id as usize >= vocab_size) {
            return Err(TrainError::Recipe(format!(
                "the tokenizer gives id {id}, but vocab_size is {vocab_size}"
            )));
        }
        Ok(Self { tokenizer, tokens })
    }
}

impl Source for CaptionSource {
    type Item = TokenIds;

    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn read(&self, row: usize, _epoch: u64) -> Result<TokenIds, DataError> {
        let tokens = self.tokens.get(row).cloned();
        tokens.ok_or(DataError::NoSuchRow { row, len: self.tokens.len() })
    }

    fn describe(&self, row: usize) -> String {
        format!("the caption of row {}", row + 1)
    }
}

/// The text encoder with the loss of masked tokens.
pub struct TextTask {
    guessing: Guessing,
    dtype: FloatDType,
}

impl TextTask {
    /// For captions of `source`, computing in `dtype`.
    ///
    /// # Errors
    /// Where the recipe cannot be.
    pub fn new(
        recipe: &MaskedTokens,
        source: &CaptionSource,
        seed: u64,
        dtype: FloatDType,
    ) -> Result<Self, TrainError> {
        Ok(Self { guessing: Guessing::new(recipe, &source.tokenizer, seed)?, dtype })
    }
}

impl Task for TextTask {
    type Model = T5Encoder;
    type Item = TokenIds;

    fn gradients(
        &self,
        graph: &Graph<T5Encoder>,
        items: &[TokenIds],
        indices: &[u64],
    ) -> Result<Evaluation, TrainError> {
        let mask = TokenMask::new(items.iter().map(|item| item.mask.clone()).collect())
            .ok_or_else(|| TrainError::Batch("a batch without captions".into()))?
            .trim();
        // Columns that no caption reaches are cut before any work is done on them.
        let ids: Vec<Vec<u32>> = items.iter().map(|item| item.ids[..mask.len()].to_vec()).collect();
        let guesses = self.guessing.loss(&graph.model, &ids, &mask, indices);
        let parts = vec![("accuracy", guesses.hits)];
        Ok(Evaluation { losses: guesses.losses, parts, gradients: graph.backward(guesses.loss) })
    }

    fn dtype(&self) -> FloatDType {
        self.dtype
    }

    fn cost(&self, item: &TokenIds) -> Cost {
        Cost { tokens: item.mask.iter().filter(|&&keep| keep).count() as f64, flops: 0.0 }
    }
}
