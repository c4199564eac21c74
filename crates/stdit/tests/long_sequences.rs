//! Peak memory as a function of the number of tokens.
//!
//! Peak memory is measured for a whole process, so each forward pass runs in a new process: this test program
//! with only [`forward`]. To run another size by hand (256 frames of 64x64 are a million tokens):
//!
//! ```sh
//! LONG_SEQUENCE=flex,256,64 cargo test -p opensora-stdit --test long_sequences -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use burn::tensor::Tensor;
use opensora_nn::device;
use opensora_stdit::{DenoiserConfig, StDit};
use std::process::Command;

/// Environment variable with the arguments of [`forward`]: device, frames, tokens along each side of a frame.
const VARIABLE: &str = "LONG_SEQUENCE";
const PRINTED: &str = "peak in KiB: ";

/// One forward pass of a narrow model; prints the peak memory of this process.
#[test]
#[ignore = "run by the tests below, and by hand"]
fn forward() {
    let Ok(setting) = std::env::var(VARIABLE) else { return };
    let [name, frames, side] = setting.split(',').collect::<Vec<_>>().try_into().unwrap();
    let [frames, side]: [usize; 2] = [frames, side].map(|n| n.parse().unwrap());
    let device = device::parse(name).unwrap();
    let config = DenoiserConfig {
        hidden_size: 16,
        depth: 1,
        num_heads: 1,
        caption_channels: 16,
        ..DenoiserConfig::xl_2()
    };
    let model = config.init::<StDit>(&device).unwrap();
    let latents = Tensor::<5>::ones([1, 4, frames, 2 * side, 2 * side], &device);
    let prompt = Tensor::<3>::ones([1, config.model_max_length, 16], &device);
    let output = model.forward(latents, &[500.0], prompt, None);
    assert_eq!(output.dims(), [1, 8, frames, 2 * side, 2 * side]);
    assert!(output.sum().into_scalar::<f32>().is_finite());
    println!("{} tokens, {PRINTED}{}", frames * side * side, peak_memory());
}

/// Returns the largest resident size of this process so far, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Returns the peak memory of a forward pass in a new process, in MiB.
fn peak_of(device: &str, frames: usize, side: usize) -> f64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "forward", "--ignored", "--nocapture"])
        .env(VARIABLE, format!("{device},{frames},{side}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, peak) = text.split_once(PRINTED).unwrap();
    peak.lines().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

fn devices() -> Vec<String> {
    device::list().into_iter().flat_map(|backend| backend.devices).collect()
}

#[test]
fn memory_grows_at_most_linearly_with_tokens() {
    for device in devices() {
        // 16,384 and 65,536 tokens.
        let (few, many) = (peak_of(&device, 4, 64), peak_of(&device, 16, 64));
        assert!(many <= 4.0 * few, "{device}: {few} MiB became {many} MiB");
    }
}

#[test]
fn scores_of_a_large_frame_are_computed_in_chunks() {
    for device in devices() {
        // 2^24 scores, the budget of a chunk, and 2^28 scores, which take 1 GiB in f32 per copy.
        let (few, many) = (peak_of(&device, 1, 64), peak_of(&device, 1, 128));
        assert!(many <= few + 300.0, "{device}: {few} MiB became {many} MiB");
    }
}
