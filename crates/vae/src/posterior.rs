//! The distribution that the encoder predicts.

use crate::SCALING_FACTOR;
use burn::tensor::Tensor;

/// A diagonal Gaussian over the latents of a clip.
///
/// Source: huggingface/diffusers, `models/autoencoders/vae.py`, class
/// `DiagonalGaussianDistribution`.
#[derive(Debug, Clone)]
pub struct Posterior {
    moments: Tensor<5>,
}

impl Posterior {
    /// Returns the distribution with raw moments `[B, 2 C, T, h, w]`: mean, then log variance.
    pub fn new(moments: Tensor<5>) -> Self {
        Self { moments }
    }

    /// Returns the raw moments, `[B, 2 C, T, h, w]`.
    pub fn moments(&self) -> Tensor<5> {
        self.moments.clone()
    }

    fn half(&self, second: bool) -> Tensor<5> {
        let channels = self.moments.dims()[1] / 2;
        self.moments.clone().narrow(1, if second { channels } else { 0 }, channels)
    }

    /// Returns the mean, `[B, C, T, h, w]`.
    pub fn mean(&self) -> Tensor<5> {
        self.half(false)
    }

    /// Returns the log variance, clamped to [-30, 20]; `[B, C, T, h, w]`.
    pub fn logvar(&self) -> Tensor<5> {
        self.half(true).clamp(-30.0, 20.0)
    }

    /// Returns a sample for standard normal `noise`, scaled by [`SCALING_FACTOR`] as denoisers expect; all
    /// `[B, C, T, h, w]`.
    pub fn latents(&self, noise: Tensor<5>) -> Tensor<5> {
        (self.mean() + (self.logvar() * 0.5).exp() * noise) * SCALING_FACTOR
    }

    /// Returns the mean, scaled by [`SCALING_FACTOR`] as denoisers expect; `[B, C, T, h, w]`.
    pub fn mean_latents(&self) -> Tensor<5> {
        self.mean() * SCALING_FACTOR
    }
}
