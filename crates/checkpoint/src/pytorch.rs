//! Reads `torch.save` files without running their pickles.
//!
//! Source: PyTorch, `torch/serialization.py`. Tensors of unsupported types, such as 8-bit floating
//! point, are entries like others; loading one is an error.

mod archive;
mod objects;
mod pickle;
mod rebuild;
mod stream;
mod view;

use crate::{
    CheckpointError,
    error::Cause,
    file_range::FileRange,
    source::{Contents, Opened, ReadBytes, TensorEntry},
};
use objects::{Id, Leaf, Objects, View};
use opensora_files::read::open_regular;
use std::{collections::BTreeMap, fs::File, io::Read, path::Path, sync::Arc};
use view::{Reader, Region};

/// Dictionaries in which training programs nest a state dict, the preferred first: the averaged
/// weights are the published ones (Open-Sora v1.0.0, `opensora/utils/ckpt_utils.py`, `find_model`).
/// They are removed for any keys; for other dictionaries see
/// [`Checkpoint::unwrapped`](crate::Checkpoint::unwrapped).
const WRAPPERS: [&str; 2] = ["ema", "state_dict"];

/// The objects of a file's pickles, and the regions of their storages.
struct Parsed {
    objects: Objects,
    root: Id,
    /// Regions of the storages, in the order of [`Objects::storages`].
    regions: Vec<Option<Region>>,
}

pub(crate) fn open(path: &Path) -> Result<Opened, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.into(), source };
    let file = open_regular(path).map_err(open)?;
    let length = file.metadata().map_err(open)?.len();
    let parsed = parse(&file).map_err(CheckpointError::malformed(path))?;

    let range = FileRange::new(file);
    let file: Arc<Path> = path.into();
    let mut tensors = BTreeMap::new();
    let leaves = parsed.objects.leaves(parsed.root).map_err(CheckpointError::malformed(path))?;
    for (key, leaf) in leaves {
        let (shape, contents) = match leaf {
            Leaf::Tensor(view) => {
                let contents = match reader(view, &parsed, &range, length) {
                    Ok(reader) => {
                        let read: ReadBytes = Arc::new(move || reader.read());
                        Contents::Readable { dtype: view.dtype, read }
                    }
                    Err(reason) => Contents::Unreadable(reason.into()),
                };
                (view.shape.clone(), contents)
            }
            Leaf::Unreadable(tensor) => {
                (tensor.shape.clone(), Contents::Unreadable(tensor.reason.as_str().into()))
            }
        };
        tensors.insert(key, TensorEntry { file: file.clone(), shape, contents });
    }
    if tensors.is_empty() {
        return Err(CheckpointError::format(path, "it holds no tensors"));
    }
    Ok(unwrap_nested(Opened { tensors, wrapper: None, outside: 0 }))
}

fn parse(file: &File) -> Result<Parsed, Cause> {
    /// Bytes up to the end of the format name (`ustar`) in the header of a tar archive.
    const HEAD: u64 = 262;
    let mut head = Vec::new();
    file.take(HEAD).read_to_end(&mut head)?;
    if head.starts_with(b"PK") {
        archive::open(file)
    } else if head.get(257..262) == Some(b"ustar") {
        Err("a tar archive of PyTorch before 0.1.10, which is not supported; load the file in PyTorch \
             and save it again with torch.save"
            .into())
    } else {
        stream::open(file)
    }
}

/// Returns the reader of a tensor, or the reason why the tensor cannot be read.
fn reader(view: &View, parsed: &Parsed, file: &FileRange, length: u64) -> Result<Reader, String> {
    // With strides of zero, a small storage can hold a tensor of any size.
    let bytes = view.shape.iter().product::<usize>().saturating_mul(view.dtype.size()) as u64;
    if bytes > length {
        let shape = &view.shape;
        return Err(format!("{bytes} bytes for shape {shape:?}, more than the file's {length}"));
    }
    let region = parsed.regions[view.storage].ok_or_else(|| {
        format!("its storage '{}' is not in the file", parsed.objects.storages()[view.storage].key)
    })?;
    Reader::new(file.clone(), view, region)
}

/// Returns the state dict inside `ema` or `state_dict`, if there is one. Dictionaries beside it (the
/// optimizer, the unaveraged model) are not part of the artefact.
fn unwrap_nested(opened: Opened) -> Opened {
    for wrapper in WRAPPERS {
        let prefix = format!("{wrapper}.");
        if !opened.tensors.keys().any(|key| key.starts_with(&prefix)) {
            continue;
        }
        let all = opened.tensors.len();
        let tensors: BTreeMap<String, TensorEntry> = opened
            .tensors
            .into_iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?.to_string(), tensor)))
            .collect();
        let outside = all - tensors.len();
        return Opened { tensors, wrapper: Some(wrapper), outside };
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;

    #[test]
    fn tensors_are_not_larger_than_their_file() {
        let region = Region { start: 0, len: 4, crc32: None };
        let parsed = Parsed { objects: Objects::default(), root: 0, regions: vec![Some(region)] };
        let file = FileRange::new(tempfile::tempfile().unwrap());
        // One number that is repeated.
        let error = |count| {
            let (shape, strides) = (vec![count], vec![0]);
            let view = View { storage: 0, dtype: DType::F32, offset: 0, end: 1, shape, strides };
            reader(&view, &parsed, &file, 20).err()
        };
        assert_eq!(error(5), None);
        let expected = "24 bytes for shape [6], more than the file's 20";
        assert_eq!(error(6).as_deref(), Some(expected));
    }
}
