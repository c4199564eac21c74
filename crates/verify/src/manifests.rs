//! Cases of kind `manifests`: key names and shapes of published checkpoints.
//!
//! Each manifest must match the full-size model without missing or unused keys; no weights are allocated. The
//! model is chosen by the keys.

use super::{Case, Check, Failure, Output, Outputs};
use burn::tensor::Device;
use opensora::checkpoint::{KeyMap, ParameterSlot, check, parameter_slots};
use opensora::{
    stdit::{
        ClassConfig, DenoiserConfig, Dit, Latte, PixArt, PixArtMs, StDit, keys as denoiser_keys,
    },
    t5::{T5Config, keys as t5_keys},
    vae::{
        VaeConfig,
        keys::{self as vae_keys, Naming},
    },
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A manifest in `case.json`.
#[derive(Deserialize)]
struct Manifest {
    /// Class of the model, if the keys are ambiguous.
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    shape: Vec<usize>,
}

pub(super) fn run(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let files: BTreeMap<String, Manifest> = case.get("/files")?;
    let mut outputs = Outputs::new();
    for (name, Manifest { model }) in &files {
        case.begin(name.as_str());
        let manifest: BTreeMap<String, Entry> = case.json_file(name)?;
        let shapes: BTreeMap<String, Vec<usize>> =
            manifest.into_iter().map(|(key, entry)| (key, entry.shape)).collect();
        let (slots, map, shapes) = model_of(case, model.as_deref(), shapes, device)?;
        let result = match check(&slots, &shapes, &map) {
            Ok(()) => Check::exact(0, slots.len(), None),
            Err(mismatch) => Check::failed(name, mismatch.to_string()),
        };
        outputs.push((name.clone(), Output::Check(result)));
    }
    Ok(outputs)
}

type Model = (Vec<ParameterSlot>, KeyMap, BTreeMap<String, Vec<usize>>);

/// Returns the parameters of the full-size model of a manifest, its key map, and the keys that belong to it.
fn model_of(
    case: &Case,
    model: Option<&str>,
    shapes: BTreeMap<String, Vec<usize>>,
    device: &Device,
) -> Result<Model, Failure> {
    let has = |prefix: &str| shapes.keys().any(|key| key.starts_with(prefix));
    if has("encoder.block.") {
        let config: T5Config = case.get("/config/t5")?;
        let slots = parameter_slots(&config.init(device)?);
        let map = t5_keys::detect(shapes.keys().map(String::as_str)).key_map();
        return Ok((slots, map, shapes));
    }
    if has("y_embedder.embedding_table.") {
        // DiT and Latte have the same keys, except this one of an original Latte.
        let is_latte = model.map_or(has("temp_embed"), |model| model == "Latte");
        let pointer = if is_latte { "/config/latte" } else { "/config/dit" };
        let config: ClassConfig = case.get(pointer)?;
        return Ok(if is_latte {
            (parameter_slots(&config.init::<Latte>(device)?), denoiser_keys::latte(), shapes)
        } else {
            (parameter_slots(&config.init::<Dit>(device)?), denoiser_keys::dit(), shapes)
        });
    }
    if has("csize_embedder.") {
        let config: DenoiserConfig = case.get("/config/pixart_ms")?;
        let model = config.init::<PixArtMs>(device)?;
        return Ok((parameter_slots(&model), denoiser_keys::pixart_ms(), shapes));
    }
    if has("blocks.") {
        let config: DenoiserConfig = case.get("/config/stdit")?;
        return Ok(if has("blocks.0.attn_temp.") {
            (parameter_slots(&config.init::<StDit>(device)?), denoiser_keys::stdit(), shapes)
        } else {
            let model = config.init::<PixArt>(device)?;
            (parameter_slots(&model), denoiser_keys::pixart(), shapes)
        });
    }
    let config: VaeConfig = case.get("/config/vae")?;
    let known = vae_keys::KNOWN_KEY;
    let prefix = shapes.keys().find_map(|key| key.strip_suffix(known)).unwrap_or("").to_string();
    let shapes: BTreeMap<String, Vec<usize>> = shapes
        .into_iter()
        .filter_map(|(key, shape)| Some((key.strip_prefix(&prefix)?.to_string(), shape)))
        .collect();
    let map = Naming::detect(shapes.keys().map(String::as_str)).key_map(&config);
    Ok((parameter_slots(&config.init(device)?), map, shapes))
}
