//! Damaged files for every reader: each gives a value or an error of one line, without panic, in bounded memory.
//!
//! The files are the same on every machine. `fuzz/` has the same readers for coverage-guided fuzzing; inputs that it
//! found are in `fuzz/found` and are read by these tests too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_tests::{
    fixture,
    mutate::{check_reader, mutation},
    readers::{Reader, Scratch, all, named},
};
use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

/// Minimum number of damaged files in a run.
const FEWEST: usize = 200_000;

/// Time limit for one file. Readers take milliseconds; the rest is a margin for busy machines.
const LONGEST: Duration = Duration::from_secs(20);

/// Memory limit of this process in KiB, including models of the golden cases and seeds.
const MOST_MEMORY: u64 = 1 << 20;

fn read(reader: &Reader, scratch: &Scratch, bytes: &[u8]) -> Result<(), String> {
    let start = Instant::now();
    let result = reader.read(scratch, bytes);
    let duration = start.elapsed();
    assert!(duration < LONGEST, "{}: {duration:?} for {} bytes", reader.name, bytes.len());
    result
}

fn check(name: &str) {
    let reader = named(name);
    let (scratch, seeds) = (Scratch::new(), reader.seeds());
    let refusals: Vec<String> =
        seeds.iter().filter_map(|seed| read(&reader, &scratch, seed).err()).collect();
    assert!(refusals.len() < seeds.len(), "{name}: no seed is read: {refusals:?}");
    let start = Instant::now();
    let rejected =
        check_reader(name, &seeds, reader.inputs, |bytes| read(&reader, &scratch, bytes));
    println!("{name}: {rejected} of {} rejected in {:.1?}", reader.inputs, start.elapsed());
    assert!(rejected > reader.inputs / 50, "{name}: {rejected} of {} rejected", reader.inputs);
    if let Some(peak) = peak_memory() {
        assert!(peak < MOST_MEMORY, "{name}: {peak} KiB");
    }
}

/// Returns the peak memory of this process in KiB, if the system reports it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

macro_rules! readers {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];

        mod damaged_files_are_read_or_rejected {
            $(#[test]
            fn $name() {
                super::check(stringify!($name));
            })+
        }
    };
}

readers!(
    caption_answer,
    caption_texts,
    class_config,
    gif,
    golden_case,
    image,
    index,
    journal,
    latent_cache,
    latents,
    list,
    list_json,
    metrics,
    model_json,
    mp4,
    pickle,
    pipeline_config,
    prompts,
    recipe,
    run_checkpoint,
    safetensors,
    spiece,
    stdit_config,
    t5_config,
    table,
    tokenizer_json,
    vae_config,
);

#[test]
fn every_reader_is_run_here_and_has_a_fuzz_target() {
    let names: BTreeSet<&str> = all().iter().map(|reader| reader.name).collect();
    assert_eq!(names, NAMES.iter().copied().collect());
    let count: usize = all().iter().map(|reader| reader.inputs).sum();
    assert!(count >= FEWEST, "{count}");
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    for name in names {
        let target = std::fs::read_to_string(targets.join(format!("{name}.rs"))).unwrap();
        assert!(target.contains(&format!("target!(\"{name}\")")), "{name}: {target}");
    }
}

#[test]
fn found_inputs_are_read_or_rejected() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/found");
    let scratch = Scratch::new();
    for folder in std::fs::read_dir(found).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(name) = folder.file_name().filter(|_| folder.is_dir()) else { continue };
        let reader = named(name.to_str().unwrap());
        for input in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if let Err(error) = read(&reader, &scratch, &std::fs::read(&input).unwrap()) {
                assert!(!error.contains('\n'), "{}: {error:?}", input.display());
            }
        }
    }
}

#[test]
fn mutations_are_the_same_in_every_run() {
    let seeds = vec![std::fs::read(fixture("seeds/three.safetensors")).unwrap()];
    let first: Vec<Vec<u8>> = (0..50).map(|number| mutation(&seeds, number)).collect();
    let second: Vec<Vec<u8>> = (0..50).map(|number| mutation(&seeds, number)).collect();
    assert_eq!(first, second);
    let different = first.iter().filter(|bytes| **bytes != seeds[0]).count();
    assert!(different > 45, "{different}");
}
