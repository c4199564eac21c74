//! What `--model` names.

use anyhow::Context;
use opensora::{
    ModelFiles,
    model_files::{PartPaths, PathPolicy},
};
use opensora_demo::model::NAME;
use std::path::Path;

/// Finds the model of a name or path: the bundled one, or what
/// [`ModelFiles::resolve`] knows.
pub(crate) fn resolve(model: &str, parts: &PartPaths) -> anyhow::Result<ModelFiles> {
    if model == NAME {
        let files = opensora_demo::model_files().context("--model")?;
        return Ok(files.with_parts(parts));
    }
    ModelFiles::resolve(model, parts).with_context(|| match Path::new(model).exists() {
        true => "--model".into(),
        false => format!("--model (bundled: {NAME})"),
    })
}

/// Where the paths in a `model.json` may lead: into its folder and, by relative paths, below the
/// working directory; anywhere if the user says so.
pub(crate) fn policy(anywhere: bool) -> anyhow::Result<PathPolicy> {
    if anywhere {
        return Ok(PathPolicy::Anywhere);
    }
    Ok(PathPolicy::Below(std::env::current_dir().context("the working directory")?))
}
