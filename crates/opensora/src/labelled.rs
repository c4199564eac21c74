//! Denoiser for samplers from a model that is conditioned on class labels.

use crate::{
    diffusion::{Condition, DenoiseError, Denoiser},
    stdit::{ClassModel, DenoiserWork, SizeError},
};
use burn::tensor::Tensor;
use std::cell::Cell;

/// A model with the labels of a batch; guidance takes the null class beside each label.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/text_encoder/classes.py`, class
/// `ClassEncoder`.
#[derive(Debug)]
pub struct LabelledDenoiser<'a> {
    model: &'a dyn ClassModel,
    labels: Vec<usize>,
    /// In a cell, since samplers hold a denoiser by shared reference.
    work: Cell<DenoiserWork>,
}

impl<'a> LabelledDenoiser<'a> {
    /// Returns the denoiser of `labels`, one for each sample of the batch.
    ///
    /// # Errors
    /// Returns an error if a label is not a class of the model.
    pub fn new(model: &'a dyn ClassModel, labels: &[usize]) -> Result<Self, SizeError> {
        model.config().check_labels(labels)?;
        Ok(Self { model, labels: labels.to_vec(), work: Cell::default() })
    }

    /// Returns the work done so far.
    pub fn work(&self) -> DenoiserWork {
        self.work.get()
    }

    fn null_labels(&self) -> Result<Vec<usize>, SizeError> {
        let null = self.model.config().null_class().ok_or(SizeError::NoNullClass)?;
        Ok(vec![null; self.labels.len()])
    }

    fn forward(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        labels: &[usize],
    ) -> Result<Tensor<5>, SizeError> {
        let config = self.model.config();
        let [samples, _, frames, height, width] = latents.dims();
        let grid = config.grid([frames, height, width])?;
        self.work.set(self.work.get() + self.model.work(samples, grid));
        Ok(self.model.forward(latents, &vec![timestep; samples], labels))
    }
}

impl Denoiser for LabelledDenoiser<'_> {
    fn denoise(
        &self,
        latents: Tensor<5>,
        timestep: f32,
        condition: Condition,
    ) -> Result<Tensor<5>, DenoiseError> {
        Ok(match condition {
            Condition::Prompt => self.forward(latents, timestep, &self.labels)?,
            Condition::Null => self.forward(latents, timestep, &self.null_labels()?)?,
        })
    }

    /// One forward pass over twice the batch.
    fn denoise_both(
        &self,
        latents: Tensor<5>,
        timestep: f32,
    ) -> Result<(Tensor<5>, Tensor<5>), DenoiseError> {
        let batch = latents.dims()[0];
        let labels = [self.labels.clone(), self.null_labels()?].concat();
        let both = Tensor::cat(vec![latents.clone(), latents], 0);
        let out = self.forward(both, timestep, &labels)?;
        Ok((out.clone().narrow(0, 0, batch), out.narrow(0, batch, batch)))
    }
}
