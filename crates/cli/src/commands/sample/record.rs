//! The record beside an output: the settings that sample the output again.

use super::Args;
use crate::output;
use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use opensora::{
    ClassFiles, SampleRequest,
    files::{one_line, read::read_text},
    labels::LabelSet,
    latents,
    nn::device,
    pipeline::SampledClip,
    presets::Preset,
    stdit::{DenoiserWork, PositionScales},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Maximum size of a record that is read, in bytes; a record holds the prompts of a batch.
const MAX_BYTES: u64 = 16 << 20;

/// Maximum number of labels of a batch in a record: far beyond what a device holds at once.
const MAX_BATCH: usize = 4096;

/// Settings, and prompt or label, of a sampled clip or image.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) settings: Settings,
    #[serde(flatten)]
    pub(super) of: Of,
}

/// Fields that only records of prompts, or only records of labels, have.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Of {
    Prompt(OfPrompt),
    Label(OfLabel),
}

/// Settings of records of both kinds. Records of earlier versions lack the optional fields.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Settings {
    /// Name of the preset, or that in `model.json`.
    model: String,
    num_frames: usize,
    image_size: [usize; 2],
    fps: f64,
    sampler: String,
    steps: usize,
    guidance_scale: f64,
    guided_channels: Option<usize>,
    /// Work for all clips of the call up to this one; `None` for latents from a file.
    denoiser_work: Option<Value>,
    seed: u64,
    batch_size: usize,
    dtype: String,
    device: String,
    low_memory: bool,
    version: String,
    /// Noise index of the call's first clip.
    #[serde(skip)]
    first_noise_index: u64,
    /// Noise index of this clip, in a file of latents of the first one.
    noise_index: Option<u64>,
    /// Index of this clip in its batch; the first one has the noise index `noise_index - batch_place`.
    #[serde(default)]
    batch_place: usize,
    /// Value of `--model`, as that of `--vae` and `--weights-dir` with absolute paths.
    model_argument: Option<String>,
    #[serde(serialize_with = "text")]
    vae: Option<PathBuf>,
    #[serde(serialize_with = "text")]
    weights_dir: Option<PathBuf>,
    /// Name of the device for `--device`.
    device_name: Option<String>,
    /// Sources of the weights, as [`crate::model::sources`] returns them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    weights: Vec<Value>,
}

/// Fields of a record of a prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OfPrompt {
    /// The prompt; a list for a file of latents of several clips.
    prompt: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    negative_prompt: Option<String>,
    attention_reuse: String,
    space_scale: f64,
    time_scale: f64,
    /// Prompts of the batch, this one included; empty for a batch of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_prompts: Vec<String>,
    #[serde(serialize_with = "text")]
    t5: Option<PathBuf>,
    t5_dtype: Option<String>,
    /// The file of latents that was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "text")]
    latents: Option<PathBuf>,
}

/// Fields of a record of a class label.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OfLabel {
    label: usize,
    /// `None` if the names of the model's classes are unknown.
    label_name: Option<String>,
    architecture: String,
    /// Labels of the batch, this one included; empty for a batch of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_labels: Vec<usize>,
    #[serde(skip)]
    names: Option<LabelSet>,
}

/// A record that fills the options of a call.
pub(super) struct Recorded {
    /// Prompts of the batch; none for labels, which are in the options.
    pub(super) prompts: Vec<String>,
    /// Index of the recorded clip in its batch.
    pub(super) only: usize,
    weights: Vec<Value>,
}

impl Recorded {
    /// Returns warnings if the weights of the record are not those that are used now, with the sources `now`.
    pub(super) fn warnings(&self, now: &[Value]) -> Vec<String> {
        let others: Vec<&Value> =
            now.iter().filter(|source| !contains(&self.weights, source)).collect();
        let (mut warnings, mut are_comparable) = (Vec::new(), true);
        for recorded in self.weights.iter().filter(|recorded| !contains(now, recorded)) {
            if !others.iter().any(|other| is_local(other) == is_local(recorded)) {
                are_comparable = false;
                continue;
            }
            let text = |field: &str| one_line(recorded[field].as_str().unwrap_or("unknown"));
            warnings.push(match is_local(recorded) {
                true => format!(
                    "{}: the record was made with other weights or another configuration: the output may be \
                     another one",
                    text("file")
                ),
                false => format!(
                    "the record was made with {} of {} at commit {}, which is not what is used now: the \
                     output will be another one",
                    text("file"),
                    text("repository"),
                    text("commit")
                ),
            });
        }
        if !are_comparable {
            warnings.push(
                "the weights cannot be compared with those of the record, as only one of the two is from the hub's \
                 cache: the output may be another one"
                    .into(),
            );
        }
        warnings
    }
}

/// Returns true for a source with a digest, false for one with a commit of the hub.
fn is_local(source: &Value) -> bool {
    source.get("digest").is_some()
}

/// Returns true if `sources` has the weights of `wanted`. A renamed file with the same digest is the same.
fn contains(sources: &[Value], wanted: &Value) -> bool {
    sources.iter().any(|source| match wanted.get("digest") {
        Some(digest) => source.get("digest") == Some(digest),
        None => source == wanted,
    })
}

/// The record that `--save-latents` wrote into a file of latents; null if the file has none. It is untrusted and may be of
/// another program.
pub(super) struct Saved(Value);

/// Fields of a record that describe the sampling.
const SAMPLING: [&str; 14] = [
    "sampler",
    "steps",
    "guidance_scale",
    "guided_channels",
    "attention_reuse",
    "negative_prompt",
    "space_scale",
    "time_scale",
    "seed",
    "noise_index",
    "batch_size",
    "batch_place",
    "t5",
    "t5_dtype",
];

impl Saved {
    /// Reads the record in the file of `--latents`.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(latents::metadata(path).context("--latents")?.unwrap_or_default()))
    }

    /// Returns the prompts of the clips, if the file has as many as `clips`.
    pub(super) fn prompts(&self, clips: usize) -> Option<Vec<String>> {
        let prompts = match &self.0["prompt"] {
            Value::String(prompt) => vec![prompt.clone()],
            prompts => Vec::<String>::deserialize(prompts).ok()?,
        };
        (prompts.len() == clips).then_some(prompts)
    }

    /// Adds the record of the file to that of its decoded clip at `index`. Settings of the sampling become null: this
    /// call did not sample.
    pub(super) fn add_to(&self, record: &mut Value, index: usize) {
        for name in SAMPLING {
            record[name] = Value::Null;
        }
        record["latents_index"] = index.into();
        record["sampling"] = self.0.clone();
    }
}

/// Writes a path that need not be UTF-8: a finished clip is not lost for its record.
fn text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(output::path).serialize(serializer)
}

fn absolute(path: &Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    Ok(path.as_ref().map(std::path::absolute).transpose()?)
}

impl Settings {
    /// Returns the settings of a call; `model` is the value of `--model`, `name` the model's name.
    pub(super) fn new(
        args: &Args,
        model: &str,
        name: &str,
        request: &SampleRequest,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let guidance = request.guidance();
        // A name counts, also if a file has it.
        let is_name = model == opensora_demo::model::NAME || Preset::find(model).is_some();
        let model_argument = match !is_name && Path::new(model).exists() {
            true => std::path::absolute(model)?.to_str().map(String::from),
            false => Some(model.into()),
        };
        Ok(Self {
            model: name.into(),
            num_frames: request.num_frames,
            image_size: request.image_size,
            fps: request.fps,
            sampler: request.sampler.name().into(),
            steps: request.steps.unwrap_or(request.sampler.default_steps()),
            guidance_scale: guidance.guidance_scale,
            guided_channels: guidance.guided_channels,
            denoiser_work: None,
            seed: request.seed,
            batch_size: request.batch_size,
            dtype: args.dtype().to_string(),
            device: format!("{device:?}"),
            low_memory: args.low_memory,
            version: env!("CARGO_PKG_VERSION").into(),
            first_noise_index: request.noise_index,
            noise_index: None,
            batch_place: 0,
            model_argument,
            vae: absolute(&args.parts.vae)?,
            weights_dir: absolute(&args.parts.weights_dir)?,
            device_name: device::name(device),
            weights: Vec::new(),
        })
    }

    /// Adds the sources of the weights.
    pub(super) fn with_weights(self, weights: Vec<Value>) -> Self {
        Self { weights, ..self }
    }

    /// Adds the noise index of the call's first clip.
    pub(super) fn with_first_index(self) -> Self {
        Self { noise_index: Some(self.first_noise_index), ..self }
    }

    /// Adds the work of the denoiser; `None` if it is unknown.
    pub(super) fn with_work(self, work: Option<DenoiserWork>) -> anyhow::Result<Self> {
        Ok(Self { denoiser_work: work.map(serde_json::to_value).transpose()?, ..self })
    }

    /// Adds the place of a clip in its batch and in the call.
    pub(super) fn with_place(self, sampled: &SampledClip) -> Self {
        Self {
            noise_index: Some(self.first_noise_index + sampled.index as u64),
            batch_place: sampled.index - sampled.batch.start,
            ..self
        }
    }
}

impl OfPrompt {
    /// Returns the fields that all prompts of a call share.
    pub(super) fn new(
        args: &Args,
        request: &SampleRequest,
        scales: PositionScales,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            prompt: Value::Null,
            negative_prompt: request.negative_prompt.clone(),
            attention_reuse: request.attention_reuse.to_string(),
            space_scale: scales.space_scale,
            time_scale: scales.time_scale,
            batch_prompts: Vec::new(),
            t5: absolute(&args.parts.t5)?,
            t5_dtype: Some(args.t5_dtype().to_string()),
            latents: absolute(&args.latents)?,
        })
    }

    /// Returns the fields of a clip.
    pub(super) fn clip(&self, prompts: &[String], sampled: &SampledClip) -> Of {
        let batch_prompts = match sampled.batch.len() {
            1 => Vec::new(),
            _ => prompts[sampled.batch.clone()].to_vec(),
        };
        let prompt = prompts[sampled.index].as_str().into();
        Of::Prompt(Self { prompt, batch_prompts, ..self.clone() })
    }

    /// Returns the fields of a file of latents.
    pub(super) fn latents(&self, prompts: &[String]) -> Of {
        let prompt = match prompts {
            [prompt] => prompt.as_str().into(),
            _ => prompts.into(),
        };
        Of::Prompt(Self { prompt, ..self.clone() })
    }

    /// Returns the prompts of the batch.
    fn batch(&self) -> Vec<String> {
        match &self.batch_prompts[..] {
            [] => vec![self.prompt.as_str().unwrap_or_default().into()],
            prompts => prompts.to_vec(),
        }
    }

    fn check(&self, settings: &Settings) -> anyhow::Result<()> {
        ensure!(
            self.prompt.is_string() && settings.noise_index.is_some(),
            "the record is of version {} and lacks the noise index: it cannot be made again exactly",
            settings.version
        );
        let place = settings.batch_place;
        ensure!(
            self.batch_prompts.is_empty() && place == 0
                || self.batch_prompts.get(place).map(String::as_str) == self.prompt.as_str(),
            "batch_prompts does not hold the prompt at batch_place {place}"
        );
        Ok(())
    }

    /// Fills in the options that only prompts have. Returns the prompts of the batch.
    fn apply(self, args: &mut Args) -> anyhow::Result<Vec<String>> {
        let prompts = self.batch();
        args.parts.t5 = args.parts.t5.take().or(self.t5);
        args.negative_prompt = args.negative_prompt.take().or(self.negative_prompt);
        if args.sampling.pab.is_none() {
            args.sampling.pab = Some(self.attention_reuse.parse()?);
        }
        args.space_scale.get_or_insert(self.space_scale);
        args.time_scale.get_or_insert(self.time_scale);
        if let (None, Some(dtype)) = (args.t5_dtype, &self.t5_dtype) {
            args.t5_dtype = Some(dtype.parse()?);
        }
        Ok(prompts)
    }
}

impl OfLabel {
    /// Returns the fields that all labels of a call share.
    pub(super) fn new(files: &ClassFiles) -> Self {
        Self {
            label: 0,
            label_name: None,
            architecture: files.kind.name().into(),
            batch_labels: Vec::new(),
            names: files.labels,
        }
    }

    /// Returns the fields of an image or clip.
    pub(super) fn output(&self, labels: &[usize], sampled: &SampledClip) -> Self {
        let label = labels[sampled.index];
        Self {
            label,
            label_name: self.names.and_then(|set| set.name_of(label)).map(String::from),
            batch_labels: match sampled.batch.len() {
                1 => Vec::new(),
                _ => labels[sampled.batch.clone()].to_vec(),
            },
            ..self.clone()
        }
    }

    /// Returns the labels of the batch.
    fn batch(&self) -> Vec<usize> {
        match &self.batch_labels[..] {
            [] => vec![self.label],
            labels => labels.to_vec(),
        }
    }

    fn check(&self, settings: &Settings) -> anyhow::Result<()> {
        let place = settings.batch_place;
        ensure!(
            self.batch_labels.len() <= MAX_BATCH,
            "batch_labels has {} labels, expected at most {MAX_BATCH}",
            self.batch_labels.len()
        );
        let fits = match self.batch_labels.get(place) {
            Some(&label) => label == self.label,
            None => self.batch_labels.is_empty() && place == 0,
        };
        ensure!(fits, "batch_labels does not hold the label at batch_place {place}");
        ensure!(settings.noise_index.is_some(), "the record lacks the noise index");
        Ok(())
    }
}

impl Record {
    pub(super) fn to_json(&self) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    /// Reads the record of a prompt or of a label.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        Self::read(path).with_context(|| format!("--from-record: {}", path.display()))
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let invalid = "not a record of a clip";
        let json: Value = serde_json::from_str(&read_text(path, MAX_BYTES)?).context(invalid)?;
        // Its settings of the sampling are null.
        if let Some(latents) = json["latents"].as_str() {
            bail!("the clip was decoded from {latents}: use --latents with that file");
        }
        let settings = Settings::deserialize(&json).context(invalid)?;
        let of = if json.get("label").is_some() {
            let of = OfLabel::deserialize(&json).context(invalid)?;
            of.check(&settings)?;
            Of::Label(of)
        } else {
            let of = OfPrompt::deserialize(&json).context(invalid)?;
            of.check(&settings)?;
            Of::Prompt(of)
        };
        Ok(Self { settings, of })
    }

    /// Fills in the settings that the command line omits.
    pub(super) fn apply(self, path: &Path, args: &mut Args) -> anyhow::Result<Recorded> {
        let Self { settings, of } = self;
        if settings.version != env!("CARGO_PKG_VERSION") && !args.report.quiet {
            output::message(format_args!(
                "{}: made by version {}: this version may compute other last digits",
                path.display(),
                settings.version
            ));
        }
        let prompts = match of {
            Of::Prompt(of) => {
                let prompts = of.apply(args)?;
                args.batch_size = prompts.len();
                prompts
            }
            Of::Label(of) => {
                args.label = of.batch().iter().map(usize::to_string).collect();
                args.batch_size = args.label.len();
                Vec::new()
            }
        };
        let only = settings.batch_place;
        let weights = settings.weights.clone();
        settings.apply(args)?;
        Ok(Recorded { prompts, only, weights })
    }
}

impl Settings {
    /// Fills in the options that prompts and labels share.
    fn apply(self, args: &mut Args) -> anyhow::Result<()> {
        if args.model.is_none() {
            args.model = Some(self.model_argument.context("the record names no model")?);
        }
        args.parts.vae = args.parts.vae.take().or(self.vae);
        args.parts.weights_dir = args.parts.weights_dir.take().or(self.weights_dir);
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
        args.noise_index = self
            .noise_index
            .unwrap_or(0)
            .checked_sub(self.batch_place as u64)
            .context("batch_place is beyond noise_index")?;
        if args.dtype.is_none() {
            args.dtype = Some(self.dtype.parse()?);
        }
        args.low_memory |= self.low_memory;
        args.device.device = args.device.device.take().or(self.device_name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn weights_of_the_hub_and_local_copies_cannot_be_compared() {
        let hub = |file: &str| json!({"repository": "a/b", "commit": "1", "file": file});
        let local = |file: &str, digest: &str| json!({"file": file, "digest": digest});
        let warnings = |weights: &[Value], now: &[Value]| {
            Recorded { prompts: Vec::new(), only: 0, weights: weights.to_vec() }.warnings(now)
        };
        let cached = [hub("t5"), hub("vae")];
        let copies = [local("t5", "x"), local("vae", "y")];
        for (recorded, now) in [(&cached, &copies), (&copies, &cached)] {
            let found = warnings(recorded, now);
            assert!(found.len() == 1 && found[0].contains("cannot be compared"), "{found:?}");
        }

        // Sources of the same kind are compared.
        let found = warnings(&copies, &[local("t5", "x"), local("vae", "z")]);
        assert!(found.len() == 1 && found[0].starts_with("vae: the record"), "{found:?}");
        let found = warnings(&cached, &[hub("other"), hub("vae")]);
        assert!(found.len() == 1 && found[0].contains("t5 of a/b at commit 1"), "{found:?}");
        assert!(warnings(&cached, &cached).is_empty());
        assert!(warnings(&copies, &[local("renamed", "x"), local("vae", "y")]).is_empty());
        // Each part by itself.
        let mixed = [hub("t5"), local("vae", "y")];
        let found = warnings(&mixed, &[hub("t5"), local("vae", "z")]);
        assert!(found.len() == 1 && found[0].starts_with("vae: the record"), "{found:?}");
        let found = warnings(&mixed, &copies);
        assert!(found.len() == 1 && found[0].contains("cannot be compared"), "{found:?}");
    }
}
