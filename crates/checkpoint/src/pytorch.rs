//! `torch.save` files, through burn's `pytorch-reader`, which never executes pickle.

use crate::{
    CheckpointError, pickle_guard,
    source::{Contents, Opened, ReadBytes, TensorEntry},
};
use burn::tensor::{BoolStore, DType};
use pytorch_reader::{PickleValue, PytorchReader};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Dictionaries under which training programs nest a state dict, the most wanted first: the
/// averaged weights are the published ones (Open-Sora v1.0.0, `opensora/utils/ckpt_utils.py`,
/// `find_model`). They are unwrapped whatever the keys in them; for others see
/// [`Checkpoint::unwrapped`](crate::Checkpoint::unwrapped).
const WRAPPERS: [&str; 2] = ["ema", "state_dict"];

pub(crate) fn open(path: &Path) -> Result<Opened, CheckpointError> {
    let fail = |reason: String| CheckpointError::Format { path: path.into(), reason };
    pickle_guard::check(path).map_err(fail)?;
    let reader = PytorchReader::new(path).map_err(|error| fail(error.to_string()))?;
    let bytes = std::fs::metadata(path)
        .map_err(|source| CheckpointError::Open { path: path.into(), source })?
        .len();
    let file: Arc<Path> = path.into();
    let tensors: BTreeMap<String, TensorEntry> = reader
        .into_tensors()
        .into_iter()
        .map(|(key, tensor)| {
            // Strides of zero let a small storage become a tensor of any size.
            let length = tensor.byte_len() as u64;
            let (_, dtype, shape, read) = tensor.into_parts();
            let contents = if length > bytes {
                Contents::Unreadable(
                    format!("{length} bytes for shape {shape:?}, more than the file's {bytes}")
                        .into(),
                )
            } else {
                let read: ReadBytes = Arc::new(read);
                Contents::Readable { dtype: burn_dtype(dtype), read }
            };
            (key, TensorEntry { file: file.clone(), shape, contents })
        })
        .collect();
    if tensors.is_empty() {
        return Err(fail("it holds no tensors".into()));
    }
    let empty = empty_dictionaries(path).map_err(fail)?;
    Ok(unwrap_nested(Opened { tensors, wrapper: None, outside: 0, empty }))
}

/// Names of the dictionaries in the file's own that hold nothing. One that a pickle names twice is
/// filled the first time: `{"model": weights, "ema": weights}` has an empty `ema` here.
fn empty_dictionaries(path: &Path) -> Result<Vec<String>, String> {
    let root = PytorchReader::read_pickle_data(path, None).map_err(|error| error.to_string())?;
    let PickleValue::Dict(root) = root else { return Ok(Vec::new()) };
    let empty = root.into_iter().filter(|(_, value)| holds_nothing(value));
    Ok(empty.map(|(name, _)| name).collect())
}

fn holds_nothing(value: &PickleValue) -> bool {
    matches!(value, PickleValue::Dict(values) if values.values().all(holds_nothing))
}

/// The state dict inside `ema` or `state_dict`, where there is one. Dictionaries beside it (the
/// optimizer, the unaveraged model) are not part of the artefact.
fn unwrap_nested(opened: Opened) -> Opened {
    let has = |name: &str| {
        let inside = format!("{name}.");
        opened.tensors.keys().any(|key| key.starts_with(&inside))
    };
    for wrapper in WRAPPERS {
        if has(wrapper) {
            let prefix = format!("{wrapper}.");
            let all = opened.tensors.len();
            let tensors: BTreeMap<String, TensorEntry> = opened
                .tensors
                .into_iter()
                .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?.to_string(), tensor)))
                .collect();
            let outside = all - tensors.len();
            return Opened { tensors, wrapper: Some(wrapper), outside, empty: opened.empty };
        }
        if opened.empty.iter().any(|name| name == wrapper) {
            // The wanted one has another name, which only its keys can tell.
            return opened;
        }
    }
    opened
}

fn burn_dtype(dtype: pytorch_reader::DType) -> DType {
    use pytorch_reader::DType as Torch;
    match dtype {
        Torch::F64 => DType::F64,
        Torch::F32 => DType::F32,
        Torch::F16 => DType::F16,
        Torch::BF16 => DType::BF16,
        Torch::I64 => DType::I64,
        Torch::I32 => DType::I32,
        Torch::I16 => DType::I16,
        Torch::I8 => DType::I8,
        Torch::U64 => DType::U64,
        Torch::U32 => DType::U32,
        Torch::U16 => DType::U16,
        Torch::U8 => DType::U8,
        Torch::Bool => DType::Bool(BoolStore::Native),
    }
}
