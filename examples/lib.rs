//! Examples of `opensora`: `cargo run --release --example NAME` from the repository's root.
//!
//! | example | shows |
//! |---|---|
//! | `sample` | a prompt becomes a playable MP4 |
//! | `train_three_stages` | the whole way from data to a video, in miniature |
//! | `swap_backend` | the same latents on every backend of the build |

use opensora::{
    ModelError, ModelFiles,
    model_files::{PartPaths, PathPolicy},
};
use std::path::PathBuf;

/// The tiny model of the tests: the published formats and all the classes, with random weights.
///
/// # Errors
/// Returns an error if its description cannot be read.
pub fn tiny_model() -> Result<ModelFiles, ModelError> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-model");
    // Its parts are those of a golden case.
    let parts = PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() };
    ModelFiles::open_with(&folder, &parts)
}
