//! Exported weights have the keys, shapes and settings that other programs expect.
//!
//! The golden files were written by diffusers, transformers and Open-Sora. `scripts/round_trips.py` loads
//! exports in these programs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType};
use opensora::{
    checkpoint::{Checkpoint, ExportOptions, PublishedModel, export, parameter_slots},
    nn::read::read,
    stdit::{DenoiserConfig, PositionScales, StDit, keys as stdit_keys},
    t5::{T5Config, T5Encoder, keys::Layout},
    vae::{AutoencoderKl, VaeConfig, keys::Naming},
};
use opensora_tests::{devices, fixture};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const F32: FloatDType = FloatDType::F32;

fn device() -> Device {
    devices().remove(0).1
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn case_config<T: serde::de::DeserializeOwned>(case: &Path) -> T {
    serde_json::from_value(json(&case.join("case.json"))["config"].clone()).unwrap()
}

/// Checks that both files have the same keys, shapes and numbers.
fn assert_same(written: &Path, published: &Path) {
    let [written, published] = [written, published].map(|path| Checkpoint::open(path).unwrap());
    assert_eq!(written.keys().collect::<Vec<_>>(), published.keys().collect::<Vec<_>>());
    for (key, want) in published.tensors() {
        let got = &written.tensors()[key];
        assert_eq!(got.shape(), want.shape(), "{key}");
        assert_eq!(got.read(key).unwrap(), want.read(key).unwrap(), "{key}");
    }
}

/// Including position tables, which are buffers of the reference's module: `strict=True` expects them.
#[test]
fn an_stdit_is_written_as_the_reference_saves_it() {
    let folder = tempfile::tempdir().unwrap();
    for case in ["stdit-pth/STDiT.pth", "stdit-safetensors/model.safetensors"] {
        let golden = fixture("goldens").join(case);
        let folder_of_case = golden.parent().unwrap();
        let config: DenoiserConfig = case_config(folder_of_case);
        let size = json(&folder_of_case.join("case.json"))["config"]["input_size"].clone();
        let size: [usize; 3] = serde_json::from_value(size).unwrap();
        let checkpoint = Checkpoint::open(&golden).unwrap();
        let (model, _) = StDit::load(&config, &checkpoint, F32, &device()).unwrap();
        let tables = model.position_tables(size).unwrap().into_iter();
        let tables = tables.map(|(key, table)| (key, read(table).unwrap())).collect();
        let path = folder.path().join("ema.safetensors");
        let options = ExportOptions::default().with_buffers(tables);
        export(&model, &stdit_keys::stdit(), options, &path).unwrap();

        let written = Checkpoint::open(&path).unwrap();
        let shapes = |file: &Checkpoint| -> BTreeMap<String, Vec<usize>> {
            file.tensors().iter().map(|(key, t)| (key.clone(), t.shape().to_vec())).collect()
        };
        assert_eq!(shapes(&written), shapes(&checkpoint), "{case}");
        for (key, want) in checkpoint.tensors() {
            let [got, want] = [&written.tensors()[key], want].map(|t| t.read(key).unwrap());
            for (got, want) in got.iter::<f32>().zip(want.iter::<f32>()) {
                // Tables are computed, parameters are copied.
                let most = if key.starts_with("pos_embed") { 1e-6 } else { 0.0 };
                assert!((got - want).abs() <= most, "{case}: {key}: {got}, expected {want}");
            }
        }
        // The export loads again, at any size.
        StDit::load(&config, &written, F32, &device()).unwrap();
    }
}

#[test]
fn a_full_size_stdit_has_every_key_of_the_reference() {
    for (name, size, space_scale, time_scale) in [
        ("STDiT-XL-2-16x256x256", [16, 32, 32], 0.5, 1.0),
        ("STDiT-XL-2-16x512x512", [16, 64, 64], 1.0, 1.0),
        ("STDiT-XL-2-64x512x512", [64, 64, 64], 1.0, 2.0 / 3.0),
    ] {
        let scales = PositionScales { space_scale, time_scale };
        let config = DenoiserConfig { scales, ..DenoiserConfig::xl_2() };
        // No weight is allocated.
        let model = config.init::<StDit>(&device()).unwrap();
        let map = stdit_keys::stdit();
        let mut written: BTreeMap<String, Vec<usize>> = parameter_slots(&model)
            .into_iter()
            .map(|slot| (map.published_key(&slot.path), slot.shape))
            .collect();
        let tables = model.position_tables(size).unwrap();
        written.extend(tables.into_iter().map(|(key, table)| (key, table.dims().to_vec())));
        let manifest = json(&fixture("goldens/manifests").join(format!("{name}.json")));
        let published: BTreeMap<String, Vec<usize>> = manifest
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, entry)| {
                (key.clone(), serde_json::from_value(entry["shape"].clone()).unwrap())
            })
            .collect();
        assert_eq!(written, published, "{name}");
    }
}

#[test]
fn a_vae_is_written_as_diffusers_saves_it() {
    let folder = tempfile::tempdir().unwrap();
    let golden = fixture("goldens/vae-safetensors");
    let config = VaeConfig::read(&golden.join("config.json")).unwrap();
    let name = "diffusion_pytorch_model.safetensors";
    let checkpoint = Checkpoint::open(golden.join(name)).unwrap();
    let (model, _) = AutoencoderKl::load(&config, &checkpoint, F32, &device()).unwrap();
    let path = folder.path().join(name);
    export(&model, &Naming::Diffusers.key_map(&config), ExportOptions::default(), &path).unwrap();
    assert_same(&path, &golden.join(name));

    // A recipe does not list the kinds of blocks.
    let (down_block_types, up_block_types) = (Vec::new(), Vec::new());
    let config = VaeConfig { down_block_types, up_block_types, ..config };
    config.write(&folder.path().join("config.json")).unwrap();
    let (written, published) =
        (json(&folder.path().join("config.json")), json(&golden.join("config.json")));
    for (name, value) in written.as_object().unwrap() {
        assert_eq!(value, &published[name], "{name}");
    }
    for name in ["_class_name", "down_block_types", "up_block_types", "scaling_factor"] {
        assert!(!written[name].is_null(), "{name}");
    }
}

#[test]
fn a_text_encoder_is_written_as_transformers_saves_it() {
    let folder = tempfile::tempdir().unwrap();
    let golden = fixture("goldens/t5-encoder-safetensors");
    let config = T5Config::read(&golden.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(golden.join("model.safetensors")).unwrap();
    let (model, _) = T5Encoder::load(&config, &checkpoint, F32, &device()).unwrap();
    let path = folder.path().join("model.safetensors");
    export(&model, &Layout::PUBLISHED.key_map(), ExportOptions::default(), &path).unwrap();
    assert_same(&path, &golden.join("model.safetensors"));
    // `from_pretrained` rejects a file whose metadata does not name the library that wrote it.
    assert_eq!(Checkpoint::open(&path).unwrap().metadata().unwrap()["format"], "pt");

    config.write(&folder.path().join("config.json")).unwrap();
    let (written, published) =
        (json(&folder.path().join("config.json")), json(&golden.join("config.json")));
    for (name, value) in written.as_object().unwrap() {
        // The published file leaves out transformers' defaults.
        if !["architectures", "relative_attention_max_distance"].contains(&name.as_str()) {
            assert_eq!(value, &published[name], "{name}");
        }
    }
    assert_eq!(written["architectures"][0], "T5EncoderModel");
}

#[test]
fn the_bundled_model_has_configs_of_diffusers_and_transformers() {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/demo/model");
    let written = tempfile::NamedTempFile::new().unwrap();
    let config = VaeConfig::read(&model.join("vae/config.json")).unwrap();
    config.write(written.path()).unwrap();
    assert_eq!(json(&model.join("vae/config.json")), json(written.path()));
    let config = T5Config::read(&model.join("t5/config.json")).unwrap();
    config.write(written.path()).unwrap();
    assert_eq!(json(&model.join("t5/config.json")), json(written.path()));
}
