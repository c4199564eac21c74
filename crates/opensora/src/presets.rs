//! The published checkpoints that are available by name.

use crate::{
    buckets,
    diffusion::SamplerKind,
    labels::LabelSet,
    request::SampleRequest,
    stdit::{ClassConfig, DenoiserConfig, PositionScales},
};

/// A published checkpoint with the settings that the reference samples it with.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Preset {
    /// Name for `--model`.
    pub name: &'static str,
    /// Architecture and condition.
    pub model: PresetModel,
    /// Repository or address of the published file.
    pub origin: Origin,
    /// File names to look for in a folder of weights; the published one first.
    pub files: &'static [&'static str],
    /// Licence of the weights; `None` if no public source was found that states it.
    pub licence: Option<&'static str>,
    /// Frames of the training clips; one for images.
    pub num_frames: usize,
    /// Height and width in pixels.
    pub image_size: [usize; 2],
    /// Further training sizes in pixels, as height and width.
    pub buckets: &'static [[usize; 2]],
    /// Frames per second of the output: 24 divided by the frame interval of the training clips; for
    /// images the reference's 1.
    pub fps: f64,
    /// Units of the position tables.
    pub scales: PositionScales,
    /// Default sampler, the reference's.
    pub sampler: SamplerKind,
    /// Default number of sampler steps.
    pub steps: usize,
    /// Default guidance scale.
    pub guidance_scale: f64,
    /// Source of these values.
    pub source: &'static str,
}

/// Architecture and condition of a preset.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum PresetModel {
    /// A model that follows a prompt, of XL/2 size.
    Text(Architecture),
    /// A model that follows a class label, of XL/2 size.
    Class(ClassKind, LabelSet),
}

/// Architecture of a model that follows a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Architecture {
    /// STDiT, for clips.
    #[default]
    StDit,
    /// PixArt-alpha of one size, for images.
    PixArt,
    /// PixArt-alpha for images of many sizes.
    PixArtMs {
        /// Side of the square grid of tokens that positions are scaled to; `None`: the reference's
        /// rule. See [`PixArt::with_base_size`](crate::stdit::PixArt::with_base_size).
        base_size: Option<usize>,
    },
}

/// Architecture of a model that follows a class label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClassKind {
    /// DiT, for images.
    Dit,
    /// Latte, for clips.
    Latte,
}

/// Location of a published file: a repository on the Hugging Face hub, or a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A repository on the Hugging Face hub.
    Hub {
        /// Owner and name of the repository.
        repository: &'static str,
        /// Path of the file in the repository.
        file: &'static str,
    },
    /// A URL.
    Url(&'static str),
}

impl Origin {
    /// Returns the repository or address, for messages.
    pub fn place(&self) -> &'static str {
        match self {
            Self::Hub { repository, .. } => repository,
            Self::Url(url) => url,
        }
    }
}

/// Repository of the text encoder of every preset with prompts.
pub const TEXT_ENCODER: &str = "DeepFloyd/t5-v1_1-xxl";

/// Repository of the VAE that the reference uses for every preset.
pub const VAE: &str = "stabilityai/sd-vae-ft-ema";

/// All published checkpoints that are available by name.
///
/// File names and addresses: hpcaitech/Open-Sora v1.0.0, README.md and
/// `opensora/utils/ckpt_utils.py`, `pretrained_models`; settings: its `configs/*/inference`, named in
/// each row. (A 64x512x512 STDiT was configured but never published.)
///
/// Deviations: the default size of PixArt-XL-2-1024-MS is 1024x1024 (the reference's configuration has
/// 1920x512), and its positions are those of PixArt-alpha's code, which the reference computes differently
/// for images that are not square.
pub const PRESETS: [Preset; 10] = [
    Preset {
        origin: open_sora("OpenSora-v1-16x256x256.pth"),
        files: &["OpenSora-v1-16x256x256.pth"],
        source: "hpcaitech/Open-Sora v1.0.0, configs/opensora/inference/16x256x256.py",
        ..stdit("opensora-v1-16x256x256", 256, 0.5)
    },
    Preset {
        origin: open_sora("OpenSora-v1-HQ-16x256x256.pth"),
        files: &["OpenSora-v1-HQ-16x256x256.pth"],
        source: "hpcaitech/Open-Sora v1.0.0, configs/opensora/inference/16x256x256.py",
        ..stdit("opensora-v1-hq-16x256x256", 256, 0.5)
    },
    Preset {
        origin: open_sora("OpenSora-v1-HQ-16x512x512.pth"),
        files: &["OpenSora-v1-HQ-16x512x512.pth"],
        source: "hpcaitech/Open-Sora v1.0.0, configs/opensora/inference/16x512x512.py",
        ..stdit("opensora-v1-hq-16x512x512", 512, 1.0)
    },
    Preset {
        origin: pixart_alpha("PixArt-XL-2-256x256.pth"),
        files: &["PixArt-XL-2-256x256.pth"],
        source: "hpcaitech/Open-Sora v1.0.0, configs/pixart/inference/1x256x256.py",
        ..pixart("pixart-xl-2-256x256", 256)
    },
    Preset {
        origin: pixart_alpha("PixArt-XL-2-SAM-256x256.pth"),
        files: &["PixArt-XL-2-SAM-256x256.pth"],
        // The reference has no configuration for this checkpoint: the settings are those of the other one of this size.
        source: "hpcaitech/Open-Sora v1.0.0, configs/pixart/inference/1x256x256.py",
        ..pixart("pixart-xl-2-sam-256x256", 256)
    },
    Preset {
        origin: pixart_alpha("PixArt-XL-2-512x512.pth"),
        files: &["PixArt-XL-2-512x512.pth"],
        licence: OPEN_RAIL,
        source: "hpcaitech/Open-Sora v1.0.0, configs/pixart/inference/1x512x512.py; licence: model \
                 card of PixArt-alpha/PixArt-XL-2-512x512",
        ..pixart("pixart-xl-2-512x512", 512)
    },
    Preset {
        model: PresetModel::Text(Architecture::PixArtMs { base_size: Some(64) }),
        origin: pixart_alpha("PixArt-XL-2-1024-MS.pth"),
        files: &["PixArt-XL-2-1024-MS.pth"],
        licence: OPEN_RAIL,
        buckets: &buckets::PIXART_1024,
        scales: PositionScales { space_scale: 2.0, time_scale: 1.0 },
        source: "hpcaitech/Open-Sora v1.0.0, configs/pixart/inference/1x1024MS.py; positions: \
                 PixArt-alpha/PixArt-alpha, diffusion/model/nets/PixArtMS.py; licence: model card of \
                 PixArt-alpha/PixArt-XL-2-1024-MS",
        ..pixart("pixart-xl-2-1024-ms", 1024)
    },
    Preset {
        origin: Origin::Url("https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt"),
        files: &["DiT-XL-2-256x256.pt"],
        source: "hpcaitech/Open-Sora v1.0.0, configs/dit/inference/1x256x256-class.py; licence: \
                 facebookresearch/DiT, README.md",
        ..dit("dit-xl-2-256x256", 256)
    },
    Preset {
        origin: Origin::Url("https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt"),
        files: &["DiT-XL-2-512x512.pt"],
        // The reference has no configuration for this checkpoint: the settings are those of the other size.
        source: "hpcaitech/Open-Sora v1.0.0, configs/dit/inference/1x256x256-class.py; licence: \
                 facebookresearch/DiT, README.md",
        ..dit("dit-xl-2-512x512", 512)
    },
    Preset {
        name: "latte-xl-2-16x256x256-ucf101",
        model: PresetModel::Class(ClassKind::Latte, LabelSet::Ucf101),
        origin: Origin::Hub { repository: "maxin-cn/Latte", file: "ucf101.pt" },
        files: &["ucf101.pt", "Latte-XL-2-256x256-ucf101.pt"],
        licence: Some("Apache-2.0"),
        num_frames: 16,
        fps: 8.0,
        source: "hpcaitech/Open-Sora v1.0.0, configs/latte/inference/16x256x256-class.py; licence: \
                 Vchitect/Latte, README.md",
        ..dit("", 256)
    },
];

/// CreativeML Open RAIL++-M.
const OPEN_RAIL: Option<&str> = Some("openrail++");

const fn open_sora(file: &'static str) -> Origin {
    Origin::Hub { repository: "hpcai-tech/Open-Sora", file }
}

const fn pixart_alpha(file: &'static str) -> Origin {
    Origin::Hub { repository: "PixArt-alpha/PixArt-alpha", file }
}

/// Returns a row with default values: single images of `pixels` by `pixels`.
const fn row(name: &'static str, model: PresetModel, pixels: usize) -> Preset {
    Preset {
        name,
        model,
        origin: Origin::Url(""),
        files: &[],
        licence: None,
        num_frames: 1,
        image_size: [pixels, pixels],
        buckets: &[],
        fps: 1.0,
        scales: PositionScales { space_scale: 1.0, time_scale: 1.0 },
        sampler: SamplerKind::DpmSolver,
        steps: 20,
        guidance_scale: 7.0,
        source: "",
    }
}

const fn stdit(name: &'static str, pixels: usize, space_scale: f64) -> Preset {
    Preset {
        num_frames: 16,
        fps: 24.0 / 3.0,
        scales: PositionScales { space_scale, time_scale: 1.0 },
        sampler: SamplerKind::Iddpm,
        steps: 100,
        ..row(name, PresetModel::Text(Architecture::StDit), pixels)
    }
}

const fn pixart(name: &'static str, pixels: usize) -> Preset {
    row(name, PresetModel::Text(Architecture::PixArt), pixels)
}

const fn dit(name: &'static str, pixels: usize) -> Preset {
    Preset {
        licence: Some("CC-BY-NC-4.0"),
        guidance_scale: 4.0,
        ..row(name, PresetModel::Class(ClassKind::Dit, LabelSet::ImageNet1k), pixels)
    }
}

/// Returns the default request of the first published model of an architecture, by its name in a `model.json`.
pub(crate) fn published_request(architecture: &str) -> SampleRequest {
    let of = |model: PresetModel| match model {
        PresetModel::Text(architecture) => architecture.name(),
        PresetModel::Class(kind, _) => kind.name(),
    };
    let preset = PRESETS.iter().find(|preset| of(preset.model) == architecture);
    preset.map_or_else(SampleRequest::default, Preset::defaults)
}

impl Preset {
    /// Returns the preset of a name; `None` for unknown names.
    pub fn find(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// Returns the sizes of the denoiser; `None` for a model with class labels.
    pub fn denoiser_config(&self) -> Option<DenoiserConfig> {
        match self.model {
            PresetModel::Text(_) => {
                Some(DenoiserConfig { scales: self.scales, ..DenoiserConfig::xl_2() })
            }
            PresetModel::Class(..) => None,
        }
    }

    /// Returns the default request of the checkpoint.
    pub fn defaults(&self) -> SampleRequest {
        SampleRequest {
            num_frames: self.num_frames,
            image_size: self.image_size,
            fps: self.fps,
            sampler: self.sampler,
            steps: Some(self.steps),
            guidance_scale: self.guidance_scale,
            ..SampleRequest::default()
        }
    }
}

impl Architecture {
    /// Returns the name of the architecture in a `model.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::StDit => "stdit",
            Self::PixArt => "pixart",
            Self::PixArtMs { .. } => "pixart-ms",
        }
    }
}

impl ClassKind {
    /// Returns the name of the architecture in a `model.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dit => "dit",
            Self::Latte => "latte",
        }
    }

    /// Returns the sizes of the published model.
    pub fn xl_2(self) -> ClassConfig {
        match self {
            Self::Dit => ClassConfig::dit_xl_2(),
            Self::Latte => ClassConfig::latte_xl_2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_is_complete() {
        let names: BTreeSet<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        assert_eq!(names.len(), PRESETS.len(), "names are unique");
        for preset in &PRESETS {
            assert!(preset.name.len() > 3 && preset.name.to_lowercase() == preset.name);
            assert!(!preset.origin.place().is_empty() && preset.source.contains("v1.0.0"));
            let published = match preset.origin {
                Origin::Hub { file, .. } => file,
                Origin::Url(url) => url.rsplit('/').next().unwrap(),
            };
            assert_eq!(preset.files[0], published);
            preset.defaults().sampler().unwrap();
            if let PresetModel::Class(kind, labels) = preset.model {
                assert_eq!(kind.xl_2().num_classes(), labels.classes(), "{}", preset.name);
            }
            if !preset.buckets.is_empty() {
                assert!(preset.buckets.contains(&preset.image_size));
            }
        }
    }

    #[test]
    fn settings_are_those_of_the_references_configurations() {
        let settings = |name| {
            let preset = Preset::find(name).unwrap();
            (preset.sampler, preset.steps, preset.guidance_scale, preset.scales.space_scale)
        };
        let (iddpm, dpm) = (SamplerKind::Iddpm, SamplerKind::DpmSolver);
        assert_eq!(settings("opensora-v1-hq-16x512x512"), (iddpm, 100, 7.0, 1.0));
        assert_eq!(settings("opensora-v1-16x256x256"), (iddpm, 100, 7.0, 0.5));
        assert_eq!(settings("pixart-xl-2-1024-ms"), (dpm, 20, 7.0, 2.0));
        assert_eq!(settings("pixart-xl-2-256x256"), (dpm, 20, 7.0, 1.0));
        assert_eq!(settings("dit-xl-2-512x512"), (dpm, 20, 4.0, 1.0));
        assert_eq!(settings("latte-xl-2-16x256x256-ucf101"), (dpm, 20, 4.0, 1.0));
        for (architecture, sampler, guidance) in [
            ("stdit", iddpm, 7.0),
            ("pixart", dpm, 7.0),
            ("pixart-ms", dpm, 7.0),
            ("dit", dpm, 4.0),
        ] {
            let request = published_request(architecture);
            assert_eq!((request.sampler, request.guidance_scale), (sampler, guidance));
        }
    }
}
