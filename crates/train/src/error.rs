//! What can stop a training run, each in one line.

use opensora_data::DataError;
use opensora_files::LockError;
use opensora_nn::read::ReadError;
use std::path::PathBuf;

/// Why a training run cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A recipe that cannot be.
    #[error("recipe: {0}")]
    Recipe(String),
    /// A recipe file that cannot be read.
    #[error("{}: {reason}", path.display())]
    RecipeFile {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The loss or a gradient is not finite: this step changed nothing.
    #[error("step {step}: {what} is not finite, for rows {}", numbered(rows))]
    NonFinite {
        /// The step, counted from 1 as in `metrics.csv`.
        step: u64,
        /// The loss or the gradient's norm.
        what: String,
        /// The manifest's rows of the batch.
        rows: Vec<usize>,
    },
    /// A parameter, average or moment is not finite: no checkpoint of it was written.
    #[error(
        "step {step}: {tensor} is not finite (a learning rate that is too high, or an overflow of \
         f16), and no checkpoint was written; the last one is whole"
    )]
    Exploded {
        /// Steps done.
        step: u64,
        /// Name of the tensor.
        tensor: String,
    },
    /// Samples that do not fit each other or the model.
    #[error("{0}")]
    Batch(String),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// A file of the run cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Another process trains in the run's folder.
    #[error("{}: {source}", path.display())]
    Locked {
        /// The run's folder.
        path: PathBuf,
        /// Who uses it.
        source: LockError,
    },
    /// A run or checkpoint that cannot be resumed.
    #[error("{}: {reason}", path.display())]
    State {
        /// The checkpoint's folder or file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] opensora_checkpoint::CheckpointError),
    /// Weights of a denoiser that cannot be read or do not fit.
    #[error(transparent)]
    LoadStDit(#[from] opensora_stdit::LoadError),
    /// Weights of a VAE that cannot be read or do not fit.
    #[error(transparent)]
    LoadVae(#[from] opensora_vae::LoadError),
    /// Weights to start from that predict something else than the recipe trains.
    #[error(
        "{}: trained with prediction_type {found}, expected {expected} as in the recipe",
        path.display()
    )]
    PredictionType {
        /// The weights.
        path: PathBuf,
        /// The prediction type in their metadata.
        found: String,
        /// The recipe's.
        expected: &'static str,
    },
    /// A dtype that is unknown, or that the device does not compute in.
    #[error(transparent)]
    Dtype(#[from] opensora_nn::dtype::DtypeError),
    /// A denoiser's configuration that cannot be.
    #[error(transparent)]
    Size(#[from] opensora_stdit::SizeError),
    /// A VAE's configuration that cannot be.
    #[error(transparent)]
    VaeConfig(#[from] opensora_vae::VaeConfigError),
    /// A text encoder's configuration that cannot be.
    #[error(transparent)]
    TextConfig(#[from] opensora_t5::T5ConfigError),
    /// A tokenizer cannot be read or refuses.
    #[error(transparent)]
    Tokenizer(#[from] opensora_t5::TokenizerError),
    /// A tokenizer cannot be fitted or saved.
    #[error(transparent)]
    Fit(#[from] opensora_t5::tokenizer::fit::FitError),
    /// A diffusion process that cannot be.
    #[error(transparent)]
    Tables(#[from] opensora_diffusion::tables::TablesError),
    /// Tensors that do not fit the diffusion process.
    #[error(transparent)]
    Process(#[from] opensora_diffusion::ProcessError),
    /// Metrics cannot be written.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// What is done between the steps failed: sampling, watching.
    #[error(transparent)]
    Hook(Box<dyn std::error::Error + Send + Sync>),
}

impl TrainError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

fn numbered(rows: &[usize]) -> String {
    // From 1, as in every message about rows.
    rows.iter().map(|row| (row + 1).to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn the_cause_of_a_failed_hook_is_kept() {
        let source = std::io::Error::other("the disk is full");
        let inner = TrainError::Io { path: "samples".into(), source };
        let error = TrainError::Hook(Box::new(inner));
        assert_eq!(error.to_string(), "samples: the disk is full");
        assert_eq!(error.source().unwrap().to_string(), "the disk is full");
    }
}
