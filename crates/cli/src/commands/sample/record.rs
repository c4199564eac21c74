//! The record beside an output: all that is needed to make that output again.

use super::Args;
use anyhow::{Context, bail, ensure};
use opensora::{SampleRequest, TextToVideo, nn::device, pipeline::Sampled, stdit::DenoiserWork};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Longest record that is read, in bytes; prompts of a batch are in it.
const LONGEST: u64 = 16 << 20;

/// How a clip was made. Records of earlier versions lack some fields; a clip cannot be made again from
/// those.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The prompt; those of all clips in a file of latents.
    prompt: Value,
    /// Where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    negative_prompt: Option<String>,
    /// The model's own name.
    model: String,
    num_frames: usize,
    image_size: [usize; 2],
    fps: f64,
    sampler: String,
    steps: usize,
    guidance_scale: f64,
    guided_channels: Option<usize>,
    attention_reuse: String,
    /// Of all prompts of the call up to this one; unknown where latents come from a file.
    denoiser_work: Option<Value>,
    space_scale: f64,
    time_scale: f64,
    seed: u64,
    batch_size: usize,
    dtype: String,
    device: String,
    low_memory: bool,
    pub(super) version: String,
    /// Noise index of this clip.
    noise_index: Option<u64>,
    /// Prompts that were sampled at once with this one, where there are others; the first has the noise
    /// index `noise_index - batch_place`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_prompts: Vec<String>,
    #[serde(default)]
    batch_place: usize,
    /// What `--model`, `--t5`, `--vae` and `--weights-dir` named, paths as absolute ones.
    model_argument: Option<String>,
    t5: Option<PathBuf>,
    vae: Option<PathBuf>,
    weights_dir: Option<PathBuf>,
    t5_dtype: Option<String>,
    /// The device as `--device` names it.
    device_name: Option<String>,
    /// The file of latents that was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latents: Option<PathBuf>,
    /// Repository and commit of weights that are from the hub.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) weights: Vec<Value>,
}

impl Record {
    /// The record of a clip.
    pub(super) fn new(
        args: &Args,
        request: &SampleRequest,
        pipeline: &TextToVideo,
        prompts: &[String],
        sampled: &Sampled,
    ) -> anyhow::Result<Self> {
        let batch = &sampled.batch;
        Ok(Self {
            prompt: prompts[sampled.index].as_str().into(),
            noise_index: Some(request.noise_index + sampled.index as u64),
            batch_prompts: match batch.len() {
                1 => Vec::new(),
                _ => prompts[batch.clone()].to_vec(),
            },
            batch_place: sampled.index - batch.start,
            ..Self::settings(args, request, pipeline, sampled.work)?
        })
    }

    /// The record of a file of latents.
    pub(super) fn of_latents(
        args: &Args,
        request: &SampleRequest,
        pipeline: &TextToVideo,
        prompts: &[String],
        work: DenoiserWork,
    ) -> anyhow::Result<Self> {
        let prompt = match prompts {
            [prompt] => prompt.as_str().into(),
            _ => prompts.into(),
        };
        Ok(Self { prompt, ..Self::settings(args, request, pipeline, work)? })
    }

    fn settings(
        args: &Args,
        request: &SampleRequest,
        pipeline: &TextToVideo,
        work: DenoiserWork,
    ) -> anyhow::Result<Self> {
        let guidance = request.guidance();
        let scales = pipeline.position_scales(request);
        let files = pipeline.files();
        let absolute = |path: &Option<PathBuf>| -> anyhow::Result<Option<PathBuf>> {
            Ok(path.as_ref().map(std::path::absolute).transpose()?)
        };
        let model = Path::new(args.model());
        let model_argument = match model.exists() {
            true => std::path::absolute(model)?.to_str().map(String::from),
            false => Some(args.model().into()),
        };
        Ok(Self {
            prompt: Value::Null,
            negative_prompt: request.negative_prompt.clone(),
            model: pipeline.files().name.clone(),
            num_frames: request.num_frames,
            image_size: request.image_size,
            fps: request.fps,
            sampler: request.sampler.name().into(),
            steps: request.steps.unwrap_or(request.sampler.default_steps()),
            guidance_scale: guidance.guidance_scale,
            guided_channels: guidance.guided_channels,
            attention_reuse: request.attention_reuse.to_string(),
            denoiser_work: match args.latents {
                Some(_) => None,
                None => Some(serde_json::to_value(work)?),
            },
            space_scale: scales.space_scale,
            time_scale: scales.time_scale,
            seed: request.seed,
            batch_size: request.batch_size,
            dtype: args.dtype().to_string(),
            device: format!("{:?}", pipeline.device()),
            low_memory: args.low_memory,
            version: env!("CARGO_PKG_VERSION").into(),
            noise_index: None,
            batch_prompts: Vec::new(),
            batch_place: 0,
            model_argument,
            t5: absolute(&args.t5)?,
            vae: absolute(&args.vae)?,
            weights_dir: absolute(&args.weights_dir)?,
            t5_dtype: Some(args.t5_dtype().to_string()),
            device_name: device::name(pipeline.device()),
            latents: absolute(&args.latents)?,
            weights: crate::model::sources(&[&files.denoiser, &files.t5, &files.vae]),
        })
    }

    pub(super) fn to_json(&self) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    /// Reads a record.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let text = opensora::files::read::read_text(path, LONGEST)?;
        let record: Self = serde_json::from_str(&text).context("not a record of a clip")?;
        if let Some(latents) = &record.latents {
            bail!("the clip was decoded from {}: use --latents with that file", latents.display());
        }
        ensure!(
            record.prompt.is_string() && record.noise_index.is_some(),
            "the record is of version {} and lacks the noise index: it cannot be made again exactly",
            record.version
        );
        ensure!(
            record.batch_prompts.is_empty() && record.batch_place == 0
                || record.batch_prompts.get(record.batch_place).map(String::as_str)
                    == record.prompt.as_str(),
            "batch_prompts does not hold the prompt at batch_place {}",
            record.batch_place
        );
        Ok(record)
    }

    /// The prompts that are sampled at once.
    pub(super) fn batch_prompts(&self) -> Vec<String> {
        match &self.batch_prompts[..] {
            [] => vec![self.prompt.as_str().unwrap_or_default().into()],
            prompts => prompts.to_vec(),
        }
    }

    /// Fills the settings that the command line leaves open. Returns the clip's place in its batch.
    pub(super) fn apply(&self, args: &mut Args) -> anyhow::Result<usize> {
        if args.model.is_none() {
            args.model = Some(self.model_argument.clone().context("the record names no model")?);
        }
        let fill = |target: &mut Option<PathBuf>, value: &Option<PathBuf>| {
            if target.is_none() {
                target.clone_from(value);
            }
        };
        fill(&mut args.t5, &self.t5);
        fill(&mut args.vae, &self.vae);
        fill(&mut args.weights_dir, &self.weights_dir);
        if args.negative_prompt.is_none() {
            args.negative_prompt.clone_from(&self.negative_prompt);
        }
        args.sampling.num_frames.get_or_insert(self.num_frames);
        args.sampling.image_size.get_or_insert(self.image_size);
        args.fps.get_or_insert(self.fps);
        if args.sampling.sampler.is_none() {
            args.sampling.sampler = Some(self.sampler.parse()?);
        }
        args.sampling.steps.get_or_insert(self.steps);
        args.sampling.guidance_scale.get_or_insert(self.guidance_scale);
        args.guided_channels = args.guided_channels.or(self.guided_channels);
        if args.sampling.pab.is_none() {
            args.sampling.pab = Some(self.attention_reuse.parse().map_err(anyhow::Error::msg)?);
        }
        args.space_scale.get_or_insert(self.space_scale);
        args.time_scale.get_or_insert(self.time_scale);
        args.sampling.seed.get_or_insert(self.seed);
        let batch = self.batch_prompts().len();
        let index = self.noise_index.unwrap_or(0);
        args.noise_index = index
            .checked_sub(self.batch_place as u64)
            .context("batch_place is beyond noise_index")?;
        args.batch_size = batch;
        if args.dtype.is_none() {
            args.dtype = Some(self.dtype.parse()?);
        }
        if let (None, Some(dtype)) = (args.t5_dtype, &self.t5_dtype) {
            args.t5_dtype = Some(dtype.parse()?);
        }
        args.low_memory |= self.low_memory;
        if args.device.device.is_none() {
            args.device.device.clone_from(&self.device_name);
        }
        Ok(self.batch_place)
    }
}
