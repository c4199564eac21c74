//! What `--model` names.

use anyhow::Context;
use opensora::{ModelFiles, model_files::PartPaths};
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
