//! Checkpoints as trainers write them: wrapped, nested, in several formats, beside other models.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, TensorData};
use opensora::{
    checkpoint::{Checkpoint, ImportReport, PublishedModel, published_tensors},
    stdit::{DenoiserConfig, StDit, keys},
    t5::{T5Config, T5Encoder},
    vae::{AutoencoderKl, VaeConfig},
};
use opensora_tests::{
    devices, fixture,
    torch_file::{Value, torch_file},
};
use opensora_verify as verify;
use std::path::{Path, PathBuf};

fn device() -> Device {
    devices().remove(0).1
}

fn field(name: &str) -> PathBuf {
    fixture("field").join(name)
}

/// Returns the configuration in a model's `model.json`.
fn config(model: &str) -> DenoiserConfig {
    let text = std::fs::read_to_string(field(model).join("model.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(json["denoiser_config"].clone()).unwrap()
}

fn load(config: &DenoiserConfig, path: &Path) -> (Vec<(String, TensorData)>, ImportReport) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let (model, report) = StDit::load(config, &checkpoint, FloatDType::F32, &device()).unwrap();
    (published_tensors(&model, &keys::stdit()).unwrap(), report)
}

#[test]
fn wrapped_checkpoints_have_the_weights_of_the_plain_one() {
    let (plain, report) = load(&config("ck_ddp"), &fixture("goldens/pipeline/STDiT.pth"));
    assert!(report.wrappers.is_empty(), "{report}");
    for (file, wrappers) in [
        ("ck_ddp/STDiT.pth", &["module"][..]),
        ("ck_module_key/STDiT.pth", &["module"]),
        ("ck_shared_dict/STDiT.pth", &["ema"]),
        ("ck_idx_dot/pytorch_model.bin.index.json", &[]),
        ("ck_idx_dot", &[]),
    ] {
        let (loaded, report) = load(&config("ck_ddp"), &field(file));
        assert_eq!(loaded, plain, "{file}");
        assert_eq!(report.wrappers, wrappers, "{file}");
        let says = report.to_string();
        assert_eq!(says.contains("unwrapped from"), !wrappers.is_empty(), "{says}");
    }
}

/// Loads a model of one tensor, which is enough to test how wrappers are removed.
fn unwrapped(value: &Value) -> Result<Checkpoint, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), torch_file(value)).unwrap();
    Checkpoint::open(file.path())
        .and_then(|checkpoint| keys::unwrapped(&checkpoint))
        .map_err(|error| error.to_string())
}

const KEY: &str = "x_embedder.proj.weight";

/// Returns a state dict whose tensor has `size` elements.
fn state(prefix: &str, size: usize) -> Value {
    Value::Dict(vec![
        (format!("{prefix}{KEY}"), Value::tensor(&[size])),
        (format!("{prefix}blocks.0.attn.qkv.bias"), Value::tensor(&[3])),
    ])
}

#[test]
fn every_usual_wrapper_is_removed() {
    let optimizer = || Value::dict([("state", Value::dict([("0", Value::tensor(&[9]))]))]);
    for (value, wrappers) in [
        (state("", 5), &[][..]),
        (state("module.", 5), &["module"]),
        (state("_orig_mod.", 5), &["_orig_mod"]),
        (state("_orig_mod.module.", 5), &["_orig_mod", "module"]),
        (state("module._orig_mod.", 5), &["_orig_mod", "module"]),
        (state("any.other.prefix.", 5), &["any", "other", "prefix"]),
        (Value::dict([("model", state("", 5))]), &["model"]),
        (Value::dict([("state_dict", state("module.", 5))]), &["state_dict", "module"]),
        (
            Value::dict([("model", Value::dict([("state_dict", state("", 5))]))]),
            &["model", "state_dict"],
        ),
        (
            Value::dict([
                ("module", state("", 5)),
                ("optimizer", Value::None),
                ("global_steps", Value::Int(3)),
            ]),
            &["module"],
        ),
        (Value::dict([("model", state("", 5)), ("optimizer", optimizer())]), &["model"]),
        (
            Value::dict([("network", state("module.", 5)), ("optimizer", optimizer())]),
            &["network", "module"],
        ),
        // Several models: the averaged one is used, in either order.
        (Value::dict([("model", state("", 4)), ("ema", state("", 5))]), &["ema"]),
        (
            Value::dict([("model_ema", state("module.", 5)), ("model", state("", 4))]),
            &["model_ema", "module"],
        ),
        (Value::dict([("model", state("", 4)), ("state_dict", state("", 5))]), &["state_dict"]),
        (Value::dict([("ema", state("", 5)), ("state_dict", state("", 4))]), &["ema"]),
    ] {
        let checkpoint = unwrapped(&value).unwrap();
        assert_eq!(checkpoint.wrappers(), wrappers, "{value:?}");
        let keys: Vec<&str> = checkpoint.keys().collect();
        assert_eq!(keys, ["blocks.0.attn.qkv.bias", KEY], "{value:?}");
        assert_eq!(checkpoint.tensors()[KEY].shape(), [5], "{value:?}");
    }
}

/// `torch.compile` of single blocks adds its name in the middle of keys.
#[test]
fn compiled_blocks_are_unwrapped_too() {
    let value = Value::dict([
        (KEY, Value::tensor(&[5])),
        ("blocks.0._orig_mod.attn.qkv.bias", Value::tensor(&[3])),
    ]);
    let checkpoint = unwrapped(&value).unwrap();
    assert_eq!(checkpoint.keys().collect::<Vec<_>>(), ["blocks.0.attn.qkv.bias", KEY]);
    assert_eq!(checkpoint.wrappers(), ["_orig_mod"]);
}

/// Python saves a shared object once: `{"model": sd, "ema": sd}`.
#[test]
fn one_dictionary_under_two_names_is_found() {
    let shared = || Value::Memo(0, Box::new(state("", 5)));
    for (value, wrapper) in [
        (Value::dict([("model", shared()), ("ema", Value::Again(0))]), "ema"),
        (Value::dict([("ema", shared()), ("model", Value::Again(0))]), "ema"),
        (Value::dict([("state_dict", shared()), ("ema", Value::Again(0))]), "ema"),
        (
            Value::dict([
                ("anything", shared()),
                ("module", Value::Again(0)),
                ("step", Value::Int(1)),
            ]),
            "module",
        ),
        // The dictionary is beside another model.
        (
            Value::dict([("best", shared()), ("model", state("", 4)), ("ema", Value::Again(0))]),
            "ema",
        ),
        (
            Value::dict([
                ("best", shared()),
                ("state_dict", state("", 4)),
                ("ema", Value::Again(0)),
            ]),
            "ema",
        ),
    ] {
        let checkpoint = unwrapped(&value).unwrap();
        assert_eq!(checkpoint.tensors()[KEY].shape(), [5], "{value:?}");
        assert_eq!(checkpoint.wrappers(), [wrapper], "{value:?}");
    }
}

#[test]
fn tensors_that_fit_nothing_are_named_with_their_container() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = config("ck_ddp");
    for (value, says) in [
        (Value::dict([("net", Value::dict([("a", Value::tensor(&[2]))]))]), "begin with 'net'"),
        (
            Value::dict([(
                "model",
                Value::dict([("encoder.down.0.block.0.x", Value::tensor(&[2]))]),
            )]),
            "a VAE in CompVis layout under 'model'",
        ),
        (
            Value::dict([("teacher", state("", 5)), ("student", state("", 5))]),
            "several models found ('student', 'teacher')",
        ),
        (Value::dict([("model", state("module.", 5))]), "unwrapped from 'model', 'module'"),
    ] {
        std::fs::write(file.path(), torch_file(&value)).unwrap();
        let checkpoint = Checkpoint::open(file.path()).unwrap();
        let error = StDit::check(&config, &checkpoint, &device()).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
}

/// Returns the bytes of a safetensors file with renamed keys.
fn renamed(path: &Path, rename: impl Fn(&str) -> String) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap();
    let header: serde_json::Map<String, serde_json::Value> = header
        .into_iter()
        .map(|(key, entry)| {
            let key = if key == "__metadata__" { key } else { rename(&key) };
            (key, entry)
        })
        .collect();
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// The reference's class saves the VAE under `module`; pipelines save several models in one file.
#[test]
fn vaes_and_text_encoders_are_unwrapped_too() {
    let device = device();
    let file = tempfile::NamedTempFile::new().unwrap();
    for prefix in ["module.", "vae._orig_mod.", "first_stage_model."] {
        let golden = fixture("goldens/vae-safetensors");
        let weights = golden.join("diffusion_pytorch_model.safetensors");
        std::fs::write(file.path(), renamed(&weights, |key| format!("{prefix}{key}"))).unwrap();
        let config = VaeConfig::read(&golden.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(file.path()).unwrap();
        let report = AutoencoderKl::check(&config, &checkpoint, &device).unwrap();
        assert_eq!(report.wrappers.len(), prefix.matches('.').count(), "{report}");

        let golden = fixture("goldens/t5-encoder-safetensors");
        let weights = golden.join("model.safetensors");
        std::fs::write(file.path(), renamed(&weights, |key| format!("{prefix}{key}"))).unwrap();
        let config = T5Config::read(&golden.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(file.path()).unwrap();
        let report = T5Encoder::check(&config, &checkpoint, &device).unwrap();
        assert_eq!(report.wrappers.len(), prefix.matches('.').count(), "{report}");
    }
}

#[test]
fn a_folder_of_several_formats_is_read_in_the_usual_order() {
    let folder = field("t5_sharded_plus_bin");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let config = T5Config::read(&folder.join("config.json")).unwrap();
    let (_, report) = T5Encoder::load(&config, &checkpoint, FloatDType::F32, &device()).unwrap();
    assert_eq!(report.file, folder.join("model.safetensors.index.json"));
    assert!(report.to_string().contains("from model.safetensors.index.json"), "{report}");
    let table = checkpoint.tensors()["shared.weight"].read("shared.weight").unwrap();
    assert!(table.iter::<f32>().any(|value| value != 0.0), "the old zeros were read");

    // The formats are deleted one by one.
    let source = fixture("goldens/stdit-pth/STDiT.pth");
    let copy = tempfile::tempdir().unwrap();
    let place = |name: &str| copy.path().join(name);
    let order = [
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "diffusion_pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    std::fs::copy(&source, place("shard.pth")).unwrap();
    let keys: Vec<String> = Checkpoint::open(&source)
        .unwrap()
        .keys()
        .map(|key| format!("{key:?}: \"./shard.pth\""))
        .collect();
    for name in order {
        if name.ends_with(".json") {
            let index = format!("{{\"weight_map\": {{{}}}}}", keys.join(", "));
            std::fs::write(place(name), index).unwrap();
        } else {
            std::fs::copy(&source, place(name)).unwrap();
        }
    }
    for name in order {
        assert_eq!(Checkpoint::open(copy.path()).unwrap().taken(), place(name));
        std::fs::remove_file(place(name)).unwrap();
    }
    assert_eq!(Checkpoint::open(copy.path()).unwrap().taken(), place("shard.pth"));
}

#[test]
fn a_tensor_in_fp8_fails_only_if_it_is_needed() {
    let folder = field("ck_vae_fp8_foreign");
    for (name, device) in devices() {
        let report = verify::run(&folder, &device).unwrap();
        assert!(report.passed(), "{name}: {report:?}");
    }
    let checkpoint = Checkpoint::open(folder.join("sd_full.safetensors")).unwrap();
    let key = "model.diffusion_model.input_blocks.0.0.weight";
    assert_eq!(checkpoint.tensors()[key].dtype(), None);
    let error = checkpoint.tensors()[key].read(key).unwrap_err().to_string();
    assert!(error.contains(key) && error.contains("F8_E4M3"), "{error}");

    // A needed tensor: the last one of a valid file.
    let golden = fixture("goldens/stdit-safetensors");
    let bytes = std::fs::read(golden.join("model.safetensors")).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let end = |entry: &serde_json::Value| entry["data_offsets"][1].as_u64().unwrap_or(0);
    let entries = header.as_object_mut().unwrap();
    let (key, last) = entries.iter_mut().max_by_key(|(_, entry)| end(entry)).unwrap();
    let start = last["data_offsets"][0].as_u64().unwrap();
    let numbers = (end(last) - start) / 4;
    last["dtype"] = "F8_E5M2".into();
    last["data_offsets"] = vec![start, start + numbers].into();
    let key = key.clone();
    let header = serde_json::to_vec(&header).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let length = (header.len() as u64).to_le_bytes();
    let data = &data[..(start + numbers) as usize];
    std::fs::write(file.path(), [&length[..], &header, data].concat()).unwrap();
    let case = std::fs::read_to_string(golden.join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&case).unwrap();
    let config: DenoiserConfig = serde_json::from_value(case["config"].clone()).unwrap();
    let checkpoint = Checkpoint::open(file.path()).unwrap();
    let error = StDit::check(&config, &checkpoint, &device()).unwrap_err().to_string();
    assert!(error.contains(&key) && error.contains("F8_E5M2 is not supported"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let open = |path: PathBuf| keys::unwrapped(&Checkpoint::open(path).unwrap()).unwrap();
    let found = open(field("ck_nan_w")).non_finite(FloatDType::F32).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let plain = open(fixture("goldens/pipeline/STDiT.pth"));
    assert!(plain.non_finite(FloatDType::F32).unwrap().is_empty());
    // Values beyond the range of f16 become infinite.
    let file = tempfile::NamedTempFile::new().unwrap();
    let large = Value::Tensor { storage: vec![1e6], shape: vec![1], strides: vec![1] };
    std::fs::write(file.path(), torch_file(&Value::dict([("a", large)]))).unwrap();
    let checkpoint = Checkpoint::open(file.path()).unwrap();
    assert!(checkpoint.non_finite(FloatDType::F32).unwrap().is_empty());
    assert_eq!(checkpoint.non_finite(FloatDType::F16).unwrap(), ["a"]);
}
