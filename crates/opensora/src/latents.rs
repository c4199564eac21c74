//! Sampled latents kept in a file, so that minutes of sampling are not lost and can be decoded again.

use burn::tensor::{Device, Tensor, TensorData};
use opensora_checkpoint::{Checkpoint, CheckpointError};
use opensora_files::{AtomicFile, CreatedFolders, Existing, folder_of};
use opensora_nn::read::read;
use safetensors::{Dtype, tensor::TensorView};
use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
};

const KEY: &str = "latents";

/// Why latents could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LatentsError {
    /// The file cannot be written.
    #[error("{}: cannot write latents: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] CheckpointError),
    /// The file holds something else.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
}

/// Writes latents `[B, C, T, h, w]` (scaled as denoisers see them) as safetensors under the key
/// `latents`, with `metadata` as JSON beside them; under a temporary name until complete.
///
/// # Errors
/// Where the file cannot be written.
pub fn save(
    path: &Path,
    latents: Tensor<5>,
    metadata: &serde_json::Value,
) -> Result<(), LatentsError> {
    let fail = |reason: String| LatentsError::Write { path: path.into(), reason };
    let shape = latents.dims().to_vec();
    let values = read(latents).map_err(|error| fail(error.to_string()))?;
    let values = values.try_to_vec::<f32>().map_err(|error| fail(error.to_string()))?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape, &bytes).map_err(|e| fail(e.to_string()))?;
    let metadata = HashMap::from([("opensora".to_string(), metadata.to_string())]);
    let file = safetensors::serialize([(KEY, view)], Some(metadata))
        .map_err(|error| fail(error.to_string()))?;

    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder_of(path))?;
        let mut out = AtomicFile::create(path, Existing::Replace)?;
        out.write_all(&file)?;
        out.commit()
    };
    write().map_err(|error| fail(error.to_string()))
}

/// Fails where [`save`] could not write to `path`, before anything is worth saving.
///
/// # Errors
/// Where the folder cannot be made or written to, or the path is a folder.
pub fn check_writable(path: &Path) -> Result<(), LatentsError> {
    let fail = |reason: String| LatentsError::Write { path: path.into(), reason };
    let _folders = CreatedFolders::create(folder_of(path)).map_err(|e| fail(e.to_string()))?;
    AtomicFile::create(path, Existing::Replace)
        .and_then(|mut tried| tried.try_write())
        .map_err(|error| fail(error.to_string()))
}

/// Reads what [`save`] wrote: `[B, C, T, h, w]`.
///
/// # Errors
/// Where the file cannot be read or holds no latents.
pub fn load(path: &Path, device: &Device) -> Result<Tensor<5>, LatentsError> {
    let file = Checkpoint::open(path)?;
    let fail = |reason: String| LatentsError::Content { path: path.into(), reason };
    let entry = file.tensors().get(KEY).ok_or_else(|| fail(format!("it has no tensor '{KEY}'")))?;
    let data: TensorData = entry.read(KEY)?;
    if data.rank() != 5 || data.num_elements() == 0 {
        return Err(fail(format!(
            "latents have the shape {:?}, expected [B, C, T, h, w]",
            entry.shape()
        )));
    }
    let data = data.try_cast_as::<f32>().map_err(|error| fail(error.to_string()))?;
    Ok(Tensor::from_data(data, device))
}
