//! Memory over the number of tokens.
//!
//! Peaks are those of a process, so each forward pass runs in one of its own: this test program
//! again, with [`forward`] alone. For any size by hand (a million tokens are 256 frames of 64x64):
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

/// What [`forward`] is told: device, frames, and tokens along each side of a frame.
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

/// The largest resident size of this process so far, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Peak of a forward pass in a process of its own, in MiB.
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
fn four_times_the_tokens_take_at_most_four_times_the_memory() {
    for device in devices() {
        // 16,384 and 65,536 tokens.
        let (few, many) = (peak_of(&device, 4, 64), peak_of(&device, 16, 64));
        assert!(many <= 4.0 * few, "{device}: {few} MiB became {many} MiB");
    }
}

#[test]
fn scores_of_a_large_frame_are_never_held_at_once() {
    for device in devices() {
        // 2^24 scores, the budget of a chunk, and 2^28: 1 GiB in f32 for each copy of them.
        let (few, many) = (peak_of(&device, 1, 64), peak_of(&device, 1, 128));
        assert!(many <= few + 300.0, "{device}: {few} MiB became {many} MiB");
    }
}
