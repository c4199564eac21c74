//! The pipeline from class labels to frames.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/inference.py` with `configs/dit/inference` and
//! `configs/latte/inference`.

use super::{
    Clips, DecodedClips, LatentBatches, LoadedDenoiser, LoadedVae, Observer, Part, PipelineError,
    PipelineOptions, SampledLatents,
    observer::Loaded,
    shared::{Core, recorded_target, wrong_target},
    slot::Slot,
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    class_files::ClassFiles,
    diffusion::PredictionType,
    presets::ClassKind,
    request::{RequestError, SampleRequest},
    stdit::{AttentionReuse, ClassModel, Dit, Latte, SizeError},
    video::Frames,
};
use burn::tensor::{Device, Tensor};
use std::sync::Arc;

/// Prediction target of all models with class labels.
const TARGET: PredictionType = PredictionType::Epsilon;

/// Samples images or clips of class labels, from the files of one model on one device.
///
/// The methods are those of [`TextToVideo`](crate::TextToVideo), with labels in place of prompts.
///
/// ```no_run
/// use opensora::{
///     ClassFiles, ClassToVideo, PipelineOptions, labels::LabelSet, model_files::PartPaths, nn::device,
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let files = ClassFiles::resolve("dit-xl-2-256x256", &PartPaths::default())?;
/// let request = files.defaults.clone();
/// let pipeline = ClassToVideo::new(files, PipelineOptions::default(), device::parse("flex")?)?;
/// let labels = [LabelSet::ImageNet1k.find("golden retriever")?, 360];
/// let images = pipeline.generate(&labels, &request, &mut ())?;
/// println!("{} images of {}x{}", images.len(), images[0].height(), images[0].width());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ClassToVideo {
    files: ClassFiles,
    core: Core,
    resident_denoiser: Slot<Arc<dyn ClassModel>>,
}

impl ClassToVideo {
    /// Checks that the model's files exist and fit each other; reads no weights. The text encoder's dtype in
    /// `options` has no effect.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, the parts do not fit, or the device lacks the
    /// dtype.
    pub fn new(
        files: ClassFiles,
        options: PipelineOptions,
        device: Device,
    ) -> Result<Self, PipelineError> {
        files.config.validate()?;
        let (denoiser, vae) = (files.denoiser.clone(), files.vae.clone());
        let core = Core::new(denoiser, vae, files.config.in_channels, options, device)?;
        let checkpoint = Checkpoint::open(&files.denoiser)?;
        match files.kind {
            ClassKind::Dit => Dit::check(&files.config, &checkpoint, &core.device)?,
            ClassKind::Latte => Latte::check(&files.config, &checkpoint, &core.device)?,
        };
        if let Some(target) = recorded_target(&checkpoint)?
            && target != TARGET
        {
            let (found, expected) = (target.name(), TARGET.name());
            let reason = format!(
                "the weights predict {found}, expected {expected} for models with class labels"
            );
            return Err(wrong_target(&checkpoint, reason));
        }
        Ok(Self { files, core, resident_denoiser: Slot::default() })
    }

    /// Drops the models that are kept in memory; the next call that needs one loads it again. A model that is being
    /// loaded stays. An observer may call this at any event.
    pub fn release(&self) {
        self.resident_denoiser.clear();
        self.core.release();
    }

    /// Returns the model's files.
    pub fn files(&self) -> &ClassFiles {
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

    /// Checks labels and a request, and returns the size of the latents, `[T, h, w]`.
    ///
    /// # Errors
    /// Returns an error if a label is not a class of the model, the model cannot make such an image or clip
    /// or cannot be guided, or the sampler cannot run with so many steps.
    pub fn check(
        &self,
        labels: &[usize],
        request: &SampleRequest,
    ) -> Result<[usize; 3], PipelineError> {
        self.files.config.check_labels(labels)?;
        self.check_request(request)
    }

    fn check_request(&self, request: &SampleRequest) -> Result<[usize; 3], PipelineError> {
        request.validate()?;
        let unsupported = [
            ("attention reuse", request.attention_reuse != AttentionReuse::OFF),
            ("a scale of positions", request.space_scale.or(request.time_scale).is_some()),
            ("a negative prompt", request.negative_prompt.is_some()),
        ];
        if let Some((setting, _)) = unsupported.into_iter().find(|(_, given)| *given) {
            let model = "models with class labels";
            return Err(RequestError::Unsupported { setting, model }.into());
        }
        let config = &self.files.config;
        if request.guidance().needs_null() && config.null_class().is_none() {
            return Err(SizeError::NoNullClass.into());
        }
        let size = self.core.check(request)?;
        config.grid(size)?;
        request.check_variance(config.learn_sigma)?;
        Ok(size)
    }

    /// Loads the denoiser for a request, or takes the one that [stays](super::Residency) in memory.
    ///
    /// # Errors
    /// Returns an error if the request does not fit the model or the denoiser cannot be loaded.
    pub fn load_denoiser(
        &self,
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<LoadedDenoiser<'_, [usize]>, PipelineError> {
        let size = self.check_request(request)?;
        let options = &self.core.options;
        let keep = options.residency.keeps_denoiser();
        let model = self.resident_denoiser.get(keep, || {
            observer.loading(Part::Denoiser);
            let checkpoint = Checkpoint::open(&self.files.denoiser)?;
            let (config, dtype) = (&self.files.config, options.dtype);
            let device = &self.core.device;
            let (model, report): (Arc<dyn ClassModel>, _) = match self.files.kind {
                ClassKind::Dit => {
                    let (model, report) = Dit::load(config, &checkpoint, dtype, device)?;
                    (Arc::new(model), report)
                }
                ClassKind::Latte => {
                    let (model, report) = Latte::load(config, &checkpoint, dtype, device)?;
                    (Arc::new(model), report)
                }
            };
            observer.loaded(&Loaded { part: Part::Denoiser, report: &report });
            Ok::<_, PipelineError>(model)
        })?;
        LoadedDenoiser::new(&self.core, model, TARGET, request, size)
    }

    /// Loads the VAE, or takes the one that [stays](super::Residency) in memory.
    ///
    /// # Errors
    /// Returns an error if the VAE cannot be loaded.
    pub fn load_vae(&self, observer: &mut dyn Observer) -> Result<LoadedVae<'_>, PipelineError> {
        self.core.load_vae(observer)
    }

    /// Returns an iterator that samples latents batch by batch; see
    /// [`TextToVideo::latents`](crate::TextToVideo::latents).
    ///
    /// # Errors
    /// Returns an error if the labels or the request do not fit the model, or the denoiser cannot be loaded.
    /// Each item is an error if the latents are not finite after a step or the observer stops the sampling.
    pub fn latents<'a>(
        &'a self,
        labels: &'a [usize],
        request: &SampleRequest,
        observer: &'a mut dyn Observer,
    ) -> Result<LatentBatches<'a, [usize]>, PipelineError> {
        self.check(labels, request)?;
        let denoiser = self.load_denoiser(request, observer)?;
        Ok(LatentBatches::new(denoiser, labels, observer))
    }

    /// Samples latents `[B, C, T, h, w]` for every label.
    ///
    /// # Errors
    /// Returns the errors of [`latents`](Self::latents) and of its items.
    pub fn sample(
        &self,
        labels: &[usize],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<SampledLatents, PipelineError> {
        let batches = self.latents(labels, request, observer)?;
        Ok(batches.collect_all()?.ok_or(RequestError::NoClips)?)
    }

    /// Returns an iterator that decodes latents `[B, C, T, h, w]`; see
    /// [`TextToVideo::decode`](crate::TextToVideo::decode).
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

    /// Returns an iterator that samples and decodes images or clips; see
    /// [`TextToVideo::clips`](crate::TextToVideo::clips).
    ///
    /// # Errors
    /// Returns the errors of [`latents`](Self::latents). Each item is an error if a batch cannot be sampled
    /// or decoded; the items before it are complete.
    pub fn clips<'a>(
        &'a self,
        labels: &'a [usize],
        request: &SampleRequest,
        observer: &'a mut dyn Observer,
    ) -> Result<Clips<'a, [usize]>, PipelineError> {
        Ok(Clips::new(&self.core, self.latents(labels, request, observer)?))
    }

    /// Samples an image or clip for each label.
    ///
    /// # Errors
    /// Returns an error if the labels or the request do not fit the model, a part cannot be loaded,
    /// values are not finite, or the observer stops the sampling.
    pub fn generate(
        &self,
        labels: &[usize],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Frames>, PipelineError> {
        self.clips(labels, request, observer)?.map(|sampled| Ok(sampled?.clip)).collect()
    }
}
