//! Conversion of any readable checkpoint to safetensors files, tensor by tensor.

use crate::{
    Checkpoint, CheckpointError, TensorEntry, error::because, import::check_total,
    non_finite::all_finite, safetensors_file::file_dtype, shards::preferred,
};
use burn::tensor::{DType, FloatDType, TensorData};
use opensora_files::write_atomically;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Element type and file size of a converted checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertSpec {
    /// Type of float tensors; `None` keeps the type in the file. Other tensors always keep their type.
    pub dtype: Option<FloatDType>,
    /// Maximum size of the tensors in a file, in bytes. A larger tensor is the only one in its file.
    pub max_shard_bytes: u64,
}

impl Default for ConvertSpec {
    fn default() -> Self {
        Self { dtype: None, max_shard_bytes: u64::MAX }
    }
}

/// Files that a conversion wrote, with the number and size of their tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Files with tensors.
    pub files: Vec<PathBuf>,
    /// Index, if there are several files.
    pub index: Option<PathBuf>,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of the tensors.
    pub bytes: u64,
}

/// Receives the progress of a conversion. `()` ignores it.
pub trait Observer {
    /// Called before each tensor, and when a file is complete. `Break` ends the conversion.
    fn written(&mut self, event: &Written) -> ControlFlow<()> {
        let _ = event;
        ControlFlow::Continue(())
    }
}

impl Observer for () {}

/// Progress of a conversion, in bytes of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Bytes of tensors that were written.
    pub bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
}

/// Name of the file if all tensors are in one.
const SINGLE: &str = "model.safetensors";

/// Name of the index of several files.
const INDEX: &str = "model.safetensors.index.json";

/// A tensor with its type and size in the new file.
struct Planned<'a> {
    key: &'a str,
    entry: &'a TensorEntry,
    dtype: DType,
    bytes: u64,
}

impl Checkpoint {
    /// Writes all tensors under their keys as `model.safetensors` in `folder`, or as
    /// `model-00001-of-0000N.safetensors` and so on with an index that transformers and diffusers read.
    ///
    /// One tensor is in memory at a time. The metadata of safetensors files, such as the prediction type, is copied.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be read, has a type that safetensors files cannot hold or a number that is too
    /// large for the new type, the tensors take many times the bytes of their files, `folder` has a file that would be
    /// read instead of the new ones ([`CheckpointError::Shadowed`]), a file cannot be written, or `observer` breaks
    /// ([`io::ErrorKind::Interrupted`]).
    pub fn convert(
        &self,
        spec: &ConvertSpec,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Converted, CheckpointError> {
        let planned = self.plan(spec.dtype)?;
        let metadata = self.new_metadata()?;
        let total = planned.iter().map(|tensor| tensor.bytes).sum();
        let shards = split(planned, spec.max_shard_bytes);
        let count = shards.len();
        let name = |number: usize| match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        let main = if count > 1 { INDEX } else { SINGLE };
        if let Some(path) = preferred(folder, main) {
            return Err(CheckpointError::Shadowed { path, new: main });
        }
        let (mut files, mut weight_map) = (Vec::new(), BTreeMap::new());
        let mut done = Written { bytes: 0, total_bytes: total };
        for (index, shard) in shards.iter().enumerate() {
            let name = name(index + 1);
            weight_map.extend(shard.iter().map(|tensor| (tensor.key, name.clone())));
            let path = folder.join(name);
            write_shard(&path, shard, &metadata, &mut done, observer)?;
            files.push(path);
        }
        let tensors = weight_map.len();
        let index = (count > 1).then(|| folder.join(INDEX));
        if let Some(path) = &index {
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            write_atomically(path, |file| std::fs::write(file, format!("{index:#}\n")))
                .map_err(|source| CheckpointError::Write { path: path.into(), source })?;
        }
        Ok(Converted { files, index, tensors, bytes: total })
    }

    /// Writes all tensors under their keys as one safetensors file.
    ///
    /// # Errors
    /// Returns the errors of [`convert`](Self::convert).
    pub fn convert_to_file(
        &self,
        dtype: Option<FloatDType>,
        path: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Converted, CheckpointError> {
        let planned = self.plan(dtype)?;
        let total = planned.iter().map(|tensor| tensor.bytes).sum();
        let mut done = Written { bytes: 0, total_bytes: total };
        write_shard(path, &planned, &self.new_metadata()?, &mut done, observer)?;
        let tensors = planned.len();
        Ok(Converted { files: vec![path.into()], index: None, tensors, bytes: total })
    }

    /// Returns the metadata of the new files.
    fn new_metadata(&self) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut metadata = self.metadata()?;
        // transformers requires it of files that it opens itself.
        metadata.insert("format".into(), "pt".into());
        Ok(metadata)
    }

    /// Returns type and size of every tensor, before the first byte is written. The limit of all sizes is that of an
    /// import: a small file can have the same storage under tens of thousands of keys.
    fn plan(&self, wanted: Option<FloatDType>) -> Result<Vec<Planned<'_>>, CheckpointError> {
        let mut planned = Vec::with_capacity(self.tensors().len());
        let mut needed = 0u64;
        for (key, entry) in self.tensors() {
            let found = match entry.dtype() {
                Some(dtype) => dtype,
                // Reading returns the reason.
                None => entry.read(key)?.dtype(),
            };
            let dtype = wanted.filter(|_| found.is_float()).map_or(found, DType::from);
            if file_dtype(dtype).is_none() {
                return Err(unwritable(key, entry, dtype));
            }
            needed = needed.saturating_add(entry.byte_len());
            let bytes = entry.byte_len() / found.size().max(1) as u64 * dtype.size() as u64;
            planned.push(Planned { key, entry, dtype, bytes });
        }
        check_total(self, needed)?;
        Ok(planned)
    }
}

fn unwritable(key: &str, entry: &TensorEntry, dtype: DType) -> CheckpointError {
    let reason = format!("safetensors files have no element type {dtype:?}");
    CheckpointError::tensor(entry.file(), key)(reason)
}

/// Splits tensors into files in the order of their keys.
fn split(planned: Vec<Planned<'_>>, max_bytes: u64) -> Vec<Vec<Planned<'_>>> {
    let (mut shards, mut bytes) = (vec![Vec::new()], 0u64);
    for tensor in planned {
        let last = shards.len() - 1;
        if !shards[last].is_empty() && bytes.saturating_add(tensor.bytes) > max_bytes {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes = bytes.saturating_add(tensor.bytes);
        let last = shards.len() - 1;
        shards[last].push(tensor);
    }
    shards
}

/// Writes a file, which appears complete or not at all.
fn write_shard(
    path: &Path,
    shard: &[Planned<'_>],
    metadata: &BTreeMap<String, String>,
    done: &mut Written,
    observer: &mut dyn Observer,
) -> Result<(), CheckpointError> {
    // Wide types first, so that every tensor is aligned; the safetensors crate has the same order.
    let mut order: Vec<&Planned<'_>> = shard.iter().collect();
    order.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then(a.key.cmp(b.key)));
    let header = header(&order, metadata)?;
    let mut failed = None;
    let written = write_atomically(path, |file| {
        let mut file = BufWriter::new(File::create(file)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in &order {
            if observer.written(done).is_break() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let (found, bytes) = match tensor.entry.read_bytes(tensor.key) {
                Ok(read) => read,
                Err(error) => {
                    failed = Some(error);
                    return Err(io::ErrorKind::Other.into());
                }
            };
            if found == tensor.dtype {
                file.write_all(&bytes)?;
            } else if let Some(number) = write_cast(&bytes, found, tensor.dtype, &mut file)? {
                let reason = format!("{number:e} is out of range for {:?}", tensor.dtype);
                failed = Some(CheckpointError::tensor(tensor.entry.file(), tensor.key)(reason));
                return Err(io::ErrorKind::Other.into());
            }
            done.bytes += tensor.bytes;
        }
        file.flush()
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written.map_err(|source| CheckpointError::Write { path: path.into(), source })?;
    let _ = observer.written(done);
    Ok(())
}

/// Casts numbers in chunks, so that memory holds the tensor once, and writes them. Stops at the first finite number that
/// overflows in the new type, and returns that number.
fn write_cast(
    bytes: &[u8],
    from: DType,
    to: DType,
    file: &mut impl Write,
) -> io::Result<Option<f64>> {
    const NUMBERS: usize = 1 << 18;
    for chunk in bytes.chunks(NUMBERS * from.size()) {
        let count = chunk.len() / from.size();
        let data = TensorData::from_bytes_vec(chunk.to_vec(), [count], from);
        let cast = data.clone().try_cast(to).map_err(io::Error::other)?;
        if !all_finite(cast.as_bytes(), to) {
            // The largest numbers stand for infinity in masks.
            let largest = [f64::from(f32::MAX), f64::MAX];
            let is_number = |old: f64| old.is_finite() && !largest.contains(&old.abs());
            let pairs = data.iter::<f64>().zip(cast.iter::<f64>());
            let mut overflows = pairs.filter(|(old, new)| is_number(*old) && !new.is_finite());
            if let Some((number, _)) = overflows.next() {
                return Ok(Some(number));
            }
        }
        file.write_all(&cast.into_bytes())?;
    }
    Ok(None)
}

/// Returns the JSON header, padded to eight bytes.
fn header(
    order: &[&Planned<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, CheckpointError> {
    let mut start = 0;
    let mut tensors = Vec::new();
    for tensor in order {
        let dtype = file_dtype(tensor.dtype)
            .ok_or_else(|| unwritable(tensor.key, tensor.entry, tensor.dtype))?;
        let end = start + tensor.bytes as usize;
        let shape = tensor.entry.shape().to_vec();
        tensors.push((
            tensor.key.to_string(),
            TensorInfo { dtype, shape, data_offsets: (start, end) },
        ));
        start = end;
    }
    let path = order.first().map_or(Path::new(""), |tensor| tensor.entry.file());
    // The library's metadata is a hash map, whose order would differ between runs.
    let table = Metadata::new(None, tensors)
        .map_err(because("cannot make a header of its tensors"))
        .map_err(CheckpointError::malformed(path))?;
    let header = serde_json::to_value(&table).map(|mut header| {
        header["__metadata__"] = json!(metadata);
        header.to_string()
    });
    let mut header = header
        .map_err(because("cannot write the header as JSON"))
        .map_err(CheckpointError::malformed(path))?
        .into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn file(folder: &Path) -> PathBuf {
        let float =
            |values: &[f32]| values.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
        let bytes =
            [float(&[1.0, -2.5, 3.0, 0.1]), float(&[7.0, 8.0]), 5i64.to_ne_bytes().to_vec()];
        let tensors = [
            ("b.weight", safetensors::Dtype::F32, vec![2, 2]),
            ("a.bias", safetensors::Dtype::F32, vec![2]),
            ("step", safetensors::Dtype::I64, vec![]),
        ];
        let views = tensors.iter().zip(&bytes).map(|((key, dtype, shape), bytes)| {
            let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
            (key.to_string(), view.unwrap())
        });
        let path = folder.join("in.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        path
    }

    /// Keeps the last event, and breaks if asked to.
    #[derive(Default)]
    struct Log {
        last: Option<Written>,
        breaks: bool,
    }

    impl Observer for Log {
        fn written(&mut self, event: &Written) -> ControlFlow<()> {
            self.last = Some(*event);
            if self.breaks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    #[test]
    fn every_tensor_is_the_same_in_shards() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(file(folder.path())).unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let spec = ConvertSpec { max_shard_bytes: 16, ..ConvertSpec::default() };
        let converted = checkpoint.convert(&spec, &out, &mut ()).unwrap();
        assert_eq!((converted.files.len(), converted.tensors, converted.bytes), (2 + 1, 3, 32));
        for (number, file) in (1..).zip(&converted.files) {
            assert_eq!(*file, out.join(format!("model-{number:05}-of-00003.safetensors")));
        }
        let read = Checkpoint::open(&out).unwrap();
        assert_eq!(read.taken(), converted.index.unwrap());
        for (key, tensor) in checkpoint.tensors() {
            assert_eq!(tensor.read(key).unwrap(), read.tensors()[key].read(key).unwrap(), "{key}");
        }
        assert_eq!(read.metadata().unwrap()["format"], "pt");
    }

    #[test]
    fn files_are_filled_up_to_the_limit_and_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(file(folder.path())).unwrap();
        // Keys in order: a.bias of 8 bytes, b.weight of 16, step of 8.
        for (max_shard_bytes, files) in [(1, 3), (23, 3), (24, 2), (31, 2), (32, 1)] {
            let out = folder.path().join(max_shard_bytes.to_string());
            std::fs::create_dir(&out).unwrap();
            let spec = ConvertSpec { max_shard_bytes, ..ConvertSpec::default() };
            let converted = checkpoint.convert(&spec, &out, &mut ()).unwrap();
            assert_eq!(converted.files.len(), files, "{max_shard_bytes}");
            assert_eq!(converted.index.is_some(), files > 1);
            for path in converted.files {
                let bytes = std::fs::read(path).unwrap();
                let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(header.is_multiple_of(8), "{header}");
            }
        }
        // The widest type is first.
        let bytes = std::fs::read(folder.path().join("32/model.safetensors")).unwrap();
        let (metadata, start) = (safetensors::SafeTensors::read_metadata(&bytes).unwrap().1, 0);
        assert_eq!(metadata.info("step").unwrap().data_offsets, (start, start + 8));
    }

    #[test]
    fn files_that_would_be_read_first_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(file(folder.path())).unwrap();
        let sharded = ConvertSpec { max_shard_bytes: 16, ..ConvertSpec::default() };
        let count = |out: &Path| std::fs::read_dir(out).unwrap().count();
        for name in ["model.safetensors", "diffusion_pytorch_model.safetensors"] {
            let out = folder.path().join(format!("with-{name}"));
            std::fs::create_dir(&out).unwrap();
            std::fs::write(out.join(name), "old").unwrap();
            let error = checkpoint.convert(&sharded, &out, &mut ()).unwrap_err();
            assert!(
                matches!(&error, CheckpointError::Shadowed { path, .. } if *path == out.join(name)),
                "{error}"
            );
            assert!(error.to_string().contains(INDEX), "{error}");
            assert_eq!(count(&out), 1);
        }
        // A single file is read before an index, and replaces an older single file.
        let out = folder.path().join("shards-first");
        std::fs::create_dir(&out).unwrap();
        checkpoint.convert(&sharded, &out, &mut ()).unwrap();
        for _ in 0..2 {
            let converted = checkpoint.convert(&ConvertSpec::default(), &out, &mut ()).unwrap();
            assert_eq!(Checkpoint::open(&out).unwrap().taken(), converted.files[0]);
        }
    }

    #[test]
    fn floats_are_rounded_to_another_type_and_integers_kept() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(file(folder.path())).unwrap();
        let path = folder.path().join("out.safetensors");
        let mut log = Log::default();
        let converted =
            checkpoint.convert_to_file(Some(FloatDType::BF16), &path, &mut log).unwrap();
        assert_eq!(converted.bytes, 8 + 4 + 8);
        assert_eq!(log.last, Some(Written { bytes: 20, total_bytes: 20 }));
        let read = Checkpoint::open(&path).unwrap();
        let tensor = |key: &str| -> TensorData { read.tensors()[key].read(key).unwrap() };
        assert_eq!(tensor("b.weight").dtype(), DType::BF16);
        let values: Vec<f32> = tensor("b.weight").iter::<f32>().collect();
        assert_eq!(values, [1.0, -2.5, 3.0, 0.100_097_656]);
        assert_eq!(tensor("step").iter::<i64>().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn numbers_that_are_too_large_for_the_type_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.safetensors");
        let values: Vec<u8> =
            [f32::MIN, f32::INFINITY, 70_000.0].iter().flat_map(|x| x.to_ne_bytes()).collect();
        let view =
            |values| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![3], values);
        safetensors::serialize_to_file([("w", view(&values).unwrap())], None, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let out = folder.path().join("out.safetensors");
        let error = checkpoint.convert_to_file(Some(FloatDType::F16), &out, &mut ()).unwrap_err();
        assert!(error.to_string().contains("7e4 is out of range for F16"), "{error}");
        assert!(!out.exists());
        // 70,000 fits into bf16; infinities, and the f32 that masks use in their place, are infinite.
        checkpoint.convert_to_file(Some(FloatDType::BF16), &out, &mut ()).unwrap();
        let read = Checkpoint::open(&out).unwrap();
        let values: Vec<f32> = read.tensors()["w"].read("w").unwrap().iter::<f32>().collect();
        assert_eq!(values, [f32::NEG_INFINITY, f32::INFINITY, 70_144.0]);
    }

    #[test]
    fn metadata_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.safetensors");
        let values = 1.0f32.to_ne_bytes();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &values);
        let notes = HashMap::from([("prediction_type".to_string(), "v_prediction".to_string())]);
        safetensors::serialize_to_file([("w", view.unwrap())], Some(notes), &path).unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let converted = checkpoint.convert(&ConvertSpec::default(), &out, &mut ()).unwrap();
        let metadata = Checkpoint::open(&converted.files[0]).unwrap().metadata().unwrap();
        assert_eq!(metadata["prediction_type"], "v_prediction");
        assert_eq!(metadata["format"], "pt");
        // The same bytes in every run.
        let first = std::fs::read(&converted.files[0]).unwrap();
        checkpoint.convert(&ConvertSpec::default(), &out, &mut ()).unwrap();
        assert_eq!(std::fs::read(&converted.files[0]).unwrap(), first);
    }

    #[test]
    fn a_conversion_that_is_stopped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(file(folder.path())).unwrap();
        let path = folder.path().join("out.safetensors");
        let mut log = Log { breaks: true, ..Log::default() };
        let error = checkpoint.convert_to_file(None, &path, &mut log).unwrap_err();
        assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
