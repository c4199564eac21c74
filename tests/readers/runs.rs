//! Files of runs: caches, checkpoints, journals, metrics, latents.

use super::{Reader, copy, fixtures, text};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::Device;
use opensora_data::cache::LatentCache;
use opensora_files::Journal;
use opensora_prepare::{RunOptions, step};
use opensora_train::{
    Trainer, metrics,
    optimizer::OptimizerRecipe,
    state::{Checkpoints, Progress},
};

pub(super) const READERS: &[Reader] = &[
    Reader {
        name: "latent_cache",
        inputs: 6_000,
        seeds: || fixtures(&["written-by-0.1.0/cache/index.json"]),
        read: |scratch, bytes| {
            scratch.once("cache", |folder| copy("written-by-0.1.0/cache", folder));
            let index = scratch.write("cache/index.json", bytes);
            let folder = index.parent().unwrap_or(&index);
            LatentCache::open(folder).map(drop).map_err(text)
        },
    },
    Reader {
        name: "latents",
        inputs: 6_000,
        seeds: || fixtures(&["written-by-0.1.0/latents.safetensors"]),
        read: |scratch, bytes| {
            let path = scratch.write("latents.safetensors", bytes);
            opensora::latents::load(&path, &Device::flex()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "run_checkpoint",
        inputs: 4_000,
        seeds: || {
            // A state whose files are those of `saved`.
            let folder = tempfile::tempdir().expect("a folder for files of tests");
            vec![std::fs::read(saved(folder.path()).join("state.json")).expect("a state")]
        },
        read: |scratch, bytes| {
            let run = scratch.once("run", |folder| drop(saved(folder)));
            let path = Checkpoints::new(&run, 1).complete().map_err(text)?;
            let path = path.first().ok_or("no checkpoint")?;
            std::fs::write(path.join("state.json"), bytes).map_err(text)?;
            Checkpoints::load(path, &mut trainer(), &Device::flex()).map(drop).map_err(text)
        },
    },
    Reader {
        name: "metrics",
        inputs: 10_000,
        seeds: || fixtures(&["written-by-0.1.0/run/metrics.csv"]),
        read: |scratch, bytes| {
            metrics::Table::read(&scratch.write("metrics.csv", bytes)).map(drop).map_err(text)
        },
    },
    Reader {
        name: "journal",
        inputs: 4_000,
        seeds: || fixtures(&["written-by-0.1.0/split.csv.journal.jsonl"]),
        read: |scratch, bytes| {
            Journal::open(&scratch.write("a.journal", bytes)).map_err(text)?;
            let journal = scratch.write("b.journal", bytes);
            let options = RunOptions::default();
            let run = step::Run { journal, settings: settings(), options };
            let keys = ["data/films/000000.mp4".to_string()];
            let nothing = |_: usize| Err::<serde_json::Value, step::Fault>("not tried".into());
            step::run(&run, &keys, nothing, &mut ()).map(drop).map_err(text)
        },
    },
];

/// The settings of the fixture's journal: its first line.
fn settings() -> serde_json::Value {
    let journal = fixtures(&["written-by-0.1.0/split.csv.journal.jsonl"]).remove(0);
    let line = journal.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line).expect("a journal's first line")
}

fn trainer() -> Trainer<Linear> {
    // Equal weights every time: the checksums of one checkpoint are those of another.
    let weights = LinearConfig::new(2, 3).with_initializer(Initializer::Ones);
    let linear = weights.init(&Device::flex());
    Trainer::new(linear, &OptimizerRecipe::default(), |_| true).expect("the default recipe")
}

/// Saves a checkpoint of a run in `folder`.
fn saved(folder: &std::path::Path) -> std::path::PathBuf {
    let progress = Progress { step: 3, next_slot: 6, samples: 6, seconds: 1.5 };
    Checkpoints::new(folder, 1).save(&trainer(), &progress, &mut ()).expect("a checkpoint")
}
