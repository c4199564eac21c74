//! Opens a checkpoint as named tensors, which are read when they are needed.

use crate::{CheckpointError, error::Cause, pytorch, safetensors_file, shards, wrapper};
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

/// Maximum number of tensors of a checkpoint, since each takes memory before anything is loaded. T5-XXL has 560 and a
/// training state of STDiT-XL/2 2,500.
pub const MAX_TENSORS: usize = 1 << 16;

/// Returns an error if `count` things are more than [`MAX_TENSORS`].
pub(crate) fn check_count(count: usize, what: &str) -> Result<(), String> {
    if count > MAX_TENSORS {
        return Err(format!("{count} {what} found, expected at most {MAX_TENSORS}"));
    }
    Ok(())
}

/// A tensor of a checkpoint whose bytes have not been read.
#[derive(Clone)]
pub struct TensorEntry {
    pub(crate) file: Arc<Path>,
    pub(crate) shape: Vec<usize>,
    pub(crate) contents: Contents,
}

/// Element type and reader of a tensor, or the reason why the tensor is unreadable.
#[derive(Clone)]
pub(crate) enum Contents {
    /// Bytes of a known type.
    Readable { dtype: DType, read: ReadBytes },
    /// The reason why the tensor is not readable, an error only if the tensor is needed.
    Unreadable(Arc<str>),
}

impl TensorEntry {
    /// Returns the element type in the file, or `None` for a tensor of an unsupported type, such as 8-bit
    /// floats.
    pub fn dtype(&self) -> Option<DType> {
        match &self.contents {
            Contents::Readable { dtype, .. } => Some(*dtype),
            Contents::Unreadable(_) => None,
        }
    }

    /// Returns the number of bytes that [`read`](Self::read) returns.
    pub(crate) fn byte_len(&self) -> u64 {
        let size = self.dtype().map_or(0, |dtype| dtype.size());
        self.shape.iter().chain([&size]).fold(1, |all, &n| all.saturating_mul(n as u64))
    }

    /// Returns the shape in the file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the file that holds the tensor.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the tensor. Nothing is cached. `key` is used in messages only.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is inconsistent.
    pub fn read(&self, key: &str) -> Result<TensorData, CheckpointError> {
        let (dtype, bytes) = self.read_bytes(key)?;
        Ok(TensorData::from_bytes_vec(bytes, self.shape.clone(), dtype))
    }

    /// Reads the bytes of the tensor, which a [`TensorData`] may copy to align them.
    pub(crate) fn read_bytes(&self, key: &str) -> Result<(DType, Vec<u8>), CheckpointError> {
        let fail = CheckpointError::tensor::<Cause>(&self.file, key);
        let (dtype, read) = match &self.contents {
            Contents::Readable { dtype, read } => (*dtype, read),
            Contents::Unreadable(reason) => return Err(fail((&**reason).into())),
        };
        let bytes = read().map_err(|error| fail(error.into()))?;
        let expected = self.byte_len();
        if bytes.len() as u64 != expected {
            return Err(fail(format!("{} bytes found, {expected} expected", bytes.len()).into()));
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

/// Tensors of an opened file, and the dictionary from which they were taken.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    /// The dictionary that the tensors were taken from.
    pub(crate) wrapper: Option<&'static str>,
    /// Number of tensors outside that dictionary.
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
    /// Opens a file, index or folder. Only headers are read.
    ///
    /// | path | read as |
    /// |---|---|
    /// | `torch.save` file (`.pth`, `.pt`, `.bin`, `.ckpt`; zip or legacy stream) | its state dict; one nested under `ema` or `state_dict` is unwrapped, `ema` first |
    /// | safetensors file | its tensors |
    /// | `*.index.json` | all its shards |
    /// | folder | in Hugging Face's order: `model.safetensors`, its index, `pytorch_model.bin`, its index (also `diffusion_pytorch_model`); another index; the same in `model/` (as ColossalAI saves); else the one weight file in it |
    ///
    /// The format is recognised by content, not by the file's ending. [`taken`](Self::taken) returns the
    /// file that was chosen. A tensor of an unsupported type is an error only when it is needed.
    ///
    /// # Errors
    /// Returns an error if the path cannot be opened or is not a checkpoint, a file is damaged or
    /// declares more than its size allows, or a shard is missing.
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

    /// Returns a checkpoint of these tensors.
    #[cfg(test)]
    pub(crate) fn of_tensors(tensors: BTreeMap<String, TensorEntry>) -> Self {
        let (path, taken) = (PathBuf::from("test"), PathBuf::from("test"));
        Self { path, taken, wrappers: Vec::new(), outside: 0, tensors }
    }

    /// Returns the path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file or index that was read: in a folder with several formats, the one that was
    /// chosen.
    pub fn taken(&self) -> &Path {
        &self.taken
    }

    /// Returns the prefixes and dictionaries around the keys that were removed, such as `module`.
    pub fn wrappers(&self) -> &[String] {
        &self.wrappers
    }

    /// Returns the number of tensors outside the wrappers, which are not part of the checkpoint.
    pub fn outside(&self) -> usize {
        self.outside
    }

    /// Returns all tensors by key.
    pub fn tensors(&self) -> &BTreeMap<String, TensorEntry> {
        &self.tensors
    }

    /// Returns the keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns true if there is a tensor of this key.
    pub fn contains(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// Returns the metadata of its files: `__metadata__` of safetensors files, nothing for other formats.
    ///
    /// # Errors
    /// Returns an error if a file can no longer be read.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut metadata = BTreeMap::new();
        for file in self.files() {
            metadata.extend(safetensors_file::metadata(file)?);
        }
        Ok(metadata)
    }

    /// Returns the checkpoint without the wrappers of training programs: prefixes such as `module.`
    /// (`DistributedDataParallel`) and `_orig_mod.` (`torch.compile`), dictionaries such as `model`,
    /// `module` (DeepSpeed) and `ema`, or any other, in any nesting.
    ///
    /// The wrapper is the text in front of `known`, the key of a tensor that every file of the
    /// artefact has. If the file has several models, the averaged weights are preferred, then
    /// `state_dict`, a model without a wrapper, `model`, and `module`. If no key ends in `known`,
    /// the checkpoint is returned unchanged.
    ///
    /// # Errors
    /// Returns an error if the file has several models and none is preferred.
    pub fn unwrapped(&self, known: &str) -> Result<Self, CheckpointError> {
        let fail = CheckpointError::malformed::<String>(&self.taken);
        let mut plain = Self { tensors: BTreeMap::new(), ..self.clone() };
        for (key, tensor) in &self.tensors {
            let (short, names) = wrapper::without_transparent(key);
            for name in names {
                if !plain.wrappers.iter().any(|known| known == name) {
                    plain.wrappers.push(name.into());
                }
            }
            if plain.tensors.insert(short, tensor.clone()).is_some() {
                return Err(fail(format!("key '{key}' exists with and without its wrapper")));
            }
        }
        match wrapper::find(plain.keys(), known).map_err(&fail)? {
            None => Ok(self.clone()),
            Some("") => Ok(plain),
            Some(prefix) => Ok(plain.scope(prefix)),
        }
    }

    /// Checks that a configuration does not have many more blocks than the checkpoint can hold,
    /// before any block is built. The exact number is compared with the keys. A block of every
    /// known model has at least eight tensors.
    ///
    /// # Errors
    /// Returns an error if `blocks`, the value of `name` in the configuration, is too large.
    pub fn check_blocks(&self, name: &str, blocks: usize) -> Result<(), CheckpointError> {
        /// A number of blocks that is cheap to build for any file.
        const FEW: usize = 256;
        const TENSORS_PER_BLOCK: usize = 8;
        let possible = FEW.max(self.tensors.len() / TENSORS_PER_BLOCK);
        if blocks <= possible {
            return Ok(());
        }
        let tensors = self.tensors.len();
        let reason =
            format!("{name} is {blocks} in the config, but the file has {tensors} tensors");
        Err(CheckpointError::format(&self.taken, reason))
    }

    /// Returns the tensors under a key prefix, without the prefix.
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

    /// Returns the files that hold the tensors.
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = self.tensors.values().map(TensorEntry::file).collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

/// Opens one file, or an index with its shards. The format is recognised by content.
pub(crate) fn open_file(path: &Path) -> Result<Opened, CheckpointError> {
    open_as(path, shards::open_index)
}

/// Opens a shard, which must not be an index: indices could name each other without end.
pub(crate) fn open_shard(path: &Path) -> Result<Opened, CheckpointError> {
    open_as(path, |path| Err(CheckpointError::format(path, "a shard is an index itself")))
}

/// Opens one file; `index` opens one that is an index.
fn open_as(
    path: &Path,
    index: fn(&Path) -> Result<Opened, CheckpointError>,
) -> Result<Opened, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.into(), source };
    let mut head = Vec::new();
    open_regular(path).map_err(open)?.take(64).read_to_end(&mut head).map_err(open)?;
    let format = CheckpointError::malformed::<String>(path);
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
        index(path)?
    } else {
        pytorch::open(path)?
    };
    check_count(opened.tensors.len(), "tensors").map_err(format)?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_limited() {
        assert_eq!((check_count(0, "entries"), check_count(65_536, "entries")), (Ok(()), Ok(())));
        let error = check_count(65_537, "entries").unwrap_err();
        assert_eq!(error, "65537 entries found, expected at most 65536");
        assert!(check_count(65_538, "entries").is_err());
    }
}
