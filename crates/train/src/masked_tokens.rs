//! Training objective of the text encoder: prediction of masked tokens.
//!
//! It is for small text encoders, which are trained before a denoiser is trained on their states.
//! Some tokens of each caption are chosen; most of them are replaced by a sentinel and the rest are
//! unchanged. The encoder's states at the chosen tokens are scored against the vocabulary.
//!
//! Sources: Devlin et al. 2018 (arXiv 1810.04805), section 3.1, for the choice of tokens;
//! transformers, `models/t5/modeling_t5.py`, `T5ForConditionalGeneration.forward`, for the head of
//! T5 v1.0: states times `d_model^-0.5` against the embedding table. The embedding table has a
//! standard deviation of 1, and so have the states after the final norm. Without the factor,
//! initial scores would have a standard deviation of `d_model^0.5`, and the first losses would be
//! far above `ln(vocab)`. The head of v1.1 is a separate matrix, which files of encoders do not
//! have.
//!
//! Deviations: T5 masks spans and predicts them by its decoder, which is not available here. A
//! fifth of the chosen tokens are unchanged instead of a tenth, and none is replaced by a random
//! token: the denoiser reads states of whole captions, so states must identify unchanged tokens.
//! The loss is the mean over a caption's chosen tokens and then over captions, so that it does not
//! depend on how a batch is divided.

use crate::error::{RecipeError, TrainError};
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, activation::log_softmax};
use opensora_nn::{
    mask::TokenMask,
    random::{HostRng, Purpose},
};
use opensora_t5::{T5Encoder, T5Tokenizer, tokenizer::fit::MASK_TOKEN};
use serde::{Deserialize, Serialize};

/// Probabilities with which tokens are masked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskedTokens {
    /// Probability that a token is chosen. At least one token of each caption is.
    pub mask_probability: f64,
    /// Probability that a chosen token is not replaced.
    pub keep_probability: f64,
}

impl Default for MaskedTokens {
    fn default() -> Self {
        Self { mask_probability: 0.25, keep_probability: 0.2 }
    }
}

impl MaskedTokens {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a probability is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let Self { mask_probability, keep_probability } = *self;
        if !(mask_probability > 0.0 && mask_probability <= 1.0) {
            return Err(RecipeError::value("mask_probability", mask_probability, "above 0 to 1"));
        }
        if !(0.0..1.0).contains(&keep_probability) {
            return Err(RecipeError::value("keep_probability", keep_probability, "0 to below 1"));
        }
        Ok(())
    }
}

/// The objective for captions of one tokenizer.
#[derive(Debug, Clone)]
pub struct MaskedTokenLoss {
    recipe: MaskedTokens,
    seed: u64,
    mask_id: u32,
    eos_id: u32,
}

/// Captions with masked tokens, and the tokens to predict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedIds {
    /// Input of the encoder, `[B][L]`.
    pub ids: Vec<Vec<u32>>,
    /// The tokens to predict.
    pub chosen: Vec<Chosen>,
}

/// A token to predict: its position and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Row of the caption in the batch.
    pub row: usize,
    /// Position in the caption.
    pub position: usize,
    /// Id of the token.
    pub id: u32,
}

/// Losses and accuracy of a batch of captions.
#[derive(Debug)]
pub struct MaskedTokenLosses {
    /// The mean of `losses`, `[1]`, on the encoder's graph.
    pub loss: Tensor<1>,
    /// The loss of each caption in nats, `[B]`, without autodiff; 0 for a caption without a token.
    pub losses: Tensor<1>,
    /// 1 for each masked token that was predicted correctly and 0 for each other one, `[H]`, without
    /// autodiff: their mean is the accuracy. Empty if no token was masked.
    pub hits: Tensor<1>,
}

impl MaskedTokenLoss {
    /// Creates the objective for captions of `tokenizer`.
    ///
    /// # Errors
    /// Returns an error if a probability is out of range, or the tokenizer has no [`MASK_TOKEN`].
    pub fn new(
        recipe: &MaskedTokens,
        tokenizer: &T5Tokenizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        recipe.validate()?;
        let Some(mask_id) = tokenizer.token_to_id(MASK_TOKEN) else {
            let text = format!(
                "the tokenizer has no token {MASK_TOKEN}, which masked tokens are replaced by"
            );
            return Err(TrainError::Vocabulary(text));
        };
        Ok(Self { recipe: recipe.clone(), seed, mask_id, eos_id: tokenizer.eos_id() })
    }

    /// Chooses and masks tokens of `ids` `[B][L]`, except padding and the end token. Random draws
    /// are keyed by `indices`, one for each caption, so they do not depend on the batch.
    ///
    /// # Panics
    /// Panics if `ids`, `mask` and `indices` differ in size.
    pub fn draw(&self, ids: &[Vec<u32>], mask: &TokenMask, indices: &[u64]) -> MaskedIds {
        assert_eq!(ids.len(), mask.batch(), "rows of ids and of the mask");
        assert_eq!(ids.len(), indices.len(), "rows of ids and indices");
        let mut masked = MaskedIds { ids: ids.to_vec(), chosen: Vec::new() };
        for (row, ((ids, used), &index)) in ids.iter().zip(mask.rows()).zip(indices).enumerate() {
            assert_eq!(ids.len(), used.len(), "ids of a row and its mask");
            let mut rng = HostRng::new(self.seed, Purpose::TokenMask, index, 0);
            let open: Vec<usize> =
                (0..ids.len()).filter(|&at| used[at] && ids[at] != self.eos_id).collect();
            if open.is_empty() {
                continue;
            }
            let mut places: Vec<usize> = open
                .iter()
                .copied()
                .filter(|_| rng.uniform() < self.recipe.mask_probability)
                .collect();
            if places.is_empty() {
                places.push(*rng.choose(&open));
            }
            for position in places {
                masked.chosen.push(Chosen { row, position, id: ids[position] });
                if rng.uniform() >= self.recipe.keep_probability {
                    masked.ids[row][position] = self.mask_id;
                }
            }
        }
        masked
    }

    /// Masks tokens of `ids` `[B, L]` by [`draw`](Self::draw) and returns the encoder's losses on
    /// them. The loss is f32 for every type of the encoder.
    ///
    /// # Panics
    /// Panics if `ids`, `mask` and `indices` differ in size, or an id is outside the encoder's
    /// vocabulary.
    pub fn loss(
        &self,
        encoder: &T5Encoder,
        ids: &[Vec<u32>],
        mask: &TokenMask,
        indices: &[u64],
    ) -> MaskedTokenLosses {
        let masked = self.draw(ids, mask, indices);
        let states = encoder.forward(&masked.ids, Some(mask)); // [B, L, C]
        let device = states.device();
        let plain = device.clone().inner();
        // Empty: captions without masked tokens have no weight in the accuracy of a batch over several ranks.
        let no_hits = || {
            let data = TensorData::new(Vec::<f32>::new(), [0usize]);
            Tensor::<1>::from_data(data, (&plain, DType::F32))
        };
        if masked.chosen.is_empty() {
            // Captions without tokens have a loss of zero, which is on the graph too.
            let loss = states.sum().cast(FloatDType::F32) * 0.0;
            let losses = loss.zeros_like().inner().expand([ids.len()]);
            return MaskedTokenLosses { losses, hits: no_hits(), loss };
        }
        let [batch, length, width] = states.dims();
        let count = masked.chosen.len();
        let whole = |values: Vec<i32>| {
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device)
        };
        let each = |f: &dyn Fn(&Chosen) -> i32| whole(masked.chosen.iter().map(f).collect());
        let places = each(&|chosen| (chosen.row * length + chosen.position) as i32);
        let targets = each(&|chosen| chosen.id as i32);

        // [B, L, C] -> [B*L, C] -> [M, C], for M chosen tokens
        let states = states.reshape([batch * length, width]).select(0, places);
        let table = encoder.embedding_table(); // [V, C]
        let scores = states.matmul(table.transpose()) * (width as f64).powf(-0.5); // [M, V]
        let scores = scores.cast(FloatDType::F32);
        let hits = scores.clone().argmax(1).squeeze_dim::<1>(1).equal(targets.clone()); // [M]
        let losses = -log_softmax(scores, 1).gather(1, targets.unsqueeze_dim(1)); // [M, 1]
        let losses = losses.squeeze_dim::<1>(1);

        // Every caption has the same weight, for any number of chosen tokens.
        let chosen_in = chosen_in(&masked.chosen, batch);
        let per_caption = mean_of_each_caption(losses.clone().inner(), &masked.chosen, &chosen_in);
        let weights: Vec<f32> = masked
            .chosen
            .iter()
            .map(|chosen| 1.0 / (chosen_in[chosen.row] * batch) as f32)
            .collect();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &device);
        let loss = (losses * weights.cast(FloatDType::F32)).sum();
        // Accuracy counts tokens that were replaced, not all chosen ones.
        let hidden: Vec<i32> = masked
            .chosen
            .iter()
            .zip(0..)
            .filter(|(chosen, _)| masked.ids[chosen.row][chosen.position] == self.mask_id)
            .map(|(_, index)| index)
            .collect();
        let hits = hits.inner().float().cast(FloatDType::F32);
        let hits = if hidden.is_empty() {
            no_hits()
        } else {
            let count = hidden.len();
            hits.select(0, Tensor::from_data(TensorData::new(hidden, [count]), &plain))
        };
        MaskedTokenLosses { loss, losses: per_caption, hits }
    }
}

/// Returns the number of chosen tokens of each of `batch` captions.
fn chosen_in(chosen: &[Chosen], batch: usize) -> Vec<usize> {
    let mut counts = vec![0; batch];
    for chosen in chosen {
        counts[chosen.row] += 1;
    }
    counts
}

/// Returns the mean loss of each caption, `[B]`, from the losses `[M]` of all chosen tokens.
/// `chosen_in` are the numbers of chosen tokens of each caption.
fn mean_of_each_caption(losses: Tensor<1>, chosen: &[Chosen], chosen_in: &[usize]) -> Tensor<1> {
    let (batch, count) = (chosen_in.len(), chosen.len());
    let mut shares = vec![0.0f32; batch * count];
    for (index, chosen) in chosen.iter().enumerate() {
        shares[chosen.row * count + index] = 1.0 / chosen_in[chosen.row] as f32;
    }
    let shares = TensorData::new(shares, [batch, count]);
    let shares = Tensor::<2>::from_data(shares, &losses.device());
    // [M] -> [B, M] -> [B]; not by a matrix product, in which a loss that is not finite would
    // affect every caption.
    let elsewhere = shares.clone().equal_elem(0.0);
    let spread = losses.unsqueeze_dim::<2>(0) * shares;
    spread.mask_fill(elsewhere, 0.0).sum_dim(1).squeeze_dim(1)
}

#[cfg(test)]
mod tests;
