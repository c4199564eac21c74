//! Damaged, wrong and hostile checkpoints: each gives an error of one line.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::{
    nn::LinearConfig,
    tensor::{Device, FloatDType},
};
use opensora::{
    checkpoint::{Checkpoint, CheckpointError, KeyMap, PublishedModel, check_import},
    stdit::{DenoiserConfig, StDit},
    t5::{T5Config, T5Encoder},
    vae::{AutoencoderKl, VaeConfig},
};
use opensora_files::error_line;
use opensora_tests::{devices, fixture, with_causes};
use opensora_verify::Case;
use std::path::{Path, PathBuf};

fn device() -> Device {
    devices().remove(0).1
}

fn config(case: &str) -> serde_json::Value {
    let path = fixture("goldens").join(case);
    assert!(Case::open(&path).is_ok());
    let text = std::fs::read_to_string(path.join("case.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["config"].clone()
}

fn stdit_config(case: &str) -> DenoiserConfig {
    serde_json::from_value(config(case)).unwrap()
}

/// Returns the message of a failed load, which must be one line.
fn refusal(path: &Path, config: &DenoiserConfig) -> String {
    let message = match Checkpoint::open(path) {
        Err(error) => error_line(&error),
        Ok(checkpoint) => error_line(
            &StDit::load(config, &checkpoint, FloatDType::F32, &device())
                .expect_err("a bad file was loaded"),
        ),
    };
    assert!(!message.contains('\n'), "{message}");
    message
}

/// A file of each format, and the golden case whose configuration it has.
const FILES: [(&str, &str); 3] = [
    ("stdit-pth/STDiT.pth", "stdit-pth"),
    ("stdit-safetensors/model.safetensors", "stdit-safetensors"),
    ("../checkpoints/legacy.pth", "stdit-safetensors"),
];

fn copy_to(folder: &tempfile::TempDir, fixture_name: &str) -> PathBuf {
    let source = fixture("goldens").join(fixture_name);
    let target = folder.path().join(source.file_name().unwrap());
    std::fs::copy(source, &target).unwrap();
    target
}

/// The format before PyTorch 1.6, with transposed views, nested under `state_dict`.
#[test]
fn legacy_streams_have_the_same_numbers() {
    let legacy = Checkpoint::open(fixture("checkpoints/legacy.pth")).unwrap();
    let golden = fixture("goldens/stdit-safetensors/model.safetensors");
    let golden = Checkpoint::open(golden).unwrap();
    assert_eq!(legacy.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
    for (key, tensor) in golden.tensors() {
        assert_eq!(legacy.tensors()[key].read(key).unwrap(), tensor.read(key).unwrap(), "{key}");
    }
    let config = stdit_config("stdit-safetensors");
    assert!(StDit::load(&config, &legacy, FloatDType::F32, &device()).is_ok());
}

/// The error names the tensor and the reason, even if only the reason is known.
#[test]
fn a_needed_tensor_of_another_type_is_named() {
    let device = device();
    for (key, says) in [
        ("f8_e4m3", "float8_e4m3fn is not supported"),
        ("meta", "_rebuild_meta_tensor_no_storage"),
        ("int64", "a float expected"),
    ] {
        let file = Checkpoint::open(fixture("checkpoints/every-type.pt")).unwrap();
        let map = KeyMap::new("a layer").rename(move |_| format!("model.{key}")).allow_unused("*");
        let rows = if key == "int64" { 1 } else { 3 };
        let layer = LinearConfig::new(rows, 2).with_bias(false).init(&device);
        let map = if key == "int64" { map.any_unit_axes("*") } else { map };
        let error = check_import(&layer, &file, &map).unwrap_err().to_string();
        assert!(error.contains(&format!("model.{key}")) && error.contains(says), "{error}");
    }
}

#[test]
fn tar_archives_are_rejected_with_advice() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    std::fs::write(file.path(), tar).unwrap();
    let error = Checkpoint::open(file.path()).unwrap_err().to_string();
    assert!(
        error.contains("load the file in PyTorch and save it again with torch.save"),
        "{error}"
    );
}

#[test]
fn truncated_files_are_rejected_at_every_length() {
    for (file, case) in FILES {
        let folder = tempfile::tempdir().unwrap();
        let path = copy_to(&folder, file);
        let config = stdit_config(case);
        let bytes = std::fs::read(&path).unwrap();
        let lengths =
            (0..40).map(|i| bytes.len() * i / 40).chain([1, 7, 8, 9, 64, bytes.len() - 1]);
        for length in lengths {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let message = refusal(&path, &config);
            assert!(message.contains(file.rsplit('/').next().unwrap()), "{length}: {message}");
        }
    }
}

/// A flipped byte in a weight is not detectable in safetensors. Flipped bytes never panic, and tensors that load
/// have the right shape.
#[test]
fn flipped_bytes_never_panic() {
    for (file, case) in FILES {
        let folder = tempfile::tempdir().unwrap();
        let path = copy_to(&folder, file);
        let config = stdit_config(case);
        let bytes = std::fs::read(&path).unwrap();
        let mut refused = 0;
        // Safetensors have their header at the start, zip archives at the end: both are tested densely.
        let positions = (0..300)
            .map(|i| i * 7)
            .chain((0..300).map(|i| bytes.len() - 1 - i * 7))
            .chain((0..50).map(|i| bytes.len() * i / 50));
        for position in positions {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x55;
            std::fs::write(&path, damaged).unwrap();
            let loaded = Checkpoint::open(&path).map_err(|error| with_causes(&error)).and_then(
                |checkpoint| {
                    StDit::load(&config, &checkpoint, FloatDType::F32, &device())
                        .map_err(|error| with_causes(&error))
                },
            );
            if let Err(message) = loaded {
                assert!(!message.contains('\n'), "{position}: {message}");
                refused += 1;
            }
        }
        assert!(refused > 200, "{file}: only {refused} refused");
    }
}

#[test]
fn shards_must_exist_and_match_their_index() {
    let copy = || {
        let folder = tempfile::tempdir().unwrap();
        let source = fixture("goldens/stdit-colossal-sharded/ckpt/model");
        std::fs::create_dir(folder.path().join("model")).unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let target = folder.path().join("model").join(path.file_name().unwrap());
            std::fs::copy(path, target).unwrap();
        }
        folder
    };
    let config = stdit_config("stdit-colossal-sharded");
    let index = "model/pytorch_model.bin.index.json";

    let folder = copy();
    std::fs::remove_file(folder.path().join("model/pytorch_model-00003.bin")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::MissingShard { shard, .. } if shard.contains("00003")),
        "{error}"
    );

    let folder = copy();
    let text = std::fs::read_to_string(folder.path().join(index)).unwrap();
    for (damaged, says) in [
        (text[..text.len() / 2].to_string(), "index"),
        ("{}".to_string(), "weight_map"),
        (r#"{"weight_map": {}}"#.to_string(), "empty"),
        (r#"{"weight_map": {"a": "../../etc/passwd"}}"#.to_string(), "leads out"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#.to_string(), "leads out"),
        (text.replace("x_embedder.proj.bias", "x_embedder.proj.sorry"), "sorry"),
    ] {
        std::fs::write(folder.path().join(index), damaged).unwrap();
        let message = refusal(folder.path(), &config);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn folders_with_no_or_several_checkpoints_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("no checkpoint in this folder"), "{message}");
    for name in ["a.pth", "b.pth"] {
        std::fs::copy(fixture("goldens/stdit-pth/STDiT.pth"), folder.path().join(name)).unwrap();
    }
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("a.pth, b.pth"), "{message}");
}

#[test]
fn other_files_are_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    for (content, says) in [
        ("", "empty"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        ("<!DOCTYPE html><html>", "HTML"),
        ("certainly no weights", "not a readable checkpoint"),
        ("{\"a\": 1}", "weight_map"),
    ] {
        std::fs::write(&path, content).unwrap();
        let message = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(message.contains(says) && !message.contains('\n'), "{message}");
    }
    let message = Checkpoint::open(folder.path().join("nowhere.pth")).unwrap_err().to_string();
    assert!(message.contains("nowhere.pth"), "{message}");
}

#[test]
fn errors_of_a_wrong_config_name_keys_and_cause() {
    let path = fixture("goldens/stdit-pth/STDiT.pth");
    let right = stdit_config("stdit-pth");
    let deeper = DenoiserConfig { depth: right.depth + 1, ..right.clone() };
    let message = refusal(&path, &deeper);
    assert!(
        message.contains("blocks.2.") && message.contains("more or deeper layers"),
        "{message}"
    );
    let shallower = DenoiserConfig { depth: right.depth - 1, ..right.clone() };
    let message = refusal(&path, &shallower);
    assert!(message.contains("left over") && message.contains("fewer layers"), "{message}");
    let wider = DenoiserConfig { hidden_size: 2 * right.hidden_size, ..right.clone() };
    let message = refusal(&path, &wider);
    assert!(message.contains("another shape") && message.contains("another size"), "{message}");
}

#[test]
fn weights_of_another_model_are_recognised() {
    let device = device();
    let open = |file: &str| Checkpoint::open(fixture("goldens").join(file)).unwrap();
    let f32 = FloatDType::F32;

    let vae = open("vae-bin/diffusion_pytorch_model.bin");
    let error = StDit::load(&stdit_config("stdit-pth"), &vae, f32, &device).unwrap_err();
    assert!(error.to_string().contains("looks like a VAE in diffusers layout"), "{error}");

    let stdit = open("stdit-pth/STDiT.pth");
    let error = AutoencoderKl::load(&VaeConfig::default(), &stdit, f32, &device).unwrap_err();
    assert!(error.to_string().contains("looks like an STDiT"), "{error}");
    let error = T5Encoder::load(&T5Config::default(), &stdit, f32, &device).unwrap_err();
    assert!(error.to_string().contains("looks like an STDiT"), "{error}");

    // A PixArt-alpha checkpoint lacks the temporal attention: it loads only as initial weights.
    let pixart = open("pixart-init/PixArt-XL-2-tiny.pth");
    let config = stdit_config("pixart-init");
    let error = StDit::load(&config, &pixart, f32, &device).unwrap_err().to_string();
    assert!(error.contains("attn_temp"), "{error}");
    assert!(StDit::from_pixart(&config, &pixart, f32, &device).is_ok());
}

/// The report lists loaded tensors and allowed unused ones, in every layout.
#[test]
fn reports_list_loaded_and_unused_tensors() {
    let checkpoint =
        Checkpoint::open(fixture("goldens/t5-encoder-full-bf16-bin/pytorch_model.bin")).unwrap();
    let config: T5Config = serde_json::from_value(config("t5-encoder-full-bf16-bin")).unwrap();
    let (_, report) = T5Encoder::load(&config, &checkpoint, FloatDType::F32, &device()).unwrap();
    assert_eq!(report.tensors, 3 + 9 * config.num_layers);
    assert!(report.ignored.iter().all(|key| {
        key.starts_with("decoder.")
            || key == "lm_head.weight"
            || key == "encoder.embed_tokens.weight"
    }));
    assert!(report.ignored.contains(&"lm_head.weight".to_string()));
}
