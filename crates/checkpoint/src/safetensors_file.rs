//! Reader of safetensors files.

use crate::{
    CheckpointError,
    error::{Cause, because},
    file_range::FileRange,
    source::{Contents, ReadBytes, TensorEntry},
};
use burn::tensor::{BoolStore, DType};
use opensora_files::read::open_regular;
use safetensors::{Dtype, tensor::Metadata};
use std::{collections::BTreeMap, fs::File, io::Read, path::Path, sync::Arc};

/// Maximum size of the JSON header in bytes. The format allows 100 MB, which become gigabytes in memory. A
/// T5-XXL has 60 KB, and metadata of training programs adds a few megabytes.
const MAX_HEADER: u64 = 8 << 20;

/// Bytes of a header, beyond one for each byte of the tensors, that a file may need for metadata,
/// names and padding.
const HEADER_ALLOWANCE: u64 = 1 << 20;

pub(crate) fn open(path: &Path) -> Result<BTreeMap<String, TensorEntry>, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.into(), source };
    let (file, metadata, data_start) =
        read_header(open_regular(path).map_err(open)?).map_err(CheckpointError::malformed(path))?;
    let file = FileRange::new(file);
    let path: Arc<Path> = path.into();

    let mut tensors = BTreeMap::new();
    for (key, info) in metadata.tensors() {
        let contents = match burn_dtype(info.dtype) {
            Some(dtype) => {
                let (start, end) = info.data_offsets;
                let file = file.clone();
                let read: ReadBytes =
                    Arc::new(move || file.read(data_start + start as u64, (end - start) as u64));
                Contents::Readable { dtype, read }
            }
            None => {
                Contents::Unreadable(format!("element type {} is not supported", info.dtype).into())
            }
        };
        let entry = TensorEntry { file: path.clone(), shape: info.shape.clone(), contents };
        tensors.insert(key, entry);
    }
    Ok(tensors)
}

/// Returns the metadata of a safetensors file, and nothing for files of other formats.
pub(crate) fn metadata(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let open = |source| CheckpointError::Open { path: path.into(), source };
    let mut head = Vec::new();
    open_regular(path).map_err(open)?.take(9).read_to_end(&mut head).map_err(open)?;
    if head.get(8) != Some(&b'{') {
        return Ok(BTreeMap::new());
    }
    let (_, metadata, _) =
        read_header(open_regular(path).map_err(open)?).map_err(CheckpointError::malformed(path))?;
    Ok(metadata.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// Returns the open file, its parsed header and the offset of its data.
fn read_header(mut file: File) -> Result<(File, Metadata, u64), Cause> {
    let file_len = file.metadata()?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > file_len - 8 {
        return Err(format!(
            "truncated: its header claims {length} bytes, the file has {file_len}"
        )
        .into());
    }
    let limit = MAX_HEADER.min(HEADER_ALLOWANCE + file_len - 8 - length);
    if length > limit {
        return Err(format!("its header has {length} bytes, expected at most {limit}").into());
    }
    let mut header = vec![0u8; length as usize];
    file.read_exact(&mut header)?;
    // Parsing also checks that the tensors' ranges are gapless and agree with their shapes.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(because("damaged safetensors header"))?;
    let data_start = 8 + length;
    let (found, expected) = (file_len - data_start, metadata.data_len() as u64);
    if found != expected {
        let what = if found < expected { "truncated" } else { "trailing bytes" };
        return Err(format!("{what}: {found} bytes of tensors, its header says {expected}").into());
    }
    Ok((file, metadata, data_start))
}

fn burn_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

/// Returns the type in a safetensors file, or `None` for types that the format does not have.
pub(crate) fn file_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native) => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;

    #[test]
    fn types_of_files_and_tensors_correspond() {
        let types = [
            (Dtype::F64, 8),
            (Dtype::F32, 4),
            (Dtype::F16, 2),
            (Dtype::BF16, 2),
            (Dtype::I64, 8),
            (Dtype::I32, 4),
            (Dtype::I16, 2),
            (Dtype::I8, 1),
            (Dtype::U64, 8),
            (Dtype::U32, 4),
            (Dtype::U16, 2),
            (Dtype::U8, 1),
            (Dtype::BOOL, 1),
        ];
        for (dtype, size) in types {
            let tensor = burn_dtype(dtype).unwrap();
            assert_eq!((file_dtype(tensor), tensor.size()), (Some(dtype), size));
        }
        assert_eq!(burn_dtype(Dtype::F8_E4M3), None);
        assert_eq!(file_dtype(DType::Bool(BoolStore::U32)), None);
    }

    #[test]
    fn files_without_tensors_end_after_their_header() {
        let of = |claimed: u64, bytes: usize| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let header = format!("{{}}{}", " ".repeat(bytes - 2));
            std::fs::write(file.path(), [&claimed.to_le_bytes(), header.as_bytes()].concat())
                .unwrap();
            open(file.path()).map(|tensors| tensors.len()).map_err(|e| error_line(&e))
        };
        assert_eq!((of(2, 2), of(1 << 20, 1 << 20)), (Ok(0), Ok(0)));
        let error = of(3, 2).unwrap_err();
        let expected = "truncated: its header claims 3 bytes, the file has 10";
        assert!(error.ends_with(expected), "{error}");
        let error = of((1 << 20) + 1, (1 << 20) + 1).unwrap_err();
        let expected = "its header has 1048577 bytes, expected at most 1048576";
        assert!(error.ends_with(expected), "{error}");
    }
}
