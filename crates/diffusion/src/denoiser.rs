//! The trait through which samplers call a model.

use burn::tensor::Tensor;

use crate::prediction::PredictionType;

/// Error of a model's prediction, which samplers return unchanged. Models with weights in memory never fail;
/// models that stream their weights fail if the file cannot be read.
pub type DenoiseError = Box<dyn std::error::Error + Send + Sync>;

/// The condition of a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The prompts of the batch.
    Prompt,
    /// The learnt null caption: the model without a prompt.
    Null,
}

/// A model that predicts the noise in latents. It contains its prompts (one for each sample), so
/// that samplers do not depend on text.
///
/// During sampling all samples of a batch share one timestep.
pub trait Denoiser {
    /// Predicts the noise in `latents` `[B, C, T, H, W]` at `timestep`.
    ///
    /// `timestep` is on the scale of the training process, `0..1000`; DPM-Solver uses fractional
    /// timesteps. Returns `[B, 2C, T, H, W]`: the prediction target (see
    /// [`prediction_type`](Self::prediction_type)), then the interpolation of the variance in its learnt
    /// range, nominally -1 to 1. Models without the second half return `[B, C, T, H, W]`, which only
    /// DPM-Solver can use. The output may have any float dtype; samplers compute in the dtype of the
    /// latents, which should be f32.
    ///
    /// # Errors
    /// Returns an error if the model cannot predict.
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError>;

    /// Returns both predictions for guidance, `(with prompt, with null caption)`.
    ///
    /// The default makes two calls of [`denoise`](Self::denoise). A model can make one call with twice the
    /// batch instead if it has the memory.
    ///
    /// # Errors
    /// Returns an error if the model cannot predict.
    fn denoise_both(
        &self,
        latents: Tensor<5>,
        timestep: f32,
    ) -> Result<(Tensor<5>, Tensor<5>), DenoiseError> {
        let prompt = self.denoise(latents.clone(), timestep, Condition::Prompt)?;
        Ok((prompt, self.denoise(latents, timestep, Condition::Null)?))
    }

    /// Returns the prediction target of the first `C` channels: the noise by default.
    ///
    /// [`Guidance::predict`](crate::Guidance::predict) converts other targets to noise.
    fn prediction_type(&self) -> PredictionType {
        PredictionType::Epsilon
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

    fn prediction_type(&self) -> PredictionType {
        (**self).prediction_type()
    }
}
