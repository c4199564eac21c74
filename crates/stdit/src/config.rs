//! The configuration of STDiT and PixArt-alpha, and the error of sizes and labels.

use burn::tensor::Device;
use opensora_checkpoint::PublishedModel;
use serde::{Deserialize, Serialize};

/// Configuration of an STDiT or PixArt-alpha model, under the reference's argument names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenoiserConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Patch size `(t, h, w)`; each patch is one token.
    pub patch_size: [usize; 3],
    /// Width of the blocks.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width of a block's MLP as a multiple of `hidden_size`.
    pub mlp_ratio: f64,
    /// True if the model predicts the variance as well, i.e. the output has `2 * in_channels` channels.
    pub pred_sigma: bool,
    /// Width of the text encoder's states.
    pub caption_channels: usize,
    /// Tokens of a prompt.
    pub model_max_length: usize,
    /// Units of the position tables.
    #[serde(flatten)]
    pub scales: PositionScales,
}

/// The units of the position tables, which differ between published models.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PositionScales {
    /// Divisor of rows and columns: 0.5 at 256x256, 1 at 512x512.
    pub space_scale: f64,
    /// Divisor of frames: 1 for 16 frames, 2/3 for 64.
    pub time_scale: f64,
}

/// Most tokens of a prompt, many times those of the published models (120 and 300).
const MAX_PROMPT_TOKENS: usize = 4096;

/// Most values of a patch of all channels: far above any model, and few enough that their product with twice
/// `hidden_size` does not overflow.
const MAX_PATCH_VALUES: usize = 1 << 24;

impl Default for PositionScales {
    fn default() -> Self {
        Self { space_scale: 1.0, time_scale: 1.0 }
    }
}

impl Default for DenoiserConfig {
    fn default() -> Self {
        Self::xl_2()
    }
}

/// Error for a configuration, a clip's size or a label that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Latents that the patch does not divide.
    #[error(
        "latents of {size:?} (frames, height, width) cannot be split into patches of {patch_size:?}"
    )]
    Patches {
        /// Size of the latents.
        size: [usize; 3],
        /// Patch size of the model.
        patch_size: [usize; 3],
    },
    /// Latents that are not square in patches, for a model with a square position table.
    #[error(
        "latents of {size:?} (frames, height, width) are not square in patches of {patch_size:?}, as \
         models with class labels need"
    )]
    Square {
        /// Size of the latents.
        size: [usize; 3],
        /// Patch size of the model.
        patch_size: [usize; 3],
    },
    /// A label that is not a class of the model.
    #[error("label {label} is out of range, the model has classes 0 to {}", num_classes - 1)]
    Label {
        /// The label.
        label: usize,
        /// Number of classes of the model.
        num_classes: usize,
    },
    /// Guidance with a model that has no null class, since it was trained without label dropout.
    #[error("the model has no null class (class_dropout_prob is 0), so it cannot be guided")]
    NoNullClass,
    /// A value of the configuration that is out of range.
    #[error("model config: {0}")]
    Config(String),
}

/// Returns the tokens along (t, h, w) of latents of `size` (frames, height, width).
pub(crate) fn grid(size: [usize; 3], patch_size: [usize; 3]) -> Result<[usize; 3], SizeError> {
    if (0..3).any(|axis| size[axis] == 0 || !size[axis].is_multiple_of(patch_size[axis])) {
        return Err(SizeError::Patches { size, patch_size });
    }
    Ok([0, 1, 2].map(|axis| size[axis] / patch_size[axis]))
}

/// Checks the sizes that all models have, and `others` by name.
pub(crate) fn check_sizes(
    patch_size: [usize; 3],
    [in_channels, hidden_size, depth, num_heads]: [usize; 4],
    mlp_ratio: f64,
    others: &[(&str, usize)],
) -> Result<(), SizeError> {
    let fail = |text: String| Err(SizeError::Config(text));
    let own = [
        ("in_channels", in_channels),
        ("hidden_size", hidden_size),
        ("depth", depth),
        ("num_heads", num_heads),
    ];
    let patch = patch_size.map(|side| ("patch_size", side));
    for &(name, value) in own.iter().chain(&patch).chain(others) {
        // Far above any model, and small enough that products of two sizes do not overflow. Blocks take memory
        // even without weights.
        let most = if name == "depth" { 1 << 10 } else { 1 << 20 };
        if value == 0 || value > most {
            return fail(format!("{name} is {value}, expected 1 to {most}"));
        }
    }
    let patch_values = patch_size.iter().fold(in_channels, |all, &side| all.saturating_mul(side));
    if patch_values > MAX_PATCH_VALUES {
        return fail(format!(
            "patch_size {patch_size:?} with in_channels {in_channels} has {patch_values} values, expected at \
             most {MAX_PATCH_VALUES}"
        ));
    }
    if !hidden_size.is_multiple_of(num_heads) || !hidden_size.is_multiple_of(4) {
        return fail(format!(
            "hidden_size {hidden_size} must be a multiple of 4 and of num_heads {num_heads}"
        ));
    }
    let positive = mlp_ratio.is_finite() && mlp_ratio > 0.0;
    if !positive || mlp_ratio > 64.0 || (hidden_size as f64 * mlp_ratio) < 1.0 {
        return fail(format!("mlp_ratio {mlp_ratio} is out of range"));
    }
    Ok(())
}

impl DenoiserConfig {
    /// Returns the configuration of STDiT-XL/2 and PixArt-XL/2: 28 blocks of width 1152 with 16 heads.
    pub fn xl_2() -> Self {
        Self {
            in_channels: 4,
            patch_size: [1, 2, 2],
            hidden_size: 1152,
            depth: 28,
            num_heads: 16,
            mlp_ratio: 4.0,
            pred_sigma: true,
            caption_channels: 4096,
            model_max_length: 120,
            scales: PositionScales::default(),
        }
    }

    /// Returns the channels of the output: `eps`, and the variance interpolation if it is predicted.
    pub fn out_channels(&self) -> usize {
        if self.pred_sigma { 2 * self.in_channels } else { self.in_channels }
    }

    /// Returns the width of a block's MLP.
    pub fn mlp_size(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    /// Returns the tokens of a clip along (t, h, w) for latents of `size` (frames, height, width).
    ///
    /// # Errors
    /// Returns an error if the patch does not divide the size, or a size is zero.
    pub fn grid(&self, size: [usize; 3]) -> Result<[usize; 3], SizeError> {
        grid(size, self.patch_size)
    }

    /// Returns a model with fresh weights. The type of the model is chosen by the caller:
    /// [`StDit`](crate::StDit), [`PixArt`](crate::PixArt) or [`PixArtMs`](crate::PixArtMs).
    /// Weights are allocated when they are first used or loaded.
    ///
    /// # Errors
    /// Returns an error if a value of the configuration is out of range.
    pub fn init<M>(&self, device: &Device) -> Result<M, SizeError>
    where
        M: PublishedModel<Config = Self, ConfigError = SizeError>,
    {
        M::from_config(self, device)
    }

    /// Checks that a model of this configuration can be built without a panic.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), SizeError> {
        check_sizes(
            self.patch_size,
            [self.in_channels, self.hidden_size, self.depth, self.num_heads],
            self.mlp_ratio,
            &[
                ("caption_channels", self.caption_channels),
                ("model_max_length", self.model_max_length),
            ],
        )?;
        // The text encoder's positions take memory for its square.
        if self.model_max_length > MAX_PROMPT_TOKENS {
            let found = self.model_max_length;
            let text = format!("model_max_length is {found}, expected at most {MAX_PROMPT_TOKENS}");
            return Err(SizeError::Config(text));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.scales.space_scale) || !positive(self.scales.time_scale) {
            let text = "space_scale and time_scale must be positive";
            return Err(SizeError::Config(text.into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_the_patch_does_not_divide_are_rejected() {
        let config = DenoiserConfig::xl_2();
        assert_eq!(config.grid([16, 32, 48]), Ok([16, 16, 24]));
        for size in [[16, 31, 32], [16, 32, 33], [0, 32, 32]] {
            assert!(matches!(config.grid(size), Err(SizeError::Patches { .. })));
        }
    }

    #[test]
    fn invalid_configs_are_rejected() {
        let ok = DenoiserConfig::xl_2();
        assert_eq!(ok.validate(), Ok(()));
        for bad in [
            DenoiserConfig { num_heads: 7, ..ok.clone() },
            DenoiserConfig { depth: 0, ..ok.clone() },
            DenoiserConfig { depth: 1_000_000, ..ok.clone() },
            DenoiserConfig { hidden_size: 1_000_000_000, ..ok.clone() },
            DenoiserConfig { hidden_size: usize::MAX, ..ok.clone() },
            DenoiserConfig { mlp_ratio: f64::NAN, ..ok.clone() },
            DenoiserConfig { patch_size: [1, 0, 2], ..ok.clone() },
            // Each side is allowed, their product overflows or takes too much.
            DenoiserConfig { patch_size: [1 << 20; 3], ..ok.clone() },
            DenoiserConfig { patch_size: [1, 1 << 11, (1 << 11) + 1], ..ok.clone() },
            DenoiserConfig {
                scales: PositionScales { space_scale: 0.0, time_scale: 1.0 },
                ..ok.clone()
            },
        ] {
            assert!(matches!(bad.validate(), Err(SizeError::Config(_))), "{bad:?}");
        }
    }
}
