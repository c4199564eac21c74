//! Devices and fixtures for the tests across crates.
//!
//! Every test runs on all devices of the build. A Cargo feature adds a backend; `OPENSORA_TEST_DEVICES=ndarray,tch`
//! selects among them.

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

/// Returns the devices to test, by name.
///
/// # Panics
/// Panics if a selected device is missing: a test that skips silently proves nothing.
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
            let device =
                device::parse(&name).unwrap_or_else(|error| panic!("{}", with_causes(&error)));
            (name, device)
        })
        .collect()
}

/// Returns the path of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Returns the folders of all golden cases.
///
/// # Panics
/// Panics if the fixtures are unreadable.
pub fn golden_cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("goldens")).expect("the golden cases are fixtures");
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("case.json").exists())
        .collect();
    folders.sort();
    folders
}

/// Returns the message of an error unchanged, and those of its causes, which may be other libraries' and have
/// several lines, each on one line, joined by ": ".
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        text += &format!(": {}", opensora_files::one_line(cause));
    }
    text
}

/// Opens the tiny model with random weights.
///
/// # Panics
/// Panics if its `model.json` is unreadable.
pub fn tiny_model() -> ModelFiles {
    // Its files are those of a golden case.
    let parts = PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() };
    ModelFiles::open_with(&fixture("tiny-model"), &parts).unwrap_or_else(|error| panic!("{error}"))
}
