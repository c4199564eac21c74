//! The configuration of a VAE, read from the published `config.json`.

use crate::{AutoencoderKl, SCALING_FACTOR};
use burn::tensor::Device;
use opensora_checkpoint::PublishedModel;
use opensora_files::{
    read::{MAX_CONFIG_BYTES, read_text},
    write_atomically,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Type name of an encoder level in diffusers.
const DOWN_BLOCK: &str = "DownEncoderBlock2D";

/// Type name of a decoder level in diffusers.
const UP_BLOCK: &str = "UpDecoderBlock2D";

/// The settings of diffusers' `AutoencoderKL` that determine the architecture. Missing fields have the values
/// of the Stable Diffusion VAE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of a frame.
    pub in_channels: usize,
    /// Channels of a decoded frame.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level; every level except the last halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; a level of the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Activation; only `silu` is supported.
    pub act_fn: String,
    /// Types of the encoder's levels; only `DownEncoderBlock2D` is supported. Empty: all of that type.
    pub down_block_types: Vec<String>,
    /// Types of the decoder's levels; only `UpDecoderBlock2D` is supported. Empty: all of that type.
    pub up_block_types: Vec<String>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            act_fn: "silu".into(),
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
        }
    }
}

/// Error for a configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaeConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not a VAE configuration.
    #[error("{}: not a VAE config", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("{}: cannot write", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A value that is out of range or belongs to another architecture.
    #[error("VAE config: {0}")]
    Value(String),
}

impl VaeConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or describes another architecture.
    pub fn read(path: &Path) -> Result<Self, VaeConfigError> {
        let text = read_text(path, MAX_CONFIG_BYTES)
            .map_err(|source| VaeConfigError::Read { path: path.into(), source })?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|source| VaeConfigError::Parse { path: path.into(), source })?;
        config.validate()?;
        Ok(config)
    }

    /// Writes a `config.json` that [`read`](Self::read) and diffusers' `AutoencoderKL` read.
    ///
    /// # Errors
    /// Returns an error if no model could be built or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), VaeConfigError> {
        self.validate()?;
        let failed = |source| VaeConfigError::Write { path: path.into(), source };
        let mut fields =
            serde_json::to_value(self).map_err(|error| failed(std::io::Error::other(error)))?;
        // diffusers builds one level per listed type, and has other defaults.
        let levels = self.block_out_channels.len();
        for (name, value) in [
            ("_class_name", json!("AutoencoderKL")),
            ("act_fn", json!("silu")),
            ("down_block_types", json!(vec![DOWN_BLOCK; levels])),
            ("up_block_types", json!(vec![UP_BLOCK; levels])),
            ("scaling_factor", json!(SCALING_FACTOR)),
        ] {
            fields[name] = value;
        }
        write_atomically(path, |file| std::fs::write(file, format!("{fields:#}\n"))).map_err(failed)
    }

    /// Returns the configuration beside a VAE's weights, given their folder or file, or the published one if
    /// there is no `config.json`.
    ///
    /// # Errors
    /// Returns the errors of [`read`](Self::read).
    pub fn beside(weights: &Path) -> Result<Self, VaeConfigError> {
        let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(weights) };
        let config = folder.join("config.json");
        if config.exists() { Self::read(&config) } else { Ok(Self::default()) }
    }

    /// Returns the pixels along one side of a latent: 8 for the published model.
    pub fn downsample_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// Checks that frames have three channels.
    ///
    /// # Errors
    /// Returns an error if frames that are encoded or decoded have another number of channels.
    pub fn check_rgb(&self) -> Result<(), VaeConfigError> {
        match (self.in_channels, self.out_channels) {
            (3, 3) => Ok(()),
            (from, to) => Err(VaeConfigError::Value(format!(
                "in_channels is {from} and out_channels is {to}, expected 3, for RGB frames"
            ))),
        }
    }

    /// Returns the size of the latents `[T, h, w]` of a clip `[T, H, W]`.
    ///
    /// # Errors
    /// Returns an error if a size is zero, or height or width is not a multiple of the
    /// [factor](Self::downsample_factor).
    pub fn latent_size(
        &self,
        [frames, height, width]: [usize; 3],
    ) -> Result<[usize; 3], VaeConfigError> {
        let factor = self.downsample_factor();
        let fits = |pixels: usize| pixels > 0 && pixels.is_multiple_of(factor);
        if frames == 0 {
            return Err(VaeConfigError::Value("a clip of 0 frames, expected at least 1".into()));
        }
        if !fits(height) || !fits(width) {
            return Err(VaeConfigError::Value(format!(
                "a clip of {frames} frames, {height}x{width} pixels, has no latents: height and \
                 width must be multiples of {factor}"
            )));
        }
        Ok([frames, height / factor, width / factor])
    }

    /// Returns a VAE with fresh weights, which are allocated when they are first used or loaded.
    ///
    /// # Errors
    /// Returns an error if a value is out of range or belongs to another architecture.
    pub fn init(&self, device: &Device) -> Result<AutoencoderKl, VaeConfigError> {
        AutoencoderKl::from_config(self, device)
    }

    /// Checks that a VAE of this configuration can be built without a panic.
    ///
    /// # Errors
    /// Returns an error if a value is out of range or belongs to another architecture.
    pub fn validate(&self) -> Result<(), VaeConfigError> {
        let fail = |text: String| Err(VaeConfigError::Value(text));
        if self.act_fn != "silu" && self.act_fn != "swish" {
            return fail(format!("act_fn is '{}', expected silu", self.act_fn));
        }
        let widths = &self.block_out_channels;
        for (name, blocks, known) in [
            ("down_block_types", &self.down_block_types, DOWN_BLOCK),
            ("up_block_types", &self.up_block_types, UP_BLOCK),
        ] {
            if let Some(kind) = blocks.iter().find(|kind| *kind != known) {
                return fail(format!("unknown block type '{kind}', expected {known}"));
            }
            if !blocks.is_empty() && blocks.len() != widths.len() {
                return fail(format!(
                    "{name} has {} levels, block_out_channels {}",
                    blocks.len(),
                    widths.len()
                ));
            }
        }
        if widths.is_empty() || widths.len() > 16 {
            return fail(format!(
                "block_out_channels has {} levels, expected 1 to 16",
                widths.len()
            ));
        }
        let groups = self.norm_num_groups;
        for (name, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("layers_per_block", self.layers_per_block),
            ("norm_num_groups", groups),
        ] {
            // Blocks take memory even without weights.
            let most = if name == "layers_per_block" { 64 } else { 4096 };
            if value == 0 || value > most {
                return fail(format!("{name} is {value}, expected 1 to {most}"));
            }
        }
        for &width in widths {
            if width == 0 || width > 1 << 16 || !width.is_multiple_of(groups) {
                return fail(format!(
                    "block_out_channels {width} is not a multiple of norm_num_groups {groups}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_model_has_a_factor_of_8() {
        let config = VaeConfig::default();
        config.validate().unwrap();
        assert_eq!(config.latent_size([16, 256, 512]).unwrap(), [16, 32, 64]);
        let error = config.latent_size([16, 250, 256]).unwrap_err().to_string();
        assert!(error.contains("250x256") && error.contains("multiples of 8"), "{error}");
        for size in [[16, 0, 256], [16, 256, 0], [16, 256, 4]] {
            assert!(config.latent_size(size).is_err(), "{size:?}");
        }
        let error = config.latent_size([0, 256, 256]).unwrap_err().to_string();
        assert!(error.contains("0 frames") && !error.contains("multiples"), "{error}");
    }

    #[test]
    fn other_architectures_are_rejected() {
        let ok = VaeConfig::default();
        for bad in [
            VaeConfig { act_fn: "relu".into(), ..ok.clone() },
            VaeConfig { down_block_types: vec!["AttnDownBlock2D".into()], ..ok.clone() },
            VaeConfig { up_block_types: vec!["UpDecoderBlock2D".into(); 3], ..ok.clone() },
            VaeConfig { block_out_channels: vec![], ..ok.clone() },
            VaeConfig { block_out_channels: vec![100], ..ok.clone() },
            VaeConfig { norm_num_groups: 0, ..ok.clone() },
            VaeConfig { layers_per_block: 4096, ..ok.clone() },
        ] {
            assert!(matches!(bad.validate(), Err(VaeConfigError::Value(_))), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_limited() {
        let ok = VaeConfig::default();
        let levels = |count| VaeConfig { block_out_channels: vec![32; count], ..ok.clone() };
        let widest = |width| VaeConfig { block_out_channels: vec![width], ..ok.clone() };
        for good in [
            levels(1),
            levels(16),
            widest(1 << 16),
            VaeConfig { in_channels: 4096, out_channels: 4096, ..ok.clone() },
            VaeConfig { latent_channels: 4096, layers_per_block: 64, ..ok.clone() },
        ] {
            assert!(good.validate().is_ok(), "{good:?}");
        }
        for (bad, reason) in [
            (levels(17), "block_out_channels has 17 levels, expected 1 to 16"),
            (levels(18), "block_out_channels has 18 levels, expected 1 to 16"),
            (widest(0), "block_out_channels 0 is not"),
            (widest((1 << 16) + 32), "block_out_channels 65568 is not"),
            (
                VaeConfig { in_channels: 4097, ..ok.clone() },
                "in_channels is 4097, expected 1 to 4096",
            ),
            (VaeConfig { out_channels: 0, ..ok.clone() }, "out_channels is 0, expected 1 to 4096"),
            (
                VaeConfig { layers_per_block: 65, ..ok.clone() },
                "layers_per_block is 65, expected 1 to 64",
            ),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn written_configs_list_a_type_for_each_level() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let small = VaeConfig {
            block_out_channels: vec![8, 16],
            norm_num_groups: 4,
            ..VaeConfig::default()
        };
        small.write(&path).unwrap();
        let written = VaeConfig::read(&path).unwrap();
        assert_eq!(written.down_block_types, [DOWN_BLOCK; 2]);
        assert_eq!(written.up_block_types, [UP_BLOCK; 2]);
        let [down_block_types, up_block_types] = [vec![], vec![]];
        assert_eq!(VaeConfig { down_block_types, up_block_types, ..written }, small);
        let fields: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            (&fields["_class_name"], &fields["scaling_factor"]),
            (&json!("AutoencoderKL"), &json!(0.18215))
        );
        let bad = VaeConfig { norm_num_groups: 3, ..small.clone() };
        assert!(matches!(bad.write(&path), Err(VaeConfigError::Value(_))));
        let nowhere = folder.path().join("no/config.json");
        assert!(matches!(small.write(&nowhere), Err(VaeConfigError::Write { .. })));
    }
}
