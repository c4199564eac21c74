//! Errors of opening, reading, loading and writing checkpoints.

use opensora_files::one_line;
use opensora_nn::read::ReadError;
use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

/// An error of any type.
pub type BoxedError = Box<dyn Error + Send + Sync>;

/// Error of opening, loading or writing a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path cannot be opened or listed.
    #[error("{}: cannot open", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file exists but is not a checkpoint that can be read.
    #[error("{}: not a readable checkpoint: {}", path.display(), one_line(reason))]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
        /// The error of the system or parser, if one is the cause.
        source: Option<BoxedError>,
    },
    /// An index has a shard that is not beside it.
    #[error("{}: its shard '{}' is missing", index.display(), one_line(shard))]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// A folder has no checkpoint, or several without a well-known name.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor cannot be read, converted or written.
    #[error("{}: tensor '{}': {}", path.display(), one_line(key), one_line(reason))]
    Tensor {
        /// Path of the file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// What was found and what was expected.
        reason: String,
        /// The error of the system or of a conversion, if one is the cause.
        source: Option<BoxedError>,
    },
    /// The device that holds a tensor failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// The file cannot be written.
    #[error("{}: cannot write", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The folder of a conversion has a file that would be read instead of the new files.
    #[error("{}: already exists and would be read instead of the new {new}", path.display())]
    Shadowed {
        /// The file.
        path: PathBuf,
        /// Name of the new file that would not be read.
        new: &'static str,
    },
    /// Two tensors to be written have the same key.
    #[error("{}: cannot write: two tensors have the key '{}'", path.display(), one_line(key))]
    DuplicateKey {
        /// Path of the file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The keys or shapes do not match the model.
    #[error("{}: {mismatch}", path.display())]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// The keys that do not match.
        mismatch: Box<Mismatch>,
    },
}

impl CheckpointError {
    /// Returns a [`Format`](Self::Format) error of the file at `path`.
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.into(), reason: reason.into(), source: None }
    }

    /// Returns a function that makes [`Format`](Self::Format) errors of the file at `path`.
    pub(crate) fn malformed<C: Into<Cause>>(path: &Path) -> impl Fn(C) -> Self {
        move |cause| {
            let Cause { reason, source } = cause.into();
            Self::Format { path: path.into(), reason, source }
        }
    }

    /// Returns a function that makes [`Tensor`](Self::Tensor) errors of the tensor `key`.
    pub(crate) fn tensor<C: Into<Cause>>(path: &Path, key: &str) -> impl Fn(C) -> Self {
        move |cause| {
            let Cause { reason, source } = cause.into();
            Self::Tensor { path: path.into(), key: key.into(), reason, source }
        }
    }
}

/// A text, and the error that it explains.
#[derive(Debug)]
pub(crate) struct Cause {
    reason: String,
    source: Option<BoxedError>,
}

impl From<String> for Cause {
    fn from(reason: String) -> Self {
        Self { reason, source: None }
    }
}

impl From<&str> for Cause {
    fn from(reason: &str) -> Self {
        reason.to_string().into()
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        because("cannot read")(error)
    }
}

/// Returns a function that makes causes of an error and a text that explains it.
pub(crate) fn because<E: Into<BoxedError>>(reason: impl Into<String>) -> impl FnOnce(E) -> Cause {
    let reason = reason.into();
    move |error| Cause { reason, source: Some(error.into()) }
}

/// A key whose shape differs between file and model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The published key.
    pub key: String,
    /// The shape in the file.
    pub found: Vec<usize>,
    /// The shape of the model's parameter, in the file's layout.
    pub expected: Vec<usize>,
}

/// The differences in keys between a checkpoint and a model. At least one list is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the artefact that was expected.
    pub artefact: String,
    /// Wrappers around the keys that were removed, such as `module`.
    pub wrappers: Vec<String>,
    /// Keys of the model that the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that the model does not use and the key map does not allow.
    pub unused: Vec<String>,
    /// Keys whose shapes differ.
    pub shapes: Vec<ShapeMismatch>,
    /// The likely cause.
    pub likely_cause: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "does not fit {}", self.artefact)?;
        if !self.wrappers.is_empty() {
            write!(f, " (unwrapped from {})", quoted(&self.wrappers))?;
        }
        write!(f, ": ")?;
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("{} missing ({})", keys(self.missing.len()), some(&self.missing)));
        }
        if !self.unused.is_empty() {
            parts.push(format!("{} left over ({})", keys(self.unused.len()), some(&self.unused)));
        }
        if !self.shapes.is_empty() {
            let shapes: Vec<String> = self
                .shapes
                .iter()
                .map(|s| format!("{}: file {:?}, model {:?}", s.key, s.found, s.expected))
                .collect();
            parts.push(format!("{} of another shape ({})", keys(shapes.len()), some(&shapes)));
        }
        write!(f, "{}; likely cause: {}", parts.join(", "), self.likely_cause)
    }
}

fn keys(count: usize) -> String {
    if count == 1 { "1 key".into() } else { format!("{count} keys") }
}

/// Returns names in quotes, separated by commas.
pub(crate) fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("'{}'", one_line(name))).collect::<Vec<_>>().join(", ")
}

/// Returns the first few items, to limit the length of the message; the struct holds all.
fn some(items: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = items.iter().take(SHOWN).map(one_line).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(", and {} more", items.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatches_name_wrappers_keys_and_shapes() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let missing = Mismatch {
            artefact: "a VAE".into(),
            wrappers: vec![],
            missing: names(&["a"]),
            unused: vec![],
            shapes: vec![],
            likely_cause: "none".into(),
        };
        let text = "does not fit a VAE: 1 key missing (a); likely cause: none";
        assert_eq!(missing.to_string(), text);
        let (found, expected) = (vec![2], vec![3, 4]);
        let shapes = vec![ShapeMismatch { key: "g".into(), found, expected }];
        let unused = names(&["b", "c", "d", "e", "f", "g"]);
        let wrappers = names(&["module", "ema"]);
        let all = Mismatch { wrappers, unused, shapes, ..missing };
        assert_eq!(
            all.to_string(),
            "does not fit a VAE (unwrapped from 'module', 'ema'): 1 key missing (a), 6 keys left over \
             (b, c, d, e, and 2 more), 1 key of another shape (g: file [2], model [3, 4]); likely cause: \
             none"
        );
    }
}
