//! Weights, configurations and tokenizers.

use super::{Reader, copy, fixtures, text, utf8};
use burn::tensor::Device;
use opensora_checkpoint::Checkpoint;
use opensora_stdit::DenoiserConfig;
use opensora_t5::{T5Config, T5Tokenizer};
use opensora_vae::VaeConfig;
use std::path::Path;

pub(super) const READERS: &[Reader] = &[
    Reader {
        name: "pickle",
        inputs: 16_000,
        seeds: || {
            let files = ["seeds/plain.pth", "seeds/nested.pth", "seeds/shared.pth"];
            let mut seeds = fixtures(&files);
            // The older format without an archive; its header is what can be damaged.
            seeds.extend(fixtures(&["checkpoints/legacy.pth"]).into_iter().map(|mut file| {
                file.truncate(20_000);
                file
            }));
            seeds
        },
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
            let config: DenoiserConfig = serde_json::from_slice(bytes).map_err(text)?;
            config.validate().map_err(text)
        },
    },
    Reader {
        name: "t5_config",
        inputs: 10_000,
        seeds: || fixtures(&["written-by-0.1.0/t5/t5/config.json"]),
        read: |scratch, bytes| {
            let path = scratch.write("config.json", bytes);
            T5Config::read(&path).and_then(|config| config.validate()).map_err(text)
        },
    },
    Reader {
        name: "vae_config",
        inputs: 10_000,
        seeds: || {
            let standard = "goldens/vae-safetensors/config.json";
            fixtures(&[standard, "written-by-0.1.0/vae/vae/config.json"])
        },
        read: |scratch, bytes| {
            let path = scratch.write("config.json", bytes);
            VaeConfig::read(&path).and_then(|config| config.validate()).map_err(text)
        },
    },
    Reader {
        name: "model_json",
        inputs: 10_000,
        seeds: || fixtures(&["tiny-model/model.json"]),
        read: |scratch, bytes| {
            scratch.write("model.json", bytes);
            opensora::ModelFiles::open(scratch.folder()).map(drop).map_err(text)
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

/// Opens a checkpoint and reads every tensor.
fn tensors(path: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path).map_err(text)?;
    checkpoint.notes().map_err(text)?;
    for (key, tensor) in checkpoint.tensors() {
        tensor.read(key).map_err(text)?;
    }
    Ok(())
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
