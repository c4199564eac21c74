//! Examples of `opensora`: `cargo run --release --example NAME` from the repository's root, with `--features train` for
//! `train_three_stages` and `long_clip`.
//!
//! | example | shows |
//! |---|---|
//! | `sample` | prompts become a playable MP4 and a contact sheet |
//! | `train_three_stages` | a small model is trained in three stages and sampled |
//! | `long_clip` | a training step on a clip of a million tokens, divided among ranks |
//! | `swap_backend` | every backend of the build samples the same latents |

use opensora::{
    ModelError, ModelFiles,
    model_files::{PartPaths, PathPolicy},
};
use std::path::PathBuf;

/// Returns the tiny model of the tests: published formats and architectures with random weights.
///
/// # Errors
/// Returns an error if the description of the model cannot be read.
pub fn tiny_model() -> Result<ModelFiles, ModelError> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-model");
    // The files are those of a golden case, outside the folder.
    let parts = PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() };
    ModelFiles::open_with(&folder, &parts)
}
