//! Selection of the files of a repository.

use crate::HubError;
use opensora_files::read::{MAX_CONFIG_BYTES, read_text};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A selection of the files of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Files {
    /// The named files.
    Named(Vec<String>),
    /// A model in the top folder: configuration, tokenizer, and the weights in one format, safetensors if
    /// available.
    Model,
    /// All files except hidden files.
    All,
}

/// Files of a model other than its weights.
const BESIDE: [&str; 6] = [
    "config.json",
    "model.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Names of weight files, in the order in which
/// [`Checkpoint::open`](https://docs.rs/opensora-checkpoint) tries them.
const WEIGHTS: [&str; 8] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin.index.json",
];

/// The field of an index that names the shards.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Selected files before an index is read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) files: Vec<String>,
    /// The index among the files, whose shards are needed as well.
    pub(crate) index: Option<String>,
}

/// Selects from the names of a repository's files.
pub(crate) fn choose(files: &Files, names: &BTreeSet<String>) -> Choice {
    let plain = |files: Vec<String>| Choice { files, index: None };
    match files {
        Files::Named(wanted) => plain(wanted.clone()),
        Files::All => {
            let hidden = |name: &&String| name.split('/').any(|part| part.starts_with('.'));
            plain(names.iter().filter(|name| !hidden(name)).cloned().collect())
        }
        Files::Model => {
            let there = |name: &&str| names.contains(*name);
            let mut files: Vec<String> =
                BESIDE.iter().copied().filter(there).map(String::from).collect();
            let weights = WEIGHTS.iter().copied().find(there).map(String::from);
            files.extend(weights.clone());
            let index = weights.filter(|name| name.ends_with(".index.json"));
            Choice { files, index }
        }
    }
}

/// Returns true if the choice contains weights.
pub(crate) fn has_weights(choice: &Choice) -> bool {
    choice.files.iter().any(|name| WEIGHTS.contains(&name.as_str()))
}

/// Reads the names of the shards from an index.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    /// Upper limit of an index in bytes; the index of T5-XXL has 50 KB.
    const MAX_INDEX: u64 = 8 * MAX_CONFIG_BYTES;
    let text = read_text(index, MAX_INDEX).map_err(HubError::io(index))?;
    let index: Index = serde_json::from_str(&text).map_err(|source| HubError::Json {
        place: index.display().to_string(),
        expected: "an index with a weight_map",
        source,
    })?;
    Ok(index.weight_map.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_its_configuration_tokenizer_and_one_format_of_weights() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let t5 = names(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model.bin.index.json",
            "spiece.model",
        ]);
        let choice = choose(&Files::Model, &t5);
        assert_eq!(choice.files, ["config.json", "spiece.model", "pytorch_model.bin.index.json"]);
        assert_eq!(choice.index.as_deref(), Some("pytorch_model.bin.index.json"));
        assert_eq!(choose(&Files::All, &t5).files.len(), 6);
        let vae = names(&[
            "config.json",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.safetensors",
        ]);
        let choice = choose(&Files::Model, &vae);
        assert_eq!(choice.files, ["config.json", "diffusion_pytorch_model.safetensors"]);
        assert_eq!(choice.index, None);
        assert!(!has_weights(&choose(&Files::Model, &names(&["config.json"]))));
    }
}
