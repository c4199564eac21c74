//! The VAE's training: reconstruction and the divergence from a standard normal.
//!
//! Enough for a VAE of a small world. The published VAE was trained with a perceptual loss and a
//! discriminator on top (CompVis/latent-diffusion, `ldm/modules/losses/contperceptual.py`); these
//! are left out.

use crate::{
    error::TrainError,
    parameters::Graph,
    task::{Cost, Evaluation, Task},
};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_data::dataset::ClipSample;
use opensora_nn::{noise::normal_batch_of, random::Purpose};
use opensora_vae::AutoencoderKl;
use serde::{Deserialize, Serialize};

/// How a VAE is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeRecipe {
    /// Weight of the divergence beside the mean absolute error of the pixels.
    pub kl_weight: f64,
    /// Factors by which batches are made smaller before they are seen, in turn: `[1, 2]` trains at
    /// the data's size and at half of it.
    pub shrink: Vec<usize>,
}

impl Default for VaeRecipe {
    fn default() -> Self {
        // As published: ldm's `kl_weight`.
        Self { kl_weight: 1e-6, shrink: vec![1] }
    }
}

/// The VAE with its loss.
pub struct VaeTask {
    recipe: VaeRecipe,
    seed: u64,
    dtype: FloatDType,
    device: Device,
}

impl VaeTask {
    /// Computes in `dtype` on `device`.
    ///
    /// # Errors
    /// Where the recipe cannot be.
    pub fn new(
        recipe: &VaeRecipe,
        seed: u64,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, TrainError> {
        if !recipe.kl_weight.is_finite() || recipe.kl_weight < 0.0 {
            return Err(TrainError::Recipe(format!("kl_weight is {}", recipe.kl_weight)));
        }
        if recipe.shrink.is_empty() || recipe.shrink.contains(&0) {
            return Err(TrainError::Recipe("shrink must hold factors of 1 or more".into()));
        }
        Ok(Self { recipe: recipe.clone(), seed, dtype, device: device.clone() })
    }
}

impl Task for VaeTask {
    type Model = AutoencoderKl;
    type Item = ClipSample;

    fn gradients(
        &self,
        graph: &Graph<AutoencoderKl>,
        items: &[ClipSample],
        indices: &[u64],
    ) -> Result<Evaluation, TrainError> {
        let turn = indices.first().map_or(0, |first| first / items.len().max(1) as u64);
        let factor = self.recipe.shrink[(turn % self.recipe.shrink.len() as u64) as usize];
        let pixels = shrunk(clips(items, &self.device)?, factor);
        let posterior = graph.model.encode(pixels.clone(), None);
        let (mean, logvar) = (posterior.mean(), posterior.logvar());
        let noise =
            normal_batch_of(self.seed, Purpose::Posterior, indices, 0, mean.dims(), &self.device);
        let decoded = graph.model.decode(posterior.latents(noise), None);

        // [B, 3, T, H, W] -> [B], and the same for the latents.
        let flat = |x: Tensor<5>| x.flatten::<2>(1, 4).mean_dim(1).squeeze_dim::<1>(1);
        let l1 = flat((decoded - pixels).abs());
        // KL(N(mean, exp(logvar)) || N(0, 1)) a latent number.
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

/// `[B, 3, T, H, W] -> [B, 3, T, H/f, W/f]`, each pixel the mean of `factor` x `factor`.
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

/// Clips of one size as a batch `[B, 3, T, H, W]`.
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
