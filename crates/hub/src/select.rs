//! Which files of a repository are wanted.

use crate::HubError;
use opensora_files::read::{MAX_CONFIG_BYTES, read_text};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Which files of a repository to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Files {
    /// These.
    Named(Vec<String>),
    /// One part of a model in the repository's top folder: configuration, tokenizer, and its weights in
    /// one format, safetensors first.
    Model,
    /// All files except hidden ones.
    All,
}

/// Files beside the weights of a model.
const BESIDE: [&str; 6] = [
    "config.json",
    "model.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Names that mean "the weights of this folder", in the order in which
/// [`Checkpoint::open`](https://docs.rs/opensora-checkpoint) looks for them.
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

/// The part of an index that names the shards.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What of a listing is wanted before any index is read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) files: Vec<String>,
    /// The index among them; its shards are wanted as well.
    pub(crate) index: Option<String>,
}

/// Chooses from the names of a repository's files.
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

/// Returns true if a choice of a model holds weights.
pub(crate) fn has_weights(choice: &Choice) -> bool {
    choice.files.iter().any(|name| WEIGHTS.contains(&name.as_str()))
}

/// Reads the names of the shards from an index that was fetched.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    /// That of T5-XXL has 50 KB.
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
