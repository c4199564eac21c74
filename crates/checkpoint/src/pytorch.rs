//! `torch.save` files, through burn's `pytorch-reader`, which never executes pickle.

use crate::{
    CheckpointError,
    source::{ReadBytes, TensorEntry},
};
use burn::tensor::{BoolStore, DType};
use pytorch_reader::PytorchReader;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Dictionaries under which training programs nest a state dict, the most wanted first: the
/// averaged weights are the published ones (Open-Sora v1.0.0, `opensora/utils/ckpt_utils.py`,
/// `find_model`).
const WRAPPERS: [&str; 2] = ["ema.", "state_dict."];

pub(crate) fn open(path: &Path) -> Result<BTreeMap<String, TensorEntry>, CheckpointError> {
    let reader = PytorchReader::new(path).map_err(|error| CheckpointError::Format {
        path: path.into(),
        reason: error.to_string(),
    })?;
    let file: Arc<Path> = path.into();
    let tensors = reader.into_tensors().into_iter().map(|(key, tensor)| {
        let (_, dtype, shape, read) = tensor.into_parts();
        let read: ReadBytes = Arc::new(read);
        (key, TensorEntry { file: file.clone(), dtype: burn_dtype(dtype), shape, read })
    });
    let tensors = unwrap_nested(tensors.collect());
    if tensors.is_empty() {
        return Err(CheckpointError::Format {
            path: path.into(),
            reason: "it holds no tensors".into(),
        });
    }
    Ok(tensors)
}

/// The state dict inside `ema` or `state_dict`, where there is one. Dictionaries beside it (the
/// optimizer, the unaveraged model) are not part of the artefact.
fn unwrap_nested(tensors: BTreeMap<String, TensorEntry>) -> BTreeMap<String, TensorEntry> {
    let wrapper = WRAPPERS.iter().find(|w| tensors.keys().any(|key| key.starts_with(**w)));
    let Some(wrapper) = wrapper else { return tensors };
    tensors
        .into_iter()
        .filter_map(|(key, tensor)| Some((key.strip_prefix(wrapper)?.to_string(), tensor)))
        .collect()
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
