//! Errors of training.

use opensora_checkpoint::BoxedError;
use opensora_data::{DataError, SettingError};
use opensora_files::LockError;
use opensora_nn::read::ReadError;
use std::{fmt::Display, path::PathBuf};

/// Error for an invalid recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file is neither a bundled recipe nor can it be read.
    #[error(
        "{}: cannot read the recipe (bundled recipes: {})",
        path.display(),
        crate::recipe::RECIPES.map(|(name, _)| name).join(", ")
    )]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The recipe in a file is invalid.
    #[error("{}: invalid recipe", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The invalid value.
        source: Box<RecipeError>,
    },
    /// The text is not TOML, or has an unknown key or a value of another type. (The parser's error draws
    /// the line over several lines, so its text is kept and not the error itself.)
    #[error("{}{message}", line.map_or(String::new(), |line| format!("line {line}: ")))]
    Syntax {
        /// The line, counted from 1, if it is known.
        line: Option<usize>,
        /// The parser's message.
        message: String,
    },
    /// A value cannot be written as TOML.
    #[error("cannot write the recipe as TOML")]
    Serialize(#[from] toml::ser::Error),
    /// A value is out of range.
    #[error("{field} is {found}, expected {expected}")]
    Value {
        /// Name of the value.
        field: &'static str,
        /// The value that was found.
        found: String,
        /// The expected values.
        expected: String,
    },
    /// A rank has another recipe than rank 0.
    #[error(
        "{setting} is {found}, expected {expected} as on rank 0; all ranks need the same recipe"
    )]
    Ranks {
        /// Whole name of the setting, such as `optimizer.learning_rate`.
        setting: String,
        /// The rank's value.
        found: String,
        /// The value of rank 0.
        expected: String,
    },
    /// Something that the recipe needs is not given.
    #[error("{what} is missing: {hint}")]
    Missing {
        /// The missing setting or file.
        what: &'static str,
        /// A hint: when it is needed, or how to give it.
        hint: &'static str,
    },
    /// A setting of clips or of their loader is out of range.
    #[error(transparent)]
    Clip(#[from] SettingError),
    /// The configuration of a denoiser is invalid.
    #[error(transparent)]
    StDit(#[from] opensora_stdit::SizeError),
    /// The configuration of a VAE is invalid.
    #[error(transparent)]
    Vae(#[from] opensora_vae::VaeConfigError),
    /// The configuration of a text encoder is invalid.
    #[error(transparent)]
    T5(#[from] opensora_t5::T5ConfigError),
    /// The dtype is unknown.
    #[error(transparent)]
    Dtype(#[from] opensora_nn::dtype::DtypeError),
}

impl RecipeError {
    pub(crate) fn value(
        field: &'static str,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { field, found: found.to_string(), expected: expected.into() }
    }
}

/// Error of a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The recipe is invalid.
    #[error("invalid recipe")]
    Recipe(#[from] RecipeError),
    /// The loss or a gradient is not finite. The step changed nothing.
    #[error("step {step}: {what} is not finite, for rows {}", numbered(rows))]
    NonFinite {
        /// The step, counted from 1 as in `metrics.csv`.
        step: u64,
        /// The loss or the gradient's norm.
        what: String,
        /// The manifest's rows of the batch.
        rows: Vec<usize>,
    },
    /// A parameter, average or moment is not finite. No checkpoint was written.
    #[error(
        "step {step}: {tensor} is not finite (a learning rate that is too high, or an overflow of \
         f16), and no checkpoint was written; the last one is complete"
    )]
    Exploded {
        /// Steps done.
        step: u64,
        /// Name of the tensor.
        tensor: String,
    },
    /// Samples do not fit each other or the model.
    #[error("{0}")]
    Batch(String),
    /// A [`Task`](crate::task::Task) failed.
    #[error("step {step}: the task failed for rows {}", numbered(rows))]
    Task {
        /// The step, counted from 1.
        step: u64,
        /// The manifest's rows of the batch.
        rows: Vec<usize>,
        /// The task's error.
        source: BoxedError,
    },
    /// A hook between steps, such as sampling, failed.
    #[error("step {step}: the hook between steps failed")]
    Hook {
        /// Steps done.
        step: u64,
        /// The hook's error.
        source: BoxedError,
    },
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// Another rank of the run failed.
    #[error("rank {rank}: {message}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error on one line.
        message: String,
    },
    /// A file of the run cannot be read or written.
    #[error("{}: I/O error", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another process trains in the run's folder.
    #[error("{}: cannot lock the folder", path.display())]
    Locked {
        /// The run's folder.
        path: PathBuf,
        /// The process that uses it.
        source: LockError,
    },
    /// A run or checkpoint cannot be resumed.
    #[error("{}: {reason}", path.display())]
    State {
        /// The checkpoint's folder or file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
        /// The parser's error, if it is the cause.
        source: Option<serde_json::Error>,
    },
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] opensora_checkpoint::CheckpointError),
    /// Weights of a denoiser cannot be read or do not fit.
    #[error(transparent)]
    LoadStDit(#[from] opensora_stdit::LoadError),
    /// Weights of a VAE cannot be read or do not fit.
    #[error(transparent)]
    LoadVae(#[from] opensora_vae::LoadError),
    /// The weights to start from predict another target than the recipe trains.
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
    /// The dtype is unknown, or the device does not compute in it.
    #[error(transparent)]
    Dtype(#[from] opensora_nn::dtype::DtypeError),
    /// The configuration of a denoiser is invalid.
    #[error(transparent)]
    Size(#[from] opensora_stdit::SizeError),
    /// The configuration of a VAE is invalid.
    #[error(transparent)]
    VaeConfig(#[from] opensora_vae::VaeConfigError),
    /// The configuration of a text encoder is invalid.
    #[error(transparent)]
    TextConfig(#[from] opensora_t5::T5ConfigError),
    /// A tokenizer cannot be read, or cannot tokenize a caption.
    #[error(transparent)]
    Tokenizer(#[from] opensora_t5::TokenizerError),
    /// A tokenizer does not fit the recipe.
    #[error("{0}")]
    Vocabulary(String),
    /// A tokenizer cannot be fitted or saved.
    #[error(transparent)]
    Fit(#[from] opensora_t5::tokenizer::fit::FitError),
    /// The settings of the diffusion process are invalid.
    #[error(transparent)]
    Tables(#[from] opensora_diffusion::tables::TablesError),
    /// Tensors do not fit the diffusion process.
    #[error(transparent)]
    Process(#[from] opensora_diffusion::ProcessError),
    /// Metrics cannot be written.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// Any other error; see [`TrainError::other`].
    #[error(transparent)]
    Other(BoxedError),
}

impl TrainError {
    /// Wraps an error of any type, with its source. An error that is a `TrainError` already is returned
    /// unchanged.
    pub fn other(error: impl Into<BoxedError>) -> Self {
        Self::or(error, Self::Other)
    }

    /// Returns the `TrainError` that `error` is, or what `wrap` makes of another type of error.
    pub(crate) fn or(error: impl Into<BoxedError>, wrap: impl FnOnce(BoxedError) -> Self) -> Self {
        error.into().downcast().map_or_else(wrap, |error: Box<Self>| *error)
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn state(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::State { path: path.into(), reason: reason.into(), source: None }
    }
}

fn numbered(rows: &[usize]) -> String {
    // From 1, as in every message about rows.
    rows.iter().map(|row| (row + 1).to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;
    use std::{error::Error, io};

    #[test]
    fn errors_of_other_types_keep_their_cause() {
        let inner =
            TrainError::Io { path: "samples".into(), source: io::Error::other("disk full") };
        assert_eq!(error_line(&inner), "samples: I/O error: disk full");
        let error = TrainError::Hook { step: 3, source: inner.into() };
        assert_eq!(
            error_line(&error),
            "step 3: the hook between steps failed: samples: I/O error: disk full"
        );
        assert_eq!(error.source().unwrap().source().unwrap().to_string(), "disk full");
    }

    #[test]
    fn a_train_error_is_not_wrapped_again() {
        let error = TrainError::other(TrainError::Batch("too few".into()));
        assert!(matches!(error, TrainError::Batch(text) if text == "too few"));
        let error = TrainError::other(io::Error::other("disk full"));
        assert!(matches!(&error, TrainError::Other(_)));
        assert_eq!(error.to_string(), "disk full");
    }
}
