//! The three published layouts of the VAE's key names.
//!
//! | layout | recognised by | published as |
//! |---|---|---|
//! | diffusers | `mid_block.attentions.0.to_q` | current saves |
//! | diffusers, old attention names | `mid_block.attentions.0.query` | stabilityai/sd-vae-ft-ema, -ft-mse |
//! | CompVis | `encoder.down.0.block.0` | sd-vae-ft-*-original; under `first_stage_model.` inside full Stable Diffusion checkpoints |
//!
//! The reference's own class keeps the VAE under `module`.
//!
//! In the last two layouts the attention's weights can be 1x1 convolutions. CompVis numbers the decoder's levels
//! from the pixels, diffusers from the latents.

use crate::VaeConfig;
use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap};

/// The layout of key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// diffusers' current names.
    Diffusers,
    /// diffusers' names with `query`, `key`, `value`, `proj_attn`.
    DiffusersOldAttention,
    /// CompVis' names.
    CompVis,
}

/// A key of every VAE. In a file, the characters before it are a wrapper's prefix.
pub const KNOWN_KEY: &str = "decoder.conv_in.weight";

/// Returns the VAE in `checkpoint` without the wrappers of training programs and full Stable Diffusion
/// checkpoints.
///
/// # Errors
/// Returns an error if the file contains several VAEs and none is known to be the wanted one.
pub fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
    checkpoint.unwrapped(KNOWN_KEY)
}

impl Naming {
    /// Returns the layout of a VAE's keys without wrappers. Unknown keys give diffusers' current names, so that
    /// loading reports the missing keys.
    pub fn detect<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Self {
        let has = |part: &str| keys.clone().any(|key| key.starts_with(part));
        if has("encoder.down.0.") {
            Self::CompVis
        } else if has("encoder.mid_block.attentions.0.query.") {
            Self::DiffusersOldAttention
        } else {
            Self::Diffusers
        }
    }

    /// Returns the map from parameters to keys without wrappers.
    pub fn key_map(self, config: &VaeConfig) -> KeyMap {
        let levels = config.block_out_channels.len();
        let map = KeyMap::new(match self {
            Naming::Diffusers => "a Stable Diffusion VAE (diffusers)",
            Naming::DiffusersOldAttention => "a Stable Diffusion VAE (diffusers, old names)",
            Naming::CompVis => "a Stable Diffusion VAE (CompVis)",
        });
        match self {
            Naming::Diffusers => map.rename(diffusers),
            Naming::DiffusersOldAttention => {
                map.rename(old_attention).any_unit_axes("*attentions*")
            }
            Naming::CompVis => map
                .rename(move |path| compvis(path, levels))
                .any_unit_axes("*attn_1*")
                // The discriminator and running average of its training.
                .allow_unused("loss.*")
                .allow_unused("model_ema.*"),
        }
    }
}

fn diffusers(path: &str) -> String {
    path.replace("downsampler.", "downsamplers.0.")
        .replace("upsampler.", "upsamplers.0.")
        .replace("mid_block.attention.", "mid_block.attentions.0.")
        .replace("to_out.", "to_out.0.")
}

fn old_attention(path: &str) -> String {
    diffusers(path)
        .replace("to_q.", "query.")
        .replace("to_k.", "key.")
        .replace("to_v.", "value.")
        .replace("to_out.0.", "proj_attn.")
}

fn compvis(path: &str, levels: usize) -> String {
    // The decoder's levels are numbered in reverse order.
    let path = match path.strip_prefix("decoder.up_blocks.").and_then(|rest| rest.split_once('.')) {
        Some((level, rest)) => match level.parse::<usize>() {
            Ok(level) if level < levels => format!("decoder.up.{}.{rest}", levels - 1 - level),
            _ => path.to_string(),
        },
        None => path.replace("down_blocks.", "down."),
    };
    path.replace("downsampler.", "downsample.")
        .replace("upsampler.", "upsample.")
        .replace("mid_block.resnets.0.", "mid.block_1.")
        .replace("mid_block.resnets.1.", "mid.block_2.")
        .replace("resnets.", "block.")
        .replace("mid_block.attention.group_norm.", "mid.attn_1.norm.")
        .replace("mid_block.attention.to_out.", "mid.attn_1.proj_out.")
        .replace("mid_block.attention.to_", "mid.attn_1.")
        .replace("conv_shortcut.", "nin_shortcut.")
        .replace("conv_norm_out.", "norm_out.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compvis_numbers_the_decoder_from_the_pixels() {
        for (path, key) in [
            ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
            ("decoder.up_blocks.2.upsampler.conv.bias", "decoder.up.1.upsample.conv.bias"),
            ("encoder.down_blocks.0.downsampler.conv.bias", "encoder.down.0.downsample.conv.bias"),
            ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
            ("decoder.mid_block.attention.to_q.weight", "decoder.mid.attn_1.q.weight"),
            ("decoder.mid_block.attention.to_out.bias", "decoder.mid.attn_1.proj_out.bias"),
            ("encoder.conv_norm_out.weight", "encoder.norm_out.weight"),
            // A level that the decoder does not have.
            ("decoder.up_blocks.4.conv.bias", "decoder.up_blocks.4.conv.bias"),
        ] {
            assert_eq!(compvis(path, 4), key);
        }
    }

    #[test]
    fn layouts_are_recognised_by_their_keys() {
        for (key, naming) in [
            ("encoder.mid_block.attentions.0.to_q.weight", Naming::Diffusers),
            ("encoder.mid_block.attentions.0.query.weight", Naming::DiffusersOldAttention),
            ("encoder.down.0.block.0.conv1.weight", Naming::CompVis),
        ] {
            assert_eq!(Naming::detect([key].into_iter()), naming);
        }
    }
}
