//! The denoiser of a request, loaded once for any number of batches.

use super::{PipelineError, TextToVideo, finite};
use crate::{
    checkpoint::Checkpoint,
    denoiser::{PromptedDenoiser, StDitModel},
    diffusion::{AsNoise, Denoiser, FiniteGuard, PredictionType, SampleError, Sampler},
    image_denoiser::SizedPixArt,
    nn::{
        device::is_host,
        dtype::Dtype,
        noise::{Purpose, normal_batch},
    },
    pipeline::Observer,
    presets::Architecture,
    request::SampleRequest,
    stdit::{
        DenoiserConfig, DenoiserWork, ImageSize, PixArt, PixArtMs, StDit, StreamedStDit, keys,
    },
    t5::PromptStates,
};
use burn::tensor::{Device, Tensor};
use std::{ops::ControlFlow, path::Path};

/// A denoiser, in memory or with low memory in its file, with the sampler and the sizes of one request.
#[derive(Debug)]
pub struct LoadedDenoiser<'a> {
    pipeline: &'a TextToVideo,
    request: SampleRequest,
    model: Box<dyn StDitModel>,
    config: DenoiserConfig,
    prediction_type: PredictionType,
    sampler: Sampler,
    /// `[T, h, w]`
    size: [usize; 3],
    work: DenoiserWork,
}

impl TextToVideo {
    /// Loads the denoiser for a request.
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
        observer.loading("denoiser");
        let checkpoint = Checkpoint::open(&self.files.denoiser)?;
        let prediction_type = self.prediction_type(&checkpoint)?;
        let dtype = self.dtype.float();
        let device = &self.device;
        // The published image models have no temporal positions, and clips cannot do without.
        let temporal = request.num_frames > 1;
        let (model, report): (Box<dyn StDitModel>, _) = match self.files.architecture {
            Architecture::StDit if self.low_memory => {
                let (model, report) = StreamedStDit::open(&config, checkpoint, dtype, device)?;
                (Box::new(model), report)
            }
            Architecture::StDit => {
                let (model, report) = StDit::load(&config, &checkpoint, dtype, device)?;
                (Box::new(model), report)
            }
            Architecture::PixArt => {
                let (model, report) = PixArt::load(&config, temporal, &checkpoint, dtype, device)?;
                (Box::new(model), report)
            }
            Architecture::PixArtMs { base_size } => {
                let (model, report) =
                    PixArtMs::load(&config, temporal, &checkpoint, dtype, device)?;
                let model = model.with_base_size(base_size);
                let size = ImageSize::of_pixels(request.image_size);
                (Box::new(SizedPixArt { model, size }), report)
            }
        };
        observer.loaded(&report);
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

    /// The denoiser's prediction target, from the model's description and the weights' metadata.
    fn prediction_type(&self, checkpoint: &Checkpoint) -> Result<PredictionType, PipelineError> {
        let fail = |text: String| {
            PipelineError::Parts(format!("{}: {text}", self.files.denoiser.display()))
        };
        let notes = checkpoint.notes()?;
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
    /// Samples latents `[B, C, T, h, w]` for the states of `B` prompts, the first of which is the
    /// `first`th of the request: its noise index is `request.noise_index + first`.
    /// `on_step(done, steps)` is called after each step and may stop the run.
    ///
    /// # Errors
    /// Returns an error if the states do not fit the model, weights that are not in memory cannot be
    /// read, the latents are not finite after a step, or `on_step` stops the run.
    pub fn sample(
        &mut self,
        prompts: &PromptStates,
        first: usize,
        on_step: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, PipelineError> {
        let Self { pipeline, request, config, size, .. } = self;
        let device = &pipeline.device;
        let [count, tokens, width] = prompts.states.dims();
        if [tokens, width] != [config.model_max_length, config.caption_channels] {
            return Err(PipelineError::Parts(format!(
                "prompt states are {tokens} tokens of width {width}, the denoiser wants {} of {}",
                config.model_max_length, config.caption_channels
            )));
        }
        let prompted =
            PromptedDenoiser::new(&*self.model, prompts).with_reuse(request.attention_reuse);
        let denoiser = AsNoise::new(&prompted, self.prediction_type);
        let run = Run {
            sampler: &self.sampler,
            request,
            weights: &pipeline.files.denoiser,
            dtype: pipeline.dtype,
            device,
        };
        let shape = [count, config.in_channels, size[0], size[1], size[2]];
        let sampled = run.sample(&denoiser, first, shape, on_step);
        self.work += prompted.work();
        sampled
    }

    /// The work that the denoiser has done so far.
    pub fn work(&self) -> DenoiserWork {
        self.work
    }
}

/// A sampler with all that it needs beside its denoiser.
pub(super) struct Run<'a> {
    pub(super) sampler: &'a Sampler,
    pub(super) request: &'a SampleRequest,
    /// The denoiser's file, for messages.
    pub(super) weights: &'a Path,
    pub(super) dtype: Dtype,
    pub(super) device: &'a Device,
}

impl Run<'_> {
    /// Samples latents of `shape`, `[B, C, T, h, w]`, the first of which has the noise index
    /// `request.noise_index + first`. `on_step(done, steps)` is called after each step and may stop the
    /// run.
    pub(super) fn sample(
        &self,
        denoiser: &dyn Denoiser,
        first: usize,
        shape: [usize; 5],
        mut on_step: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, PipelineError> {
        let Self { request, device, .. } = self;
        let index = request.noise_index + first as u64;
        let noise = |purpose, step: usize| {
            normal_batch(request.seed, purpose, index, step as u64, shape, device)
        };
        let mut guard =
            FiniteGuard::new(device, if is_host(device) { 1 } else { finite::READ_EVERY });
        let mut watched = Ok(None);
        let sampled = self.sampler.sample(
            denoiser,
            &request.guidance(),
            noise(Purpose::InitialLatents, 0),
            |step| noise(Purpose::SamplerStep, step),
            |info| {
                watched = guard.watch(&info);
                if !matches!(watched, Ok(None)) {
                    return ControlFlow::Break(());
                }
                on_step(info.step + 1, info.total)
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
