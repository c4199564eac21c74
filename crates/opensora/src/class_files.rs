//! The files of a model that follows class labels.

use crate::{
    labels::LabelSet,
    model_files::{
        FOLLOWS_PROMPT, ModelError, PartPaths, description_error, find_part, find_vae,
        is_class_kind, named_sampler, parse_description, read_description,
    },
    presets::{ClassKind, Preset, PresetModel, published_request},
    request::SampleRequest,
    stdit::ClassConfig,
};
use opensora_checkpoint::known_fields;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The files, sizes and default request of a model that follows class labels.
#[derive(Debug, Clone)]
pub struct ClassFiles {
    /// Name of the model, for messages and for the record beside an output.
    pub name: String,
    /// Architecture of the denoiser.
    pub kind: ClassKind,
    /// Weights of the denoiser, in any form that
    /// [`Checkpoint::open`](crate::checkpoint::Checkpoint::open) takes.
    pub denoiser: PathBuf,
    /// Sizes of the denoiser.
    pub config: ClassConfig,
    /// Names of the model's classes, if known.
    pub labels: Option<LabelSet>,
    /// Folder of the VAE with its `config.json`, or its file of weights.
    pub vae: PathBuf,
    /// Default request: size, length, frame rate, sampler and guidance.
    pub defaults: SampleRequest,
}

/// Contents of `model.json`; paths are relative to its folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    /// `dit` or `latte`.
    architecture: String,
    denoiser: PathBuf,
    #[serde(deserialize_with = "known_fields")]
    denoiser_config: ClassConfig,
    vae: PathBuf,
    num_frames: usize,
    /// Height and width.
    image_size: [usize; 2],
    fps: f64,
    /// Default sampler; `None`: that of the published models.
    #[serde(default)]
    sampler: Option<String>,
    #[serde(default)]
    steps: Option<usize>,
    #[serde(default)]
    guidance_scale: Option<f64>,
}

impl ClassFiles {
    /// Finds a model by name or path: a preset, or a folder with a `model.json` whose `architecture` is
    /// `dit` or `latte`.
    ///
    /// # Errors
    /// Returns an error if there is no such model, a file is missing, or the model follows a prompt.
    pub fn resolve(model: &str, parts: &PartPaths) -> Result<Self, ModelError> {
        let path = Path::new(model);
        if let Some(preset) = Preset::find(model) {
            Self::preset(preset, parts)
        } else if path.join("model.json").exists() {
            Self::open_with(path, parts)
        } else if path.exists() {
            // A bare checkpoint states neither architecture nor image size.
            let reason =
                "expected a preset or a folder with a model.json for a model with class labels";
            Err(description_error(path, reason))
        } else {
            Err(ModelError::Unknown { name: model.into() })
        }
    }

    fn preset(preset: &Preset, parts: &PartPaths) -> Result<Self, ModelError> {
        // Checked before files are searched.
        class_of(preset)?;
        let place = preset.origin.place();
        let denoiser = find_part(preset, parts, &None, preset.files, place, "--weights-dir")?;
        Self::of_preset(preset, denoiser, find_vae(preset, parts)?)
    }

    /// Returns the files of a preset, from the paths of its parts.
    pub(crate) fn of_preset(
        preset: &Preset,
        denoiser: PathBuf,
        vae: PathBuf,
    ) -> Result<Self, ModelError> {
        let (kind, labels) = class_of(preset)?;
        Ok(Self {
            name: preset.name.into(),
            kind,
            denoiser,
            config: kind.xl_2(),
            labels: Some(labels),
            vae,
            defaults: preset.defaults(),
        })
    }

    /// Opens a folder with a `model.json`; `parts` may replace the VAE.
    ///
    /// # Errors
    /// Returns an error if the description is missing or malformed, the model follows a prompt, or a path
    /// that is used leads elsewhere than `parts.policy` allows.
    pub fn open_with(folder: &Path, parts: &PartPaths) -> Result<Self, ModelError> {
        let path = folder.join("model.json");
        let fail = |reason: String| description_error(&path, &reason);
        let (text, architecture) = read_description(folder)?;
        if !architecture.as_deref().is_some_and(is_class_kind) {
            let name = folder.display().to_string();
            return Err(ModelError::Condition { name, follows: FOLLOWS_PROMPT });
        }
        let description: Description = parse_description(&path, &text)?;
        let part = |relative: &Path| parts.policy.resolve(folder, relative).map_err(fail);
        let kind = match description.architecture.as_str() {
            "latte" => ClassKind::Latte,
            _ => ClassKind::Dit,
        };
        let published = published_request(kind.name());
        let sampler = named_sampler(&path, description.sampler.as_deref(), &published)?;
        Ok(Self {
            name: description.name,
            kind,
            denoiser: part(&description.denoiser)?,
            config: description.denoiser_config,
            labels: None,
            vae: match &parts.vae {
                Some(vae) => vae.clone(),
                None => part(&description.vae)?,
            },
            defaults: SampleRequest {
                num_frames: description.num_frames,
                image_size: description.image_size,
                fps: description.fps,
                sampler,
                steps: description.steps,
                guidance_scale: description.guidance_scale.unwrap_or(published.guidance_scale),
                ..published
            },
        })
    }
}

/// Returns the architecture and class names of a preset that follows class labels.
pub(crate) fn class_of(preset: &Preset) -> Result<(ClassKind, LabelSet), ModelError> {
    match preset.model {
        PresetModel::Class(kind, labels) => Ok((kind, labels)),
        PresetModel::Text(_) => {
            Err(ModelError::Condition { name: preset.name.into(), follows: FOLLOWS_PROMPT })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelFiles, files::error_line};

    #[test]
    fn presets_of_both_kinds_point_to_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let parts = PartPaths { weights_dir: Some(folder.path().into()), ..PartPaths::default() };
        let error = ClassFiles::resolve("dit-xl-2-256x256", &parts).unwrap_err().to_string();
        assert!(
            error.contains("DiT-XL-2-256x256.pt") && error.contains("fbaipublicfiles"),
            "{error}"
        );
        let error = ClassFiles::resolve("pixart-xl-2-512x512", &parts).unwrap_err().to_string();
        assert!(error.contains("leave --label out"), "{error}");
        let error = ModelFiles::resolve("dit-xl-2-256x256", &parts).unwrap_err().to_string();
        assert!(error.contains("give one with --label"), "{error}");

        // Latte's file under the reference's name for it.
        std::fs::write(folder.path().join("Latte-XL-2-256x256-ucf101.pt"), "").unwrap();
        std::fs::create_dir(folder.path().join("sd-vae-ft-ema")).unwrap();
        let files = ClassFiles::resolve("latte-xl-2-16x256x256-ucf101", &parts).unwrap();
        assert_eq!((files.kind, files.config.num_classes()), (ClassKind::Latte, 101));
        assert_eq!(files.defaults.num_frames, 16);
        let error = ClassFiles::resolve("no-such-model", &parts).unwrap_err();
        assert!(matches!(error, ModelError::Unknown { .. }));
    }

    #[test]
    fn the_architecture_of_a_description_decides_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let describe = |architecture: &str, others: serde_json::Value| {
            let mut description = serde_json::json!({
                "name": "small", "architecture": architecture, "denoiser": "model.pt",
                "denoiser_config": {"condition": "label_5", "depth": 2},
                "vae": "vae", "num_frames": 1, "image_size": [64, 64], "fps": 1.0,
            });
            for (key, value) in others.as_object().unwrap() {
                description[key] = value.clone();
            }
            std::fs::write(folder.path().join("model.json"), description.to_string()).unwrap();
            let parts = PartPaths::default();
            let path = folder.path().to_str().unwrap();
            (ClassFiles::resolve(path, &parts), ModelFiles::resolve(path, &parts))
        };
        let (class, text) = describe("dit", serde_json::json!({"steps": 7}));
        let class = class.unwrap();
        assert_eq!((class.kind, class.config.num_classes()), (ClassKind::Dit, 5));
        assert_eq!((class.defaults.steps, class.labels), (Some(7), None));
        assert!(matches!(text, Err(ModelError::Condition { .. })), "{text:?}");

        let prompts = serde_json::json!({"t5": "t5", "denoiser_config": {"depth": 2}});
        let (class, text) = describe("pixart-ms", prompts);
        assert!(matches!(class, Err(ModelError::Condition { .. })), "{class:?}");
        assert_eq!(
            text.unwrap().architecture,
            crate::presets::Architecture::PixArtMs { base_size: None }
        );
        let prompts = serde_json::json!({"t5": "t5", "denoiser_config": {}, "base_size": 64});
        let (_, text) = describe("pixart", prompts);
        assert!(text.unwrap_err().to_string().contains("pixart-ms only"));
        let (_, text) = describe("unet", serde_json::json!({"t5": "t5"}));
        let error = text.unwrap_err().to_string();
        assert!(error.contains("'unet'") && error.contains("latte"), "{error}");

        let (class, _) = describe("latte", serde_json::json!({"t5": "t5"}));
        assert!(error_line(&class.unwrap_err()).contains("t5"));
        let (class, _) = describe("latte", serde_json::json!({"denoiser": "../model.pt"}));
        assert!(class.unwrap_err().to_string().contains("leads out"));
    }
}
