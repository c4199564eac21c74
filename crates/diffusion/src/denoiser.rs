//! What a sampler asks of a model.

use burn::tensor::Tensor;

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
    fn denoise(&self, latents: Tensor<5>, timestep: f32, condition: Condition) -> Tensor<5>;

    /// Both predictions for guidance, `(with prompt, with null caption)`.
    ///
    /// Two calls by default; a model that has the memory can make it one of twice the batch.
    fn denoise_both(&self, latents: Tensor<5>, timestep: f32) -> (Tensor<5>, Tensor<5>) {
        let prompt = self.denoise(latents.clone(), timestep, Condition::Prompt);
        (prompt, self.denoise(latents, timestep, Condition::Null))
    }
}

impl<D: Denoiser + ?Sized> Denoiser for &D {
    fn denoise(&self, latents: Tensor<5>, timestep: f32, condition: Condition) -> Tensor<5> {
        (**self).denoise(latents, timestep, condition)
    }

    fn denoise_both(&self, latents: Tensor<5>, timestep: f32) -> (Tensor<5>, Tensor<5>) {
        (**self).denoise_both(latents, timestep)
    }
}
