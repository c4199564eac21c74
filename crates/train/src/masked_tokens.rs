//! The text encoder's training: guessing masked tokens.
//!
//! For an encoder of a small world, which must know its words before a denoiser is trained on its
//! states. A share of each caption's tokens is chosen; most of them are replaced by a sentinel and
//! some stay as they are; the encoder's state there is scored against all tokens.
//!
//! Sources: Devlin et al. 2018 (arXiv 1810.04805), section 3.1, for the choice of tokens;
//! transformers, `models/t5/modeling_t5.py`, `T5ForConditionalGeneration.forward`, for the head of
//! T5 v1.0: states times `d_model^-0.5` against the embedding table. The table's numbers have a
//! deviation of 1 and the final norm gives the states one too, so that without the factor fresh
//! scores would have a deviation of `d_model^0.5` and the first losses were far above `ln(vocab)`.
//! The head of v1.1, a matrix of its own, is no part of an encoder's files.
//!
//! Deviations: T5 itself masks spans and writes them with its decoder, which is not there; chosen
//! tokens that stay are a fifth and not a tenth, and none becomes a random other one: the denoiser
//! reads states of whole captions, so tokens that stay must be told by their states. The loss is
//! the mean over a caption's chosen tokens and then over captions, so that it does not depend on
//! how a batch is divided.

use crate::error::TrainError;
use burn::tensor::{FloatDType, Int, Tensor, TensorData, activation::log_softmax};
use opensora_nn::{
    mask::TokenMask,
    random::{HostRng, Purpose},
};
use opensora_t5::{T5Encoder, T5Tokenizer, tokenizer::fit::MASK_TOKEN};
use serde::{Deserialize, Serialize};

/// Which tokens are to be guessed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskedTokens {
    /// Chance that a token is chosen; of each caption at least one is.
    pub mask_probability: f64,
    /// Chance that a chosen token stays as it is.
    pub keep_probability: f64,
}

impl Default for MaskedTokens {
    fn default() -> Self {
        Self { mask_probability: 0.25, keep_probability: 0.2 }
    }
}

/// The objective for one tokenizer.
#[derive(Debug, Clone)]
pub struct Guessing {
    recipe: MaskedTokens,
    seed: u64,
    mask_id: u32,
    eos_id: u32,
}

/// Captions with tokens to be guessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedIds {
    /// What the encoder sees, `[B][L]`.
    pub ids: Vec<Vec<u32>>,
    /// The tokens that it has to guess.
    pub chosen: Vec<Chosen>,
}

/// A token to be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The caption's row in the batch.
    pub row: usize,
    /// The place in the caption.
    pub position: usize,
    /// The token.
    pub id: u32,
}

/// What a batch of captions gave.
#[derive(Debug)]
pub struct Guesses {
    /// What is minimised: the mean of `losses`, `[1]`, on the encoder's graph.
    pub loss: Tensor<1>,
    /// The loss of each caption in nats, `[B]`, without autodiff; 0 for a caption without a token.
    pub losses: Tensor<1>,
    /// 1 for each hidden token that was guessed right and 0 for each other one, `[H]`, without
    /// autodiff: their mean is the accuracy. A single 0 if none was hidden.
    pub hits: Tensor<1>,
}

impl Guessing {
    /// The objective of `recipe` for captions of `tokenizer`.
    ///
    /// # Errors
    /// Where a probability cannot be, or the tokenizer has no [`MASK_TOKEN`].
    pub fn new(
        recipe: &MaskedTokens,
        tokenizer: &T5Tokenizer,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let fail = |text: String| Err(TrainError::Recipe(text));
        let MaskedTokens { mask_probability, keep_probability } = *recipe;
        if !(mask_probability > 0.0 && mask_probability <= 1.0) {
            return fail(format!("mask_probability is {mask_probability}, expected above 0 to 1"));
        }
        if !(0.0..1.0).contains(&keep_probability) {
            return fail(format!("keep_probability is {keep_probability}, expected 0 to below 1"));
        }
        let Some(mask_id) = tokenizer.token_to_id(MASK_TOKEN) else {
            return fail(format!("the tokenizer has no {MASK_TOKEN} to hide tokens with"));
        };
        Ok(Self { recipe: recipe.clone(), seed, mask_id, eos_id: tokenizer.eos_id() })
    }

    /// Chooses tokens of `ids` `[B][L]`: neither padding nor the end. Draws are named by `indices`,
    /// one a caption, so they do not depend on the batch.
    ///
    /// # Panics
    /// Where `ids`, `mask` and `indices` are not of one size.
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

    /// Chooses tokens as [`draw`](Self::draw) and lets `encoder` guess them: `ids` and `mask`
    /// `[B, L]`. The loss is f32 whatever the encoder computes in.
    ///
    /// # Panics
    /// As [`draw`](Self::draw), and where an id is outside the encoder's vocabulary.
    pub fn loss(
        &self,
        encoder: &T5Encoder,
        ids: &[Vec<u32>],
        mask: &TokenMask,
        indices: &[u64],
    ) -> Guesses {
        let masked = self.draw(ids, mask, indices);
        let states = encoder.forward(&masked.ids, Some(mask)); // [B, L, C]
        let device = states.device();
        let plain = device.clone().inner();
        if masked.chosen.is_empty() {
            // Captions without tokens: nothing to learn, but a loss of the graph all the same.
            let loss = states.sum().cast(FloatDType::F32) * 0.0;
            let zeros = |count| loss.zeros_like().inner().expand([count]);
            return Guesses { losses: zeros(ids.len()), hits: zeros(1), loss };
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

        // Each caption counts the same, however many of its tokens were chosen.
        let chosen_in = chosen_in(&masked.chosen, batch);
        let per_caption = mean_of_each_caption(losses.clone().inner(), &masked.chosen, &chosen_in);
        let weights: Vec<f32> = masked
            .chosen
            .iter()
            .map(|chosen| 1.0 / (chosen_in[chosen.row] * batch) as f32)
            .collect();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &device);
        let loss = (losses * weights.cast(FloatDType::F32)).sum();
        // Of tokens that were hidden, not only chosen.
        let hidden: Vec<i32> = masked
            .chosen
            .iter()
            .zip(0..)
            .filter(|(chosen, _)| masked.ids[chosen.row][chosen.position] == self.mask_id)
            .map(|(_, index)| index)
            .collect();
        let hits = hits.inner().float().cast(FloatDType::F32);
        let hits = if hidden.is_empty() {
            hits.zeros_like().narrow(0, 0, 1)
        } else {
            let count = hidden.len();
            hits.select(0, Tensor::from_data(TensorData::new(hidden, [count]), &plain))
        };
        Guesses { loss, losses: per_caption, hits }
    }
}

/// The number of chosen tokens of each of `batch` captions.
fn chosen_in(chosen: &[Chosen], batch: usize) -> Vec<usize> {
    let mut counts = vec![0; batch];
    for chosen in chosen {
        counts[chosen.row] += 1;
    }
    counts
}

/// The mean loss of each caption, `[B]`, of the losses `[M]` of its chosen tokens, `chosen_in` of them.
fn mean_of_each_caption(losses: Tensor<1>, chosen: &[Chosen], chosen_in: &[usize]) -> Tensor<1> {
    let (batch, count) = (chosen_in.len(), chosen.len());
    let mut shares = vec![0.0f32; batch * count];
    for (index, chosen) in chosen.iter().enumerate() {
        shares[chosen.row * count + index] = 1.0 / chosen_in[chosen.row] as f32;
    }
    let shares = TensorData::new(shares, [batch, count]);
    let shares = Tensor::<2>::from_data(shares, &losses.device());
    // [M] -> [B, M] -> [B]; not by a product of matrices, in which a loss that is not finite would
    // reach every caption.
    let elsewhere = shares.clone().equal_elem(0.0);
    let spread = losses.unsqueeze_dim::<2>(0) * shares;
    spread.mask_fill(elsewhere, 0.0).sum_dim(1).squeeze_dim(1)
}

#[cfg(test)]
mod tests;
