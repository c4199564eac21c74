//! Sizes: of the models, and of the clips that fit them.

use serde::{Deserialize, Serialize};

/// Sizes of an STDiT or PixArt-alpha model, under the reference's argument names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DenoiserConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Patch `(t, h, w)`, one token each.
    pub patch_size: [usize; 3],
    /// Width of the blocks.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; `hidden_size` is a multiple of it.
    pub num_heads: usize,
    /// Width of a block's MLP as a multiple of `hidden_size`.
    pub mlp_ratio: f64,
    /// Whether the variance is predicted too, i.e. the output has `2 * in_channels` channels.
    pub pred_sigma: bool,
    /// Width of the text encoder's states.
    pub caption_channels: usize,
    /// Tokens of a prompt.
    pub model_max_length: usize,
    /// Where the position tables stand.
    #[serde(flatten)]
    pub scales: PositionScales,
}

/// The units of the position tables: published models were trained at different ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PositionScales {
    /// Rows and columns are divided by it: 0.5 at 256x256, 1 at 512x512.
    pub space_scale: f64,
    /// Frames are divided by it: 1 for 16 frames, 2/3 for 64.
    pub time_scale: f64,
}

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

/// Why a configuration or a clip's size cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The clip cannot be cut into patches.
    #[error(
        "latents of {size:?} (frames, height, width) cannot be cut into patches of {patch_size:?}"
    )]
    Patches {
        /// The latents' size.
        size: [usize; 3],
        /// The model's patch.
        patch_size: [usize; 3],
    },
    /// A value of the configuration cannot be.
    #[error("model config: {0}")]
    Config(String),
}

impl DenoiserConfig {
    /// STDiT-XL/2 and PixArt-XL/2: 28 blocks of width 1152 with 16 heads.
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

    /// Channels of the output: `eps`, and the variance interpolation where it is predicted.
    pub fn out_channels(&self) -> usize {
        if self.pred_sigma { 2 * self.in_channels } else { self.in_channels }
    }

    /// Width of a block's MLP.
    pub fn mlp_size(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    /// Tokens of a clip along (t, h, w) for latents of `size` (frames, height, width).
    ///
    /// # Errors
    /// Where the patch does not divide the size, or the size has a zero.
    pub fn grid(&self, size: [usize; 3]) -> Result<[usize; 3], SizeError> {
        let patch = self.patch_size;
        if (0..3).any(|axis| size[axis] == 0 || !size[axis].is_multiple_of(patch[axis])) {
            return Err(SizeError::Patches { size, patch_size: patch });
        }
        Ok([size[0] / patch[0], size[1] / patch[1], size[2] / patch[2]])
    }

    /// Fails where no model could be built, so that [`init`](crate::StDit::new) never panics.
    ///
    /// # Errors
    /// Names the value that cannot be.
    pub fn validate(&self) -> Result<(), SizeError> {
        let fail = |text: String| Err(SizeError::Config(text));
        for (name, value) in [
            ("in_channels", self.in_channels),
            ("hidden_size", self.hidden_size),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("caption_channels", self.caption_channels),
            ("model_max_length", self.model_max_length),
            ("patch_size", self.patch_size.into_iter().min().unwrap_or(0)),
        ] {
            // Far above any model, and small enough that products of two stay in range. Blocks take
            // memory even before they have weights.
            let most = if name == "depth" { 1 << 10 } else { 1 << 20 };
            if value == 0 || value > most {
                return fail(format!("{name} is {value}, expected 1 to {most}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) || !self.hidden_size.is_multiple_of(4) {
            return fail(format!(
                "hidden_size {} must be a multiple of 4 and of num_heads {}",
                self.hidden_size, self.num_heads
            ));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.mlp_ratio) || self.mlp_ratio > 64.0 || self.mlp_size() == 0 {
            return fail(format!("mlp_ratio {} is out of range", self.mlp_ratio));
        }
        if !positive(self.scales.space_scale) || !positive(self.scales.time_scale) {
            return fail("space_scale and time_scale must be positive".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_the_patch_does_not_divide_are_refused() {
        let config = DenoiserConfig::xl_2();
        assert_eq!(config.grid([16, 32, 48]), Ok([16, 16, 24]));
        for size in [[16, 31, 32], [16, 32, 33], [0, 32, 32]] {
            assert!(matches!(config.grid(size), Err(SizeError::Patches { .. })));
        }
    }

    #[test]
    fn impossible_configs_are_refused() {
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
            DenoiserConfig {
                scales: PositionScales { space_scale: 0.0, time_scale: 1.0 },
                ..ok.clone()
            },
        ] {
            assert!(matches!(bad.validate(), Err(SizeError::Config(_))), "{bad:?}");
        }
    }
}
