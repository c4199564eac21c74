//! Published key names of a T5 v1.1 encoder.
//!
//! Source: transformers, `models/t5/modeling_t5.py`. The key of the embedding table is `shared.weight`,
//! `encoder.embed_tokens.weight`, or both with one storage.

use opensora_checkpoint::KeyMap;

/// The layout of a file's key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Key of the embedding table.
    pub table: &'static str,
}

/// Returns the layout of a file with these keys.
pub fn detect<'a>(mut keys: impl Iterator<Item = &'a str>) -> Layout {
    if keys.any(|key| key == Layout::PUBLISHED.table) {
        Layout::PUBLISHED
    } else {
        Layout { table: "encoder.embed_tokens.weight" }
    }
}

impl Layout {
    /// The layout of published files, which exports have too.
    pub const PUBLISHED: Self = Self { table: "shared.weight" };

    /// Returns the map from [`T5Encoder`](crate::T5Encoder)'s parameters to published keys. A
    /// decoder in the file is not used.
    pub fn key_map(self) -> KeyMap {
        KeyMap::new("a T5 v1.1 encoder")
            .rename(move |path| self.published_key(path))
            .allow_unused("encoder.embed_tokens.weight")
            // Includes `decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight`, a
            // leftover of the conversion from Mesh TensorFlow.
            .allow_unused("decoder.*")
            .allow_unused("lm_head.weight")
    }

    fn published_key(self, path: &str) -> String {
        if path == "shared.weight" {
            return self.table.into();
        }
        if path == "relative_attention_bias" {
            return "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".into();
        }
        let path = path
            .replace("blocks.", "block.")
            .replace("attention_norm.", "layer.0.layer_norm.")
            .replace("attention.", "layer.0.SelfAttention.")
            .replace("feed_forward_norm.", "layer.1.layer_norm.")
            .replace("feed_forward.", "layer.1.DenseReluDense.");
        format!("encoder.{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_transformers_names() {
        for (path, key) in [
            ("shared.weight", "shared.weight"),
            (
                "relative_attention_bias",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            ("blocks.3.attention.q.weight", "encoder.block.3.layer.0.SelfAttention.q.weight"),
            ("blocks.3.attention_norm.weight", "encoder.block.3.layer.0.layer_norm.weight"),
            (
                "blocks.0.feed_forward.wi_1.weight",
                "encoder.block.0.layer.1.DenseReluDense.wi_1.weight",
            ),
            ("blocks.0.feed_forward_norm.weight", "encoder.block.0.layer.1.layer_norm.weight"),
            ("final_layer_norm.weight", "encoder.final_layer_norm.weight"),
        ] {
            assert_eq!(Layout::PUBLISHED.published_key(path), key);
        }
    }

    #[test]
    fn the_table_is_found_under_either_name() {
        let embed = "encoder.embed_tokens.weight";
        assert_eq!(detect(["lm_head.weight", embed].into_iter()).table, embed);
        assert_eq!(detect([embed, "shared.weight"].into_iter()), Layout::PUBLISHED);
        assert_eq!(detect([embed].into_iter()).published_key("shared.weight"), embed);
    }
}
