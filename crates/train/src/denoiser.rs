//! STDiT's training: the noise loss at a random timestep.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/train.py`, `opensora/schedulers/iddpm/__init__.py`
//! (`IDDPM.training_losses`), `opensora/models/layers/blocks.py` (`CaptionEmbedder.token_drop`).
//!
//! Quirks kept: a dropped caption becomes the null prompt but keeps its own mask; the null prompt
//! itself is a buffer and never trained. Not in the reference, and off by default: the weight of
//! [`min_snr_gamma`](DenoiserRecipe::min_snr_gamma) and velocities as the
//! [`prediction_type`](DenoiserRecipe::prediction_type).

use crate::{
    error::TrainError,
    metrics::flops::ModelFlops,
    parameters::Graph,
    recompute::{self, Inputs},
    task::{Cost, Evaluation, Task},
};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_data::encode::EncodedSample;
use opensora_diffusion::{GaussianDiffusion, LossInputs, LossKind, PredictionType, Respacing};
use opensora_nn::{
    mask::TokenMask,
    noise::normal_batch_of,
    random::{HostRng, Purpose},
};
use opensora_stdit::{DenoiserConfig, StDit};
use opensora_vae::Posterior;
use serde::{Deserialize, Serialize};

/// How an STDiT is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenoiserRecipe {
    /// Which parameters stay as they are.
    pub freeze: Freeze,
    /// Share of the samples that are trained without their caption.
    pub caption_dropout: f64,
    /// Weighs each sample's loss with `min(snr, gamma) / snr`, the signal-to-noise ratio of its
    /// timestep (Hang et al. 2023, arXiv 2303.09556), so that a small gamma turns the model to the
    /// early, noisy steps where layout and motion are decided. Off in the published recipes.
    pub min_snr_gamma: Option<f64>,
    /// What the model learns to name. With `v_prediction` the squared error is that of the velocity,
    /// which is the noise's over `alphas_cumprod`; whoever samples from the model has to know.
    pub prediction_type: PredictionType,
    /// Keeps only what enters each block and computes its activations again on the way back.
    pub activation_checkpointing: bool,
}

impl Default for DenoiserRecipe {
    fn default() -> Self {
        Self {
            freeze: Freeze::Nothing,
            caption_dropout: 0.1,
            min_snr_gamma: None,
            prediction_type: PredictionType::Epsilon,
            activation_checkpointing: false,
        }
    }
}

/// Which parameters of an STDiT stay as they are, under the reference's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// All are trained.
    #[default]
    Nothing,
    /// The temporal attentions alone are trained.
    NotTemporal,
    /// All but the cross attentions are trained.
    Text,
}

impl Freeze {
    /// Whether the parameter at this path of [`StDit`] is trained.
    pub fn is_trainable(self, path: &str) -> bool {
        // A buffer in the reference.
        !path.ends_with("y_embedder.y_embedding")
            && match self {
                Self::Nothing => true,
                Self::NotTemporal => path.contains(".attn_temp."),
                Self::Text => !path.contains(".cross_attn."),
            }
    }
}

/// A batch as it enters the loss; B samples.
#[derive(Debug, Clone)]
pub struct DenoiserBatch {
    /// Clean latents, `[B, C, T, h, w]`.
    pub latents: Tensor<5>,
    /// The noise that goes in, of the same shape.
    pub noise: Tensor<5>,
    /// Timesteps, one a sample, of 0..1000.
    pub t: Vec<usize>,
    /// Prompt states, `[B, L, caption_channels]`.
    pub states: Tensor<3>,
    /// The prompts' tokens that count.
    pub mask: TokenMask,
    /// The samples that are trained without their caption.
    pub dropped: Vec<bool>,
}

/// Losses of each sample, `[B]`, without autodiff.
#[derive(Debug, Clone)]
pub struct DenoiserLosses {
    /// What is minimised, in the mean.
    pub loss: Tensor<1>,
    /// Its part for the noise, not weighted.
    pub mse: Tensor<1>,
    /// Its part for the variance, not weighted.
    pub vb: Tensor<1>,
}

/// STDiT with the noise loss.
pub struct DenoiserTask {
    recipe: DenoiserRecipe,
    config: DenoiserConfig,
    process: GaussianDiffusion,
    seed: u64,
    dtype: FloatDType,
    device: Device,
}

impl DenoiserTask {
    /// For models of `config`, computing in `dtype` on `device`.
    ///
    /// # Errors
    /// Where the recipe cannot be.
    pub fn new(
        recipe: &DenoiserRecipe,
        config: &DenoiserConfig,
        seed: u64,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let fail = |text: String| Err(TrainError::Recipe(text));
        if !(0.0..=1.0).contains(&recipe.caption_dropout) {
            return fail(format!("caption_dropout is {}, expected 0 to 1", recipe.caption_dropout));
        }
        if let Some(gamma) = recipe.min_snr_gamma
            && !(gamma.is_finite() && gamma > 0.0)
        {
            return fail(format!("min_snr_gamma is {gamma}, expected a positive number"));
        }
        if !config.pred_sigma {
            return fail("pred_sigma is false: the loss trains the variance too".into());
        }
        let process = GaussianDiffusion::published(&Respacing::All)?;
        Ok(Self {
            recipe: recipe.clone(),
            config: config.clone(),
            process,
            seed,
            dtype,
            device: device.clone(),
        })
    }

    /// Samples latents from the posteriors and draws timesteps, noise and dropped captions, all by
    /// the samples' `indices`.
    ///
    /// # Errors
    /// Where the samples differ in size or do not fit the model.
    pub fn batch(
        &self,
        items: &[EncodedSample],
        indices: &[u64],
    ) -> Result<DenoiserBatch, TrainError> {
        let Some(first) = items.first() else {
            return Err(TrainError::Batch("a batch without samples".into()));
        };
        let [channels, frames, height, width] = first.latent_shape;
        let (tokens, states_width) = (self.config.model_max_length, self.config.caption_channels);
        for item in items {
            let fits = item.latent_shape == first.latent_shape
                && item.width == states_width
                && item.mask.len() <= tokens
                && channels == self.config.in_channels;
            if !fits {
                return Err(TrainError::Batch(format!(
                    "row {}: latents {:?} and {} prompt tokens of width {} do not fit a batch of \
                     latents {:?} and a model of {} channels, {tokens} tokens of width \
                     {states_width}",
                    item.row + 1,
                    item.latent_shape,
                    item.mask.len(),
                    item.width,
                    first.latent_shape,
                    self.config.in_channels,
                )));
            }
        }
        self.config.grid([frames, height, width])?;

        let batch = items.len();
        let shape = [batch, channels, frames, height, width];
        let upload = |part: fn(&EncodedSample) -> &Vec<f32>| {
            let values: Vec<f32> = items.iter().flat_map(part).copied().collect();
            Tensor::<5>::from_data(TensorData::new(values, shape), &self.device)
        };
        let moments = Tensor::cat(vec![upload(|item| &item.mean), upload(|item| &item.logvar)], 1);
        let noise = |purpose| normal_batch_of(self.seed, purpose, indices, 0, shape, &self.device);
        let latents = Posterior::new(moments).latents(noise(Purpose::Posterior));

        // Prompts are kept up to their last token: the longest of the batch decides.
        let length = items.iter().map(|item| item.mask.len()).max().unwrap_or(0).max(1);
        let mut states = Vec::with_capacity(batch * length * states_width);
        let mut rows = Vec::with_capacity(batch);
        for item in items {
            states.extend_from_slice(&item.states);
            states.resize(rows.len() * length * states_width + length * states_width, 0.0);
            let mut row = item.mask.clone();
            row.resize(length, false);
            rows.push(row);
        }
        let states = TensorData::new(states, [batch, length, states_width]);
        let draw = |purpose, index| HostRng::new(self.seed, purpose, index, 0);
        Ok(DenoiserBatch {
            latents,
            noise: noise(Purpose::TrainingNoise),
            t: indices
                .iter()
                .map(|&index| draw(Purpose::Timestep, index).below(self.process.num_timesteps()))
                .collect(),
            states: Tensor::from_data(states, &self.device),
            mask: TokenMask::new(rows)
                .ok_or_else(|| TrainError::Batch("a batch without prompts".into()))?,
            dropped: indices
                .iter()
                .map(|&index| {
                    draw(Purpose::CaptionDropout, index).uniform() < self.recipe.caption_dropout
                })
                .collect(),
        })
    }

    /// Losses, and the gradients of their mean.
    ///
    /// # Errors
    /// Where the tensors do not fit each other.
    pub fn losses(
        &self,
        graph: &Graph<StDit>,
        batch: DenoiserBatch,
    ) -> Result<(DenoiserLosses, crate::FlatTensors), TrainError> {
        let DenoiserBatch { latents, noise, t, states, mask, dropped } = batch;
        let noisy = self.process.q_sample(latents.clone(), &t, noise.clone())?;
        let inputs = Inputs {
            latents: noisy.clone(),
            timesteps: &self.process.model_timesteps(&t)?,
            prompt: drop_captions(states, graph.model.null_prompt(), &dropped),
            mask: &mask,
        };
        recompute::gradients(graph, inputs, self.recipe.activation_checkpointing, |output| {
            let kind = self.recipe.prediction_type;
            let output = self.process.output_as_noise(kind, output, &noisy, &t)?;
            let inputs =
                LossInputs { model_output: output, x_start: latents, x_t: noisy, noise, t: &t };
            let losses = self.process.training_losses(inputs, LossKind::Mse)?;
            let loss = match (self.recipe.min_snr_gamma, kind) {
                // The same for both kinds: over the velocity's error it is
                // `min(snr, gamma) / (snr + 1)`.
                (Some(gamma), _) => losses.loss * self.weights(&t, |snr| snr.min(gamma) / snr),
                (None, PredictionType::Epsilon) => losses.loss,
                (None, PredictionType::VPrediction) => {
                    losses.mse.clone() * self.weights(&t, |snr| (snr + 1.0) / snr)
                        + losses.vb.clone()
                }
            };
            let found = DenoiserLosses {
                loss: loss.clone().inner(),
                mse: losses.mse.inner(),
                vb: losses.vb.inner(),
            };
            Ok((loss.mean(), found))
        })
    }

    /// A weight of each timestep's signal-to-noise ratio, `[B]`.
    fn weights(&self, t: &[usize], weight: impl Fn(f64) -> f64) -> Tensor<1> {
        let alphas_cumprod = &self.process.tables().alphas_cumprod;
        let weights: Vec<f32> = t
            .iter()
            .map(|&t| weight(alphas_cumprod[t] / (1.0 - alphas_cumprod[t])) as f32)
            .collect();
        Tensor::from_data(TensorData::new(weights, [t.len()]), &self.device)
    }
}

/// `states` `[B, L, C]` with the null prompt's first L rows in place of the dropped ones.
fn drop_captions(states: Tensor<3>, null: Tensor<2>, dropped: &[bool]) -> Tensor<3> {
    if !dropped.contains(&true) {
        return states;
    }
    let [batch, length, _] = states.dims();
    let null = null.inner().cast(FloatDType::F32).narrow(0, 0, length).unsqueeze::<3>();
    let rows = (0..batch)
        .map(|row| if dropped[row] { null.clone() } else { states.clone().narrow(0, row, 1) });
    Tensor::cat(rows.collect(), 0)
}

impl Task for DenoiserTask {
    type Model = StDit;
    type Item = EncodedSample;

    fn gradients(
        &self,
        graph: &Graph<StDit>,
        items: &[EncodedSample],
        indices: &[u64],
    ) -> Result<Evaluation, TrainError> {
        let (losses, gradients) = self.losses(graph, self.batch(items, indices)?)?;
        let parts = vec![("mse", losses.mse), ("vb", losses.vb)];
        Ok(Evaluation { losses: losses.loss, parts, gradients })
    }

    fn dtype(&self) -> FloatDType {
        self.dtype
    }

    fn cost(&self, item: &EncodedSample) -> Cost {
        let [_, frames, height, width] = item.latent_shape;
        match self.config.grid([frames, height, width]) {
            Ok(grid) => Cost {
                tokens: grid.iter().product::<usize>() as f64,
                flops: ModelFlops::new(&self.config, grid, item.mask.len())
                    .training(self.recipe.activation_checkpointing),
            },
            Err(_) => Cost::default(),
        }
    }
}
