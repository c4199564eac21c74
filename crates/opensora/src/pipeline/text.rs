//! The pipeline from prompts to frames.

use super::{
    Clips, Conditioning, DecodedClips, LatentBatches, LoadedVae, Observer, PipelineError,
    PipelineOptions, SampledLatents, SamplingRanks,
    shared::{Core, check_fit},
    slot::Slot,
    weights::{Weights, prediction_type},
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    model_files::{ModelFiles, ScaleRule, published_scales},
    nn::dtype,
    presets::Architecture,
    request::{RequestError, SampleRequest},
    stdit::{AttentionReuse, DenoiserConfig, PixArt, PixArtMs, PositionScales, StDit},
    t5::{T5Config, T5Encoder, TextEncoder},
    video::Frames,
};
use burn::tensor::{Device, Tensor};
use std::sync::Arc;

/// Text to video, from the files of one model on one device.
///
/// | method | from | to |
/// |---|---|---|
/// | [`generate`](Self::generate) | prompts | all clips |
/// | [`encode`](Self::encode) | prompts | [`Conditioning`] |
/// | [`clips`](Self::clips) | conditioning | clips one by one, for many prompts |
/// | [`sample`](Self::sample) | conditioning | all latents |
/// | [`latents`](Self::latents) | conditioning | latents batch by batch |
/// | [`decode`](Self::decode) | latents | clips one by one |
/// | [`load_denoiser`](Self::load_denoiser), [`load_vae`](Self::load_vae) | | models, for latents of your own and for encoding clips |
///
/// Every method takes a [`SampleRequest`] where it needs one, and an [`Observer`] that receives progress and
/// may stop the sampling.
///
/// Threads may share a pipeline: no call changes what another one computes, and models that stay in memory
/// ([`Residency`](super::Residency)) are loaded once for all.
#[derive(Debug)]
pub struct TextToVideo {
    pub(super) files: ModelFiles,
    pub(super) core: Core,
    pub(super) resident_text: Slot<Arc<TextEncoder>>,
    pub(super) resident_denoiser: Slot<Weights>,
}

impl TextToVideo {
    /// Checks that the model's files exist and fit each other; reads no weights.
    ///
    /// ```no_run
    /// use opensora::{ModelFiles, PipelineOptions, Residency, TextToVideo};
    /// use opensora::{model_files::PartPaths, nn::device};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let files = ModelFiles::resolve("opensora-v1-hq-16x256x256", &PartPaths::default())?;
    /// let request = files.defaults.clone();
    /// let options = PipelineOptions { residency: Residency::All, ..PipelineOptions::default() };
    /// let pipeline = TextToVideo::new(files, options, device::default_device()?)?;
    /// for (name, prompt) in [("fox.mp4", "a red fox"), ("sea.mp4", "waves at night")] {
    ///     // Reads the models' files for the first prompt only.
    ///     pipeline.generate(&[prompt], &request, &mut ())?[0].save(name, request.fps)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, the parts do not fit, or the device lacks a dtype.
    pub fn new(
        files: ModelFiles,
        options: PipelineOptions,
        device: Device,
    ) -> Result<Self, PipelineError> {
        dtype::check(options.text_dtype, &device)?;
        let config = &files.denoiser_config;
        config.validate()?;
        let t5_config = T5Config::read(&files.t5.join("config.json"))?;
        check_fit("caption_channels", t5_config.d_model, config.caption_channels)?;
        let (denoiser, vae) = (files.denoiser.clone(), files.vae.clone());
        let core = Core::new(denoiser, vae, config.in_channels, options, device)?;
        // Headers only: a file that is missing, damaged or of another size than its configuration is
        // reported before minutes are spent and memory is taken.
        let checkpoint = Checkpoint::open(&files.denoiser)?;
        match files.architecture {
            Architecture::StDit => StDit::check(config, &checkpoint, &core.device)?,
            Architecture::PixArt => PixArt::check(config, &checkpoint, &core.device)?,
            Architecture::PixArtMs { .. } => PixArtMs::check(config, &checkpoint, &core.device)?,
        };
        prediction_type(&files, &checkpoint)?;
        T5Encoder::check(&t5_config, &Checkpoint::open(&files.t5)?, &core.device)?;
        Ok(Self { files, core, resident_text: Slot::default(), resident_denoiser: Slot::default() })
    }

    /// Divides the work of every call among ranks, which all make the same calls with the same arguments and get the
    /// same results.
    ///
    /// ```no_run
    /// use opensora::{TextToVideo, parallel::Group, pipeline::SamplingRanks};
    ///
    /// # fn show(pipeline: TextToVideo, world: Group) -> Result<(), Box<dyn std::error::Error>> {
    /// let pipeline = pipeline.on_ranks(SamplingRanks::by_frames(world.clone()));
    /// let request = pipeline.files().defaults.clone();
    /// let clips = pipeline.generate(&["a red fox"], &request, &mut ())?;
    /// if world.rank() == 0 {
    ///     clips[0].save("fox.mp4", request.fps)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_ranks(mut self, ranks: SamplingRanks) -> Self {
        self.core.ranks = ranks;
        self
    }

    /// Drops the models that are kept in memory; the next call that needs one loads it again. A model that is being
    /// loaded stays. An observer may call this at any event.
    pub fn release(&self) {
        self.resident_text.clear();
        self.resident_denoiser.clear();
        self.core.release();
    }

    /// Returns the model's files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Returns the pipeline's options.
    pub fn options(&self) -> &PipelineOptions {
        &self.core.options
    }

    /// Returns the device that the pipeline runs on.
    pub fn device(&self) -> &Device {
        &self.core.device
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

    /// Returns the denoiser's configuration for a request.
    pub(super) fn denoiser_config(&self, request: &SampleRequest) -> DenoiserConfig {
        let scales = self.position_scales(request);
        DenoiserConfig { scales, ..self.files.denoiser_config.clone() }
    }

    /// Checks a request and returns the size of its latents, `[T, h, w]`.
    ///
    /// # Errors
    /// Returns an error if the model cannot make such a clip, the sampler cannot run with so many steps, or the
    /// ranks cannot divide the model's frames.
    pub fn check(&self, request: &SampleRequest) -> Result<[usize; 3], PipelineError> {
        request.validate()?;
        let architecture = self.files.architecture;
        if architecture != Architecture::StDit && self.core.ranks.frames().is_some() {
            return Err(self.undivided());
        }
        if architecture != Architecture::StDit && request.attention_reuse != AttentionReuse::OFF {
            let (setting, model) = ("attention reuse", architecture.name());
            return Err(RequestError::Unsupported { setting, model }.into());
        }
        let size = self.core.check(request)?;
        let config = self.denoiser_config(request);
        config.validate()?;
        request.check_variance(config.pred_sigma)?;
        config.grid(size)?;
        Ok(size)
    }

    /// Loads the VAE, or takes the one that [stays](super::Residency) in memory.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot be loaded.
    pub fn load_vae(&self, observer: &mut dyn Observer) -> Result<LoadedVae<'_>, PipelineError> {
        self.core.load_vae(observer)
    }

    /// Returns an iterator that samples latents batch by batch, so that complete batches survive an error.
    ///
    /// [`load_denoiser`](Self::load_denoiser) gives more control, such as latents to start from.
    ///
    /// # Errors
    /// Returns an error if the request does not fit the model or the denoiser cannot be loaded. Each item is
    /// an error if a streamed denoiser cannot be read, the conditioning does not fit the model, the latents
    /// are not finite after a step, or the observer stops the sampling.
    pub fn latents<'a>(
        &'a self,
        conditioning: &'a Conditioning,
        request: &SampleRequest,
        observer: &'a mut dyn Observer,
    ) -> Result<LatentBatches<'a>, PipelineError> {
        let denoiser = self.load_denoiser(request, observer)?;
        Ok(LatentBatches::new(denoiser, conditioning, observer))
    }

    /// Samples latents `[B, C, T, h, w]` for every prompt.
    ///
    /// # Errors
    /// Returns the errors of [`latents`](Self::latents) and of its items.
    pub fn sample(
        &self,
        conditioning: &Conditioning,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<SampledLatents, PipelineError> {
        let batches = self.latents(conditioning, request, observer)?;
        Ok(batches.collect_all()?.ok_or(RequestError::NoClips)?)
    }

    /// Returns an iterator that decodes latents `[B, C, T, h, w]` to clips.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot be loaded. Each item is an error if the latents do not fit the VAE
    /// or decoded values are not finite.
    pub fn decode<'a>(
        &'a self,
        latents: Tensor<5>,
        observer: &'a mut dyn Observer,
    ) -> Result<DecodedClips<'a>, PipelineError> {
        self.core.decode(latents, observer)
    }

    /// Returns an iterator that samples and decodes clips. All clips of a batch are decoded before the next batch
    /// is sampled, so that complete clips survive an error.
    ///
    /// The denoiser stays loaded beside the VAE while batches are left. It is dropped before the last batch
    /// is decoded unless it [stays](super::Residency).
    ///
    /// ```no_run
    /// # use opensora::{PipelineError, SampleRequest, TextToVideo};
    /// # fn many(pipeline: &TextToVideo, request: &SampleRequest) -> Result<(), Box<dyn std::error::Error>> {
    /// let prompts = ["a red fox", "waves at night", "a drone above the sea"];
    /// let conditioning = pipeline.encode(&prompts, request, &mut ())?;
    /// for sampled in pipeline.clips(&conditioning, request, &mut ())? {
    ///     let sampled = sampled?;
    ///     sampled.clip.save(format!("{}.mp4", sampled.index), request.fps)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`latents`](Self::latents). Each item is an error if a batch cannot be sampled
    /// or decoded.
    pub fn clips<'a>(
        &'a self,
        conditioning: &'a Conditioning,
        request: &SampleRequest,
        observer: &'a mut dyn Observer,
    ) -> Result<Clips<'a>, PipelineError> {
        Ok(Clips::new(&self.core, self.latents(conditioning, request, observer)?))
    }

    /// Samples a clip for each prompt. A prompt that is given several times makes different clips: the
    /// noise of a clip depends on its index in the list.
    ///
    /// # Errors
    /// Returns an error if the request does not fit the model, a part cannot be loaded, values are not
    /// finite, or the observer stops the sampling.
    pub fn generate(
        &self,
        prompts: &[impl AsRef<str>],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Frames>, PipelineError> {
        self.check(request)?;
        let conditioning = self.encode(prompts, request, observer)?;
        self.clips(&conditioning, request, observer)?.map(|sampled| Ok(sampled?.clip)).collect()
    }
}
