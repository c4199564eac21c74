//! Denoisers of prompts: which weights are loaded, and how a request uses them.

use super::{
    LoadedDenoiser, Observer, Part, PipelineError, TextToVideo, observer::Loaded,
    options::Residency,
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    diffusion::PredictionType,
    presets::Architecture,
    request::SampleRequest,
    stdit::{
        DenoiserConfig, ImageSize, PixArt, PixArtMs, PromptModel, SizedPixArt, StDit, StreamedStDit,
    },
};
use std::sync::Arc;

/// The weights of a denoiser in memory. Requests of all sizes share them: position scales and sizes change
/// tables that every forward pass computes. Clones share their tensors.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    model: Model,
    prediction_type: PredictionType,
}

#[derive(Debug, Clone)]
enum Model {
    StDit(Box<StDit>),
    PixArt(Box<PixArt>),
    PixArtMs(Box<PixArtMs>),
}

impl Model {
    /// Returns the model with the position tables and conditions of a request.
    fn for_request(self, config: &DenoiserConfig, request: &SampleRequest) -> Arc<dyn PromptModel> {
        let scales = config.scales;
        // The published image models have no temporal positions; clips need them.
        let temporal = request.num_frames > 1;
        match self {
            Self::StDit(model) => Arc::new(model.with_scales(scales)),
            Self::PixArt(model) => {
                Arc::new(model.with_scales(scales).with_temporal_positions(temporal))
            }
            Self::PixArtMs(model) => {
                let model = model.with_scales(scales).with_temporal_positions(temporal);
                let size = ImageSize::of_pixels(request.image_size);
                Arc::new(SizedPixArt { model, size })
            }
        }
    }
}

impl TextToVideo {
    /// Loads the denoiser for a request, or takes the one that [stays](super::Residency) in memory.
    ///
    /// # Errors
    /// Returns an error if the request does not fit the model or the denoiser cannot be loaded.
    pub fn load_denoiser(
        &self,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<LoadedDenoiser<'_>, PipelineError> {
        let size = self.check(request)?;
        let config = self.denoiser_config(request);
        let residency = self.core.options.residency;
        let is_streamed =
            residency == Residency::Streamed && self.files.architecture == Architecture::StDit;
        let (model, prediction_type) = if is_streamed {
            self.open_streamed(&config, observer)?
        } else {
            let load = || self.load_weights(observer);
            let weights = self.resident_denoiser.get(residency.keeps_denoiser(), load)?;
            (weights.model.for_request(&config, request), weights.prediction_type)
        };
        let model = match self.core.ranks.frames() {
            Some(group) => model.sharded(group).ok_or_else(|| self.undivided())?,
            None => model,
        };
        LoadedDenoiser::new(&self.core, model, prediction_type, request, size)
    }

    /// The error of a model whose tokens cannot be divided among ranks.
    pub(super) fn undivided(&self) -> PipelineError {
        PipelineError::Parts(format!(
            "{}: the frames of {} cannot be divided among ranks: use one rank, or two for guidance",
            self.files.name,
            self.files.architecture.name()
        ))
    }

    fn load_weights(&self, observer: &mut dyn Observer) -> Result<Weights, PipelineError> {
        observer.loading(Part::Denoiser);
        let checkpoint = Checkpoint::open(&self.core.denoiser)?;
        let prediction_type = self.prediction_type(&checkpoint)?;
        let (config, dtype) = (&self.files.denoiser_config, self.core.options.dtype);
        let device = &self.core.device;
        let (model, report) = match self.files.architecture {
            Architecture::StDit => {
                let (model, report) = StDit::load(config, &checkpoint, dtype, device)?;
                (Model::StDit(Box::new(model)), report)
            }
            Architecture::PixArt => {
                let (model, report) = PixArt::load(config, &checkpoint, dtype, device)?;
                (Model::PixArt(Box::new(model)), report)
            }
            Architecture::PixArtMs { base_size } => {
                let (model, report) = PixArtMs::load(config, &checkpoint, dtype, device)?;
                (Model::PixArtMs(Box::new(model.with_base_size(base_size))), report)
            }
        };
        observer.loaded(&Loaded { part: Part::Denoiser, report: &report });
        Ok(Weights { model, prediction_type })
    }

    fn open_streamed(
        &self,
        config: &DenoiserConfig,
        observer: &mut dyn Observer,
    ) -> Result<(Arc<dyn PromptModel>, PredictionType), PipelineError> {
        observer.loading(Part::Denoiser);
        let checkpoint = Checkpoint::open(&self.core.denoiser)?;
        let prediction_type = self.prediction_type(&checkpoint)?;
        let dtype = self.core.options.dtype;
        let (model, report) = StreamedStDit::open(config, checkpoint, dtype, &self.core.device)?;
        observer.loaded(&Loaded { part: Part::Denoiser, report: &report });
        Ok((Arc::new(model), prediction_type))
    }

    /// Returns the denoiser's prediction target, from the model's description and the weights' metadata.
    fn prediction_type(&self, checkpoint: &Checkpoint) -> Result<PredictionType, PipelineError> {
        let fail = |text: String| {
            PipelineError::Parts(format!("{}: {text}", self.files.denoiser.display()))
        };
        let metadata = checkpoint.metadata()?;
        let recorded = match metadata.get(PredictionType::NOTE) {
            Some(name) => Some(
                PredictionType::from_name(name)
                    .ok_or_else(|| fail(format!("prediction_type '{name}' is not known")))?,
            ),
            None => None,
        };
        match (self.files.prediction_type, recorded) {
            (Some(described), Some(recorded)) if described != recorded => Err(fail(format!(
                "the weights predict {}, the model's description says {}",
                recorded.name(),
                described.name()
            ))),
            (described, recorded) => Ok(described.or(recorded).unwrap_or_default()),
        }
    }
}
