//! Thousands of damaged files for every reader of models: values or one-line errors, no panic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType};
use opensora::{
    checkpoint::Checkpoint,
    stdit::{DenoiserConfig, StDit, keys},
    t5::{T5Config, T5Encoder, T5Tokenizer},
    train::Recipe,
    vae::{AutoencoderKl, VaeConfig},
};
use opensora_tests::{
    devices, fixture,
    mutate::{check_reader, mutation},
    torch_file::{Value, torch_file},
};
use std::path::Path;

fn device() -> Device {
    devices().remove(0).1
}

/// Opens a checkpoint and reads all that it holds.
fn read_checkpoint(path: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    let checkpoint = keys::unwrapped(&checkpoint).map_err(|error| error.to_string())?;
    checkpoint.non_finite(FloatDType::F32).map_err(|error| error.to_string())?;
    Ok(())
}

/// Small files, so that changes meet headers more often than numbers.
fn small_checkpoints() -> Vec<Vec<u8>> {
    let state = || {
        Value::dict([
            ("module.x_embedder.proj.weight", Value::tensor(&[2, 3])),
            ("module.x_embedder.proj.bias", Value::tensor(&[2])),
        ])
    };
    let transposed =
        Value::Tensor { storage: vec![1.0; 6], shape: vec![2, 3], strides: vec![1, 2] };
    vec![
        torch_file(&state()),
        torch_file(&Value::dict([
            ("model", Value::Memo(0, Box::new(state()))),
            ("ema", Value::Again(0)),
            ("step", Value::Int(3)),
        ])),
        torch_file(&Value::dict([("state_dict", state()), ("a", transposed), ("b", Value::None)])),
        std::fs::read(fixture("checkpoints/legacy.pth")).unwrap()[..20_000].to_vec(),
    ]
}

#[test]
fn damaged_pickles_and_archives_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    let refused = check_reader("torch.save", &small_checkpoints(), 6000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read_checkpoint(&path)
    });
    assert!(refused > 1000, "{refused}");
}

#[test]
fn damaged_safetensors_are_read_or_refused() {
    let header = br#"{"__metadata__":{"a":"b"},"x_embedder.proj.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F16","shape":[2],"data_offsets":[24,28]},"c":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[28,32]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let seed = [&length[..], header, &[1; 32]].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.safetensors");
    let refused = check_reader("safetensors", &[seed], 6000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read_checkpoint(&path)
    });
    assert!(refused > 1000, "{refused}");
}

#[test]
fn damaged_indices_are_read_or_refused() {
    let source = fixture("goldens/stdit-colossal-sharded/ckpt/model");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("pytorch_model.bin.index.json");
    let seed = std::fs::read(&path).unwrap();
    let refused = check_reader("index", &[seed], 2000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path).map(|_| ()).map_err(|error| error.to_string())
    });
    assert!(refused > 500, "{refused}");
}

/// Configurations against the weights that they lie beside.
#[test]
fn damaged_configurations_are_used_or_refused() {
    let golden = fixture("goldens/pipeline");
    let case: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("case.json")).unwrap()).unwrap();
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let seed = |name: &str| vec![serde_json::to_vec(&case["config"][name]).unwrap()];

    let stdit = Checkpoint::open(golden.join("STDiT.pth")).unwrap();
    let refused = check_reader("STDiT config", &seed("stdit"), 2000, |bytes| {
        let config: DenoiserConfig =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        StDit::check(&config, &stdit, &device).map(|_| ()).map_err(|error| error.to_string())
    });
    assert!(refused > 500, "{refused}");

    let t5 = Checkpoint::open(golden.join("t5")).unwrap();
    let refused = check_reader("T5 config", &seed("t5"), 2000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let config = T5Config::read(&path).map_err(|error| error.to_string())?;
        T5Encoder::check(&config, &t5, &device).map(|_| ()).map_err(|error| error.to_string())
    });
    assert!(refused > 500, "{refused}");

    let vae = Checkpoint::open(golden.join("vae")).unwrap();
    let refused = check_reader("VAE config", &seed("vae"), 2000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let config = VaeConfig::read(&path).map_err(|error| error.to_string())?;
        AutoencoderKl::check(&config, &vae, &device).map(|_| ()).map_err(|error| error.to_string())
    });
    assert!(refused > 500, "{refused}");
}

#[test]
fn damaged_recipes_are_read_or_refused() {
    let (_, recipe) = opensora::train::recipe::RECIPES[2];
    let refused = check_reader("recipe", &[recipe.as_bytes().to_vec()], 3000, |bytes| {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        Recipe::parse(text).map(|_| ()).map_err(|error| error.to_string())
    });
    assert!(refused > 300, "{refused}");
}

#[test]
fn damaged_tokenizers_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [("spiece.model", 1000), ("tokenizer.json", 300)] {
        let path = folder.path().join(name);
        let seed = std::fs::read(fixture("goldens/t5-tokenizer").join(name)).unwrap();
        let refused = check_reader(name, &[seed], count, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            let tokenizer = T5Tokenizer::from_path(&path).map_err(|error| error.to_string())?;
            tokenizer.encode("a red fox", 8).map(|_| ()).map_err(|error| error.to_string())
        });
        assert!(refused > 50, "{name}: {refused}");
    }
}

#[test]
fn mutations_are_the_same_in_every_run() {
    let seed = vec![(0..200).collect::<Vec<u8>>()];
    let first: Vec<Vec<u8>> = (0..50).map(|number| mutation(&seed, number)).collect();
    let second: Vec<Vec<u8>> = (0..50).map(|number| mutation(&seed, number)).collect();
    assert_eq!(first, second);
    let different = first.iter().filter(|bytes| **bytes != seed[0]).count();
    assert!(different > 45, "{different}");
}
