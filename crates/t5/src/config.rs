//! The configuration of a T5 v1.1 encoder, read from the published `config.json`.

use crate::T5Encoder;
use burn::tensor::Device;
use opensora_checkpoint::PublishedModel;
use opensora_files::{
    read::{MAX_CONFIG_BYTES, read_text},
    write_atomically,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The settings of transformers' `T5Config` that determine the encoder. Missing fields have transformers'
/// defaults or the values of T5 v1.1 XXL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the states.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Blocks of the encoder.
    pub num_layers: usize,
    /// Attention heads; `num_heads * d_kv` can differ from `d_model`.
    pub num_heads: usize,
    /// Buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// Distance from which all positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// Kind of the feed-forward layer; only `gated-gelu` (v1.1) is supported.
    pub feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "gated-gelu".into(),
        }
    }
}

/// Error for a configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum T5ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not a T5 configuration.
    #[error("{}: not a T5 config", path.display())]
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
    #[error("T5 config: {0}")]
    Value(String),
}

impl T5Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or describes another architecture.
    pub fn read(path: &Path) -> Result<Self, T5ConfigError> {
        let text = read_text(path, MAX_CONFIG_BYTES)
            .map_err(|source| T5ConfigError::Read { path: path.into(), source })?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|source| T5ConfigError::Parse { path: path.into(), source })?;
        config.validate()?;
        Ok(config)
    }

    /// Writes a `config.json` that [`read`](Self::read) and transformers' `T5EncoderModel` read.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), T5ConfigError> {
        self.validate()?;
        let failed = |source| T5ConfigError::Write { path: path.into(), source };
        let mut fields =
            serde_json::to_value(self).map_err(|error| failed(std::io::Error::other(error)))?;
        // Further settings that transformers needs; ids as in every published T5.
        for (name, value) in [
            ("architectures", json!(["T5EncoderModel"])),
            ("model_type", json!("t5")),
            ("pad_token_id", json!(0)),
            ("eos_token_id", json!(1)),
        ] {
            fields[name] = value;
        }
        write_atomically(path, |file| std::fs::write(file, format!("{fields:#}\n"))).map_err(failed)
    }

    /// Returns an encoder with fresh weights, which are allocated when they are first used or loaded.
    ///
    /// # Errors
    /// Returns an error if a value is out of range or belongs to another architecture.
    pub fn init(&self, device: &Device) -> Result<T5Encoder, T5ConfigError> {
        T5Encoder::from_config(self, device)
    }

    /// Checks that an encoder of this configuration can be built without a panic.
    ///
    /// # Errors
    /// Returns an error if a value is out of range or belongs to another architecture.
    pub fn validate(&self) -> Result<(), T5ConfigError> {
        let fail = |text: String| Err(T5ConfigError::Value(text));
        if self.feed_forward_proj != "gated-gelu" {
            return fail(format!(
                "feed_forward_proj is '{}', expected gated-gelu (T5 v1.1)",
                self.feed_forward_proj
            ));
        }
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ] {
            // Blocks take memory even without weights.
            let most = if name == "num_layers" { 1 << 10 } else { 1 << 20 };
            if value == 0 || value > most {
                return fail(format!("{name} is {value}, expected 1 to {most}"));
            }
        }
        let (buckets, distance) =
            (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        // Each direction has half of the buckets; half of those are for single distances.
        let possible = 4..=1 << 16;
        if !possible.contains(&buckets) || distance <= buckets / 4 || distance > 1 << 20 {
            return fail(format!(
                "{buckets} relative_attention_num_buckets do not go with a \
                 relative_attention_max_distance of {distance}"
            ));
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0) {
            return fail(format!("layer_norm_epsilon is {}", self.layer_norm_epsilon));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_architectures_are_rejected() {
        let ok = T5Config::default();
        ok.validate().unwrap();
        for bad in [
            T5Config { feed_forward_proj: "relu".into(), ..ok.clone() },
            T5Config { num_layers: 0, ..ok.clone() },
            T5Config { num_layers: 1_000_000, ..ok.clone() },
            T5Config { d_model: usize::MAX, ..ok.clone() },
            T5Config { relative_attention_num_buckets: 2, ..ok.clone() },
            T5Config { relative_attention_max_distance: 1, ..ok.clone() },
            T5Config { layer_norm_epsilon: f64::NAN, ..ok.clone() },
        ] {
            assert!(matches!(bad.validate(), Err(T5ConfigError::Value(_))), "{bad:?}");
        }
    }
    #[test]
    fn written_configs_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let small = T5Config { d_model: 32, num_heads: 3, ..T5Config::default() };
        small.write(&path).unwrap();
        assert_eq!(T5Config::read(&path).unwrap(), small);
        let fields: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((&fields["model_type"], &fields["d_model"]), (&json!("t5"), &json!(32)));
        let nowhere = folder.path().join("no/config.json");
        assert!(matches!(small.write(&nowhere), Err(T5ConfigError::Write { .. })));
        let bad = T5Config { num_heads: 0, ..small };
        assert!(matches!(bad.write(&path), Err(T5ConfigError::Value(_))));
    }
}
