//! The T5 v1.1 encoder.
//!
//! Source: transformers, `models/t5/modeling_t5.py`, classes `T5EncoderModel`, `T5Stack`,
//! `T5Attention`, `T5DenseGatedActDense`. No bias anywhere, no `1 / sqrt(d)` in the attention, the
//! relative position bias of block 0 is used by all blocks. Not ported: dropout, since the encoder is
//! frozen in all recipes.

use crate::{T5Config, T5ConfigError, keys, position::bucket_table};
use burn::{
    module::{Initializer, Module, Param},
    nn::{Embedding, EmbeddingConfig, Linear},
    tensor::{Device, Int, Tensor, TensorData},
};
use opensora_checkpoint::{BlockSource, Checkpoint, CheckpointError, KeyMap, PublishedModel};
use opensora_nn::{
    activation::linear_gelu_tanh,
    attention::{attention, merge_heads, split_heads},
    linear::{self, linear},
    mask::TokenMask,
    norm::RmsNorm,
};
use std::fmt::Debug;

/// Encodes token ids to the states of a prompt.
///
/// [`load`](PublishedModel::load) reads published weights: one file or shards, the encoder alone or the full
/// model.
#[derive(Module, Debug)]
pub struct T5Encoder {
    shared: Embedding,
    /// Bias of each bucket for each head, `[buckets, heads]`.
    pub(crate) relative_attention_bias: Param<Tensor<2>>,
    blocks: Vec<Block>,
    pub(crate) final_layer_norm: RmsNorm,
    #[module(skip)]
    config: T5Config,
}

#[derive(Module, Debug)]
pub(crate) struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// Tokens of a group of samples. A block takes the samples in groups: its inner activations are many times as large as
/// its states (T5-XXL: 150 KB a token), and a call can have thousands of prompts.
const GROUP_TOKENS: usize = 4096;

/// Bias of a block's scores, its parts apart: their sum has `heads` * L numbers for each token.
pub(crate) struct AttentionBias {
    /// `[1, heads, L, L]`.
    positions: Tensor<4>,
    /// `[B, 1, 1, L]`.
    mask: Option<Tensor<4>>,
}

#[derive(Module, Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct FeedForward {
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

/// Error for a text encoder that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] T5ConfigError),
    /// The weights cannot be read or do not fit the configuration.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] crate::TokenizerError),
}

/// A key of every T5. In a file, the characters before it are a wrapper's prefix.
const KNOWN_KEY: &str = "encoder.final_layer_norm.weight";

/// Returns a layer without bias, initialised as T5 does: normal with deviation `std`.
fn layer(input: usize, output: usize, std: f64, device: &Device) -> Linear {
    linear(input, output, false, Initializer::Normal { mean: 0.0, std }, device)
}

impl PublishedModel for T5Encoder {
    type Config = T5Config;
    type ConfigError = T5ConfigError;
    type LoadError = LoadError;

    fn validate(config: &T5Config) -> Result<(), T5ConfigError> {
        config.validate()
    }

    fn build(config: &T5Config, device: &Device) -> Self {
        let (width, buckets) = (config.d_model, config.relative_attention_num_buckets);
        let std = (width as f64).powf(-0.5);
        Self {
            shared: EmbeddingConfig::new(config.vocab_size, width).init(device),
            relative_attention_bias: Initializer::Normal { mean: 0.0, std }
                .init([buckets, config.num_heads], device),
            blocks: (0..config.num_layers).map(|_| Block::new(config, device)).collect(),
            final_layer_norm: RmsNorm::new(width, config.layer_norm_epsilon, device),
            config: config.clone(),
        }
    }

    fn block_count(config: &T5Config) -> (&'static str, usize) {
        ("num_layers", config.num_layers)
    }

    fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        checkpoint.unwrapped(KNOWN_KEY)
    }

    fn key_map(_: &T5Config, checkpoint: &Checkpoint) -> Result<KeyMap, CheckpointError> {
        Ok(keys::detect(checkpoint.keys()).key_map())
    }
}

/// A T5 encoder, with its weights in memory or streamed from their file.
pub trait T5Model: Debug + Send + Sync {
    /// Returns the configuration that the encoder was made with.
    fn config(&self) -> &T5Config;

    /// Encodes token ids; arguments, result and panics as in [`T5Encoder::forward`].
    ///
    /// # Errors
    /// Returns an error if weights that are not in memory cannot be read.
    fn encode_ids(
        &self,
        ids: &[Vec<u32>],
        mask: Option<&TokenMask>,
    ) -> Result<Tensor<3>, CheckpointError>;
}

impl T5Model for T5Encoder {
    fn config(&self) -> &T5Config {
        &self.config
    }

    fn encode_ids(
        &self,
        ids: &[Vec<u32>],
        mask: Option<&TokenMask>,
    ) -> Result<Tensor<3>, CheckpointError> {
        Ok(self.forward(ids, mask))
    }
}

impl T5Encoder {
    /// Returns the configuration that the encoder was made with.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Returns the embedding table, `[vocab_size, d_model]`, against which a tied head scores states.
    pub fn embedding_table(&self) -> Tensor<2> {
        self.shared.weight.val()
    }

    /// Encodes `ids` `[B, L]`; returns the states of all positions `[B, L, d_model]`, the padded ones
    /// included.
    ///
    /// # Panics
    /// Panics if an id is outside the vocabulary, the rows' lengths differ, or the mask has another size.
    pub fn forward(&self, ids: &[Vec<u32>], mask: Option<&TokenMask>) -> Tensor<3> {
        let device = self.shared.weight.device();
        let size @ [batch, length] = self.config.check_ids(ids);
        let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(flat, [batch, length]), &device);

        let x = self.shared.forward(ids); // [B, L, C]
        let bias = self.config.attention_bias(self.relative_attention_bias.val(), size, mask);
        let Ok(x) = self.blocks.fold(x, |_, block, x| block.forward(x, &bias));
        self.final_layer_norm.forward(x)
    }
}

impl T5Config {
    /// Returns batch size and length of `ids`.
    ///
    /// # Panics
    /// Panics if an id is outside the vocabulary or the rows' lengths differ.
    pub(crate) fn check_ids(&self, ids: &[Vec<u32>]) -> [usize; 2] {
        let (batch, length) = (ids.len(), ids.first().map_or(0, Vec::len));
        assert!(ids.iter().all(|row| row.len() == length), "rows of ids must have one length");
        assert!(
            ids.iter().flatten().all(|&id| (id as usize) < self.vocab_size),
            "an id is outside the vocabulary of {}",
            self.vocab_size
        );
        [batch, length]
    }

    /// Returns the bias that is added to the scores of every block: that of relative positions from `table`
    /// `[buckets, heads]`, and the mask.
    ///
    /// # Panics
    /// Panics if the mask has another size.
    pub(crate) fn attention_bias(
        &self,
        table: Tensor<2>,
        [batch, length]: [usize; 2],
        mask: Option<&TokenMask>,
    ) -> AttentionBias {
        let buckets = bucket_table(
            length,
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        );
        let buckets: Vec<i32> = buckets.into_iter().map(|bucket| bucket as i32).collect();
        let (device, dtype) = (table.device(), table.dtype());
        let buckets =
            Tensor::<1, Int>::from_data(TensorData::new(buckets, [length * length]), &device);
        // [L*L, heads] -> [1, heads, L, L]
        let positions = table.select(0, buckets);
        let positions = positions.reshape([1, length, length, self.num_heads]);
        let positions = positions.permute([0, 3, 1, 2]);
        let mask = mask.and_then(|mask| mask.bias(dtype, &device));
        if let Some(mask) = &mask {
            assert_eq!(mask.dims(), [batch, 1, 1, length], "mask of another size than the ids");
        }
        AttentionBias { positions, mask }
    }
}

impl AttentionBias {
    /// Returns the bias of some samples, `[1 or count, heads, L, L]` for (query, key).
    fn narrow(&self, start: usize, count: usize) -> Tensor<4> {
        let positions = self.positions.clone();
        match &self.mask {
            Some(mask) => positions + mask.clone().narrow(0, start, count),
            None => positions,
        }
    }
}

impl Block {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let deviation = |n: usize| (n as f64).powf(-0.5);
        let norm = || RmsNorm::new(width, config.layer_norm_epsilon, device);
        Self {
            attention_norm: norm(),
            attention: Attention {
                q: layer(width, inner, deviation(width * config.d_kv), device),
                k: layer(width, inner, deviation(width), device),
                v: layer(width, inner, deviation(width), device),
                o: layer(inner, width, deviation(inner), device),
                heads: config.num_heads,
            },
            feed_forward_norm: norm(),
            feed_forward: FeedForward {
                wi_0: layer(width, config.d_ff, deviation(width), device),
                wi_1: layer(width, config.d_ff, deviation(width), device),
                wo: layer(config.d_ff, width, deviation(config.d_ff), device),
            },
        }
    }

    /// Applies the block to `x` `[B, L, C]`. Returns `[B, L, C]`.
    pub(crate) fn forward(&self, x: Tensor<3>, bias: &AttentionBias) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let group = (GROUP_TOKENS / length.max(1)).max(1);
        if batch <= group {
            return self.forward_group(x, &bias.narrow(0, batch));
        }
        let parts = (0..batch).step_by(group).map(|start| {
            let count = group.min(batch - start);
            self.forward_group(x.clone().narrow(0, start, count), &bias.narrow(start, count))
        });
        Tensor::cat(parts.collect(), 0)
    }

    /// Applies the block to `x` `[b, L, C]`; `bias` broadcasts to `[b, heads, L, L]`.
    fn forward_group(&self, x: Tensor<3>, bias: &Tensor<4>) -> Tensor<3> {
        let Self { attention_norm, attention, feed_forward_norm, feed_forward } = self;
        let x = x.clone() + attention.forward(attention_norm.forward(x), bias);
        x.clone() + feed_forward.forward(feed_forward_norm.forward(x))
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>, bias: &Tensor<4>) -> Tensor<3> {
        let [q, k, v] = [&self.q, &self.k, &self.v]
            .map(|layer| split_heads(linear::forward(layer, x.clone()), self.heads));
        let y = attention(q, k, v, Some(bias.clone()), Some(1.0));
        linear::forward(&self.o, merge_heads(y))
    }
}

impl FeedForward {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = linear_gelu_tanh(&self.wi_0, x.clone());
        linear::forward(&self.wo, gate * linear::forward(&self.wi_1, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_does_not_change_the_states_of_the_prompt() {
        let device = Device::flex();
        let config = T5Config {
            vocab_size: 20,
            d_model: 16,
            d_kv: 4,
            d_ff: 32,
            num_layers: 2,
            num_heads: 3,
            ..T5Config::default()
        };
        let encoder = config.init(&device).unwrap();
        let short = encoder.forward(&[vec![5, 7, 1]], None);
        let mask = TokenMask::new(vec![vec![true, true, true, false, false]]).unwrap();
        let padded = encoder.forward(&[vec![5, 7, 1, 0, 0]], Some(&mask)).narrow(1, 0, 3);
        let difference = (short.clone() - padded).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5, "{difference}");

        // Among samples of several groups.
        let count = GROUP_TOKENS / 5 + 2;
        let mask = vec![vec![true, true, true, false, false]; count];
        let mask = TokenMask::new(mask).unwrap();
        let many = encoder.forward(&vec![vec![5, 7, 1, 0, 0]; count], Some(&mask));
        let difference = (many.narrow(1, 0, 3) - short).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5, "{difference}");
    }
}
