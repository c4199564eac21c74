//! The pipeline from class labels to frames.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `scripts/inference.py` with `configs/dit/inference` and
//! `configs/latte/inference`.

use super::{
    Observer, PipelineError, Sampled, check_request,
    decoding::{LoadedVae, VaePart},
    residency::{Residency, Slot},
    sampling::Run,
};
use crate::{
    checkpoint::{Checkpoint, PublishedModel},
    class_files::ClassFiles,
    diffusion::StepInfo,
    labelled::LabelledDenoiser,
    nn::dtype::Dtype,
    presets::ClassKind,
    request::SampleRequest,
    stdit::{AttentionReuse, ClassModel, DenoiserWork, Dit, Latte, SizeError},
    vae::{AutoencoderKl, VaeConfig},
    video::Frames,
};
use burn::tensor::{Device, Tensor};
use std::{ops::ControlFlow, sync::Arc};

/// Samples images or clips of class labels, from the files of one model on one device.
///
/// ```no_run
/// use opensora::{
///     ClassFiles, ClassToVideo, Quiet,
///     labels::LabelSet,
///     model_files::PartPaths,
///     nn::{device, dtype::Dtype},
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let files = ClassFiles::resolve("dit-xl-2-256x256", &PartPaths::default())?;
/// let request = files.defaults.clone();
/// let pipeline = ClassToVideo::new(files, Dtype::F32, device::parse("flex")?)?;
/// let labels = [LabelSet::ImageNet1k.find("golden retriever")?, 360];
/// let images = pipeline.generate(&labels, &request, &mut Quiet)?;
/// println!("{} images of {}x{}", images.len(), images[0].height(), images[0].width());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ClassToVideo {
    files: ClassFiles,
    vae_config: VaeConfig,
    dtype: Dtype,
    device: Device,
    low_memory: bool,
    residency: Residency,
    resident_denoiser: Slot<Arc<dyn ClassModel>>,
    resident_vae: Slot<AutoencoderKl>,
}

impl ClassToVideo {
    /// Checks that the model's files exist and fit each other; reads no weights.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, the parts do not fit, or the device lacks the
    /// dtype.
    pub fn new(files: ClassFiles, dtype: Dtype, device: Device) -> Result<Self, PipelineError> {
        dtype.check(&device)?;
        files.config.validate()?;
        let vae_config = VaeConfig::beside(&files.vae)?;
        let (found, expected) = (vae_config.latent_channels, files.config.in_channels);
        if found != expected {
            return Err(PipelineError::Parts(format!(
                "the denoiser's in_channels is {expected}, but the part beside it gives {found}"
            )));
        }
        let denoiser = Checkpoint::open(&files.denoiser)?;
        match files.kind {
            ClassKind::Dit => Dit::check(&files.config, &denoiser, &device)?,
            ClassKind::Latte => Latte::check(&files.config, &denoiser, &device)?,
        };
        AutoencoderKl::check(&vae_config, &Checkpoint::open(&files.vae)?, &device)?;
        Ok(Self {
            files,
            vae_config,
            dtype,
            device,
            low_memory: false,
            residency: Residency::Sequential,
            resident_denoiser: Slot::default(),
            resident_vae: Slot::default(),
        })
    }

    /// Says which models stay in memory between calls. With low memory none does.
    pub fn with_residency(self, residency: Residency) -> Self {
        self.release();
        Self { residency, ..self }
    }

    /// Drops the models that are kept in memory; the next call that needs one loads it again.
    pub fn release(&self) {
        self.resident_denoiser.clear();
        self.resident_vae.clear();
    }

    /// Returns the pipeline with the VAE decoding one frame at a time, in tiles, if `low_memory`. The
    /// denoiser is kept in memory either way.
    pub fn with_low_memory(self, low_memory: bool) -> Self {
        Self { low_memory, ..self }
    }

    /// Returns the model's files.
    pub fn files(&self) -> &ClassFiles {
        &self.files
    }

    /// Returns the device that the pipeline runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Checks a request and returns the size of its latents, `[T, h, w]`.
    ///
    /// # Errors
    /// Returns an error if a label is not a class of the model, the model cannot make such an image or clip
    /// or cannot be guided, or the sampler cannot run with so many steps.
    pub fn check(
        &self,
        labels: &[usize],
        request: &SampleRequest,
    ) -> Result<[usize; 3], PipelineError> {
        check_request(request)?;
        let config = &self.files.config;
        config.check_labels(labels)?;
        if request.attention_reuse != AttentionReuse::OFF {
            let text = "attention outputs can be reused in STDiT only";
            return Err(PipelineError::Request(text.into()));
        }
        if request.space_scale.or(request.time_scale).is_some() {
            let text = "the position tables of models with class labels have no scales";
            return Err(PipelineError::Request(text.into()));
        }
        if request.negative_prompt.is_some() {
            let text = "models with class labels have no negative prompt";
            return Err(PipelineError::Request(text.into()));
        }
        request.sampler()?;
        if request.guidance().needs_null() && config.null_class().is_none() {
            return Err(SizeError::NoNullClass.into());
        }
        let [height, width] = request.image_size;
        let size = self.vae_config.latent_size([request.num_frames, height, width])?;
        config.grid(size)?;
        Ok(size)
    }

    /// Samples and decodes batch by batch: each image or clip goes to `sink` before the next batch is
    /// sampled. The denoiser is dropped before the last batch is decoded unless it [stays](Residency).
    ///
    /// # Errors
    /// Returns an error if a model cannot be loaded, the labels or the request do not fit, values are not
    /// finite, the observer stops the work, or `sink` fails. Outputs that `sink` got before are complete.
    pub fn sample_each<E: From<PipelineError>>(
        &self,
        labels: &[usize],
        request: &SampleRequest,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(Sampled) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = self.check(labels, request)?;
        let mut denoiser = Some(self.load_denoiser(observer)?);
        let mut vae = None;
        let mut work = DenoiserWork::default();
        let batches = labels.len().div_ceil(request.batch_size);
        for (batch, part) in labels.chunks(request.batch_size).enumerate() {
            let Some(model) = &denoiser else { break };
            let first = batch * request.batch_size;
            let on_step =
                |info: &StepInfo<'_>| observer.sampled(info.step + 1, info.total, batch, batches);
            let (latents, done) =
                self.sample_batch(&**model, part, first, size, request, on_step)?;
            work += done;
            if batch + 1 == batches {
                denoiser = None;
            }
            let vae = match &mut vae {
                Some(vae) => vae,
                none => none.insert(self.load_vae(observer)?),
            };
            let (range, frames) = (first..first + part.len(), size[0]);
            for index in range.clone() {
                let clip = latents.clone().narrow(0, index - first, 1);
                let clip = vae.decode(clip, |done| {
                    observer.decoded(index * frames + done, labels.len() * frames);
                })?;
                sink(Sampled { index, batch: range.clone(), clip, work })?;
            }
        }
        Ok(())
    }

    /// Samples an image or clip for each label.
    ///
    /// # Errors
    /// Returns an error if the labels or the request do not fit the model, a part cannot be loaded,
    /// values are not finite, or the observer stops the work.
    pub fn generate(
        &self,
        labels: &[usize],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Frames>, PipelineError> {
        let mut clips = Vec::with_capacity(labels.len());
        self.sample_each(labels, request, observer, |sampled| {
            clips.push(sampled.clip);
            Ok::<_, PipelineError>(())
        })?;
        Ok(clips)
    }

    fn load_denoiser(
        &self,
        observer: &mut dyn Observer,
    ) -> Result<Arc<dyn ClassModel>, PipelineError> {
        let keep = !self.low_memory && self.residency != Residency::Sequential;
        self.resident_denoiser.get(keep, || {
            observer.loading("denoiser");
            let checkpoint = Checkpoint::open(&self.files.denoiser)?;
            let (config, dtype) = (&self.files.config, self.dtype.float());
            let (model, report): (Arc<dyn ClassModel>, _) = match self.files.kind {
                ClassKind::Dit => {
                    let (model, report) = Dit::load(config, &checkpoint, dtype, &self.device)?;
                    (Arc::new(model), report)
                }
                ClassKind::Latte => {
                    let (model, report) = Latte::load(config, &checkpoint, dtype, &self.device)?;
                    (Arc::new(model), report)
                }
            };
            observer.loaded(&report);
            Ok(model)
        })
    }

    fn load_vae(&self, observer: &mut dyn Observer) -> Result<LoadedVae<'_>, PipelineError> {
        let part = VaePart {
            path: &self.files.vae,
            config: &self.vae_config,
            dtype: self.dtype,
            device: &self.device,
            low_memory: self.low_memory,
        };
        let keep = !self.low_memory && self.residency == Residency::All;
        part.load(&self.resident_vae, keep, observer)
    }

    /// Samples the latents `[B, C, T, h, w]` of one batch; returns them with the work done.
    fn sample_batch(
        &self,
        model: &dyn ClassModel,
        labels: &[usize],
        first: usize,
        size: [usize; 3],
        request: &SampleRequest,
        on_step: impl FnMut(&StepInfo<'_>) -> ControlFlow<()>,
    ) -> Result<(Tensor<5>, DenoiserWork), PipelineError> {
        let denoiser = LabelledDenoiser::new(model, labels)?;
        let run = Run {
            sampler: &*request.sampler()?,
            request,
            weights: &self.files.denoiser,
            dtype: self.dtype,
            device: &self.device,
        };
        let shape = [labels.len(), self.files.config.in_channels, size[0], size[1], size[2]];
        let start = run.initial_latents(first, shape);
        let latents = run.sample(&denoiser, first, start, on_step)?;
        Ok((latents, denoiser.work()))
    }
}
