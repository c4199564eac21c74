//! What the tests across crates share: devices and fixtures.
//!
//! Every test takes a device and runs on all backends of the build that have one; a backend is
//! added by its Cargo feature alone. `OPENSORA_TEST_DEVICES=ndarray,tch` chooses among them.

pub mod mutate;
pub mod readers;
pub mod torch_file;

use burn::tensor::Device;
use opensora::{
    ModelFiles,
    model_files::{PartPaths, PathPolicy},
    nn::device,
};
use std::path::PathBuf;

/// The devices to test, by name.
///
/// # Panics
/// Where a chosen device is not there: a test that silently skips proves nothing.
pub fn devices() -> Vec<(String, Device)> {
    let names = match std::env::var("OPENSORA_TEST_DEVICES") {
        Ok(names) => names.split(',').map(|name| name.trim().to_string()).collect(),
        Err(_) => {
            device::list().into_iter().flat_map(|backend| backend.devices).collect::<Vec<_>>()
        }
    };
    assert!(!names.is_empty(), "this build has no device to test");
    names
        .into_iter()
        .map(|name| {
            let device = device::parse(&name).unwrap_or_else(|error| panic!("{error}"));
            (name, device)
        })
        .collect()
}

/// A file or folder among the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The folders of all golden cases.
///
/// # Panics
/// Where the fixtures cannot be read.
pub fn golden_cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("goldens")).expect("the golden cases are fixtures");
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("case.json").exists())
        .collect();
    folders.sort();
    folders
}

/// The tiny model with random weights.
///
/// # Panics
/// Where its description cannot be read.
pub fn tiny_model() -> ModelFiles {
    // Its parts are those of a golden case.
    let parts = PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() };
    ModelFiles::open_with(&fixture("tiny-model"), &parts).unwrap_or_else(|error| panic!("{error}"))
}
