//! Prompts to frames.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/inference.py`. Deviation: the reference keeps all
//! models resident; here each is loaded, used and dropped in turn.

use crate::{
    denoiser::{PromptedDenoiser, StDitModel},
    diffusion::{AsNoise, PredictionType, SampleError, sampler::SamplerError},
    frames::to_frames,
    model_files::ModelFiles,
    nn::{
        dtype::{Dtype, DtypeError},
        noise::{Purpose, normal_batch},
    },
    request::SampleRequest,
    stdit::{DenoiserWork, SizeError, StDit, StreamedStDit, stdit::LoadError as DenoiserLoadError},
    t5::{PromptStates, T5Config, T5Encoder, TextEncodeError, TextEncoder},
    vae::{AutoencoderKl, VaeConfig, VaeConfigError},
    video::{Frames, FramesError},
};
use burn::tensor::{Device, Tensor};
use opensora_checkpoint::{Checkpoint, CheckpointError, ImportReport};
use std::ops::ControlFlow;

/// Sees how far the work is, and may stop it.
pub trait Observer {
    /// A model is about to be loaded.
    fn loading(&mut self, _what: &str) {}

    /// A model was loaded.
    fn loaded(&mut self, _report: &ImportReport) {}

    /// `step` of `steps` of the sampler is done, for batch `batch` of `batches` (counted from 0,
    /// steps from 1). Breaking stops the sampling.
    fn sampled(
        &mut self,
        _step: usize,
        _steps: usize,
        _batch: usize,
        _batches: usize,
    ) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// `frames` of `total` frames are decoded.
    fn decoded(&mut self, _frames: usize, _total: usize) {}
}

/// Sees nothing and stops nothing.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Observer for Quiet {}

/// Why there is no video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A dtype that the device lacks.
    #[error(transparent)]
    Dtype(#[from] DtypeError),
    /// A size that the denoiser cannot have.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A size that the VAE cannot have, or a bad configuration of it.
    #[error(transparent)]
    VaeConfig(#[from] VaeConfigError),
    /// Steps that the sampler cannot have.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Sampling stopped.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The text encoder cannot be loaded.
    #[error(transparent)]
    TextEncoder(#[from] crate::t5::LoadError),
    /// The text encoder's configuration cannot be used.
    #[error(transparent)]
    TextConfig(#[from] crate::t5::T5ConfigError),
    /// The prompts cannot be encoded.
    #[error(transparent)]
    Prompt(#[from] TextEncodeError),
    /// The denoiser cannot be loaded.
    #[error(transparent)]
    Denoiser(#[from] DenoiserLoadError),
    /// The VAE cannot be loaded.
    #[error(transparent)]
    Vae(#[from] crate::vae::LoadError),
    /// A checkpoint cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The pixels cannot be held.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// Parts of different models.
    #[error("the parts do not fit: {0}")]
    Parts(String),
    /// A request that cannot be.
    #[error("{0}")]
    Request(String),
}

/// Text to video, from the files of one model on one device.
#[derive(Debug)]
pub struct TextToVideo {
    files: ModelFiles,
    vae_config: VaeConfig,
    dtype: Dtype,
    t5_dtype: Dtype,
    device: Device,
    low_memory: bool,
}

/// Frames that the VAE takes at once: enough to keep a device busy, few enough for its memory. Where
/// memory is short it takes one.
const DECODE_MICRO_BATCH: usize = 4;

/// Rows of the tiles that it decodes a frame in where memory is short.
const TILE_ROWS: usize = 64;

impl TextToVideo {
    /// Checks that the model's files are there and fit each other; no weight is read yet.
    ///
    /// `dtype` is for denoiser and VAE, `t5_dtype` for the text encoder (the reference keeps that
    /// in f32).
    ///
    /// # Errors
    /// Where a file is missing or damaged, the parts do not fit, or the device lacks the dtype.
    pub fn new(
        files: ModelFiles,
        dtype: Dtype,
        t5_dtype: Dtype,
        device: Device,
    ) -> Result<Self, PipelineError> {
        dtype.check(&device)?;
        t5_dtype.check(&device)?;
        files.denoiser_config.validate()?;
        let t5_config = T5Config::read(&files.t5.join("config.json"))?;
        let vae_config = VaeConfig::beside(&files.vae)?;
        for (what, found, expected) in [
            ("caption_channels", t5_config.d_model, files.denoiser_config.caption_channels),
            ("in_channels", vae_config.latent_channels, files.denoiser_config.in_channels),
        ] {
            if found != expected {
                return Err(PipelineError::Parts(format!(
                    "the denoiser's {what} is {expected}, but the part beside it gives {found}"
                )));
            }
        }
        // Headers only: a file that is missing, damaged or of another size than its configuration says is
        // known before minutes are spent and memory is taken.
        StDit::check(&files.denoiser_config, &Checkpoint::open(&files.denoiser)?, &device)?;
        T5Encoder::check(&t5_config, &Checkpoint::open(&files.t5)?, &device)?;
        AutoencoderKl::check(&vae_config, &Checkpoint::open(&files.vae)?, &device)?;
        Ok(Self { files, vae_config, dtype, t5_dtype, device, low_memory: false })
    }

    /// Whether to spend time for memory: the denoiser's blocks are read from its file in every step
    /// instead of being kept, and the VAE decodes one frame at a time, in tiles. What is sampled stays
    /// the same, and the frames do within rounding.
    pub fn with_low_memory(self, low_memory: bool) -> Self {
        Self { low_memory, ..self }
    }

    /// The model's files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Checks a request and gives the size of its latents, `[T, h, w]`.
    ///
    /// # Errors
    /// Where the model cannot make such a clip or the sampler cannot have so many steps.
    pub fn check(&self, request: &SampleRequest) -> Result<[usize; 3], PipelineError> {
        let fail = |text: String| Err(PipelineError::Request(text));
        if request.batch_size == 0 {
            return fail("batch size is 0, expected at least 1".into());
        }
        let [height, width] = request.image_size;
        // 2^31 pixels is far beyond any memory, and keeps products in range.
        let pixels = [request.num_frames, height, width]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .filter(|&pixels| pixels < 1 << 31);
        if pixels.is_none() {
            return fail(format!("{} frames of {height}x{width} are too many", request.num_frames));
        }
        if !request.guidance_scale.is_finite() {
            return fail(format!(
                "guidance scale is {}, expected a number",
                request.guidance_scale
            ));
        }
        request.sampler()?;
        let size = self.vae_config.latent_size([request.num_frames, height, width])?;
        self.files.denoiser_config.grid(size)?;
        Ok(size)
    }

    /// Encodes `prompts` with the text encoder, block by block from its file: states `[B, L, C]` and
    /// mask.
    ///
    /// # Errors
    /// Where it cannot be loaded or a prompt not be encoded.
    pub fn encode_prompts(
        &self,
        prompts: &[impl AsRef<str>],
        observer: &mut dyn Observer,
    ) -> Result<PromptStates, PipelineError> {
        observer.loading("text encoder");
        let tokens = self.files.denoiser_config.model_max_length;
        let (encoder, report) =
            TextEncoder::stream(&self.files.t5, tokens, self.t5_dtype.float(), &self.device)?;
        observer.loaded(&report);
        Ok(encoder.encode(prompts)?)
    }

    /// Loads the denoiser, samples latents for every prompt and drops it: `[B, C, T, h, w]`.
    ///
    /// # Errors
    /// Where it cannot be loaded or, with little memory, not be read on the way, the request does not
    /// fit it, or the observer stops the work.
    pub fn sample(
        &self,
        prompts: &PromptStates,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, PipelineError> {
        self.sample_counted(prompts, request, observer).map(|(latents, _)| latents)
    }

    /// [`sample`](Self::sample), and the work that the denoiser did for it.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_counted(
        &self,
        prompts: &PromptStates,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<(Tensor<5>, DenoiserWork), PipelineError> {
        let size = self.check(request)?;
        let config = &self.files.denoiser_config;
        let [samples, tokens, width] = prompts.states.dims();
        if [tokens, width] != [config.model_max_length, config.caption_channels] {
            return Err(PipelineError::Parts(format!(
                "prompt states are {tokens} tokens of width {width}, the denoiser wants {} of {}",
                config.model_max_length, config.caption_channels
            )));
        }
        observer.loading("denoiser");
        let checkpoint = Checkpoint::open(&self.files.denoiser)?;
        let prediction_type = self.prediction_type(&checkpoint)?;
        let (model, report) = self.open_denoiser(checkpoint)?;
        observer.loaded(&report);

        let sampler = request.sampler()?;
        let guidance = request.guidance();
        let batches = samples.div_ceil(request.batch_size);
        let mut latents = Vec::with_capacity(batches);
        let mut work = DenoiserWork::default();
        for batch in 0..batches {
            let first = batch * request.batch_size;
            let count = request.batch_size.min(samples - first);
            let states = PromptStates {
                states: prompts.states.clone().narrow(0, first, count),
                mask: prompts.mask.select(first, first + count),
            };
            let prompted =
                PromptedDenoiser::new(&*model, &states).with_reuse(request.attention_reuse);
            let denoiser = AsNoise::new(&prompted, prediction_type);
            let shape = [count, config.in_channels, size[0], size[1], size[2]];
            let noise = |purpose, step: usize| {
                normal_batch(request.seed, purpose, first as u64, step as u64, shape, &self.device)
            };
            latents.push(sampler.sample(
                &denoiser,
                &guidance,
                noise(Purpose::InitialLatents, 0),
                |step| noise(Purpose::SamplerStep, step),
                |info| observer.sampled(info.step + 1, info.total, batch, batches),
            )?);
            work += prompted.work();
        }
        Ok((Tensor::cat(latents, 0), work))
    }

    /// The denoiser in memory, or where that is short in its file.
    fn open_denoiser(
        &self,
        checkpoint: Checkpoint,
    ) -> Result<(Box<dyn StDitModel>, ImportReport), DenoiserLoadError> {
        let (config, dtype) = (&self.files.denoiser_config, self.dtype.float());
        Ok(if self.low_memory {
            let (model, report) = StreamedStDit::open(config, checkpoint, dtype, &self.device)?;
            (Box::new(model), report)
        } else {
            let (model, report) = StDit::load(config, &checkpoint, dtype, &self.device)?;
            (Box::new(model), report)
        })
    }

    /// What the denoiser's first channels name, by the model's description and the weights' own note.
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

    /// Loads the VAE, decodes latents `[B, C, T, h, w]` and drops it: one clip each, handed to
    /// `sink` as soon as it is there.
    ///
    /// # Errors
    /// Where it cannot be loaded, the latents do not fit it, or `sink` fails.
    pub fn decode<E: From<PipelineError>>(
        &self,
        latents: Tensor<5>,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(usize, Frames) -> Result<(), E>,
    ) -> Result<(), E> {
        let [samples, channels, frames, ..] = latents.dims();
        if channels != self.vae_config.latent_channels {
            return Err(PipelineError::Parts(format!(
                "latents have {channels} channels, the VAE has {}",
                self.vae_config.latent_channels
            ))
            .into());
        }
        observer.loading("VAE");
        let load = || -> Result<_, PipelineError> {
            let checkpoint = Checkpoint::open(&self.files.vae)?;
            let dtype = self.dtype.float();
            Ok(AutoencoderKl::load(&self.vae_config, &checkpoint, dtype, &self.device)?)
        };
        let (vae, report) = load()?;
        observer.loaded(&report);
        let micro_batch = if self.low_memory { 1 } else { DECODE_MICRO_BATCH };
        for sample in 0..samples {
            let clip = latents.clone().narrow(0, sample, 1);
            let mut parts = Vec::new();
            for part in clip.split(micro_batch, 2) {
                parts.push(if self.low_memory {
                    vae.decode_in_tiles(part, None, TILE_ROWS)
                } else {
                    vae.decode(part, None)
                });
                let done = sample * frames + (parts.len() * micro_batch).min(frames);
                observer.decoded(done, samples * frames);
            }
            let clip = to_frames(Tensor::cat(parts, 2)).map_err(PipelineError::from)?;
            for frames in clip {
                sink(sample, frames)?;
            }
        }
        Ok(())
    }

    /// Prompts to clips, one each.
    ///
    /// # Errors
    /// Where the request does not fit the model, a part cannot be loaded, or the observer stops
    /// the work.
    pub fn generate(
        &self,
        prompts: &[impl AsRef<str>],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Frames>, PipelineError> {
        self.check(request)?;
        let states = self.encode_prompts(prompts, observer)?;
        let latents = self.sample(&states, request, observer)?;
        let mut clips = Vec::with_capacity(prompts.len());
        self.decode(latents, observer, |_, clip| {
            clips.push(clip);
            Ok::<_, PipelineError>(())
        })?;
        Ok(clips)
    }
}
