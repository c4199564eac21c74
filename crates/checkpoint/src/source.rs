//! Opening: what a path holds, as named tensors that are read when asked for.

use crate::{CheckpointError, pytorch, safetensors_file, shards, wrapper};
use burn::tensor::{DType, TensorData};
use opensora_files::read::open_regular;
use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Reads a tensor's bytes: contiguous, row-major, native-endian.
pub(crate) type ReadBytes = Arc<dyn Fn() -> std::io::Result<Vec<u8>> + Send + Sync>;

/// Most tensors of a checkpoint: T5-XXL has 560 and a training state of STDiT-XL/2 2,500. Each takes
/// memory before anything is loaded.
pub(crate) const MAX_TENSORS: usize = 1 << 16;

/// A tensor of a checkpoint whose bytes have not been read.
#[derive(Clone)]
pub struct TensorEntry {
    pub(crate) file: Arc<Path>,
    pub(crate) shape: Vec<usize>,
    pub(crate) contents: Contents,
}

/// What a tensor holds.
#[derive(Clone)]
pub(crate) enum Contents {
    /// Bytes of a known type.
    Readable { dtype: DType, read: ReadBytes },
    /// The reason why it cannot be read, an error only if the tensor is needed.
    Unreadable(Arc<str>),
}

impl TensorEntry {
    /// Element type in the file; `None` for a tensor that cannot be read, such as one in 8-bit floating
    /// point.
    pub fn dtype(&self) -> Option<DType> {
        match &self.contents {
            Contents::Readable { dtype, .. } => Some(*dtype),
            Contents::Unreadable(_) => None,
        }
    }

    /// Bytes that [`read`](Self::read) returns.
    pub(crate) fn byte_len(&self) -> u64 {
        let size = self.dtype().map_or(0, |dtype| dtype.size());
        self.shape.iter().chain([&size]).fold(1, |all, &n| all.saturating_mul(n as u64))
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
        let (dtype, bytes) = self.read_bytes(key)?;
        Ok(TensorData::from_bytes_vec(bytes, self.shape.clone(), dtype))
    }

    /// Reads the bytes of the tensor, which a [`TensorData`] may copy to align them.
    pub(crate) fn read_bytes(&self, key: &str) -> Result<(DType, Vec<u8>), CheckpointError> {
        let fail = |reason: String| CheckpointError::Tensor {
            path: self.file.to_path_buf(),
            key: key.to_string(),
            reason,
        };
        let (dtype, read) = match &self.contents {
            Contents::Readable { dtype, read } => (*dtype, read),
            Contents::Unreadable(reason) => return Err(fail(reason.to_string())),
        };
        let bytes = read().map_err(|error| fail(error.to_string()))?;
        let expected = self.byte_len();
        if bytes.len() as u64 != expected {
            return Err(fail(format!("{} bytes found, {expected} expected", bytes.len())));
        }
        Ok((dtype, bytes))
    }
}

impl fmt::Debug for TensorEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = self.dtype().map_or("unreadable ".into(), |dtype| format!("{dtype:?}"));
        write!(f, "{dtype}{:?} in {}", self.shape, self.file.display())
    }
}

/// What a file holds.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    /// The dictionary that they were taken out of.
    pub(crate) wrapper: Option<&'static str>,
    /// Tensors outside that dictionary.
    pub(crate) outside: usize,
}

/// An opened checkpoint: keys with tensors that are read lazily.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    taken: PathBuf,
    wrappers: Vec<String>,
    outside: usize,
    tensors: BTreeMap<String, TensorEntry>,
}

impl Checkpoint {
    /// Opens what `path` names; only headers are read.
    ///
    /// | path | read as |
    /// |---|---|
    /// | `torch.save` file (`.pth`, `.pt`, `.bin`, `.ckpt`; zip or legacy stream) | its state dict; one nested under `ema` or `state_dict` is unwrapped, `ema` first |
    /// | safetensors file | its tensors |
    /// | `*.index.json` | all its shards |
    /// | folder | in Hugging Face's order: `model.safetensors`, its index, `pytorch_model.bin`, its index (also `diffusion_pytorch_model`); another index; the same in `model/` (as ColossalAI saves); else the one weight file in it |
    ///
    /// The format is told by content, not by the file's ending. [`taken`](Self::taken) is the file that was
    /// chosen. A tensor that cannot be read, such as one of an unsupported type, is an error only when it
    /// is needed.
    ///
    /// # Errors
    /// Returns an error if the path cannot be opened, is not a checkpoint, is damaged or larger inside
    /// than its size allows, or lacks a shard.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path)
            .map_err(|source| CheckpointError::Open { path: path.into(), source })?;
        let taken =
            if metadata.is_dir() { shards::find_in_folder(path)? } else { path.to_path_buf() };
        let Opened { tensors, wrapper, outside } = open_file(&taken)?;
        let wrappers = wrapper.iter().map(|name| name.to_string()).collect();
        Ok(Self { path: path.into(), taken, wrappers, outside, tensors })
    }

    /// A checkpoint of these tensors.
    #[cfg(test)]
    pub(crate) fn of_tensors(tensors: BTreeMap<String, TensorEntry>) -> Self {
        let (path, taken) = (PathBuf::from("test"), PathBuf::from("test"));
        Self { path, taken, wrappers: Vec::new(), outside: 0, tensors }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file or index that was read: in a folder with several formats, the one that was chosen.
    pub fn taken(&self) -> &Path {
        &self.taken
    }

    /// Names of the prefixes and dictionaries that its keys were taken out of, such as `module`.
    pub fn wrappers(&self) -> &[String] {
        &self.wrappers
    }

    /// Tensors of the file that stand outside the wrappers and are not part of the checkpoint.
    pub fn outside(&self) -> usize {
        self.outside
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

    /// The checkpoint without what training programs put around a model: prefixes such as `module.`
    /// (`DistributedDataParallel`) and `_orig_mod.` (`torch.compile`), containers such as `model`,
    /// `module` (DeepSpeed) and `ema`, or any other, in any nesting.
    ///
    /// The wrapper is what stands in front of `known`, the key of a tensor that every file of the artefact
    /// has. Where several models are in the file, the averaged weights are taken, then `state_dict`, then
    /// a model without a wrapper, then `model`, then `module`. Where no key ends in `known`, the
    /// checkpoint is returned as it is.
    ///
    /// # Errors
    /// Returns an error if several models are in the file and none is known to be the wanted one.
    pub fn unwrapped(&self, known: &str) -> Result<Self, CheckpointError> {
        let fail = |reason: String| CheckpointError::Format { path: self.taken.clone(), reason };
        let mut plain = Self { tensors: BTreeMap::new(), ..self.clone() };
        for (key, tensor) in &self.tensors {
            let (short, names) = wrapper::without_transparent(key);
            for name in names {
                if !plain.wrappers.iter().any(|known| known == name) {
                    plain.wrappers.push(name.into());
                }
            }
            if plain.tensors.insert(short, tensor.clone()).is_some() {
                return Err(fail(format!("key '{key}' is there with and without its wrapper")));
            }
        }
        match wrapper::find(plain.keys(), known).map_err(fail)? {
            None => Ok(self.clone()),
            Some("") => Ok(plain),
            Some(prefix) => Ok(plain.scope(prefix)),
        }
    }

    /// Fails if a configuration asks for many more blocks than the checkpoint can hold, before any is
    /// built; how many there are exactly is compared when the keys are. A block of every known model has
    /// at least eight tensors.
    ///
    /// # Errors
    /// Returns an error if `blocks`, called `name` in the configuration, cannot be.
    pub fn check_blocks(&self, name: &str, blocks: usize) -> Result<(), CheckpointError> {
        /// Cheap to build, whatever the file holds.
        const FEW: usize = 256;
        const TENSORS_PER_BLOCK: usize = 8;
        let possible = FEW.max(self.tensors.len() / TENSORS_PER_BLOCK);
        if blocks <= possible {
            return Ok(());
        }
        Err(CheckpointError::Format {
            path: self.taken.clone(),
            reason: format!(
                "{name} is {blocks} in the config, but the file has {} tensors",
                self.tensors.len()
            ),
        })
    }

    /// The part under a key prefix, which is cut off; the rest is another artefact.
    fn scope(&self, prefix: &str) -> Self {
        let inside = self.tensors.iter().filter_map(|(key, tensor)| {
            Some((key.strip_prefix(prefix)?.to_string(), tensor.clone()))
        });
        let tensors: BTreeMap<String, TensorEntry> = inside.collect();
        let mut wrappers = self.wrappers.clone();
        wrappers.extend(prefix.split_terminator('.').map(str::to_string));
        let outside = self.outside + self.tensors.len() - tensors.len();
        Self { wrappers, outside, tensors, ..self.clone() }
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
pub(crate) fn open_file(path: &Path) -> Result<Opened, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.into(), source };
    let mut head = Vec::new();
    open_regular(path).map_err(open)?.take(64).read_to_end(&mut head).map_err(open)?;
    let format = |reason: String| CheckpointError::Format { path: path.into(), reason };
    let not_weights = |what: &str| {
        format(format!("{what}, expected a torch.save or safetensors file or an index.json"))
    };
    let opened = if head.is_empty() {
        return Err(not_weights("the file is empty"));
    } else if head.get(8) == Some(&b'{') {
        Opened { tensors: safetensors_file::open(path)?, ..Opened::default() }
    } else if head.starts_with(b"version https://git-lfs") {
        return Err(not_weights("this is a Git LFS pointer, not the weights (run `git lfs pull`)"));
    } else if head.trim_ascii_start().starts_with(b"<") {
        return Err(not_weights("this is an HTML or XML page, perhaps a failed download"));
    } else if head.trim_ascii_start().starts_with(b"{") {
        shards::open_index(path)?
    } else {
        pytorch::open(path)?
    };
    if opened.tensors.len() > MAX_TENSORS {
        let found = opened.tensors.len();
        return Err(format(format!("{found} tensors found, expected at most {MAX_TENSORS}")));
    }
    Ok(opened)
}
