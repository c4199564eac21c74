//! What a sampler asks of a model.

use burn::tensor::Tensor;

/// Why a model gave no answer: its own error, which samplers pass on as it is. Models whose weights
/// are in memory have none; others may lose the file that they read from.
pub type DenoiseError = Box<dyn std::error::Error + Send + Sync>;

/// What the model is conditioned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The prompts of the batch.
    Prompt,
    /// The learned null caption: the model without a prompt.
    Null,
}

/// A model that names the noise in latents. It holds its prompts itself (one for each sample), so
/// samplers know nothing of text.
///
/// During sampling all samples of a batch share one timestep.
pub trait Denoiser {
    /// The noise in `latents` `[B, C, T, H, W]` at `timestep`.
    ///
    /// `timestep` is on the scale of the training process, `0..1000`; DPM-Solver asks for fractional
    /// ones. Returns `[B, 2C, T, H, W]`: the predicted noise, then the interpolation of the
    /// variance in its learned range, nominally -1 to 1. Models without the second half return
    /// `[B, C, T, H, W]`; only DPM-Solver can use them. Any float dtype; samplers go on in the
    /// dtype of the latents, which should be f32.
    ///
    /// # Errors
    /// Where the model can give no answer.
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError>;

    /// Both predictions for guidance, `(with prompt, with null caption)`.
    ///
    /// Two calls by default; a model that has the memory can make it one of twice the batch.
    ///
    /// # Errors
    /// As [`denoise`](Self::denoise).
    fn denoise_both(
        &self,
        latents: Tensor<5>,
        timestep: f32,
    ) -> Result<(Tensor<5>, Tensor<5>), DenoiseError> {
        let prompt = self.denoise(latents.clone(), timestep, Condition::Prompt)?;
        Ok((prompt, self.denoise(latents, timestep, Condition::Null)?))
    }
}

impl<D: Denoiser + ?Sized> Denoiser for &D {
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError> {
        (**self).denoise(latents, timestep, condition)
    }

    fn denoise_both(
        &self,
        latents: Tensor<5>,
        timestep: f32,
    ) -> Result<(Tensor<5>, Tensor<5>), DenoiseError> {
        (**self).denoise_both(latents, timestep)
    }
}
