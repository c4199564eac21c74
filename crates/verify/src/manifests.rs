//! Cases of kind `manifests`: key names and shapes of full-size artefacts.
//!
//! Each manifest must map onto the model of its full size with no key missing and none left over;
//! no weight is allocated. The artefact is told from the keys.

use super::{Case, Check, Failure, Output, Outputs};
use burn::tensor::Device;
use opensora::checkpoint::{KeyMap, ParameterSlot, check, parameter_slots};
use opensora::{
    stdit::{DenoiserConfig, PixArt, StDit, keys as denoiser_keys},
    t5::{T5Config, T5Encoder, keys as t5_keys},
    vae::{
        AutoencoderKl, VaeConfig,
        keys::{self as vae_keys, Naming},
    },
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Entry {
    shape: Vec<usize>,
}

pub(super) fn run(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let files: BTreeMap<String, Value> = case.get("/files")?;
    let mut outputs = Outputs::new();
    for name in files.keys() {
        case.begin(name.as_str());
        let manifest: BTreeMap<String, Entry> = case.json_file(name)?;
        let shapes: BTreeMap<String, Vec<usize>> =
            manifest.into_iter().map(|(key, entry)| (key, entry.shape)).collect();
        let (slots, map, shapes) = model_of(case, shapes, device)?;
        let result = match check(&slots, &shapes, &map) {
            Ok(()) => Check::exact(0, slots.len(), None),
            Err(mismatch) => Check::failed(name, mismatch.to_string()),
        };
        outputs.push((name.clone(), Output::Check(result)));
    }
    Ok(outputs)
}

type Model = (Vec<ParameterSlot>, KeyMap, BTreeMap<String, Vec<usize>>);

/// The full-size model that a manifest's keys belong to, its map, and the keys in its scope.
fn model_of(
    case: &Case,
    shapes: BTreeMap<String, Vec<usize>>,
    device: &Device,
) -> Result<Model, Failure> {
    let has = |prefix: &str| shapes.keys().any(|key| key.starts_with(prefix));
    if has("encoder.block.") {
        let config: T5Config = case.get("/config/t5")?;
        let slots = parameter_slots(&T5Encoder::new(&config, device)?);
        let map = t5_keys::detect(shapes.keys().map(String::as_str)).key_map();
        return Ok((slots, map, shapes));
    }
    if has("blocks.") {
        let config: DenoiserConfig = case.get("/config/stdit")?;
        return Ok(if has("blocks.0.attn_temp.") {
            (parameter_slots(&StDit::new(&config, device)?), denoiser_keys::stdit(), shapes)
        } else {
            let model = PixArt::new(&config, false, device)?;
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
    Ok((parameter_slots(&AutoencoderKl::new(&config, device)?), map, shapes))
}
