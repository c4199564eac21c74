//! Training of an STDiT: the diffusion loss at a random timestep.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/train.py`, `opensora/schedulers/iddpm/__init__.py`
//! (`IDDPM.training_losses`), `opensora/models/layers/blocks.py` (`CaptionEmbedder.token_drop`).
//!
//! Quirks kept: a dropped caption is replaced by the null prompt but keeps its mask; the null prompt is a
//! buffer and not trained. Not in the reference, and off by default: loss weights by
//! [`min_snr_gamma`](DenoiserRecipe::min_snr_gamma), [`timesteps`](DenoiserRecipe::timesteps) that are not uniform, and
//! velocity as the [`prediction_type`](DenoiserRecipe::prediction_type).

use crate::{
    error::{RecipeError, TrainError},
    metrics::flops::ModelFlops,
    parameters::Graph,
    recompute::{self, Inputs},
    sequence::Share,
    task::{Cost, Evaluation, Task},
};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_data::encode::EncodedSample;
use opensora_diffusion::{GaussianDiffusion, LossInputs, LossKind, PredictionType, Respacing};
use opensora_nn::{
    mask::TokenMask,
    noise::{normal, normal_batch_of},
    random::{HostRng, Purpose},
};
use opensora_parallel::Group;
use opensora_stdit::{DenoiserConfig, FrameShards, StDit, TokenLayout};
use opensora_vae::Posterior;
use serde::{Deserialize, Serialize};

/// The loss of an STDiT and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenoiserRecipe {
    /// Parameters that are not trained.
    pub freeze: Freeze,
    /// Probability that a sample is trained with the null prompt instead of its caption.
    pub caption_dropout: f64,
    /// Multiplies each sample's loss by `min(snr, gamma) / snr`, with the signal-to-noise ratio of
    /// its timestep (Hang et al. 2023, arXiv 2303.09556). A small gamma gives weight to the early,
    /// noisy steps, which decide layout and motion. Off in the published recipes.
    pub min_snr_gamma: Option<f64>,
    /// Distribution of the timesteps of samples. Uniform in the published recipes.
    pub timesteps: Timesteps,
    /// Prediction target. With `v_prediction` and without `min_snr_gamma`, the squared error is that of the velocity, which
    /// is the noise's error divided by `alphas_cumprod`; with `min_snr_gamma` it is that of the noise for both targets.
    /// Sampling needs the same prediction type.
    pub prediction_type: PredictionType,
    /// Activation checkpointing: saves only the input of each block for the backward pass, which
    /// computes the other activations again.
    pub activation_checkpointing: bool,
}

impl Default for DenoiserRecipe {
    fn default() -> Self {
        Self {
            freeze: Freeze::Nothing,
            caption_dropout: 0.1,
            min_snr_gamma: None,
            timesteps: Timesteps::Uniform,
            prediction_type: PredictionType::Epsilon,
            activation_checkpointing: false,
        }
    }
}

impl DenoiserRecipe {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        if !(0.0..=1.0).contains(&self.caption_dropout) {
            return Err(RecipeError::value("caption_dropout", self.caption_dropout, "0 to 1"));
        }
        self.timesteps.validate()?;
        match self.min_snr_gamma {
            Some(gamma) if !(gamma.is_finite() && gamma > 0.0) => {
                Err(RecipeError::value("min_snr_gamma", gamma, "a positive number"))
            }
            _ => Ok(()),
        }
    }
}

/// Distribution of the timesteps that samples are trained at.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Timesteps {
    /// All timesteps are equally likely.
    #[default]
    Uniform,
    /// The timestep is the sigmoid of a normally distributed number, as a share of all timesteps (Esser et al. 2024,
    /// arXiv 2403.03206, section 3.1). A negative mean prefers timesteps with little noise, which decide outlines.
    LogitNormal {
        /// Mean of the normal distribution; the median timestep is its sigmoid.
        mean: f64,
        /// Standard deviation of the normal distribution, above 0.
        std: f64,
    },
}

impl Timesteps {
    fn validate(self) -> Result<(), RecipeError> {
        match self {
            Self::LogitNormal { mean, .. } if !mean.is_finite() => {
                Err(RecipeError::value("timesteps.logit_normal.mean", mean, "a finite number"))
            }
            Self::LogitNormal { std, .. } if !(std.is_finite() && std > 0.0) => {
                Err(RecipeError::value("timesteps.logit_normal.std", std, "a positive number"))
            }
            _ => Ok(()),
        }
    }

    /// Draws the timestep of training sample `index`, one of `count`.
    fn draw(self, count: usize, seed: u64, index: u64) -> usize {
        match self {
            Self::Uniform => HostRng::new(seed, Purpose::Timestep, index, 0).below(count),
            Self::LogitNormal { mean, std } => {
                let normal = f64::from(normal(seed, Purpose::Timestep, index, 0, 1)[0]);
                let share = 1.0 / (1.0 + (-(mean + std * normal)).exp());
                // A share of 1 after rounding would be one timestep too many.
                ((share * count as f64) as usize).min(count - 1)
            }
        }
    }
}

/// Parameters of an STDiT that are not trained, under the reference's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// All parameters are trained.
    #[default]
    Nothing,
    /// Only the temporal attentions are trained.
    NotTemporal,
    /// All parameters except the cross attentions are trained.
    Text,
}

impl Freeze {
    /// Returns true if the parameter at this path of [`StDit`] is trained.
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

/// The inputs of the loss for a batch of B samples.
#[derive(Debug, Clone)]
pub struct DenoiserBatch {
    /// Clean latents, `[B, C, T, h, w]`.
    pub latents: Tensor<5>,
    /// Noise of the same shape.
    pub noise: Tensor<5>,
    /// Timestep of each sample, 0..1000.
    pub t: Vec<usize>,
    /// Prompt states, `[B, L, caption_channels]`.
    pub states: Tensor<3>,
    /// Attention mask of the prompts.
    pub mask: TokenMask,
    /// True for samples that are trained without their caption.
    pub dropped: Vec<bool>,
}

/// Losses of a batch, each `[B]` and without autodiff; of whole samples, also if ranks share them.
#[derive(Debug, Clone)]
pub struct DenoiserLosses {
    /// Loss of each sample. Its mean is minimised.
    pub loss: Tensor<1>,
    /// Squared error of the noise, without the weight of [`DenoiserRecipe::min_snr_gamma`].
    pub mse: Tensor<1>,
    /// Variational bound, which trains the variance, without that weight.
    pub vb: Tensor<1>,
}

/// Returns an error if a model does not predict the variance, which the loss trains.
pub(crate) fn check_variance(config: &DenoiserConfig) -> Result<(), RecipeError> {
    if config.pred_sigma {
        return Ok(());
    }
    Err(RecipeError::value("pred_sigma", false, "true: the loss trains the variance too"))
}

/// The training task of an STDiT: noised latents, prompts and loss.
pub struct DenoiserTask {
    recipe: DenoiserRecipe,
    config: DenoiserConfig,
    process: GaussianDiffusion,
    seed: u64,
    dtype: FloatDType,
    device: Device,
    /// Ranks that share the tokens of each sample, if there are several.
    sequence: Option<Group>,
}

impl DenoiserTask {
    /// Creates a task for models of `config`, which computes in `dtype` on `device`.
    ///
    /// # Errors
    /// Returns an error if a value of the recipe is out of range, or the configuration does not predict
    /// the variance, which the loss trains.
    pub fn new(
        recipe: &DenoiserRecipe,
        config: &DenoiserConfig,
        seed: u64,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, TrainError> {
        recipe.validate()?;
        check_variance(config)?;
        let process = GaussianDiffusion::published(&Respacing::All)?;
        Ok(Self {
            recipe: recipe.clone(),
            config: config.clone(),
            process,
            seed,
            dtype,
            device: device.clone(),
            sequence: None,
        })
    }

    /// Divides the frames of every sample among the ranks of `group`, which all call the methods of the task with the
    /// same samples. Losses are then equal on all ranks; gradients are parts, whose **mean** over the ranks is the
    /// gradient (see [`Mesh`](opensora_parallel::Mesh)).
    pub fn divided(self, group: Group) -> Self {
        Self { sequence: (group.size() > 1).then_some(group), ..self }
    }

    /// Makes the inputs of the loss: samples latents from the posteriors, and draws timesteps, noise and
    /// dropped captions. Random draws are keyed by the samples' `indices`.
    ///
    /// # Errors
    /// Returns an error if the samples differ in size or do not fit the model.
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

        // Prompts are padded to the longest one of the batch.
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
        Ok(DenoiserBatch {
            latents,
            noise: noise(Purpose::TrainingNoise),
            t: indices
                .iter()
                .map(|&index| {
                    self.recipe.timesteps.draw(self.process.num_timesteps(), self.seed, index)
                })
                .collect(),
            states: Tensor::from_data(states, &self.device),
            mask: TokenMask::new(rows)
                .ok_or_else(|| TrainError::Batch("a batch without prompts".into()))?,
            dropped: indices
                .iter()
                .map(|&index| {
                    HostRng::new(self.seed, Purpose::CaptionDropout, index, 0).uniform()
                        < self.recipe.caption_dropout
                })
                .collect(),
        })
    }

    /// Returns the losses of a batch and the gradients of their mean, or this rank's part of them if the samples are
    /// [divided](Self::divided).
    ///
    /// # Errors
    /// Returns an error if the shapes of the tensors do not match.
    pub fn losses(
        &self,
        graph: &Graph<StDit>,
        batch: DenoiserBatch,
    ) -> Result<(DenoiserLosses, crate::FlatTensors), TrainError> {
        let Some(group) = &self.sequence else { return self.losses_in((), None, graph, batch) };
        let [_, _, frames, height, width] = batch.latents.dims();
        let [tokens, ..] = self.config.grid([frames, height, width])?;
        let shards = FrameShards::new(group.clone(), tokens);
        let share = Share::new(&shards, group, frames / tokens);
        let batch = DenoiserBatch {
            latents: shards.shard(batch.latents),
            noise: shards.shard(batch.noise),
            ..batch
        };
        let (losses, gradients) = self.losses_in(shards, Some(&share), graph, batch)?;
        let DenoiserLosses { loss, mse, vb } = losses;
        let [loss, mse, vb] = share.sum([loss, mse, vb], group);
        Ok((DenoiserLosses { loss, mse, vb }, gradients))
    }

    /// [`losses`](Self::losses) of the frames that this process holds in `layout`. Of a batch that ranks share, the
    /// losses are means over the frames of this rank's `share`.
    fn losses_in(
        &self,
        layout: impl TokenLayout,
        share: Option<&Share>,
        graph: &Graph<StDit>,
        batch: DenoiserBatch,
    ) -> Result<(DenoiserLosses, crate::FlatTensors), TrainError> {
        let DenoiserBatch { latents, noise, t, states, mask, dropped } = batch;
        let noisy = self.process.q_sample(latents.clone(), &t, noise.clone())?;
        let inputs = Inputs {
            layout,
            latents: noisy.clone(),
            timesteps: &self.process.model_timesteps(&t)?,
            prompt: drop_captions(states, graph.model.null_prompt(), &dropped),
            mask: &mask,
        };
        recompute::gradients(graph, inputs, self.recipe.activation_checkpointing, |output| {
            let counted = |x: Tensor<5>| share.map_or(x.clone(), |share| share.counted(x));
            let [output, noisy, latents, noise] = [output, noisy, latents, noise].map(counted);
            let kind = self.recipe.prediction_type;
            let output = self.process.output_as_noise(kind, output, &noisy, &t)?;
            let inputs =
                LossInputs { model_output: output, x_start: latents, x_t: noisy, noise, t: &t };
            let losses = self.process.training_losses(inputs, LossKind::Mse)?;
            let loss = match (self.recipe.min_snr_gamma, kind) {
                // The same weight for both targets: for the velocity's error it equals
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
            let loss = loss.mean();
            Ok((share.map_or(loss.clone(), |share| share.of_mean(loss)), found))
        })
    }

    /// Returns the weights `[B]` of timesteps, each a function of the signal-to-noise ratio.
    fn weights(&self, t: &[usize], weight: impl Fn(f64) -> f64) -> Tensor<1> {
        let alphas_cumprod = &self.process.tables().alphas_cumprod;
        let weights: Vec<f32> = t
            .iter()
            .map(|&t| weight(alphas_cumprod[t] / (1.0 - alphas_cumprod[t])) as f32)
            .collect();
        Tensor::from_data(TensorData::new(weights, [t.len()]), &self.device)
    }
}

/// Replaces the states of dropped captions in `states` `[B, L, C]` by the first L rows of the null
/// prompt.
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
    type Error = TrainError;

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
                // Operations that are computed again do not count as the model's.
                flops: ModelFlops::new(&self.config, grid, item.mask.len()).training(false),
            },
            Err(_) => Cost::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_normal_timesteps_have_the_quartiles_of_their_distribution() {
        let timesteps = Timesteps::LogitNormal { mean: -0.6, std: 1.2 };
        let mut drawn: Vec<usize> =
            (0..20_000).map(|index| timesteps.draw(1000, 3, index)).collect();
        drawn.sort_unstable();
        // The normal distribution's quartiles are 0.6745 standard deviations from the mean.
        for (quarter, normal) in [(1, -0.6745_f64), (2, 0.0), (3, 0.6745)] {
            let expected = 1000.0 / (1.0 + (0.6 - 1.2 * normal).exp());
            let found = drawn[quarter * drawn.len() / 4] as f64;
            assert!((found - expected).abs() < 12.0, "{quarter}: {found}, expected {expected}");
        }
        // Shares that are rounded to 0 and 1 give the first and the last timestep.
        for (mean, expected) in [(500.0, 999), (-500.0, 0)] {
            let timesteps = Timesteps::LogitNormal { mean, std: 1.0 };
            assert_eq!(timesteps.draw(1000, 3, 0), expected);
        }
    }

    #[test]
    fn values_out_of_range_are_errors() {
        let check = |mean, std| Timesteps::LogitNormal { mean, std }.validate();
        assert!(check(0.0, 1.0).is_ok() && Timesteps::Uniform.validate().is_ok());
        for (mean, std) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (0.0, 0.0), (0.0, f64::NAN)] {
            let recipe = DenoiserRecipe {
                timesteps: Timesteps::LogitNormal { mean, std },
                ..DenoiserRecipe::default()
            };
            let said = recipe.validate().unwrap_err().to_string();
            assert!(said.contains("timesteps.logit_normal"), "{said}");
        }
    }
}
