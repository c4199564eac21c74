//! What can be wrong with a checkpoint, each in one line.

use opensora_files::one_line;
use opensora_nn::read::ReadError;
use std::{fmt, path::PathBuf};

/// Why a checkpoint could not be opened, loaded or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path could not be opened or listed.
    #[error("{}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is there but is not a checkpoint that can be read.
    #[error("{}: not a readable checkpoint: {}", path.display(), one_line(reason))]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// An index names a shard that is not beside it.
    #[error("{}: shard '{}' of the index is missing beside it", index.display(), one_line(shard))]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// A folder that holds no checkpoint, or several without a telling name.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The bytes of a tensor could not be read.
    #[error("{}: tensor '{}': {}", path.display(), one_line(key), one_line(reason))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// What went wrong.
        reason: String,
    },
    /// The device that holds a tensor failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// The file could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Two tensors of a file to be written have the same key.
    #[error("{}: cannot be written: two tensors have the key '{}'", path.display(), one_line(key))]
    DuplicateKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The keys or shapes do not fit the model.
    #[error("{}: {mismatch}", path.display())]
    Mismatch {
        /// The file or folder.
        path: PathBuf,
        /// The keys that do not fit.
        mismatch: Box<Mismatch>,
    },
}

/// A key whose shape differs between file and model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The published key.
    pub key: String,
    /// The shape in the file.
    pub found: Vec<usize>,
    /// The shape that the model's configuration asks for, in the file's layout.
    pub expected: Vec<usize>,
}

/// The keys by which a checkpoint and a model differ; at least one list is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What the file was loaded as.
    pub artefact: String,
    /// Wrappers that the keys were taken out of, such as `module`.
    pub wrappers: Vec<String>,
    /// Keys the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that nothing in the model uses and no allow-list names.
    pub unused: Vec<String>,
    /// Keys of another shape.
    pub shapes: Vec<ShapeMismatch>,
    /// What most likely happened.
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

/// Names in quotes, each on one line.
pub(crate) fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("'{}'", one_line(name))).collect::<Vec<_>>().join(", ")
}

/// The first few, so that the line stays a line; the struct holds them all.
fn some(items: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = items.iter().take(SHOWN).map(one_line).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(", and {} more", items.len() - SHOWN));
    }
    text
}
