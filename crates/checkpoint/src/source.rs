//! Opening: what a path holds, as named tensors that are read when asked for.

use crate::{CheckpointError, pytorch, safetensors_file, shards};
use burn::tensor::{DType, TensorData};
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Reads a tensor's bytes: contiguous, row-major, native-endian.
pub(crate) type ReadBytes = Arc<dyn Fn() -> std::io::Result<Vec<u8>> + Send + Sync>;

/// A tensor of a checkpoint whose bytes have not been read.
#[derive(Clone)]
pub struct TensorEntry {
    pub(crate) file: Arc<Path>,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) read: ReadBytes,
}

impl TensorEntry {
    /// Element type in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape in the file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The file that holds the bytes.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the tensor; nothing is cached.
    ///
    /// # Errors
    /// Where the file cannot be read or disagrees with itself; `key` is for the message.
    pub fn read(&self, key: &str) -> Result<TensorData, CheckpointError> {
        let fail = |reason: String| CheckpointError::Tensor {
            path: self.file.to_path_buf(),
            key: key.to_string(),
            reason,
        };
        let bytes = (self.read)().map_err(|error| fail(error.to_string()))?;
        let expected = self.shape.iter().product::<usize>() * self.dtype.size();
        if bytes.len() != expected {
            return Err(fail(format!("{} bytes found, {expected} expected", bytes.len())));
        }
        Ok(TensorData::from_bytes_vec(bytes, self.shape.clone(), self.dtype))
    }
}

impl fmt::Debug for TensorEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{:?} in {}", self.dtype, self.shape, self.file.display())
    }
}

/// An opened checkpoint: keys with tensors that are read lazily.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, TensorEntry>,
}

impl Checkpoint {
    /// Opens what `path` names; only headers are read.
    ///
    /// | path | read as |
    /// |---|---|
    /// | `torch.save` file (`.pth`, `.pt`, `.bin`, `.ckpt`; zip, legacy stream or tar) | its state dict; one nested under `ema` or `state_dict` is unwrapped, `ema` first |
    /// | safetensors file | its tensors |
    /// | `*.index.json` | all its shards |
    /// | folder | the index in it or in its `model/` (as ColossalAI saves), else the one weight file in it, safetensors first |
    ///
    /// The format is told by content, not by the file's ending.
    ///
    /// # Errors
    /// Where the path cannot be opened, is no checkpoint, is damaged, or lacks a shard.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path)
            .map_err(|source| CheckpointError::Open { path: path.into(), source })?;
        let tensors = if metadata.is_dir() {
            open_file(&shards::find_in_folder(path)?)?
        } else {
            open_file(path)?
        };
        Ok(Self { path: path.into(), tensors })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors by key.
    pub fn tensors(&self) -> &BTreeMap<String, TensorEntry> {
        &self.tensors
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether it holds `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// What the writers of its files noted beside the tensors: `__metadata__` of safetensors, nothing
    /// elsewhere.
    ///
    /// # Errors
    /// Where a file cannot be read any more.
    pub fn notes(&self) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut notes = BTreeMap::new();
        for file in self.files() {
            notes.extend(safetensors_file::notes(file)?);
        }
        Ok(notes)
    }

    /// The part under a key prefix, which is cut off; the rest is another artefact.
    pub fn scope(&self, prefix: &str) -> Self {
        let tensors = self.tensors.iter().filter_map(|(key, tensor)| {
            Some((key.strip_prefix(prefix)?.to_string(), tensor.clone()))
        });
        Self { path: self.path.clone(), tensors: tensors.collect() }
    }

    /// The files that hold its tensors.
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = self.tensors.values().map(TensorEntry::file).collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

/// Opens one file by its content.
pub(crate) fn open_file(path: &Path) -> Result<BTreeMap<String, TensorEntry>, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.into(), source };
    let mut head = Vec::new();
    File::open(path).map_err(open)?.take(64).read_to_end(&mut head).map_err(open)?;
    let not_weights = |what: &str| CheckpointError::Format {
        path: path.into(),
        reason: format!("{what}, expected a torch.save or safetensors file or an index.json"),
    };
    if head.is_empty() {
        Err(not_weights("the file is empty"))
    } else if head.get(8) == Some(&b'{') {
        safetensors_file::open(path)
    } else if head.starts_with(b"version https://git-lfs") {
        Err(not_weights("this is a Git LFS pointer, not the weights (run `git lfs pull`)"))
    } else if head.trim_ascii_start().starts_with(b"<") {
        Err(not_weights("this is an HTML or XML page, perhaps a failed download"))
    } else if head.trim_ascii_start().starts_with(b"{") {
        shards::open_index(path)
    } else {
        pytorch::open(path)
    }
}
