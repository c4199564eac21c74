//! Checkpoints of several files: `*.index.json` and folders.

use crate::{
    CheckpointError,
    error::because,
    source::{Opened, check_count, open_shard},
};
use opensora_files::read::{inside, read_bounded};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Maximum size of an index in bytes. That of a T5-XXL with encoder and decoder has 50 KB.
const MAX_INDEX: u64 = 8 << 20;

/// Well-known file names of a folder's weights, in the order of transformers and diffusers: safetensors,
/// their index, PyTorch files, their index.
const WELL_KNOWN: [&str; 8] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin.index.json",
];

const ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];

/// The part of an index that maps keys to shards, the same in transformers and ColossalAI.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens an index with all its shards, which must be beside it.
pub(crate) fn open_index(path: &Path) -> Result<Opened, CheckpointError> {
    let format = CheckpointError::malformed::<String>(path);
    let index = read_index(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut all = Opened::default();
    let mut opened = BTreeSet::new();
    for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
        let file = inside(folder, Path::new(shard))
            .map_err(because("bad name of a shard"))
            .map_err(CheckpointError::malformed(path))?;
        // `a.bin` and `./a.bin` are one file.
        if !opened.insert(file.clone()) {
            continue;
        }
        if !file.is_file() {
            return Err(CheckpointError::MissingShard { index: path.into(), shard: shard.clone() });
        }
        if is_index(&file) {
            return Err(format(format!("shard '{shard}' is an index itself")));
        }
        let part = open_shard(&file)?;
        for (key, tensor) in part.tensors {
            if all.tensors.insert(key.clone(), tensor).is_some() {
                return Err(format(format!("key '{key}' is in two shards")));
            }
        }
        check_count(all.tensors.len(), "tensors").map_err(&format)?;
        all.wrapper = part.wrapper.or(all.wrapper);
        all.outside += part.outside;
    }
    let lost = index.weight_map.iter().find(|(key, _)| !all.tensors.contains_key(*key));
    if let Some((key, shard)) = lost {
        return Err(format(format!("key '{key}' is not in its shard '{shard}'")));
    }
    Ok(all)
}

fn read_index(path: &Path) -> Result<Index, CheckpointError> {
    let text = read_bounded(path, MAX_INDEX)
        .map_err(|source| CheckpointError::Open { path: path.into(), source })?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(because("not an index with a weight_map"))
        .map_err(CheckpointError::malformed(path))?;
    if index.weight_map.is_empty() {
        return Err(CheckpointError::format(path, "its weight_map is empty"));
    }
    Ok(index)
}

/// Returns the checkpoint in a folder.
pub(crate) fn find_in_folder(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let fail = |reason: String| CheckpointError::Folder { path: folder.into(), reason };
    let files = list(folder)?;
    let colossal = folder.join("model");
    let colossal_files = if colossal.is_dir() { list(&colossal)? } else { vec![] };

    for files in [&files, &colossal_files] {
        let mut indices: Vec<&PathBuf> = files.iter().filter(|file| is_index(file)).collect();
        // Indices of other names: the safer format first.
        indices.sort_by_key(|file| !name(file).contains("safetensors"));
        let well_known = WELL_KNOWN.iter().find_map(|n| files.iter().find(|f| name(f) == *n));
        if let Some(file) = well_known.or(indices.first().copied()) {
            return Ok(file.clone());
        }
    }
    let weights: Vec<PathBuf> = files.into_iter().filter(|file| is_weights(file)).collect();
    match weights.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(fail(format!(
            "no checkpoint in this folder: expected a *.index.json, {} or one file ending in .{}",
            WELL_KNOWN.join(", "),
            ENDINGS.join(", .")
        ))),
        several => {
            let names: Vec<&str> = several.iter().map(|file| name(file)).collect();
            Err(fail(format!(
                "several checkpoints in this folder, choose one of {}",
                names.join(", ")
            )))
        }
    }
}

/// Returns the file of `folder` that is read instead of its file `name`, one of the well-known names.
pub(crate) fn preferred(folder: &Path, name: &str) -> Option<PathBuf> {
    let before = WELL_KNOWN.iter().take_while(|known| **known != name);
    before.map(|known| folder.join(known)).find(|path| path.is_file())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let open = |source| CheckpointError::Open { path: folder.into(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(open)? {
        let path = entry.map_err(open)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_index(file: &Path) -> bool {
    name(file).ends_with(".index.json")
}

fn is_weights(file: &Path) -> bool {
    file.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e))
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
