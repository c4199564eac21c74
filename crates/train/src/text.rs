//! The training task of the text encoder: captions with masked tokens.

use crate::{
    error::TrainError,
    masked_tokens::{MaskedTokenLoss, MaskedTokens},
    parameters::Graph,
    recipe::T5Part,
    task::{Cost, Evaluation, Task},
};
use burn::tensor::FloatDType;
use opensora_data::{DataError, Manifest, Source, dataset::fingerprint_of};
use opensora_nn::mask::TokenMask;
use opensora_t5::{
    T5Encoder, T5Tokenizer, TokenIds, caption::text_preprocessing, tokenizer::fit::fit_tokenizer,
};
use std::path::Path;

/// Tokenized captions of a manifest, with their tokenizer.
pub struct CaptionSource {
    tokenizer: T5Tokenizer,
    tokens: Vec<TokenIds>,
}

impl CaptionSource {
    /// Tokenizes the captions of `manifest` with the tokenizer in `folder`. With `fit`, first fits a tokenizer of at
    /// most `part.config.vocab_size` tokens to the captions and saves it in `folder`.
    ///
    /// # Errors
    /// Returns an error if a tokenizer cannot be fitted or read, or gives ids beyond `vocab_size`.
    pub fn new(
        manifest: &Manifest,
        part: &T5Part,
        folder: &Path,
        fit: bool,
    ) -> Result<Self, TrainError> {
        let (vocab_size, max_length) = (part.config.vocab_size, part.max_length);
        let captions = || manifest.rows.iter().map(|row| row.caption.as_str());
        if fit {
            fit_tokenizer(captions(), vocab_size).and_then(|fitted| fitted.save(folder))?;
        }
        let tokenizer = T5Tokenizer::from_path(folder)?;
        let tokens = captions()
            .map(|caption| tokenizer.encode(&text_preprocessing(caption), max_length))
            .collect::<Result<Vec<_>, _>>()?;
        let largest = tokens.iter().flat_map(|tokens| &tokens.ids).max();
        if let Some(id) = largest.filter(|&&id| id as usize >= vocab_size) {
            return Err(TrainError::Vocabulary(format!(
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

    fn fingerprint(&self) -> Result<String, DataError> {
        Ok(fingerprint_of(self.tokens.iter().map(|tokens| format!("{:?}", tokens.ids))))
    }
}

/// The training task of a text encoder.
pub struct TextTask {
    objective: MaskedTokenLoss,
    dtype: FloatDType,
}

impl TextTask {
    /// Creates a task for captions of `source`, which computes in `dtype`.
    ///
    /// # Errors
    /// Returns an error if a value of the recipe is out of range.
    pub fn new(
        recipe: &MaskedTokens,
        source: &CaptionSource,
        seed: u64,
        dtype: FloatDType,
    ) -> Result<Self, TrainError> {
        Ok(Self { objective: MaskedTokenLoss::new(recipe, &source.tokenizer, seed)?, dtype })
    }
}

impl Task for TextTask {
    type Model = T5Encoder;
    type Item = TokenIds;
    type Error = TrainError;

    fn gradients(
        &self,
        graph: &Graph<T5Encoder>,
        items: &[TokenIds],
        indices: &[u64],
    ) -> Result<Evaluation, TrainError> {
        let mask = TokenMask::new(items.iter().map(|item| item.mask.clone()).collect())
            .ok_or_else(|| TrainError::Batch("a batch without captions".into()))?
            .trim();
        // Columns with only padding are removed before any work on them.
        let ids: Vec<Vec<u32>> = items.iter().map(|item| item.ids[..mask.len()].to_vec()).collect();
        let output = self.objective.loss(&graph.model, &ids, &mask, indices);
        let parts = vec![("accuracy", output.hits)];
        Ok(Evaluation { losses: output.losses, parts, gradients: graph.backward(output.loss) })
    }

    fn dtype(&self) -> FloatDType {
        self.dtype
    }

    fn cost(&self, item: &TokenIds) -> Cost {
        Cost { tokens: item.mask.iter().filter(|&&keep| keep).count() as f64, flops: 0.0 }
    }
}
