//! Weights, configurations and tokenizers.

use super::{Reader, copy, fixtures, text, utf8};
use crate::{
    fixture,
    torch_file::{Value, torch_file},
};
use burn::tensor::{Device, FloatDType};
use opensora::{
    ClassFiles, ModelError,
    model_files::{PartPaths, PathPolicy},
};
use opensora_checkpoint::{Checkpoint, PublishedModel};
use opensora_stdit::{ClassConfig, DenoiserConfig, Dit, StDit, keys};
use opensora_t5::{T5Config, T5Encoder, T5Tokenizer};
use opensora_vae::{AutoencoderKl, VaeConfig};
use std::{path::Path, sync::OnceLock};

pub(super) const READERS: &[Reader] = &[
    Reader {
        name: "pickle",
        inputs: 16_000,
        seeds: pickles,
        read: |scratch, bytes| tensors(&scratch.write("damaged.pth", bytes)),
    },
    Reader {
        name: "safetensors",
        inputs: 20_000,
        seeds: || fixtures(&["seeds/three.safetensors", "written-by-0.1.0/latents.safetensors"]),
        read: |scratch, bytes| tensors(&scratch.write("damaged.safetensors", bytes)),
    },
    Reader {
        name: "index",
        inputs: 6_000,
        seeds: || {
            fixtures(&["goldens/stdit-colossal-sharded/ckpt/model/pytorch_model.bin.index.json"])
        },
        read: |scratch, bytes| {
            let shards = "goldens/stdit-colossal-sharded/ckpt/model";
            scratch.once("index", |folder| copy(shards, folder));
            let path = scratch.write("index/pytorch_model.bin.index.json", bytes);
            Checkpoint::open(path).map(drop).map_err(text)
        },
    },
    Reader {
        name: "stdit_config",
        inputs: 10_000,
        seeds: || vec![config("goldens/pipeline/case.json", "stdit")],
        read: |_, bytes| {
            static WEIGHTS: OnceLock<Checkpoint> = OnceLock::new();
            let config: DenoiserConfig = serde_json::from_slice(bytes).map_err(text)?;
            let weights = WEIGHTS.get_or_init(|| weights("STDiT.pth"));
            StDit::check(&config, weights, &Device::flex()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "class_config",
        inputs: 10_000,
        seeds: || {
            let case = &fixtures(&["goldens/dit-original-pt/case.json"])[0];
            let case: serde_json::Value = serde_json::from_slice(case).expect("a golden case");
            vec![case["config"].to_string().into_bytes()]
        },
        read: |_, bytes| {
            static WEIGHTS: OnceLock<Checkpoint> = OnceLock::new();
            let config: ClassConfig = serde_json::from_slice(bytes).map_err(text)?;
            let weights = WEIGHTS.get_or_init(|| {
                let path = fixture("goldens/dit-original-pt/DiT-XL-2-tiny.pt");
                Checkpoint::open(path).expect("the weights of a golden case")
            });
            Dit::check(&config, weights, &Device::flex()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "t5_config",
        inputs: 10_000,
        seeds: || vec![config("goldens/pipeline/case.json", "t5")],
        read: |scratch, bytes| {
            let path = scratch.write("config.json", bytes);
            static WEIGHTS: OnceLock<Checkpoint> = OnceLock::new();
            let config = T5Config::read(&path).map_err(text)?;
            let weights = WEIGHTS.get_or_init(|| weights("t5"));
            T5Encoder::check(&config, weights, &Device::flex()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "vae_config",
        inputs: 10_000,
        seeds: || vec![config("goldens/pipeline/case.json", "vae")],
        read: |scratch, bytes| {
            let path = scratch.write("config.json", bytes);
            static WEIGHTS: OnceLock<Checkpoint> = OnceLock::new();
            let config = VaeConfig::read(&path).map_err(text)?;
            let weights = WEIGHTS.get_or_init(|| weights("vae"));
            AutoencoderKl::check(&config, weights, &Device::flex()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "model_json",
        inputs: 10_000,
        seeds: || {
            let class = serde_json::json!({
                "name": "dit", "architecture": "dit", "denoiser": "DiT.pt", "vae": "vae",
                "denoiser_config": {"condition": "label_10"}, "num_frames": 1,
                "image_size": [64, 64], "fps": 1.0, "sampler": "dpm-solver", "steps": 20,
            });
            let mut seeds = fixtures(&["tiny-model/model.json"]);
            seeds.push(class.to_string().into_bytes());
            seeds
        },
        read: |scratch, bytes| {
            scratch.write("model.json", bytes);
            let parts = PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() };
            match opensora::ModelFiles::open_with(scratch.folder(), &parts) {
                Err(ModelError::Condition { .. }) => {
                    ClassFiles::open_with(scratch.folder(), &parts).map(drop).map_err(text)
                }
                files => files.map(drop).map_err(text),
            }
        },
    },
    Reader {
        name: "recipe",
        inputs: 10_000,
        seeds: || {
            let written = ["written-by-0.1.0/run/recipe.toml", "written-by-0.1.0/stdit.toml"];
            let bundled = opensora_train::recipe::RECIPES.iter();
            let mut seeds = fixtures(&written);
            seeds.extend(bundled.map(|(_, recipe)| recipe.as_bytes().to_vec()));
            seeds
        },
        read: |_, bytes| opensora_train::Recipe::parse(utf8(bytes)?).map(drop).map_err(text),
    },
    Reader {
        name: "spiece",
        inputs: 4_000,
        seeds: || fixtures(&["seeds/spiece.model"]),
        read: |scratch, bytes| tokens(&scratch.write("spiece.model", bytes)),
    },
    Reader {
        name: "tokenizer_json",
        inputs: 4_000,
        seeds: || fixtures(&["written-by-0.1.0/t5/t5/tokenizer.json"]),
        read: |scratch, bytes| tokens(&scratch.write("tokenizer.json", bytes)),
    },
    Reader {
        name: "golden_case",
        inputs: 2_000,
        seeds: || fixtures(&["goldens/caption-clean/case.json"]),
        read: |scratch, bytes| {
            let case = scratch.once("case", |folder| copy("goldens/caption-clean", folder));
            scratch.write("case/case.json", bytes);
            opensora_verify::run(&case, &Device::flex()).map(drop).map_err(text)
        },
    },
];

/// Opens a checkpoint and reads every tensor of numbers.
fn tensors(path: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path).map_err(text)?;
    checkpoint.metadata().map_err(text)?;
    let checkpoint = keys::unwrapped(&checkpoint).map_err(text)?;
    checkpoint.non_finite(FloatDType::F32).map(drop).map_err(text)
}

/// Small files, so that changes meet headers more often than numbers.
fn pickles() -> Vec<Vec<u8>> {
    let state = || {
        Value::dict([
            ("module.x_embedder.proj.weight", Value::tensor(&[2, 3])),
            ("module.x_embedder.proj.bias", Value::tensor(&[2])),
        ])
    };
    let transposed =
        Value::Tensor { storage: vec![1.0; 6], shape: vec![2, 3], strides: vec![1, 2] };
    let shared = Value::dict([
        ("model", Value::Memo(0, Box::new(state()))),
        ("ema", Value::Again(0)),
        ("step", Value::Int(3)),
    ]);
    let nested = Value::dict([("state_dict", state()), ("a", transposed), ("b", Value::None)]);
    let mut seeds = [state(), shared, nested].iter().map(torch_file).collect::<Vec<_>>();
    // All kinds of tensors, as PyTorch writes them.
    seeds.extend(fixtures(&[
        "checkpoints/every-type.pt",
        "checkpoints/every-type-protocol-5.pt",
        "checkpoints/every-type-legacy.pt",
    ]));
    // The older format without an archive; only its header is of interest.
    seeds.extend(fixtures(&["checkpoints/legacy.pth"]).into_iter().map(|mut file| {
        file.truncate(20_000);
        file
    }));
    seeds
}

/// Weights that configurations are compared with.
fn weights(name: &str) -> Checkpoint {
    Checkpoint::open(fixture("goldens/pipeline").join(name)).expect("the weights of a golden case")
}

fn tokens(path: &Path) -> Result<(), String> {
    let tokenizer = T5Tokenizer::from_path(path).map_err(text)?;
    tokenizer.encode("a red fox \u{fc}", 8).map(drop).map_err(text)
}

/// A model's part of the configuration of a golden case.
fn config(case: &str, part: &str) -> Vec<u8> {
    let case: serde_json::Value =
        serde_json::from_slice(&fixtures(&[case])[0]).expect("a golden case");
    case["config"][part].to_string().into_bytes()
}
