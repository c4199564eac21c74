//! A [`TextToVideo`] as an engine. No other module knows the pipeline.

use crate::{
    engine::{
        BoxError, Decoded, Engine, EngineError, Generated, ModelInfo, Observer, Sampled, Stage,
    },
    preview::{LatentsToRgb, PreviewError},
    request::JobRequest,
};
use opensora::{
    NonFiniteCause, PipelineError, SampleRequest, TextToVideo,
    diffusion::{SampleError, SamplerKind},
    nn::device,
    pipeline::SamplerStep,
    stdit::DenoiserWork,
    vae::VaeConfig,
};
use serde_json::{Map, Value, json};
use std::{ops::ControlFlow, sync::OnceLock};

/// Makes videos with one pipeline. Give it a [`Residency`](opensora::Residency) to keep its models in
/// memory between jobs.
#[derive(Debug)]
pub struct ModelEngine {
    info: ModelInfo,
    pipeline: TextToVideo,
    /// Side of a latent cell in pixels.
    factor: usize,
    /// Fields of every record beside those of the request.
    record: Map<String, Value>,
    /// Fitted when the first preview is wanted; `None` if that failed, and there are no previews.
    to_rgb: OnceLock<Option<LatentsToRgb>>,
}

/// Passes the events of a pipeline on to the observer of a job.
struct Events<'a> {
    observer: &'a mut dyn Observer,
    engine: &'a ModelEngine,
    /// True once a preview of this job has failed: no other is tried.
    preview_failed: bool,
}

impl Events<'_> {
    fn preview(
        &mut self,
        to_rgb: &LatentsToRgb,
        event: &SamplerStep<'_>,
    ) -> Result<(), PreviewError> {
        let done = event.step + 1;
        let clean = event.clean.filter(|_| done < event.steps).unwrap_or(event.latents);
        self.observer.previewed(to_rgb.preview(clean, done)?);
        Ok(())
    }
}

impl opensora::Observer for Events<'_> {
    fn sampler_step(&mut self, event: &SamplerStep<'_>) -> ControlFlow<()> {
        self.observer.sampled(&Sampled::new(event.step + 1, event.steps))?;
        if !self.preview_failed
            && self.observer.wants_preview()
            && let Some(to_rgb) = self.engine.to_rgb(self.observer)
            && let Err(error) = self.preview(to_rgb, event)
        {
            self.preview_failed = true;
            warn(self.observer, &error);
        }
        ControlFlow::Continue(())
    }

    fn decoded(&mut self, event: &opensora::pipeline::Decoded) -> ControlFlow<()> {
        self.observer.decoded(&Decoded::new(event.frames, event.total))
    }
}

impl ModelEngine {
    /// Returns an engine that clients know as `id`.
    ///
    /// # Errors
    /// Returns an error if the VAE's configuration cannot be read.
    pub fn new(id: &str, pipeline: TextToVideo) -> Result<Self, EngineError> {
        let files = pipeline.files();
        let vae = VaeConfig::beside(&files.vae).map_err(|error| failed(error.into()))?;
        let factor = vae.downsample_factor();
        let defaults = &files.defaults;
        let patch = files.denoiser_config.patch_size;
        let info = ModelInfo {
            id: id.into(),
            num_frames: defaults.num_frames,
            width: defaults.image_size[1],
            height: defaults.image_size[0],
            multiple_of: factor * patch[1].max(patch[2]),
            fps: defaults.fps,
            sampler: defaults.sampler.name().into(),
            steps: defaults.steps.unwrap_or(defaults.sampler.default_steps()),
            samplers: SamplerKind::ALL
                .iter()
                .map(|&sampler| {
                    let own = defaults.steps.filter(|_| sampler == defaults.sampler);
                    (sampler.name().into(), own.unwrap_or(sampler.default_steps()))
                })
                .collect(),
            guidance_scale: defaults.guidance_scale,
        };
        Ok(Self { info, pipeline, factor, record: Map::new(), to_rgb: OnceLock::new() })
    }

    /// Adds fields to every record, such as the paths of the weights.
    pub fn with_record(self, record: Map<String, Value>) -> Self {
        Self { record, ..self }
    }

    fn sample_request(&self, request: &JobRequest) -> Result<SampleRequest, EngineError> {
        let sampler = request.sampler.parse().map_err(rejected)?;
        Ok(SampleRequest {
            num_frames: request.num_frames,
            image_size: [request.height, request.width],
            fps: request.fps,
            sampler,
            steps: Some(request.steps),
            negative_prompt: request.negative_prompt.clone(),
            guidance_scale: request.guidance_scale,
            seed: request.seed,
            noise_index: 0,
            batch_size: 1,
            ..self.pipeline.files().defaults.clone()
        })
    }

    /// Returns the record of a video; its fields are those of `opensora sample`.
    fn record(&self, request: &SampleRequest, prompt: &str, work: DenoiserWork) -> Value {
        let (pipeline, guidance) = (&self.pipeline, request.guidance());
        let scales = pipeline.position_scales(request);
        let mut record = json!({
            "prompt": prompt,
            "model": pipeline.files().name,
            "num_frames": request.num_frames,
            "image_size": request.image_size,
            "fps": request.fps,
            "sampler": request.sampler.name(),
            "steps": request.steps,
            "guidance_scale": guidance.guidance_scale,
            "guided_channels": guidance.guided_channels,
            "attention_reuse": request.attention_reuse.to_string(),
            "denoiser_work": work,
            "space_scale": scales.space_scale,
            "time_scale": scales.time_scale,
            "seed": request.seed,
            "batch_size": request.batch_size,
            "noise_index": request.noise_index,
            "device": format!("{:?}", pipeline.device()),
            "device_name": device::name(pipeline.device()),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let Value::Object(fields) = &mut record {
            if let Some(negative) = &request.negative_prompt {
                fields.insert("negative_prompt".into(), negative.as_str().into());
            }
            fields.extend(self.record.clone());
        }
        record
    }

    /// Makes the video of a job.
    fn make(
        &self,
        request: &JobRequest,
        observer: &mut dyn Observer,
    ) -> Result<Generated, EngineError> {
        let prompt = &request.prompt;
        let sample = self.sample_request(request)?;
        self.pipeline.check(&sample).map_err(rejected)?;
        go_on(observer.stage(Stage::Loading))?;
        go_on(observer.stage(Stage::Encoding))?;
        let conditioning =
            self.pipeline.encode(&[prompt], &sample, &mut ()).map_err(pipeline_error)?;
        go_on(observer.stage(Stage::Loading))?;
        let mut denoiser = self.pipeline.load_denoiser(&sample, &mut ()).map_err(pipeline_error)?;
        go_on(observer.stage(Stage::Sampling))?;
        let mut events = Events { observer, engine: self, preview_failed: false };
        let latents = denoiser.sample(&conditioning, 0, &mut events).map_err(pipeline_error)?;
        let work = denoiser.work();
        // Its memory is the VAE's, unless it stays.
        drop(denoiser);
        go_on(events.observer.stage(Stage::Decoding))?;
        let vae = self.pipeline.load_vae(&mut ()).map_err(pipeline_error)?;
        let clip = vae.decode(latents, &mut events).map_err(pipeline_error)?;
        Ok(Generated { clip, record: self.record(&sample, prompt, work) })
    }

    /// Returns the map of previews, fitted to the VAE at the first call. A failure is a warning at that
    /// call.
    fn to_rgb(&self, observer: &mut dyn Observer) -> Option<&LatentsToRgb> {
        self.to_rgb
            .get_or_init(|| self.fit_to_rgb().map_err(|error| warn(observer, &error)).ok())
            .as_ref()
    }

    fn fit_to_rgb(&self) -> Result<LatentsToRgb, EngineError> {
        let image = LatentsToRgb::calibration_image(self.factor).map_err(|e| failed(e.into()))?;
        let vae = self.pipeline.load_vae(&mut ()).map_err(pipeline_error)?;
        let latents = vae.encode(&image).map_err(pipeline_error)?;
        LatentsToRgb::fit(latents).map_err(|error| failed(error.into()))
    }
}

fn warn(observer: &mut dyn Observer, error: &(dyn std::error::Error + 'static)) {
    observer.warned(&format!("no preview: {}", opensora_files::error_line(error)));
}

fn failed(error: BoxError) -> EngineError {
    EngineError::Failed(error)
}

fn rejected(error: impl Into<BoxError>) -> EngineError {
    EngineError::Request(error.into())
}

fn pipeline_error(error: PipelineError) -> EngineError {
    match error {
        PipelineError::Sample(SampleError::Interrupted { .. })
        | PipelineError::DecodingStopped { .. } => EngineError::Stopped,
        // Damaged weights are no client's doing.
        PipelineError::NonFinite { cause: NonFiniteCause::Computation(_), .. }
        | PipelineError::NonFiniteLatents { cause: NonFiniteCause::Computation(_), .. } => {
            EngineError::NotFinite(error.into())
        }
        error => EngineError::Failed(error.into()),
    }
}

/// Converts the answer to an event to a result: an error if it is `Break`.
fn go_on(flow: ControlFlow<()>) -> Result<(), EngineError> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(EngineError::Stopped),
    }
}

impl Engine for ModelEngine {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn check(&self, request: &JobRequest) -> Result<(), EngineError> {
        let sample = self.sample_request(request)?;
        self.pipeline.check(&sample).map(|_| ()).map_err(rejected)
    }

    fn generate(
        &self,
        request: &JobRequest,
        observer: &mut dyn Observer,
    ) -> Result<Generated, EngineError> {
        self.make(request, observer).map_err(|error| match error {
            // With no more guidance than the model's, the client's parameters are not the cause.
            EngineError::NotFinite(cause) if request.guidance_scale <= self.info.guidance_scale => {
                EngineError::Failed(cause)
            }
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_is_no_failure_of_the_engine_and_damaged_weights_are() {
        let likely = || NonFiniteCause::Computation("likely an overflow in f16".into());
        for error in [
            PipelineError::NonFinite { what: "the frames", cause: likely() },
            PipelineError::NonFiniteLatents { step: 0, total: 2, cause: likely() },
        ] {
            let error = pipeline_error(error);
            assert!(matches!(error, EngineError::NotFinite(_)), "{error}");
        }
        let cause = NonFiniteCause::Weights("/srv/vae.safetensors: tensor 'x' holds NaN".into());
        let error = pipeline_error(PipelineError::NonFinite { what: "the frames", cause });
        assert!(matches!(error, EngineError::Failed(_)), "{error}");
        // Clients get the message without its causes, which have paths of the server.
        assert!(!error.to_string().contains("/srv"), "{error}");
        assert!(opensora_files::error_line(&error).contains("/srv"), "{error}");
    }
}
