//! The traits of the denoisers, one for each kind of condition, and the error of loading one.

use crate::{AttentionCache, ClassConfig, DenoiserWork, SizeError};
use burn::tensor::Tensor;
use opensora_checkpoint::CheckpointError;
use opensora_nn::mask::TokenMask;
use opensora_parallel::Group;
use std::{fmt::Debug, sync::Arc};

/// A denoiser that is conditioned on a prompt, with its weights in memory or streamed from their file.
pub trait PromptModel: Debug + Send + Sync {
    /// Returns the learnt null prompt of guidance, `[L, caption_channels]`.
    fn null_prompt(&self) -> Tensor<2>;

    /// Predicts noise and variance in a step of a sampling run, reusing attention outputs of earlier steps
    /// as `cache` is set to. Other arguments, result and panics as in
    /// [`StDit::forward`](crate::StDit::forward).
    ///
    /// # Errors
    /// Returns an error if weights that are not in memory cannot be read.
    fn forward_cached(
        &self,
        latents: Tensor<5>,
        timesteps: &[f32],
        prompt: Tensor<3>,
        mask: Option<&TokenMask>,
        cache: &mut AttentionCache,
    ) -> Result<Tensor<5>, CheckpointError>;

    /// Returns this model with the frames of a clip divided among the ranks of `group`, which all call it with the
    /// same arguments and get the same results. `None` if the model cannot be divided, the default.
    fn sharded(self: Arc<Self>, group: &Group) -> Option<Arc<dyn PromptModel>> {
        let _ = group;
        None
    }
}

/// A denoiser that is conditioned on a class label.
pub trait ClassModel: Debug + Send + Sync {
    /// Returns the configuration that the model was made with.
    fn config(&self) -> &ClassConfig;

    /// Predicts noise and variance.
    ///
    /// - `latents` `[B, C, T, H, W]`: noisy images or clips, square in patches.
    /// - `timesteps` `[B]`: on the scale 0..1000, may be fractional.
    /// - `labels` `[B]`: classes, the null class ([`ClassConfig::null_class`]) included.
    ///
    /// Returns `[B, C_out, T, H, W]` in f32: `eps`, then the variance interpolation.
    ///
    /// # Panics
    /// Panics if the size does not fit (ask [`ClassConfig::grid`] first), a label has no row, or batch
    /// sizes differ.
    fn forward(&self, latents: Tensor<5>, timesteps: &[f32], labels: &[usize]) -> Tensor<5>;

    /// Returns the work of a forward pass over `samples` of `grid` tokens along (t, h, w).
    fn work(&self, samples: usize, grid: [usize; 3]) -> DenoiserWork;
}

/// Error for a denoiser that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] SizeError),
    /// The checkpoint cannot be read or does not fit the configuration.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
