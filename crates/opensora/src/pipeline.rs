//! Prompts or labels to frames.
//!
//! A call of [`TextToVideo::generate`] is three steps, which can be called one by one: [`encode`] turns
//! prompts into states, a [`LoadedDenoiser`] samples latents for them, and a [`LoadedVae`] decodes those.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/inference.py`. Deviation: the reference keeps all
//! models resident; here each is loaded, used and dropped in turn unless [`Residency`] says otherwise.
//!
//! [`encode`]: TextToVideo::encode

mod class;
mod conditioning;
mod decode_plan;
mod decoding;
mod error;
mod finite;
mod observer;
mod residency;
mod sampling;

pub use class::ClassToVideo;
pub use conditioning::Conditioning;
pub use decoding::LoadedVae;
pub use error::PipelineError;
pub use observer::{Observer, Quiet};
pub use residency::Residency;
pub use sampling::LoadedDenoiser;

use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    model_files::{ModelFiles, ScaleRule, published_scales},
    nn::dtype::Dtype,
    presets::Architecture,
    request::SampleRequest,
    stdit::{
        AttentionReuse, DenoiserConfig, DenoiserWork, PixArt, PixArtMs, PositionScales, StDit,
    },
    t5::{T5Config, T5Encoder, TextEncoder},
    vae::{AutoencoderKl, VaeConfig},
    video::Frames,
};
use burn::tensor::{Device, Tensor};
use residency::Slot;
use sampling::Weights;
use std::{ops::Range, sync::Arc};

/// A clip and what it was sampled with.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// The clip's place in the list of prompts.
    pub index: usize,
    /// The clips that were sampled at once.
    pub batch: Range<usize>,
    /// The clip.
    pub clip: Frames,
    /// The denoiser's work so far, over all batches.
    pub work: DenoiserWork,
}

/// Text to video, from the files of one model on one device.
///
/// Threads may share a pipeline: no call changes what another one computes, and models that stay in memory
/// ([`with_residency`](Self::with_residency)) are loaded once for all.
#[derive(Debug)]
pub struct TextToVideo {
    files: ModelFiles,
    vae_config: VaeConfig,
    dtype: Dtype,
    t5_dtype: Dtype,
    device: Device,
    low_memory: bool,
    residency: Residency,
    resident_text: Slot<Arc<TextEncoder>>,
    resident_denoiser: Slot<Weights>,
    resident_vae: Slot<AutoencoderKl>,
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
        Ok(Self {
            files,
            vae_config,
            dtype,
            t5_dtype,
            device,
            low_memory: false,
            residency: Residency::Sequential,
            resident_text: Slot::default(),
            resident_denoiser: Slot::default(),
            resident_vae: Slot::default(),
        })
    }

    /// Says which models stay in memory between calls. With low memory none does.
    ///
    /// ```no_run
    /// # use opensora::{ModelFiles, Quiet, TextToVideo, model_files::PartPaths};
    /// # use opensora::nn::{device, dtype::Dtype};
    /// use opensora::pipeline::Residency;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let files = ModelFiles::resolve("opensora-v1-hq-16x256x256", &PartPaths::default())?;
    /// let request = files.defaults.clone();
    /// let pipeline = TextToVideo::new(files, Dtype::F32, Dtype::F32, device::default_device()?)?
    ///     .with_residency(Residency::All);
    /// for (name, prompt) in [("fox.mp4", "a red fox"), ("sea.mp4", "waves at night")] {
    ///     // Reads the models' files for the first prompt only.
    ///     pipeline.generate(&[prompt], &request, &mut Quiet)?[0].save(name, request.fps)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_residency(self, residency: Residency) -> Self {
        self.release();
        Self { residency, ..self }
    }

    /// Drops the models that are kept in memory; the next call that needs one loads it again.
    pub fn release(&self) {
        self.resident_text.clear();
        self.resident_denoiser.clear();
        self.resident_vae.clear();
    }

    fn keeps_denoiser(&self) -> bool {
        !self.low_memory && self.residency != Residency::Sequential
    }

    fn keeps_all(&self) -> bool {
        !self.low_memory && self.residency == Residency::All
    }

    /// Whether to spend time for memory: STDiT's blocks are read from its file in every step
    /// instead of being kept, and the VAE decodes one frame at a time, in tiles. What is sampled stays
    /// the same, and the frames do within rounding.
    pub fn with_low_memory(self, low_memory: bool) -> Self {
        self.release();
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

    /// Samples latents `[B, C, T, h, w]` for every prompt.
    ///
    /// [`load_denoiser`](Self::load_denoiser) gives more control: latents to start from, and a callback
    /// that sees the latents after each step.
    ///
    /// # Errors
    /// Returns an error if the denoiser cannot be loaded (or, with low memory, read on the way), the
    /// request does not fit it, the latents are not finite after a step, or the observer stops the
    /// work.
    pub fn sample(
        &self,
        conditioning: &Conditioning,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, PipelineError> {
        self.sample_counted(conditioning, request, observer).map(|(latents, _)| latents)
    }

    /// [`sample`](Self::sample), and the work that the denoiser did for it.
    ///
    /// # Errors
    /// Returns the errors of [`sample`](Self::sample).
    pub fn sample_counted(
        &self,
        conditioning: &Conditioning,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<(Tensor<5>, DenoiserWork), PipelineError> {
        let mut latents = Vec::new();
        let work = self.sample_batches(conditioning, request, observer, |batch| {
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
        conditioning: &Conditioning,
        request: &SampleRequest,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(Tensor<5>) -> Result<(), E>,
    ) -> Result<DenoiserWork, E> {
        let mut denoiser = self.load_denoiser(request, observer)?;
        let batches = batches(conditioning, request);
        for (batch, range) in batches.iter().enumerate() {
            let part = conditioning.select(range.clone());
            sink(denoiser.sample(&part, range.start, |info| {
                observer.sampled(info.step + 1, info.total, batch, batches.len())
            })?)?;
        }
        Ok(denoiser.work())
    }

    /// Decodes latents `[B, C, T, h, w]` with the VAE. Each clip goes to `sink` as soon as it is decoded.
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
    /// last batch is decoded unless it [stays](Residency).
    ///
    /// # Errors
    /// Returns an error if a model cannot be loaded, the request does not fit, values are not finite,
    /// the observer stops the work, or `sink` fails. Clips that `sink` got before are complete.
    pub fn sample_each<E: From<PipelineError>>(
        &self,
        conditioning: &Conditioning,
        request: &SampleRequest,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(Sampled) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut denoiser = Some(self.load_denoiser(request, observer)?);
        let mut vae = None;
        let batches = batches(conditioning, request);
        let total: usize = batches.iter().map(ExactSizeIterator::len).sum();
        for (batch, range) in batches.iter().enumerate() {
            let Some(loaded) = &mut denoiser else { break };
            let part = conditioning.select(range.clone());
            let latents = loaded.sample(&part, range.start, |info| {
                observer.sampled(info.step + 1, info.total, batch, batches.len())
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

    /// Samples a clip for each prompt. A prompt that is given several times makes different clips: the
    /// noise of a clip depends on its place in the list.
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
        let states = self.encode(prompts, request, observer)?;
        let mut clips = Vec::with_capacity(prompts.len());
        self.sample_each(&states, request, observer, |sampled| {
            clips.push(sampled.clip);
            Ok::<_, PipelineError>(())
        })?;
        Ok(clips)
    }
}

/// The clips of each batch.
fn batches(conditioning: &Conditioning, request: &SampleRequest) -> Vec<Range<usize>> {
    let clips = conditioning.clips();
    let size = request.batch_size.max(1);
    (0..clips).step_by(size).map(|first| first..(first + size).min(clips)).collect()
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
