//! Sampled latents in a file, so that they can be decoded again.

use burn::tensor::{Device, Tensor, TensorData};
use opensora_checkpoint::{Checkpoint, CheckpointError};
use opensora_files::{AtomicFile, CreatedFolders, Existing, folder_of, one_line};
use opensora_nn::read::read;
use safetensors::{Dtype, tensor::TensorView};
use std::{
    collections::HashMap,
    error::Error,
    io::Write,
    path::{Path, PathBuf},
};

const KEY: &str = "latents";
/// Key of the metadata in the header of the file.
const METADATA: &str = "opensora";

/// Error of saving or loading latents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LatentsError {
    /// The file cannot be written.
    #[error("{}: latents cannot be written", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] CheckpointError),
    /// The file holds something else.
    #[error("{}: {reason}", path.display())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
}

/// Writes latents `[B, C, T, h, w]` (scaled as denoisers see them) as safetensors under the key
/// `latents`, with `metadata` as JSON beside them; under a temporary name until complete.
///
/// # Errors
/// Returns an error if the device fails or the file cannot be written.
pub fn save(
    path: &Path,
    latents: Tensor<5>,
    metadata: &serde_json::Value,
) -> Result<(), LatentsError> {
    let write = || -> Result<(), Box<dyn Error + Send + Sync>> {
        let shape = latents.dims().to_vec();
        let values = read(latents)?.try_to_vec::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, shape, &bytes)?;
        let metadata = HashMap::from([(METADATA.to_string(), metadata.to_string())]);
        let file = safetensors::serialize([(KEY, view)], Some(metadata))?;
        std::fs::create_dir_all(folder_of(path))?;
        let mut out = AtomicFile::create(path, Existing::Replace)?;
        out.write_all(&file)?;
        Ok(out.commit()?)
    };
    write().map_err(|source| LatentsError::Write { path: path.into(), source })
}

/// Reads the metadata that [`save`] wrote beside the latents. Returns `None` if the file has none, as files of other
/// programs, or if the metadata is not JSON.
///
/// The metadata is untrusted: only its size is limited, with that of the file's header.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn metadata(path: &Path) -> Result<Option<serde_json::Value>, LatentsError> {
    let all = Checkpoint::open(path)?.metadata()?;
    Ok(all.get(METADATA).and_then(|text| serde_json::from_str(text).ok()))
}

/// Checks that [`save`] can write to `path`, before anything is sampled.
///
/// # Errors
/// Returns an error if the folder cannot be created or written to, or the path is a folder.
pub fn check_writable(path: &Path) -> Result<(), LatentsError> {
    CreatedFolders::create(folder_of(path))
        .and_then(|_folders| opensora_files::check_writable(path))
        .map_err(|source| LatentsError::Write { path: path.into(), source: source.into() })
}

/// Loads latents that [`save`] wrote, `[B, C, T, h, w]`.
///
/// # Errors
/// Returns an error if the file cannot be read or holds no latents.
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
    let data = data.try_cast_as::<f32>().map_err(|error| fail(one_line(error)))?;
    Ok(Tensor::from_data(data, device))
}
