//! Resolves `--model` to the files of a model.

use crate::fetch_progress::FetchProgress;
use anyhow::{Context, ensure};
use opensora::{
    ClassFiles, ModelFiles,
    hub::provenance,
    model_files::{PartPaths, PathPolicy},
    pretrained::Pretrained,
};
use opensora_demo::model::NAME;
use serde_json::{Value, json};
use std::path::Path;

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

/// Returns repository, commit and file of the weights that are from the hub, for the record beside an
/// output.
pub(crate) fn sources(paths: &[&Path]) -> Vec<Value> {
    let sources = paths.iter().filter_map(|path| provenance(path));
    sources
        .map(|from| {
            json!({
                "repository": from.repository.as_str(), "commit": from.commit, "file": from.file,
            })
        })
        .collect()
}

/// Returns the policy for paths in a `model.json`: into its folder and, for relative paths, below the
/// working directory; anywhere if `anywhere`.
pub(crate) fn policy(anywhere: bool) -> anyhow::Result<PathPolicy> {
    if anywhere {
        return Ok(PathPolicy::Anywhere);
    }
    Ok(PathPolicy::Below(std::env::current_dir().context("the working directory")?))
}
