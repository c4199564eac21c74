//! Resolves `--model` to the files of a model.

use crate::fetch_progress::FetchProgress;
use anyhow::{Context, ensure};
use opensora::{
    ClassFiles, ModelFiles,
    checkpoint::Checkpoint,
    data::dataset::fingerprint_of,
    files::{folder_of, read::open_regular},
    hub::provenance,
    model_files::{PartPaths, PathPolicy},
    pretrained::Pretrained,
};
use opensora_demo::model::NAME;
use serde_json::{Value, json};
use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Size in bytes of the blocks that [`file_digest`] reads.
const BLOCK: u64 = 64 << 10;

/// Number of these blocks in a large file.
const BLOCKS: u64 = 128;

/// Files of configuration and tokenizer in the folder of the weights, on which the outputs depend too.
pub(crate) const BESIDE: [&str; 5] = [
    "config.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Finds a model that follows prompts by name or path: the bundled one, or one that
/// [`Pretrained::text_files`] finds. Missing files of a published model are fetched, after a message with
/// their size and place.
pub(crate) fn resolve(model: &str, parts: &PartPaths, quiet: bool) -> anyhow::Result<ModelFiles> {
    if model == NAME {
        let files = opensora_demo::model_files().context("--model")?;
        return Ok(files.with_parts(parts));
    }
    let mut progress = FetchProgress::new(quiet);
    let files = pretrained(parts)?.text_files(model, &mut progress);
    progress.finish();
    let files = files.with_context(|| match Path::new(model).exists() {
        true => "--model".into(),
        false => format!("--model (bundled: {NAME})"),
    })?;
    Ok(files.with_parts(parts))
}

/// Finds a model that follows class labels by name or path; see [`resolve`].
pub(crate) fn resolve_class(
    model: &str,
    parts: &PartPaths,
    quiet: bool,
) -> anyhow::Result<ClassFiles> {
    ensure!(
        model != NAME,
        "--model: model '{NAME}' follows a prompt, not a class label: leave --label out"
    );
    let mut progress = FetchProgress::new(quiet);
    let files = pretrained(parts)?.class_files(model, &mut progress);
    progress.finish();
    files.context("--model")
}

fn pretrained(parts: &PartPaths) -> anyhow::Result<Pretrained> {
    Ok(Pretrained { parts: parts.clone(), ..Pretrained::from_env()? })
}

/// Describes weights for the record beside an output: repository, commit and file of weights from the hub, name and
/// [`digest`] of others. Unreadable weights are left out; loading them reports the error.
pub(crate) fn sources(paths: &[&Path]) -> Vec<Value> {
    paths.iter().filter_map(|path| source(path)).collect()
}

fn source(path: &Path) -> Option<Value> {
    if let Some(from) = provenance(path) {
        return Some(json!({
            "repository": from.repository.as_str(), "commit": from.commit, "file": from.file,
        }));
    }
    // The last name only: clients of a server see its records.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let digest = digest(path).ok()?;
    Some(json!({"file": name, "digest": digest}))
}

/// Returns the digest of weights and of the configuration and tokenizer in their folder. Names of files do not
/// count.
fn digest(path: &Path) -> anyhow::Result<String> {
    let checkpoint = Checkpoint::open(path)?;
    let folder = if path.is_dir() { path } else { folder_of(path) };
    let beside = BESIDE.map(|name| folder.join(name));
    let beside = beside.iter().map(PathBuf::as_path).filter(|file| file.is_file());
    let files = checkpoint.files().into_iter().chain(beside);
    let mut digests = files.map(file_digest).collect::<io::Result<Vec<String>>>()?;
    digests.sort_unstable();
    Ok(fingerprint_of(digests))
}

/// Returns the SHA-256 of a file's size and contents. Of a file of more than 8 MiB, only 128 evenly spaced blocks of
/// 64 KiB are read: the published text encoder has 19 GB. Training changes all blocks; a change of less than 1/128 of the
/// file may lie between them.
fn file_digest(path: &Path) -> io::Result<String> {
    let mut file = open_regular(path)?;
    let size = file.metadata()?.len();
    let mut parts = vec![size.to_le_bytes().to_vec()];
    let distance = (size / BLOCKS).max(BLOCK);
    for start in (0..size).step_by(distance as usize) {
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        file.by_ref().take(BLOCK).read_to_end(&mut block)?;
        parts.push(block);
    }
    Ok(fingerprint_of(parts))
}

/// Returns the policy for paths in a `model.json`: into its folder and, for relative paths, below the
/// working directory; anywhere if `anywhere`.
pub(crate) fn policy(anywhere: bool) -> anyhow::Result<PathPolicy> {
    if anywhere {
        return Ok(PathPolicy::Anywhere);
    }
    Ok(PathPolicy::Below(std::env::current_dir().context("the working directory")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a safetensors file with one tensor and returns its digest.
    fn digest_of(path: &Path, weights: &[u8]) -> String {
        let header = json!({
            "w": {"dtype": "U8", "shape": [weights.len()], "data_offsets": [0, weights.len()]}
        });
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(path, [&length[..], header.as_bytes(), weights].concat()).unwrap();
        digest(path).unwrap()
    }

    #[test]
    fn digests_tell_weights_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // A small file is read whole.
        let small = vec![7; 1 << 20];
        let before = digest_of(&path, &small);
        for index in [0, 1 << 19, (1 << 20) - 1] {
            let mut other = small.clone();
            other[index] ^= 1;
            assert_ne!(digest_of(&path, &other), before, "{index}");
        }
        // Names and folders do not count, configuration and tokenizer do.
        std::fs::create_dir(folder.path().join("copy")).unwrap();
        let copy = folder.path().join("copy/other.safetensors");
        assert_eq!(digest_of(&copy, &small), before);
        assert_eq!(digest(copy.parent().unwrap()).unwrap(), before);
        for name in BESIDE {
            let beside = folder.path().join("copy").join(name);
            std::fs::write(&beside, "{}").unwrap();
            assert_ne!(digest(&copy).unwrap(), before, "{name}");
            std::fs::remove_file(beside).unwrap();
        }

        // Of a large one, no change of 1/128 of the file is missed.
        let large = vec![7; 16 << 20];
        let before = digest_of(&path, &large);
        for start in [0, 63 << 17, 127 << 17] {
            let mut other = large.clone();
            other[start..start + (1 << 17)].fill(8);
            assert_ne!(digest_of(&path, &other), before, "{start}");
        }
    }

    #[test]
    fn weights_that_cannot_be_read_have_no_source() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pth");
        std::fs::write(&empty, "").unwrap();
        let missing = folder.path().join("missing");
        assert!(sources(&[&empty, &missing, folder.path()]).is_empty());
    }
}
