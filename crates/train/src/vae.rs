//! Training of a VAE: L1 reconstruction loss and KL divergence from a standard normal.
//!
//! It is meant for small VAEs. The published VAE was trained with a perceptual loss and a
//! discriminator in addition (CompVis/latent-diffusion, `ldm/modules/losses/contperceptual.py`),
//! which are not implemented.

use crate::{
    error::{RecipeError, TrainError},
    parameters::Graph,
    task::{Cost, Evaluation, MicroBatch, Task},
};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_data::dataset::ClipSample;
use opensora_nn::{noise::normal_batch_of, random::Purpose};
use opensora_vae::AutoencoderKl;
use serde::{Deserialize, Serialize};

/// The loss of a VAE and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeRecipe {
    /// Weight of the KL divergence relative to the mean absolute error of the pixels.
    pub kl_weight: f64,
    /// Factors by which micro-batches are shrunk, used cyclically: `[1, 2]` alternates between the size of
    /// the data and half that size.
    pub shrink: Vec<usize>,
}

impl Default for VaeRecipe {
    fn default() -> Self {
        // As published: ldm's `kl_weight`.
        Self { kl_weight: 1e-6, shrink: vec![1] }
    }
}

impl VaeRecipe {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        if !self.kl_weight.is_finite() || self.kl_weight < 0.0 {
            return Err(RecipeError::value("kl_weight", self.kl_weight, "0 or a positive number"));
        }
        if self.shrink.is_empty() || self.shrink.contains(&0) {
            let found = format!("{:?}", self.shrink);
            return Err(RecipeError::value("shrink", found, "at least one factor of 1 or more"));
        }
        Ok(())
    }
}

/// The training task of a VAE: reconstruction error and KL divergence.
pub struct VaeTask {
    recipe: VaeRecipe,
    seed: u64,
    dtype: FloatDType,
    device: Device,
}

impl VaeTask {
    /// Creates a task that computes in `dtype` on `device`.
    ///
    /// # Errors
    /// Returns an error if a value of the recipe is out of range.
    pub fn new(
        recipe: &VaeRecipe,
        seed: u64,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, TrainError> {
        recipe.validate()?;
        Ok(Self { recipe: recipe.clone(), seed, dtype, device: device.clone() })
    }
}

impl Task for VaeTask {
    type Model = AutoencoderKl;
    type Item = ClipSample;
    type Error = TrainError;

    fn gradients(
        &self,
        graph: &Graph<AutoencoderKl>,
        items: &[ClipSample],
        indices: &[u64],
    ) -> Result<Evaluation, TrainError> {
        // The number in a run that skips no rows.
        let number = indices.first().copied().unwrap_or(0) / items.len().max(1) as u64;
        self.gradients_of_part(graph, items, indices, MicroBatch::new(number, items.len()))
    }

    fn gradients_of_part(
        &self,
        graph: &Graph<AutoencoderKl>,
        items: &[ClipSample],
        indices: &[u64],
        whole: MicroBatch,
    ) -> Result<Evaluation, TrainError> {
        let shrink = &self.recipe.shrink;
        let factor = shrink[(whole.number % shrink.len() as u64) as usize];
        let pixels = shrunk(clips(items, &self.device)?, factor);
        let posterior = graph.model.encode(pixels.clone(), None);
        let (mean, logvar) = (posterior.mean(), posterior.logvar());
        let noise =
            normal_batch_of(self.seed, Purpose::Posterior, indices, 0, mean.dims(), &self.device);
        let decoded = graph.model.decode(posterior.latents(noise), None);

        // [B, 3, T, H, W] -> [B], and the same for the latents.
        let flat = |x: Tensor<5>| x.flatten::<2>(1, 4).mean_dim(1).squeeze_dim::<1>(1);
        let l1 = flat((decoded - pixels).abs());
        // KL(N(mean, exp(logvar)) || N(0, 1)) of each latent.
        let kl = flat((mean.square() + logvar.clone().exp() - logvar - 1.0) * 0.5);
        let loss = l1.clone() + kl.clone() * self.recipe.kl_weight;

        let parts = vec![("l1", l1.inner()), ("kl", kl.inner())];
        let losses = loss.clone().inner();
        Ok(Evaluation { losses, parts, gradients: graph.backward(loss.mean()) })
    }

    fn dtype(&self) -> FloatDType {
        self.dtype
    }

    fn cost(&self, item: &ClipSample) -> Cost {
        Cost { tokens: item.shape[1..].iter().product::<usize>() as f64, flops: 0.0 }
    }
}

/// Shrinks clips, `[B, 3, T, H, W] -> [B, 3, T, H/f, W/f]`. Each pixel is the mean of `factor` x
/// `factor`.
fn shrunk(clips: Tensor<5>, factor: usize) -> Tensor<5> {
    if factor == 1 {
        return clips;
    }
    let [batch, channels, frames, height, width] = clips.dims();
    let (rows, columns) = (height / factor, width / factor);
    let tiles = clips.narrow(3, 0, rows * factor).narrow(4, 0, columns * factor).reshape([
        batch,
        channels * frames,
        rows,
        factor,
        columns,
        factor,
    ]);
    tiles.mean_dim(5).mean_dim(3).reshape([batch, channels, frames, rows, columns])
}

/// Returns clips of one size as a batch `[B, 3, T, H, W]`.
pub(crate) fn clips(items: &[ClipSample], device: &Device) -> Result<Tensor<5>, TrainError> {
    let shape = items.first().map_or([0; 4], |item| item.shape);
    if let Some(other) = items.iter().find(|item| item.shape != shape) {
        let (found, row) = (other.shape, other.row + 1);
        let text = format!("row {row}: a clip of {found:?} in a batch of {shape:?}");
        return Err(TrainError::Batch(text));
    }
    let [channels, frames, height, width] = shape;
    let values: Vec<f32> = items.iter().flat_map(|item| &item.pixels).copied().collect();
    let data = TensorData::new(values, [items.len(), channels, frames, height, width]);
    Ok(Tensor::from_data(data, device))
}
