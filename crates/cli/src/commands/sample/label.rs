//! `opensora sample --label`: samples images or clips of class labels.

use super::{Args, outputs::Outputs};
use crate::{model, output, progress::Progress, stop};
use anyhow::Context;
use opensora::{
    ClassToVideo, SampleRequest,
    files::read::read_text,
    labels,
    model_files::PartPaths,
    nn::device,
    pipeline::Sampled,
    presets::{Preset, PresetModel},
    stdit::DenoiserWork,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Model if none is named.
const DEFAULT_MODEL: &str = "dit-xl-2-256x256";

/// Most labels of a batch in a record: far beyond what a device holds at once.
const MAX_BATCH: usize = 4096;

/// Largest record that is read, in bytes.
const LONGEST: u64 = 16 << 20;

/// The record beside an output: everything needed to sample that output again.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    label: usize,
    /// `None` if the names of the model's classes are unknown.
    label_name: Option<String>,
    /// Name of the preset, or that in `model.json`.
    model: String,
    architecture: String,
    num_frames: usize,
    image_size: [usize; 2],
    fps: f64,
    sampler: String,
    steps: usize,
    guidance_scale: f64,
    guided_channels: Option<usize>,
    /// Work for all labels of the call up to this one.
    denoiser_work: Value,
    seed: u64,
    /// Noise index of this output.
    noise_index: u64,
    batch_size: usize,
    /// Labels of the batch, this one included; empty for a batch of one. The first has the noise index
    /// `noise_index - batch_place`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_labels: Vec<usize>,
    #[serde(default)]
    batch_place: usize,
    /// Value of `--model`, as that of `--vae` and `--weights-dir` with absolute paths.
    model_argument: String,
    vae: Option<PathBuf>,
    weights_dir: Option<PathBuf>,
    dtype: String,
    device: String,
    /// Name of the device for `--device`.
    device_name: Option<String>,
    low_memory: bool,
    /// Repository and commit of weights that are from the hub.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    weights: Vec<Value>,
    version: String,
}

/// Returns true if `--from-record` names the record of an output with a label.
pub(super) fn is_record(args: &Args) -> bool {
    // Other faults of the file are reported when the record is opened.
    let text = args.from_record.as_ref().and_then(|path| read_text(path, LONGEST).ok());
    let json = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    json.is_some_and(|json| json.get("label").is_some())
}

/// Samples every label of `args`, or repeats the output of a record.
pub(super) fn run(args: &mut Args) -> anyhow::Result<()> {
    let only = match args.from_record.take() {
        Some(path) => {
            let record = Record::open(&path)
                .with_context(|| format!("--from-record: {}", path.display()))?;
            Some(record.apply(args)?)
        }
        None => None,
    };
    reject_options_of_prompts(args)?;
    let device = args.device.open()?;
    let parts = PartPaths {
        t5: None,
        vae: args.vae.clone(),
        weights_dir: args.weights_dir.clone(),
        policy: model::policy(args.allow_outside_paths)?,
    };
    let name = args.model.as_deref().unwrap_or(DEFAULT_MODEL);
    if let Some(PresetModel::Class(_, names)) = Preset::find(name).map(|preset| preset.model) {
        // Before anything is fetched.
        for text in &args.label {
            let label = labels::parse(text, Some(names)).context("--label")?;
            let classes = names.classes();
            anyhow::ensure!(
                label < classes,
                "--label: {label}: {name} has classes 0 to {}",
                classes - 1
            );
        }
    }
    let files = model::resolve_class(name, &parts, args.report.quiet)?;
    let labels = args
        .label
        .iter()
        .map(|text| labels::parse(text, files.labels))
        .collect::<Result<Vec<usize>, _>>()
        .context("--label")?;
    let labels = super::each_times(&labels, args.num_videos_per_prompt)?;
    let request = super::request_for(args, &files.defaults);
    let pipeline = ClassToVideo::new(files, args.dtype(), device)?.with_low_memory(args.low_memory);
    pipeline.check(&labels, &request)?;
    let outputs = Outputs::new(args, &request, only.map_or(labels.len(), |_| 1))?;
    stop::listen();

    let mut progress = Progress::new(args.report.quiet).on(pipeline.device());
    let mut written = Vec::new();
    let result = pipeline.sample_each(&labels, &request, &mut progress, |sampled| {
        let at = match only {
            Some(only) if only != sampled.index => return stop::check(),
            Some(_) => 0,
            None => sampled.index,
        };
        let record = Record::new(args, name, &request, &pipeline, &labels, &sampled)?;
        let record = serde_json::to_value(record)?;
        written.push((outputs.write(at, &sampled.clip, &record)?, record));
        stop::check()
    });
    progress.finish();
    // Complete outputs are kept and printed, even if the run was stopped or failed.
    let printed = written.into_iter().try_for_each(|(path, record)| match path {
        None => Ok(()),
        Some(path) if args.report.json => {
            output::json(&json!({"output": path, "metadata": record}))
        }
        Some(path) => output::line(path.display()),
    });
    result.map_err(stop::or_error)?;
    Ok(printed?)
}

/// Fails if an option is given that has no meaning for labels. (`--label` itself conflicts with them; the
/// record of a label is only known as one once it is read.)
fn reject_options_of_prompts(args: &Args) -> anyhow::Result<()> {
    let given = [
        ("--negative-prompt", args.negative_prompt.is_some()),
        ("--t5", args.t5.is_some()),
        ("--t5-dtype", args.t5_dtype.is_some()),
        ("--aspect-ratio", args.aspect_ratio.is_some()),
        ("--pab", args.sampling.pab.is_some()),
        ("--space-scale", args.space_scale.is_some()),
        ("--time-scale", args.time_scale.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => anyhow::bail!("{option} has no meaning for the record of a label"),
        None => Ok(()),
    }
}

impl Record {
    fn new(
        args: &Args,
        model: &str,
        request: &SampleRequest,
        pipeline: &ClassToVideo,
        labels: &[usize],
        sampled: &Sampled,
    ) -> anyhow::Result<Self> {
        let files = pipeline.files();
        let (label, batch) = (labels[sampled.index], &sampled.batch);
        let guidance = request.guidance();
        let work: DenoiserWork = sampled.work;
        let absolute = |path: &Option<PathBuf>| -> anyhow::Result<Option<PathBuf>> {
            Ok(path.as_ref().map(std::path::absolute).transpose()?)
        };
        Ok(Self {
            label,
            label_name: files.labels.and_then(|set| set.name_of(label)).map(String::from),
            model: files.name.clone(),
            architecture: files.kind.name().into(),
            num_frames: request.num_frames,
            image_size: request.image_size,
            fps: request.fps,
            sampler: request.sampler.name().into(),
            steps: request.steps.unwrap_or(request.sampler.default_steps()),
            guidance_scale: guidance.guidance_scale,
            guided_channels: guidance.guided_channels,
            denoiser_work: serde_json::to_value(work)?,
            seed: request.seed,
            noise_index: request.noise_index + sampled.index as u64,
            batch_size: request.batch_size,
            batch_labels: match batch.len() {
                1 => Vec::new(),
                _ => labels[batch.clone()].to_vec(),
            },
            batch_place: sampled.index - batch.start,
            model_argument: match Path::new(model).exists() {
                true => std::path::absolute(model)?.display().to_string(),
                false => model.into(),
            },
            vae: absolute(&args.vae)?,
            weights_dir: absolute(&args.weights_dir)?,
            dtype: args.dtype().to_string(),
            device: format!("{:?}", pipeline.device()),
            device_name: device::name(pipeline.device()),
            low_memory: args.low_memory,
            weights: model::sources(&[&files.denoiser, &files.vae]),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    fn open(path: &Path) -> anyhow::Result<Self> {
        let record: Self = serde_json::from_str(&read_text(path, LONGEST)?)
            .context("not a record of an output with a label")?;
        let fits = match record.batch_labels.get(record.batch_place) {
            Some(&label) => label == record.label,
            None => record.batch_labels.is_empty() && record.batch_place == 0,
        };
        anyhow::ensure!(
            record.batch_labels.len() <= MAX_BATCH,
            "batch_labels has {} labels, expected at most {MAX_BATCH}",
            record.batch_labels.len()
        );
        anyhow::ensure!(
            fits,
            "batch_labels does not hold the label at batch_place {}",
            record.batch_place
        );
        Ok(record)
    }

    /// Fills in the settings that the command line omits. Returns the output's index in its batch.
    fn apply(self, args: &mut Args) -> anyhow::Result<usize> {
        let labels = match &self.batch_labels[..] {
            [] => vec![self.label],
            labels => labels.to_vec(),
        };
        args.noise_index = self
            .noise_index
            .checked_sub(self.batch_place as u64)
            .context("batch_place is beyond noise_index")?;
        args.batch_size = labels.len();
        args.label = labels.iter().map(usize::to_string).collect();
        args.model.get_or_insert(self.model_argument);
        args.vae = args.vae.take().or(self.vae);
        args.weights_dir = args.weights_dir.take().or(self.weights_dir);
        args.sampling.num_frames.get_or_insert(self.num_frames);
        args.sampling.image_size.get_or_insert(self.image_size);
        args.fps.get_or_insert(self.fps);
        if args.sampling.sampler.is_none() {
            args.sampling.sampler = Some(self.sampler.parse()?);
        }
        args.sampling.steps.get_or_insert(self.steps);
        args.sampling.guidance_scale.get_or_insert(self.guidance_scale);
        args.guided_channels = args.guided_channels.or(self.guided_channels);
        args.sampling.seed.get_or_insert(self.seed);
        if args.dtype.is_none() {
            args.dtype = Some(self.dtype.parse()?);
        }
        args.low_memory |= self.low_memory;
        args.device.device = args.device.device.take().or(self.device_name);
        Ok(self.batch_place)
    }
}
