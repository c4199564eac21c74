//! The three published layouts of the VAE's key names.
//!
//! | layout | tells itself by | published as |
//! |---|---|---|
//! | diffusers | `mid_block.attentions.0.to_q` | current saves |
//! | diffusers, old attention names | `mid_block.attentions.0.query` | stabilityai/sd-vae-ft-ema, -ft-mse |
//! | CompVis | `encoder.down.0.block.0` | sd-vae-ft-*-original; under `first_stage_model.` inside full Stable Diffusion checkpoints |
//!
//! In the last two the attention's weights may be 1x1 convolutions. CompVis counts the decoder's
//! levels from the pixels, diffusers from the latents.

use crate::VaeConfig;
use opensora_checkpoint::KeyMap;

/// A layout found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// What stands before every key of the VAE.
    pub prefix: &'static str,
    /// How its keys are named behind the prefix.
    pub naming: Naming,
}

/// How keys are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// diffusers' names of today.
    Diffusers,
    /// diffusers' names with `query`, `key`, `value`, `proj_attn`.
    DiffusersOldAttention,
    /// CompVis' names.
    CompVis,
}

/// Finds the layout from a file's keys; diffusers' names of today where none is recognised, so
/// that the load then says which keys are missing.
pub fn detect<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Layout {
    let has = |part: &str| keys.clone().any(|key| key.starts_with(part));
    // The reference's own class keeps the VAE under `module`.
    let prefix = ["first_stage_model.", "module."].into_iter().find(|p| has(p)).unwrap_or("");
    let behind = |part: &str| has(&format!("{prefix}{part}"));
    let naming = if behind("encoder.down.0.") {
        Naming::CompVis
    } else if behind("encoder.mid_block.attentions.0.query.") {
        Naming::DiffusersOldAttention
    } else {
        Naming::Diffusers
    };
    Layout { prefix, naming }
}

impl Layout {
    /// diffusers' names of today without a prefix: what is written.
    pub const TODAY: Self = Self { prefix: "", naming: Naming::Diffusers };

    /// The map for keys behind the prefix.
    pub fn key_map(self, config: &VaeConfig) -> KeyMap {
        let levels = config.block_out_channels.len();
        let map = KeyMap::new(match self.naming {
            Naming::Diffusers => "a Stable Diffusion VAE (diffusers)",
            Naming::DiffusersOldAttention => "a Stable Diffusion VAE (diffusers, old names)",
            Naming::CompVis => "a Stable Diffusion VAE (CompVis)",
        });
        match self.naming {
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
    // The decoder's levels are counted from the other end.
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
    fn compvis_counts_the_decoder_from_the_pixels() {
        for (path, key) in [
            ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
            ("decoder.up_blocks.2.upsampler.conv.bias", "decoder.up.1.upsample.conv.bias"),
            ("encoder.down_blocks.0.downsampler.conv.bias", "encoder.down.0.downsample.conv.bias"),
            ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
            ("decoder.mid_block.attention.to_q.weight", "decoder.mid.attn_1.q.weight"),
            ("decoder.mid_block.attention.to_out.bias", "decoder.mid.attn_1.proj_out.bias"),
            ("encoder.conv_norm_out.weight", "encoder.norm_out.weight"),
        ] {
            assert_eq!(compvis(path, 4), key);
        }
    }

    #[test]
    fn layouts_tell_themselves_by_their_keys() {
        let find = |keys: &[&'static str]| detect(keys.iter().copied());
        let new = find(&["encoder.mid_block.attentions.0.to_q.weight"]);
        assert_eq!(new, Layout { prefix: "", naming: Naming::Diffusers });
        let old = find(&["encoder.mid_block.attentions.0.query.weight"]);
        assert_eq!(old.naming, Naming::DiffusersOldAttention);
        let full = find(&["model.x", "first_stage_model.encoder.down.0.block.0.conv1.weight"]);
        assert_eq!(full, Layout { prefix: "first_stage_model.", naming: Naming::CompVis });
    }
}
