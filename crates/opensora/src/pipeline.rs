//! Prompts or labels to frames.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/inference.py`. Deviation: the reference keeps all
//! models resident; here each is loaded, used and dropped in turn.

mod class;
mod decode_plan;
mod decoding;
mod error;
mod finite;
mod observer;
mod sampling;

pub use class::ClassToVideo;
pub use decoding::LoadedVae;
pub use error::PipelineError;
pub use observer::{Observer, Quiet};
pub use sampling::LoadedDenoiser;

use crate::{
    checkpoint::Checkpoint,
    model_files::{ModelFiles, ScaleRule, published_scales},
    nn::dtype::Dtype,
    presets::Architecture,
    request::SampleRequest,
    stdit::{
        AttentionReuse, DenoiserConfig, DenoiserWork, PixArt, PixArtMs, PositionScales, StDit,
    },
    t5::{PromptStates, T5Config, T5Encoder, TextEncoder},
    vae::{AutoencoderKl, VaeConfig},
    video::Frames,
};
use burn::tensor::{Device, Tensor};
use std::ops::Range;

/// A clip and what it was sampled with.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// The prompt's place in the list.
    pub index: usize,
    /// The prompts that were sampled at once.
    pub batch: Range<usize>,
    /// The clip.
    pub clip: Frames,
    /// The denoiser's work so far, over all batches.
    pub work: DenoiserWork,
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
        let denoiser = Checkpoint::open(&files.denoiser)?;
        match files.architecture {
            Architecture::StDit => StDit::check(&files.denoiser_config, &denoiser, &device)?,
            Architecture::PixArt => PixArt::check(&files.denoiser_config, &denoiser, &device)?,
            Architecture::PixArtMs { .. } => {
                PixArtMs::check(&files.denoiser_config, &denoiser, &device)?
            }
        };
        T5Encoder::check(&t5_config, &Checkpoint::open(&files.t5)?, &device)?;
        AutoencoderKl::check(&vae_config, &Checkpoint::open(&files.vae)?, &device)?;
        Ok(Self { files, vae_config, dtype, t5_dtype, device, low_memory: false })
    }

    /// Whether to spend time for memory: STDiT's blocks are read from its file in every step
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

    /// Returns the units of the position tables that a request is sampled with.
    pub fn position_scales(&self, request: &SampleRequest) -> PositionScales {
        let model = match self.files.scales {
            ScaleRule::Fixed => self.files.denoiser_config.scales,
            ScaleRule::ForRequest => published_scales(request),
        };
        PositionScales {
            space_scale: request.space_scale.unwrap_or(model.space_scale),
            time_scale: request.time_scale.unwrap_or(model.time_scale),
        }
    }

    /// The denoiser's configuration for a request.
    fn denoiser_config(&self, request: &SampleRequest) -> DenoiserConfig {
        let scales = self.position_scales(request);
        DenoiserConfig { scales, ..self.files.denoiser_config.clone() }
    }

    /// Checks a request and returns the size of its latents, `[T, h, w]`.
    ///
    /// # Errors
    /// Returns an error if the model cannot make such a clip or the sampler cannot run with so many
    /// steps.
    pub fn check(&self, request: &SampleRequest) -> Result<[usize; 3], PipelineError> {
        check_request(request)?;
        let architecture = self.files.architecture;
        if architecture != Architecture::StDit && request.attention_reuse != AttentionReuse::OFF {
            let name = architecture.name();
            let text =
                format!("attention outputs can be reused in STDiT only, the model is a {name}");
            return Err(PipelineError::Request(text));
        }
        request.sampler()?;
        let [height, width] = request.image_size;
        let size = self.vae_config.latent_size([request.num_frames, height, width])?;
        let config = self.denoiser_config(request);
        config.validate()?;
        config.grid(size)?;
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
        let encoded = encoder.encode(prompts)?;
        if !finite::all_finite(&encoded.states)? {
            let cause = finite::cause(&self.files.t5, Ok, self.t5_dtype, None);
            return Err(PipelineError::NonFinite { what: "the prompt's states", cause });
        }
        Ok(encoded)
    }

    /// Loads the denoiser, samples latents `[B, C, T, h, w]` for every prompt and drops it.
    ///
    /// # Errors
    /// Returns an error if the denoiser cannot be loaded (or, with low memory, read on the way), the
    /// request does not fit it, the latents are not finite after a step, or the observer stops the
    /// work.
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
    /// Returns the errors of [`sample`](Self::sample).
    pub fn sample_counted(
        &self,
        prompts: &PromptStates,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<(Tensor<5>, DenoiserWork), PipelineError> {
        let mut latents = Vec::new();
        let work = self.sample_batches(prompts, request, observer, |batch| {
            latents.push(batch);
            Ok::<_, PipelineError>(())
        })?;
        Ok((Tensor::cat(latents, 0), work))
    }

    /// [`sample_counted`](Self::sample_counted) batch by batch: the latents `[b, C, T, h, w]` of a batch
    /// go to `sink` before the next one is sampled, so that complete ones survive an error.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample) and those of `sink`.
    pub fn sample_batches<E: From<PipelineError>>(
        &self,
        prompts: &PromptStates,
        request: &SampleRequest,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(Tensor<5>) -> Result<(), E>,
    ) -> Result<DenoiserWork, E> {
        let mut denoiser = self.load_denoiser(request, observer)?;
        let batches = batches(prompts, request);
        for (batch, range) in batches.iter().enumerate() {
            let states = prompts.select(range.clone());
            sink(denoiser.sample(&states, range.start, |step, steps| {
                observer.sampled(step, steps, batch, batches.len())
            })?)?;
        }
        Ok(denoiser.work())
    }

    /// Loads the VAE, decodes latents `[B, C, T, h, w]` and drops it. Each clip goes to `sink` as soon
    /// as it is decoded.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot be loaded, the latents do not fit it, decoded values are not
    /// finite, or `sink` fails.
    pub fn decode<E: From<PipelineError>>(
        &self,
        latents: Tensor<5>,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(usize, Frames) -> Result<(), E>,
    ) -> Result<(), E> {
        let [clips, _, frames, ..] = latents.dims();
        let vae = self.load_vae(observer)?;
        for index in 0..clips {
            let clip = vae.decode(latents.clone().narrow(0, index, 1), |done| {
                observer.decoded(index * frames + done, clips * frames);
            })?;
            sink(index, clip)?;
        }
        Ok(())
    }

    /// Samples and decodes batch by batch: each clip goes to `sink` before the next batch is sampled.
    ///
    /// The denoiser stays loaded beside the VAE while batches are left, and is dropped before the
    /// last batch is decoded.
    ///
    /// # Errors
    /// Returns an error if a model cannot be loaded, the request does not fit, values are not finite,
    /// the observer stops the work, or `sink` fails. Clips that `sink` got before are complete.
    pub fn sample_each<E: From<PipelineError>>(
        &self,
        prompts: &PromptStates,
        request: &SampleRequest,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(Sampled) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut denoiser = Some(self.load_denoiser(request, observer)?);
        let mut vae = None;
        let batches = batches(prompts, request);
        let total: usize = batches.iter().map(ExactSizeIterator::len).sum();
        for (batch, range) in batches.iter().enumerate() {
            let Some(loaded) = &mut denoiser else { break };
            let states = prompts.select(range.clone());
            let latents = loaded.sample(&states, range.start, |step, steps| {
                observer.sampled(step, steps, batch, batches.len())
            })?;
            let work = loaded.work();
            if batch + 1 == batches.len() {
                denoiser = None;
            }
            let vae = match &mut vae {
                Some(vae) => vae,
                none => none.insert(self.load_vae(observer)?),
            };
            let frames = latents.dims()[2];
            for index in range.clone() {
                let clip = latents.clone().narrow(0, index - range.start, 1);
                let clip = vae.decode(clip, |done| {
                    observer.decoded(index * frames + done, total * frames);
                })?;
                sink(Sampled { index, batch: range.clone(), clip, work })?;
            }
        }
        Ok(())
    }

    /// Samples a clip for each prompt.
    ///
    /// # Errors
    /// Returns an error if the request does not fit the model, a part cannot be loaded, values are not
    /// finite, or the observer stops the work.
    pub fn generate(
        &self,
        prompts: &[impl AsRef<str>],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Frames>, PipelineError> {
        self.check(request)?;
        let states = self.encode_prompts(prompts, observer)?;
        let mut clips = Vec::with_capacity(prompts.len());
        self.sample_each(&states, request, observer, |sampled| {
            clips.push(sampled.clip);
            Ok::<_, PipelineError>(())
        })?;
        Ok(clips)
    }
}

/// The prompts of each batch.
fn batches(prompts: &PromptStates, request: &SampleRequest) -> Vec<Range<usize>> {
    let prompts = prompts.states.dims()[0];
    let size = request.batch_size.max(1);
    (0..prompts).step_by(size).map(|first| first..(first + size).min(prompts)).collect()
}

/// Checks what no model can do.
fn check_request(request: &SampleRequest) -> Result<(), PipelineError> {
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
    // Room for the indices of all samples of a request.
    if request.noise_index > u64::MAX >> 1 {
        return fail(format!("noise index is {}, expected at most 2^63 - 1", request.noise_index));
    }
    if !request.guidance_scale.is_finite() {
        return fail(format!("guidance scale is {}, expected a number", request.guidance_scale));
    }
    Ok(())
}
