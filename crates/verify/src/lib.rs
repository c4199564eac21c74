//! Golden cases: compares results of the library with those of the reference, on any machine and backend.
//!
//! A case is a folder with `case.json` (kind, configuration, tolerances), weights in a published
//! layout, `inputs.safetensors` and `expected.safetensors` (or `expected.json`). Every expected tensor is
//! compared within the tolerances of the case. A case of an unknown kind is an error.
//!
//! ```no_run
//! use opensora::nn::device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = device::parse("flex")?;
//! let report = opensora_verify::run("tests/fixtures/goldens/vae".as_ref(), &device)?;
//! for check in &report.checks {
//!     println!("{}: {:e} of {:e}", check.name, check.max_abs_error, check.bound);
//! }
//! assert!(report.passed());
//! # Ok(())
//! # }
//! ```

mod case;
mod compare;
mod denoiser;
mod diffusion;
mod labelled;
mod manifests;
mod pipeline;
mod pixart_ms;
mod text;
mod training;
mod transform;
mod vae;

pub use case::Case;
pub use compare::{Check, Output};

use burn::tensor::Device;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Result of a case.
#[derive(Debug)]
pub struct CaseReport {
    /// Name of the case.
    pub name: String,
    /// Kind of the case.
    pub kind: String,
    /// One check for each expected tensor.
    pub checks: Vec<Check>,
}

impl CaseReport {
    /// Returns true if every check passed and there is at least one.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }
}

/// Error for a case that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The description of the case cannot be read.
    #[error("{}: the case cannot be read", path.display())]
    Read {
        /// The `case.json`.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The description of the case is not JSON.
    #[error("{}: not JSON", path.display())]
    Json {
        /// The `case.json`.
        path: PathBuf,
        /// The line and column.
        source: serde_json::Error,
    },
    /// The kind of the case is unknown to this version.
    #[error("{}: unknown kind of case '{kind}', known are {}", path.display(), KINDS.join(", "))]
    UnknownKind {
        /// The case's folder.
        path: PathBuf,
        /// The kind.
        kind: String,
    },
    /// The backend panicked: an unsupported operation, not enough memory, or inputs that do not fit the
    /// configuration.
    #[error("{}: {step}: the computation failed: {reason}", path.display())]
    Computation {
        /// The case's folder.
        path: PathBuf,
        /// The step that failed, such as "decoding latents".
        step: String,
        /// The backend's panic message.
        reason: String,
    },
    /// The library returned an error.
    #[error("{}: {step}", path.display())]
    Library {
        /// The case's folder.
        path: PathBuf,
        /// The step that failed, such as "loading the VAE".
        step: String,
        /// The error of the library.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl VerifyError {
    /// Returns the step that failed, such as "loading the VAE" or "comparing decoded"; `None` if the
    /// case cannot be read or its kind is unknown.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Read { .. } | Self::Json { .. } | Self::UnknownKind { .. } => None,
            Self::Computation { step, .. } | Self::Library { step, .. } => Some(step),
        }
    }
}

/// Outputs of a runner by name, in any order.
type Outputs = Vec<(String, Output)>;

/// Error of a runner: an error of the library, or a message.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The kinds that [`run`] supports.
pub const KINDS: [&str; 18] = [
    "t5-encoder",
    "t5-tokenizer",
    "caption-clean",
    "vae",
    "stdit",
    "pixart-init",
    "pixart-ms",
    "dit",
    "latte",
    "class-sample",
    "iddpm-tables",
    "iddpm-losses",
    "iddpm-sample",
    "dpm-solver",
    "pipeline",
    "manifests",
    "train-step",
    "video-transform",
];

/// Runs one case on `device` in f32.
///
/// # Errors
/// Returns an error if the case cannot be read or run. A failed check is not an error; see
/// [`CaseReport::passed`].
pub fn run(folder: &Path, device: &Device) -> Result<CaseReport, VerifyError> {
    let case = Case::open(folder)?;
    let runner = match case.kind() {
        "t5-encoder" => text::encoder,
        "t5-tokenizer" => text::tokenizer,
        "caption-clean" => text::caption_clean,
        "vae" => vae::run,
        "stdit" => denoiser::stdit,
        "pixart-init" => denoiser::pixart_init,
        "pixart-ms" => pixart_ms::run,
        "dit" => labelled::dit,
        "latte" => labelled::latte,
        "class-sample" => labelled::class_sample,
        "iddpm-tables" => diffusion::tables,
        "iddpm-losses" => diffusion::losses,
        "iddpm-sample" => diffusion::iddpm_sample,
        "dpm-solver" => diffusion::dpm_solver,
        "pipeline" => pipeline::run,
        "manifests" => manifests::run,
        "train-step" => training::train_step,
        "video-transform" => transform::run,
        kind => {
            return Err(VerifyError::UnknownKind { path: folder.into(), kind: kind.into() });
        }
    };
    // Backends panic on unsupported operations. A case may come from an untrusted source: its panics become
    // errors.
    let checks = catch_unwind(AssertUnwindSafe(|| case.compare(runner(&case, device)?)))
        .map_err(|panic| VerifyError::Computation {
            path: folder.into(),
            step: case.step(),
            reason: panic_message(panic.as_ref()),
        })?
        .map_err(|source| VerifyError::Library {
            path: folder.into(),
            step: case.step(),
            source,
        })?;
    Ok(CaseReport { name: case.name().into(), kind: case.kind().into(), checks })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
