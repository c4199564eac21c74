//! The denoiser of a request, loaded once for any number of batches.

use super::{Conditioning, PipelineError, TextToVideo, finite};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    denoiser::PromptedDenoiser,
    diffusion::{Denoiser, FiniteGuard, PredictionType, SampleError, Sampler, StepInfo},
    nn::{
        device::is_host,
        dtype::Dtype,
        noise::{Purpose, normal_batch},
    },
    pipeline::Observer,
    presets::Architecture,
    request::SampleRequest,
    stdit::{
        DenoiserConfig, DenoiserWork, ImageSize, PixArt, PixArtMs, PromptModel, SizedPixArt, StDit,
        StreamedStDit, keys,
    },
};
use burn::tensor::{Device, FloatDType, Tensor};
use std::{ops::ControlFlow, path::Path, sync::Arc};

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
    /// The model with the position tables and conditions of a request.
    fn for_request(self, config: &DenoiserConfig, request: &SampleRequest) -> Box<dyn PromptModel> {
        let scales = config.scales;
        // The published image models have no temporal positions, and clips cannot do without.
        let temporal = request.num_frames > 1;
        match self {
            Self::StDit(model) => Box::new(model.with_scales(scales)),
            Self::PixArt(model) => {
                Box::new(model.with_scales(scales).with_temporal_positions(temporal))
            }
            Self::PixArtMs(model) => {
                let model = model.with_scales(scales).with_temporal_positions(temporal);
                let size = ImageSize::of_pixels(request.image_size);
                Box::new(SizedPixArt { model, size })
            }
        }
    }
}

/// A denoiser, in memory or with low memory in its file, with the sampler and the sizes of one request.
#[derive(Debug)]
pub struct LoadedDenoiser<'a> {
    pipeline: &'a TextToVideo,
    request: SampleRequest,
    model: Box<dyn PromptModel>,
    config: DenoiserConfig,
    prediction_type: PredictionType,
    sampler: Arc<dyn Sampler>,
    /// `[T, h, w]`
    size: [usize; 3],
    work: DenoiserWork,
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
        let (model, prediction_type) =
            if self.low_memory && self.files.architecture == Architecture::StDit {
                self.open_streamed(&config, observer)?
            } else {
                let load = || self.load_weights(observer);
                let weights = self.resident_denoiser.get(self.keeps_denoiser(), load)?;
                (weights.model.for_request(&config, request), weights.prediction_type)
            };
        Ok(LoadedDenoiser {
            pipeline: self,
            request: request.clone(),
            model,
            config,
            prediction_type,
            sampler: request.sampler()?,
            size,
            work: DenoiserWork::default(),
        })
    }

    fn load_weights(&self, observer: &mut dyn Observer) -> Result<Weights, PipelineError> {
        observer.loading("denoiser");
        let checkpoint = Checkpoint::open(&self.files.denoiser)?;
        let prediction_type = self.prediction_type(&checkpoint)?;
        let (config, dtype) = (&self.files.denoiser_config, self.dtype.float());
        let device = &self.device;
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
        observer.loaded(&report);
        Ok(Weights { model, prediction_type })
    }

    fn open_streamed(
        &self,
        config: &DenoiserConfig,
        observer: &mut dyn Observer,
    ) -> Result<(Box<dyn PromptModel>, PredictionType), PipelineError> {
        observer.loading("denoiser");
        let checkpoint = Checkpoint::open(&self.files.denoiser)?;
        let prediction_type = self.prediction_type(&checkpoint)?;
        let (model, report) =
            StreamedStDit::open(config, checkpoint, self.dtype.float(), &self.device)?;
        observer.loaded(&report);
        Ok((Box::new(model), prediction_type))
    }

    /// The denoiser's prediction target, from the model's description and the weights' metadata.
    fn prediction_type(&self, checkpoint: &Checkpoint) -> Result<PredictionType, PipelineError> {
        let fail = |text: String| {
            PipelineError::Parts(format!("{}: {text}", self.files.denoiser.display()))
        };
        let notes = checkpoint.metadata()?;
        let noted = match notes.get(PredictionType::NOTE) {
            Some(name) => Some(
                PredictionType::from_name(name)
                    .ok_or_else(|| fail(format!("prediction_type '{name}' is not known")))?,
            ),
            None => None,
        };
        match (self.files.prediction_type, noted) {
            (Some(said), Some(noted)) if said != noted => Err(fail(format!(
                "the weights predict {}, the model's description says {}",
                noted.name(),
                said.name()
            ))),
            (said, noted) => Ok(said.or(noted).unwrap_or_default()),
        }
    }
}

impl LoadedDenoiser<'_> {
    /// Returns the shape of the latents of `clips` clips, `[B, C, T, h, w]`.
    pub fn latents_shape(&self, clips: usize) -> [usize; 5] {
        let [frames, height, width] = self.size;
        [clips, self.config.in_channels, frames, height, width]
    }

    /// Returns the standard normal noise that [`sample`](Self::sample) starts from, `[B, C, T, h, w]`, for
    /// `clips` clips, the first of which is the `first`th of the request: its noise index is
    /// `request.noise_index + first`.
    pub fn initial_latents(&self, clips: usize, first: usize) -> Tensor<5> {
        self.run().initial_latents(first, self.latents_shape(clips))
    }

    /// Samples latents `[B, C, T, h, w]` for `B` clips, from
    /// [`initial_latents`](Self::initial_latents). `on_step` sees the latents after each step and may stop
    /// the run.
    ///
    /// # Errors
    /// Returns an error if the states do not fit the model, weights that are not in memory cannot be
    /// read, the latents are not finite after a step, or `on_step` stops the run.
    pub fn sample(
        &mut self,
        conditioning: &Conditioning,
        first: usize,
        on_step: impl FnMut(&StepInfo<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, PipelineError> {
        let start = self.initial_latents(conditioning.clips(), first);
        self.sample_from(start, conditioning, first, on_step)
    }

    /// [`sample`](Self::sample) from given latents `[B, C, T, h, w]`, which take the place of the initial
    /// noise: standard normal, such as a mixture of two seeds' noise, or for a sampler that starts at a later
    /// step (such as [`DpmSolver::starting_at`](crate::diffusion::DpmSolver::starting_at)) a clip's noised
    /// latents. `first` still chooses the noise of later steps.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample), and one if the latents have another shape than
    /// [`latents_shape`](Self::latents_shape).
    pub fn sample_from(
        &mut self,
        latents: Tensor<5>,
        conditioning: &Conditioning,
        first: usize,
        on_step: impl FnMut(&StepInfo<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, PipelineError> {
        let config = &self.config;
        for states in [Some(&conditioning.prompts), conditioning.negative.as_ref()] {
            let Some(states) = states else { continue };
            let [_, tokens, width] = states.states.dims();
            if [tokens, width] != [config.model_max_length, config.caption_channels] {
                return Err(PipelineError::Parts(format!(
                    "prompt states are {tokens} tokens of width {width}, the denoiser expects {} of {}",
                    config.model_max_length, config.caption_channels
                )));
            }
        }
        let (found, expected) = (latents.dims(), self.latents_shape(conditioning.clips()));
        if found != expected {
            return Err(PipelineError::Parts(format!(
                "initial latents have the shape {found:?}, expected {expected:?} (clips, channels, \
                 frames, height, width)"
            )));
        }
        let mut prompted = PromptedDenoiser::new(&*self.model, &conditioning.prompts)
            .with_reuse(self.request.attention_reuse)
            .with_prediction_type(self.prediction_type);
        if let Some(negative) = &conditioning.negative {
            prompted = prompted.with_negative(negative);
        }
        let latents = latents.cast(FloatDType::F32);
        let sampled = self.run().sample(&prompted, first, latents, on_step);
        let work = prompted.work();
        drop(prompted);
        self.work += work;
        sampled
    }

    fn run(&self) -> Run<'_> {
        Run {
            sampler: &*self.sampler,
            request: &self.request,
            weights: &self.pipeline.files.denoiser,
            dtype: self.pipeline.dtype,
            device: &self.pipeline.device,
        }
    }

    /// The work that the denoiser has done so far.
    pub fn work(&self) -> DenoiserWork {
        self.work
    }
}

/// A sampler with all that it needs beside its denoiser.
pub(super) struct Run<'a> {
    pub(super) sampler: &'a dyn Sampler,
    pub(super) request: &'a SampleRequest,
    /// The denoiser's file, for messages.
    pub(super) weights: &'a Path,
    pub(super) dtype: Dtype,
    pub(super) device: &'a Device,
}

impl Run<'_> {
    /// The noise of clips before the first step, the first of which has the noise index
    /// `request.noise_index + first`.
    pub(super) fn initial_latents(&self, first: usize, shape: [usize; 5]) -> Tensor<5> {
        self.noise(Purpose::InitialLatents, first, 0, shape)
    }

    fn noise(&self, purpose: Purpose, first: usize, step: usize, shape: [usize; 5]) -> Tensor<5> {
        let index = self.request.noise_index + first as u64;
        normal_batch(self.request.seed, purpose, index, step as u64, shape, self.device)
    }

    /// Samples from `latents` `[B, C, T, h, w]`, the first of which has the noise index
    /// `request.noise_index + first`. `on_step` sees the state after each step and may stop the run.
    pub(super) fn sample(
        &self,
        denoiser: &dyn Denoiser,
        first: usize,
        latents: Tensor<5>,
        mut on_step: impl FnMut(&StepInfo<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, PipelineError> {
        let Self { request, device, .. } = self;
        let shape = latents.dims();
        let mut guard =
            FiniteGuard::new(device, if is_host(device) { 1 } else { finite::READ_EVERY });
        let mut watched = Ok(None);
        let sampled = self.sampler.sample(
            denoiser,
            &request.guidance(),
            latents,
            &mut |step| self.noise(Purpose::SamplerStep, first, step, shape),
            &mut |info: &StepInfo<'_>| {
                watched = guard.watch(info);
                if !matches!(watched, Ok(None)) {
                    return ControlFlow::Break(());
                }
                on_step(info)
            },
        );
        match (sampled, watched?) {
            (Err(SampleError::Interrupted { total, .. }), Some(step)) => {
                let scale = Some(request.guidance_scale);
                let unwrap = |file| keys::unwrapped(&file);
                let cause = finite::cause(self.weights, unwrap, self.dtype, scale);
                Err(PipelineError::NonFiniteLatents { step, total, cause })
            }
            (sampled, _) => Ok(sampled?),
        }
    }
}
