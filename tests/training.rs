//! Training across crates: the memory that activation checkpointing saves.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType};
use opensora::{
    data::encode::EncodedSample,
    nn::read::read_f64,
    stdit::{DenoiserConfig, StDit},
    train::{
        Trainer,
        denoiser::{DenoiserRecipe, DenoiserTask},
        optimizer::OptimizerRecipe,
        task::Task,
    },
};

/// Frames, height and width of the latents: 1024 tokens, so that activations dominate.
const LATENTS: [usize; 4] = [4, 16, 16, 16];

fn sample(config: &DenoiserConfig) -> EncodedSample {
    let latents = LATENTS.iter().product();
    EncodedSample {
        row: 0,
        mean: vec![0.5; latents],
        logvar: vec![-1.0; latents],
        latent_shape: LATENTS,
        states: vec![0.1; 4 * config.caption_channels],
        mask: vec![true; 4],
        width: config.caption_channels,
    }
}

/// Computes loss and gradients of one step and returns the sum of the gradients' absolute values.
fn step(depth: usize, activation_checkpointing: bool) -> f64 {
    let device = Device::flex();
    let config = DenoiserConfig {
        hidden_size: 32,
        depth,
        num_heads: 4,
        caption_channels: 16,
        model_max_length: 8,
        ..DenoiserConfig::xl_2()
    };
    let recipe = DenoiserRecipe { activation_checkpointing, ..DenoiserRecipe::default() };
    let task = DenoiserTask::new(&recipe, &config, 1, FloatDType::F32, &device).unwrap();
    let model = config.init::<StDit>(&device).unwrap();
    let trainer = Trainer::new(model, &OptimizerRecipe::default(), |_| true).unwrap();
    let graph = trainer.graph(FloatDType::F32);
    let found = task.gradients(&graph, &[sample(&config), sample(&config)], &[0, 1]).unwrap();
    let losses = read_f64(found.losses.clone()).unwrap();
    assert!(losses.iter().all(|loss| loss.is_finite()));
    let sums = found.gradients.into_values().map(|gradient| gradient.abs().sum());
    sums.map(|sum| sum.into_scalar::<f32>() as f64).sum()
}

/// Returns the peak resident memory while `work` runs, above that before, in MiB.
#[cfg(target_os = "linux")]
fn peak_above(work: impl FnOnce() -> f64) -> f64 {
    let field = |name: &str| -> f64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    // Resets the peak to the current resident memory.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = field("VmRSS:");
    assert!(work() > 0.0);
    field("VmHWM:") - before
}

/// A single test, so that nothing else allocates meanwhile. The run that needs less memory comes first, since memory
/// that the allocator keeps would hide the use of a later one.
#[cfg(target_os = "linux")]
#[test]
fn memory_grows_by_less_than_a_quarter_over_the_depth() {
    // Warm-up: threads, tables, first touch of memory.
    step(1, true);
    let recomputing = [1, 28].map(|depth| peak_above(|| step(depth, true)));
    let keeping = [1, 28].map(|depth| peak_above(|| step(depth, false)));
    let (less, more) = (recomputing[1] - recomputing[0], keeping[1] - keeping[0]);
    println!("28 blocks over one: {less:.0} MiB recomputing, {more:.0} MiB keeping");
    assert!(more > 100.0, "the test is too small to tell: {more} MiB");
    assert!(less < 0.25 * more, "{less} MiB recomputing, {more} MiB keeping");
}
