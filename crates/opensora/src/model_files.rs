//! The files of a model that follows prompts.
//!
//! A model is a folder with a `model.json` that names its parts, a published [preset](crate::presets)
//! with its files in one folder under their published names, or an STDiT checkpoint with separate paths of
//! the text encoder and the VAE.

use crate::{
    buckets,
    diffusion::{PredictionType, SamplerKind, sampler::SamplerError},
    presets::{self, Architecture, ClassKind, PRESETS, Preset, PresetModel},
    request::SampleRequest,
    stdit::{DenoiserConfig, PositionScales},
};
use opensora_checkpoint::known_fields;
use opensora_files::{
    one_line,
    read::{MAX_CONFIG_BYTES, inside, read_text},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The files, sizes and default request of a model that follows prompts.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// Name of the model, for messages and for the record beside an output.
    pub name: String,
    /// Architecture of the denoiser.
    pub architecture: Architecture,
    /// Weights of the denoiser, in any form that
    /// [`Checkpoint::open`](crate::checkpoint::Checkpoint::open) takes.
    pub denoiser: PathBuf,
    /// Sizes of the denoiser.
    pub denoiser_config: DenoiserConfig,
    /// Rule for the denoiser's position scales.
    pub scales: ScaleRule,
    /// Prediction target of the denoiser. `None`: read from the checkpoint's metadata, else noise, as
    /// published.
    pub prediction_type: Option<PredictionType>,
    /// Folder of the text encoder: `config.json`, tokenizer and weights.
    pub t5: PathBuf,
    /// Folder of the VAE with its `config.json`, or its file of weights.
    pub vae: PathBuf,
    /// Default request: size, length, frame rate, sampler and guidance.
    pub defaults: SampleRequest,
    /// Training sizes as height and width in pixels, if the model was trained for several.
    pub buckets: &'static [[usize; 2]],
}

/// Choice of the position scales by [`TextToVideo`](crate::TextToVideo).
///
/// `space_scale` and `time_scale` of a request take precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleRule {
    /// The scales of [`ModelFiles::denoiser_config`], for requests of all sizes.
    Fixed,
    /// The scales of the published configuration nearest to the request; see [`published_scales`].
    ForRequest,
}

/// Folder names of the text encoder: the published one, then the reference's.
pub(crate) const T5_FOLDERS: [&str; 2] = ["t5-v1_1-xxl", "t5_ckpts/t5-v1_1-xxl"];
/// Folder names of the VAE.
pub(crate) const VAE_FOLDERS: [&str; 2] = ["sd-vae-ft-ema", "sd-vae-ft-mse"];

/// Error for a model whose files cannot be found or described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a preset nor a path.
    #[error(
        "no model '{name}': expected a folder with a model.json, an STDiT checkpoint, or one of {}",
        preset_names()
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// The description of a model cannot be read.
    #[error("{}: the model's description cannot be read", path.display())]
    Read {
        /// The `model.json`.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The description of a model is not JSON, or a field is missing, unknown or of another type.
    #[error("{}: not a model's description", path.display())]
    Json {
        /// The `model.json`.
        path: PathBuf,
        /// The field and the line.
        source: serde_json::Error,
    },
    /// The description of a model names an unknown sampler.
    #[error("{}: sampler", path.display())]
    Sampler {
        /// The `model.json`.
        path: PathBuf,
        /// The name and the known ones.
        source: SamplerError,
    },
    /// The description of a model has a value that cannot be used.
    #[error("{}: {reason}", path.display())]
    Description {
        /// The `model.json`.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file of a preset is missing.
    #[error(
        "preset {preset} needs {what} ({origin}) in '{}': download it there, or give another \
         path with {option}",
        folder.display()
    )]
    MissingFile {
        /// The preset.
        preset: String,
        /// The file or folder.
        what: String,
        /// Repository or address of the published file.
        origin: &'static str,
        /// The folder that was searched.
        folder: PathBuf,
        /// The option for another path.
        option: &'static str,
    },
    /// A model of labels was used with a prompt, or the other way round.
    #[error("model '{name}' follows {follows}")]
    Condition {
        /// The model.
        name: String,
        /// The expected condition, and how to give it.
        follows: &'static str,
    },
    /// The path of a part is missing for a checkpoint.
    #[error(
        "{}: a checkpoint needs the other parts of the model: give the {what} with {option}",
        path.display()
    )]
    MissingPart {
        /// The checkpoint.
        path: PathBuf,
        /// The part.
        what: &'static str,
        /// The option for its path.
        option: &'static str,
    },
}

fn preset_names() -> String {
    PRESETS.map(|preset| preset.name).join(", ")
}

/// Conditions of models, for [`ModelError::Condition`].
pub(crate) const FOLLOWS_PROMPT: &str = "a prompt, not a class label: leave --label out";
const FOLLOWS_LABEL: &str = "a class label, not a prompt: give one with --label";

/// Contents of `model.json`; paths are relative to its folder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    /// `stdit` (default), `pixart` or `pixart-ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    architecture: Option<String>,
    /// See [`Architecture::PixArtMs`]; only valid for `pixart-ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_size: Option<usize>,
    denoiser: PathBuf,
    #[serde(deserialize_with = "known_fields")]
    denoiser_config: DenoiserConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prediction_type: Option<PredictionType>,
    t5: PathBuf,
    vae: PathBuf,
    num_frames: usize,
    /// Height and width.
    image_size: [usize; 2],
    fps: f64,
    /// Default sampler; `None`: that of the published models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampler: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guidance_scale: Option<f64>,
}

/// Returns the sampler that a `model.json` names, or else that of the published models.
pub(crate) fn named_sampler(
    path: &Path,
    name: Option<&str>,
    published: &SampleRequest,
) -> Result<SamplerKind, ModelError> {
    let Some(name) = name else { return Ok(published.sampler) };
    name.parse().map_err(|source| ModelError::Sampler { path: path.into(), source })
}

/// Reads the `model.json` of `folder`, and returns its `architecture` with its text.
pub(crate) fn read_description(folder: &Path) -> Result<(String, Option<String>), ModelError> {
    /// The field that decides which others are expected.
    #[derive(Deserialize)]
    struct Kind {
        #[serde(default)]
        architecture: Option<String>,
    }
    let path = folder.join("model.json");
    let text = read_text(&path, MAX_CONFIG_BYTES)
        .map_err(|source| ModelError::Read { path: path.clone(), source })?;
    let Kind { architecture } = parse_description(&path, &text)?;
    Ok((text, architecture))
}

/// Parses the text of a `model.json`.
pub(crate) fn parse_description<T: DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(|source| ModelError::Json { path: path.into(), source })
}

/// Returns the error of a description on one line, with control characters of the file's text escaped.
pub(crate) fn description_error(path: &Path, reason: &str) -> ModelError {
    ModelError::Description { path: path.into(), reason: one_line(reason) }
}

/// The names of all architectures.
const ARCHITECTURES: [&str; 5] = ["stdit", "pixart", "pixart-ms", "dit", "latte"];

fn unknown_architecture(name: &str) -> String {
    format!("architecture '{name}', expected one of {}", ARCHITECTURES.join(", "))
}

impl Description {
    fn architecture(&self) -> Result<Architecture, String> {
        let architecture = match self.architecture.as_deref() {
            None | Some("stdit") => Architecture::StDit,
            Some("pixart") => Architecture::PixArt,
            Some("pixart-ms") => Architecture::PixArtMs { base_size: self.base_size },
            Some(other) => return Err(unknown_architecture(other)),
        };
        match (architecture, self.base_size) {
            (_, Some(0)) => Err("base_size is 0, expected tokens along a side".into()),
            (Architecture::PixArtMs { .. }, _) | (_, None) => Ok(architecture),
            _ => Err("base_size belongs to the architecture pixart-ms only".into()),
        }
    }
}

/// Paths that a `model.json` may name. A description may come from an untrusted source, and its paths could name
/// a pipe, a device or other users' files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PathPolicy {
    /// Paths in the model's folder.
    #[default]
    InFolder,
    /// Paths in the model's folder, and relative paths below this folder.
    Below(PathBuf),
    /// All paths.
    Anywhere,
}

impl PathPolicy {
    /// Returns the path of a part that the description in `folder` names.
    pub(crate) fn resolve(&self, folder: &Path, part: &Path) -> Result<PathBuf, String> {
        let whole = folder.join(part);
        if *self == Self::Anywhere || inside(folder, part).is_ok() {
            return Ok(whole);
        }
        if let (Self::Below(root), false) = (self, part.is_absolute()) {
            // Existing paths only: links and `..` are resolved before they are compared.
            let below = whole.canonicalize().ok().zip(root.canonicalize().ok());
            if below.is_some_and(|(whole, root)| whole.starts_with(root)) {
                return Ok(whole);
            }
        }
        Err(format!(
            "path '{}' leads out of the model's folder; allow it with --allow-outside-paths if you \
             trust this file",
            part.display()
        ))
    }
}

/// Paths of a model's parts; each takes precedence over the model's own.
#[derive(Debug, Clone, Default)]
pub struct PartPaths {
    /// Folder of the text encoder.
    pub t5: Option<PathBuf>,
    /// Folder or file of the VAE.
    pub vae: Option<PathBuf>,
    /// Folder with the files of a preset.
    pub weights_dir: Option<PathBuf>,
    /// Paths that a `model.json` may name.
    pub policy: PathPolicy,
}

impl ModelFiles {
    /// Opens a folder with a `model.json` whose paths stay in that folder.
    ///
    /// # Errors
    /// Returns an error if the description is missing or malformed, or a path leads out of the folder.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_with(folder, &PartPaths::default())
    }

    /// Opens a folder with a `model.json`; `parts` may replace the text encoder and the VAE.
    ///
    /// # Errors
    /// Returns an error if the description is missing or malformed, or `parts.policy` does not allow a path.
    pub fn open_with(folder: &Path, parts: &PartPaths) -> Result<Self, ModelError> {
        let path = folder.join("model.json");
        let fail = |reason: String| description_error(&path, &reason);
        let (text, architecture) = read_description(folder)?;
        if architecture.as_deref().is_some_and(is_class_kind) {
            let name = folder.display().to_string();
            return Err(ModelError::Condition { name, follows: FOLLOWS_LABEL });
        }
        // Before the fields, which depend on it.
        if let Some(other) = architecture.filter(|name| !ARCHITECTURES.contains(&name.as_str())) {
            return Err(fail(unknown_architecture(&other)));
        }
        let description: Description = parse_description(&path, &text)?;
        let architecture = description.architecture().map_err(fail)?;
        let part = |relative: &Path| parts.policy.resolve(folder, relative).map_err(fail);
        let own = |given: &Option<PathBuf>, relative: &Path| match given {
            Some(path) => Ok(path.clone()),
            None => part(relative),
        };
        let published = presets::published_request(architecture.name());
        let sampler = named_sampler(&path, description.sampler.as_deref(), &published)?;
        Ok(Self {
            name: description.name,
            architecture,
            denoiser: part(&description.denoiser)?,
            denoiser_config: description.denoiser_config,
            scales: ScaleRule::Fixed,
            prediction_type: description.prediction_type,
            t5: own(&parts.t5, &description.t5)?,
            vae: own(&parts.vae, &description.vae)?,
            defaults: SampleRequest {
                num_frames: description.num_frames,
                image_size: description.image_size,
                fps: description.fps,
                sampler,
                steps: description.steps,
                guidance_scale: description.guidance_scale.unwrap_or(published.guidance_scale),
                ..published
            },
            buckets: &[],
        })
    }

    /// Finds a model by name or path: a preset, a folder with a `model.json`, or an STDiT-XL/2
    /// checkpoint, whose position scales depend on the size of each request
    /// ([`ScaleRule::ForRequest`]).
    ///
    /// # Errors
    /// Returns an error if there is no such model or one of its parts is missing.
    pub fn resolve(model: &str, parts: &PartPaths) -> Result<Self, ModelError> {
        let path = Path::new(model);
        let files = if let Some(preset) = Preset::find(model) {
            Self::preset(preset, parts)?
        } else if path.join("model.json").exists() {
            Self::open_with(path, parts)?
        } else if path.exists() {
            Self::bare_checkpoint(path, parts)?
        } else {
            return Err(ModelError::Unknown { name: model.into() });
        };
        Ok(files.with_parts(parts))
    }

    /// Returns the training size whose ratio of height to width is nearest to `aspect_ratio`, or `None` if the
    /// model was trained for one size only.
    pub fn nearest_size(&self, aspect_ratio: f64) -> Option<[usize; 2]> {
        buckets::nearest(self.buckets, aspect_ratio)
    }

    /// Replaces the paths of the text encoder and the VAE by those of `parts`.
    pub fn with_parts(self, parts: &PartPaths) -> Self {
        Self {
            t5: parts.t5.clone().unwrap_or(self.t5),
            vae: parts.vae.clone().unwrap_or(self.vae),
            ..self
        }
    }

    fn preset(preset: &Preset, parts: &PartPaths) -> Result<Self, ModelError> {
        let find = |given: &Option<PathBuf>, names: &[&str], origin, option| {
            find_part(preset, parts, given, names, origin, option)
        };
        // Checked before files are searched.
        architecture(preset)?;
        let denoiser = find(&None, preset.files, preset.origin.place(), "--weights-dir")?;
        let t5 = find(&parts.t5, &T5_FOLDERS, presets::TEXT_ENCODER, "--t5")?;
        Self::of_preset(preset, denoiser, t5, find_vae(preset, parts)?)
    }

    /// Returns the files of a preset, from the paths of its parts.
    pub(crate) fn of_preset(
        preset: &Preset,
        denoiser: PathBuf,
        t5: PathBuf,
        vae: PathBuf,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            name: preset.name.into(),
            architecture: architecture(preset)?,
            denoiser,
            denoiser_config: DenoiserConfig { scales: preset.scales, ..DenoiserConfig::xl_2() },
            scales: ScaleRule::Fixed,
            prediction_type: None,
            t5,
            vae,
            defaults: preset.defaults(),
            buckets: preset.buckets,
        })
    }

    fn bare_checkpoint(path: &Path, parts: &PartPaths) -> Result<Self, ModelError> {
        let missing = |what, option| ModelError::MissingPart { path: path.into(), what, option };
        Ok(Self {
            name: path.display().to_string(),
            architecture: Architecture::StDit,
            denoiser: path.into(),
            denoiser_config: DenoiserConfig::xl_2(),
            scales: ScaleRule::ForRequest,
            prediction_type: None,
            t5: parts.t5.clone().ok_or_else(|| missing("text encoder", "--t5"))?,
            vae: parts.vae.clone().ok_or_else(|| missing("VAE", "--vae"))?,
            defaults: SampleRequest::default(),
            buckets: &[],
        })
    }
}

/// Returns the architecture of a preset that follows prompts.
pub(crate) fn architecture(preset: &Preset) -> Result<Architecture, ModelError> {
    match preset.model {
        PresetModel::Text(architecture) => Ok(architecture),
        PresetModel::Class(..) => {
            Err(ModelError::Condition { name: preset.name.into(), follows: FOLLOWS_LABEL })
        }
    }
}

/// Returns true for the name of an architecture with class labels.
pub(crate) fn is_class_kind(name: &str) -> bool {
    [ClassKind::Dit, ClassKind::Latte].iter().any(|kind| kind.name() == name)
}

/// Returns the given path, or else the path of the first of `names` that exists in the folder of weights.
pub(crate) fn find_part(
    preset: &Preset,
    parts: &PartPaths,
    given: &Option<PathBuf>,
    names: &[&str],
    origin: &'static str,
    option: &'static str,
) -> Result<PathBuf, ModelError> {
    if let Some(path) = given {
        return Ok(path.clone());
    }
    find_local(parts, names).ok_or_else(|| ModelError::MissingFile {
        preset: preset.name.into(),
        what: format!("'{}'", names[0]),
        origin,
        folder: weights_dir(parts),
        option,
    })
}

/// Returns the path of the first of `names` that exists in the folder of weights.
pub(crate) fn find_local(parts: &PartPaths, names: &[&str]) -> Option<PathBuf> {
    let folder = weights_dir(parts);
    names.iter().map(|name| folder.join(name)).find(|path| path.exists())
}

fn weights_dir(parts: &PartPaths) -> PathBuf {
    parts.weights_dir.clone().unwrap_or_else(|| "pretrained_models".into())
}

/// Returns the VAE of a preset.
pub(crate) fn find_vae(preset: &Preset, parts: &PartPaths) -> Result<PathBuf, ModelError> {
    find_part(preset, parts, &parts.vae, &VAE_FOLDERS, presets::VAE, "--vae")
}

/// Returns the scales of the published configuration nearest to a request: positions in space are
/// divided by 0.5 at 256 pixels and by 1.0 at 512, positions in time by 2/3 at 64 frames.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `configs/opensora/inference`: 16x256x256, 16x512x512 and
/// 64x512x512.
pub fn published_scales(request: &SampleRequest) -> PositionScales {
    let [height, width] = request.image_size;
    PositionScales {
        space_scale: if height.max(width) >= 512 { 1.0 } else { 0.5 },
        time_scale: if request.num_frames >= 64 { 2.0 / 3.0 } else { 1.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_says_which_file_is_missing_and_where_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let parts = PartPaths { weights_dir: Some(folder.path().into()), ..PartPaths::default() };
        let error = ModelFiles::resolve("opensora-v1-16x256x256", &parts).unwrap_err().to_string();
        assert!(error.contains("OpenSora-v1-16x256x256.pth"), "{error}");
        assert!(error.contains("hpcai-tech/Open-Sora") && !error.contains('\n'), "{error}");

        std::fs::write(folder.path().join("OpenSora-v1-16x256x256.pth"), "").unwrap();
        let error = ModelFiles::resolve("opensora-v1-16x256x256", &parts).unwrap_err().to_string();
        assert!(error.contains("t5-v1_1-xxl"), "{error}");

        for name in ["t5_ckpts/t5-v1_1-xxl", "sd-vae-ft-ema"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let files = ModelFiles::resolve("opensora-v1-16x256x256", &parts).unwrap();
        assert_eq!(files.defaults.image_size, [256, 256]);
        assert_eq!(files.denoiser_config.scales.space_scale, 0.5);
    }

    #[test]
    fn paths_stay_in_the_folder_unless_the_caller_allows_others() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("model");
        std::fs::create_dir_all(root.path().join("shared")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        let config = serde_json::to_value(DenoiserConfig::xl_2()).unwrap();
        let open = |t5: &str, policy: &PathPolicy| {
            let parts = PartPaths { policy: policy.clone(), ..PartPaths::default() };
            let description = serde_json::json!({
                "name": "of a stranger", "denoiser": "stdit.safetensors", "denoiser_config": config,
                "t5": t5, "vae": "vae", "num_frames": 16, "image_size": [64, 64], "fps": 8.0,
            });
            std::fs::write(folder.join("model.json"), description.to_string()).unwrap();
            ModelFiles::open_with(&folder, &parts).map(|files| files.t5)
        };
        let below = PathPolicy::Below(root.path().into());
        let absolute = root.path().join("shared").display().to_string();
        assert_eq!(open("t5", &PathPolicy::InFolder).unwrap(), folder.join("t5"));
        for (t5, may_be_below) in [("../shared", true), (&absolute, false), ("../../..", false)] {
            let error = open(t5, &PathPolicy::InFolder).unwrap_err().to_string();
            assert!(error.contains("model.json") && error.contains("leads out"), "{error}");
            assert_eq!(open(t5, &below).is_ok(), may_be_below, "{t5}");
            assert!(open(t5, &PathPolicy::Anywhere).is_ok());
        }
    }

    #[test]
    fn errors_of_a_description_are_one_line() {
        let folder = tempfile::tempdir().unwrap();
        for text in [r#"{"na\nme": 1}"#, r#"{"architecture": "a\nb"}"#] {
            std::fs::write(folder.path().join("model.json"), text).unwrap();
            let error = ModelFiles::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("model.json") && !error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn unknown_names_and_checkpoints_without_parts_are_rejected() {
        let unknown = ModelFiles::resolve("no-such-model", &PartPaths::default()).unwrap_err();
        assert!(matches!(unknown, ModelError::Unknown { .. }));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let lonely = ModelFiles::resolve(path, &PartPaths::default()).unwrap_err();
        assert!(matches!(lonely, ModelError::MissingPart { option: "--t5", .. }));
    }

    #[test]
    fn scales_follow_the_published_configurations() {
        let at = |num_frames, pixels| {
            let request = SampleRequest {
                num_frames,
                image_size: [pixels, pixels],
                ..SampleRequest::default()
            };
            let scales = published_scales(&request);
            (scales.space_scale, scales.time_scale)
        };
        assert_eq!(at(16, 256), (0.5, 1.0));
        assert_eq!(at(16, 512), (1.0, 1.0));
        assert_eq!(at(64, 512), (1.0, 2.0 / 3.0));
    }
}
