//! Writing a module as safetensors under published key names.

use crate::{CheckpointError, KeyMap, ParameterNames};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Tensor, TensorData},
};
use opensora_files::write_atomically;
use opensora_nn::read::{ReadError, read};
use safetensors::{Dtype, View};
use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{HashMap, HashSet},
    io::ErrorKind,
    path::Path,
};

/// Writes the parameters of `module` to `path` as one safetensors file in `dtype`, under the keys
/// and in the layout of `map`'s artefact, so that whatever reads the published file reads this one.
/// A `note`, name and text, is kept in the file for [`Checkpoint::notes`](crate::Checkpoint::notes).
///
/// The file appears complete or not at all. Tensors are fetched from the device one at a time.
///
/// # Errors
/// Returns an error if the file cannot be written, the device fails, or `map` gives two parameters the
/// same key.
pub fn export<M: Module>(
    module: &M,
    map: &KeyMap,
    dtype: FloatDType,
    note: Option<(&str, &str)>,
    path: &Path,
) -> Result<(), CheckpointError> {
    export_with_buffers(module, map, Vec::new(), dtype, note, path)
}

/// Like [`export`], and writes `buffers`: tensors that are no parameters here, because they can be
/// computed, and that other programs expect in the file. Their keys are published ones: `map` does not
/// change them.
///
/// # Errors
/// Returns the errors of [`export`], also if a buffer has the key of a parameter or another buffer.
pub fn export_with_buffers<M: Module>(
    module: &M,
    map: &KeyMap,
    buffers: Vec<(String, TensorData)>,
    dtype: FloatDType,
    note: Option<(&str, &str)>,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mut collector = Collector::of(module, map, dtype);
    collector.tensors.extend(buffers.into_iter().map(|(key, data)| {
        let shape = data.shape().to_vec();
        let fetch = move || Ok(data.clone().convert_dtype(dtype.into()));
        (key, Fetch { shape, dtype, fetch: Box::new(fetch) })
    }));
    write(collector.tensors, note, path)
}

/// Writes tensors, by published key.
fn write(
    tensors: Vec<(String, Fetch)>,
    note: Option<(&str, &str)>,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mut keys = HashSet::new();
    if let Some((key, _)) = tensors.iter().find(|(key, _)| !keys.insert(key.as_str())) {
        return Err(CheckpointError::DuplicateKey { path: path.into(), key: key.clone() });
    }
    // One entry only: several would stand in another order in every run, and files that are equal in
    // all numbers would differ. `format` is what transformers asks of files that it opens itself.
    let (name, text) = note.unwrap_or(("format", "pt"));
    let metadata = HashMap::from([(name.to_string(), text.to_string())]);
    let unread = RefCell::new(None);
    let views = tensors.into_iter().map(|(key, tensor)| {
        let view = Fetched { tensor, unread: &unread };
        (key, view)
    });
    let written = write_atomically(path, |file| {
        safetensors::serialize_to_file(views, Some(metadata), file)
            .map_err(std::io::Error::other)?;
        // The bytes that the device did not return are missing: not a file to keep.
        if unread.borrow().is_some() { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    if let Some(error) = unread.into_inner() {
        return Err(error.into());
    }
    written.map_err(|source| CheckpointError::Write { path: path.into(), source })
}

/// The parameters of `module` as [`export`] would write them in f32: published key and tensor.
///
/// # Errors
/// Returns an error if the device fails.
pub fn published_tensors<M: Module>(
    module: &M,
    map: &KeyMap,
) -> Result<Vec<(String, TensorData)>, ReadError> {
    let tensors = Collector::of(module, map, FloatDType::F32).tensors.into_iter();
    tensors.map(|(key, tensor)| Ok((key, (tensor.fetch)()?))).collect()
}

/// A parameter that is read from its device when it is asked for.
struct Fetch {
    shape: Vec<usize>,
    dtype: FloatDType,
    fetch: Box<dyn Fn() -> Result<TensorData, ReadError>>,
}

/// A tensor of a file; its bytes are fetched when they are written.
struct Fetched<'a> {
    tensor: Fetch,
    /// The first error of a device: [`View::data`] can return none.
    unread: &'a RefCell<Option<ReadError>>,
}

impl View for Fetched<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.dtype {
            FloatDType::F64 => Dtype::F64,
            FloatDType::F16 => Dtype::F16,
            FloatDType::BF16 => Dtype::BF16,
            FloatDType::F32 | FloatDType::Flex32 => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Writing cannot be stopped; after an error, nothing more is fetched and nothing written.
        if self.unread.borrow().is_some() {
            return Cow::Borrowed(&[]);
        }
        match (self.tensor.fetch)() {
            Ok(data) => Cow::Owned(data.into_bytes().to_vec()),
            Err(error) => {
                self.unread.replace(Some(error));
                Cow::Borrowed(&[])
            }
        }
    }

    fn data_len(&self) -> usize {
        let Fetch { shape, dtype, .. } = &self.tensor;
        shape.iter().product::<usize>() * DType::from(*dtype).size()
    }
}

struct Collector<'a> {
    names: ParameterNames,
    map: &'a KeyMap,
    dtype: FloatDType,
    /// By published key.
    tensors: Vec<(String, Fetch)>,
}

impl<'a> Collector<'a> {
    fn of<M: Module>(module: &M, map: &'a KeyMap, dtype: FloatDType) -> Self {
        let names = ParameterNames::default();
        let mut collector = Self { names, map, dtype, tensors: Vec::new() };
        module.visit(&mut collector);
        collector
    }
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let tensor = if self.names.is_transposed() { tensor.transpose() } else { tensor };
        let (shape, dtype) = (tensor.dims().to_vec(), self.dtype);
        let fetch = move || Ok(read(tensor.clone())?.convert_dtype(dtype.into()));
        let key = self.map.published_key(&self.names.path());
        self.tensors.push((key, Fetch { shape, dtype, fetch: Box::new(fetch) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, import};
    use burn::{nn::LinearConfig, tensor::Device};
    use std::{cell::Cell, rc::Rc};

    #[test]
    fn what_is_written_loads_again_and_replaces_what_was_there() {
        let device = Device::flex();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.safetensors");
        std::fs::write(&path, "old").unwrap();
        let map = KeyMap::new("a linear layer").rename(|path| format!("model.{path}"));
        let linear = LinearConfig::new(3, 5).init(&device);
        export(&linear, &map, FloatDType::F32, Some(("made_by", "a test")), &path).unwrap();

        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.tensors()["model.weight"].shape(), [5, 3]);
        assert_eq!(checkpoint.notes().unwrap()["made_by"], "a test");
        let (read, _) =
            import(LinearConfig::new(3, 5).init(&device), &checkpoint, &map, FloatDType::F32)
                .unwrap();
        assert_eq!(read.weight.to_data(), linear.weight.to_data());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn buffers_are_written_beside_parameters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.safetensors");
        let linear = LinearConfig::new(3, 5).init(&Device::flex());
        let table = TensorData::new(vec![1.0f32, 2.0], [1, 2]);
        let buffers = vec![("table".to_string(), table)];
        let map = KeyMap::new("a linear layer");
        export_with_buffers(&linear, &map, buffers, FloatDType::F16, None, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.keys().collect::<Vec<_>>(), ["bias", "table", "weight"]);
        let table = checkpoint.tensors()["table"].read("table").unwrap();
        assert_eq!((table.dtype(), table.iter::<f32>().collect()), (DType::F16, vec![1.0, 2.0]));
    }

    #[test]
    fn two_tensors_of_one_key_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.safetensors");
        let linear = LinearConfig::new(3, 5).init(&Device::flex());
        let buffer = |key: &str| (key.to_string(), TensorData::new(vec![1.0f32], [1]));
        let plain = KeyMap::new("a linear layer");
        let prefixed = KeyMap::new("a linear layer").rename(|path| format!("model.{path}"));
        let merged = KeyMap::new("a linear layer").rename(|_| "one".into());
        for (map, buffers, twice) in [
            (&plain, vec![buffer("bias")], "bias"),
            (&prefixed, vec![buffer("model.weight")], "model.weight"),
            (&plain, vec![buffer("a"), buffer("a")], "a"),
            (&merged, vec![], "one"),
        ] {
            let written = export_with_buffers(&linear, map, buffers, FloatDType::F32, None, &path);
            match written.unwrap_err() {
                CheckpointError::DuplicateKey { key, .. } => assert_eq!(key, twice),
                other => panic!("{other}"),
            }
        }
        assert!(!path.exists());
        // Keys of buffers are not mapped.
        let buffers = vec![buffer("bias")];
        export_with_buffers(&linear, &prefixed, buffers, FloatDType::F32, None, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.keys().collect::<Vec<_>>(), ["bias", "model.bias", "model.weight"]);
    }

    #[test]
    fn nothing_is_fetched_from_a_device_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let fetched = Rc::new(Cell::new(0));
        let tensors = (0..5).map(|index| {
            let fetched = Rc::clone(&fetched);
            let fetch = move || {
                fetched.set(fetched.get() + 1);
                let (device, reason) = ("cuda:0".into(), format!("failed at {index}"));
                match index {
                    0 => Ok(TensorData::new(vec![0.0f32; 4], [4])),
                    _ => Err(ReadError::Copy { device, reason }),
                }
            };
            let dtype = FloatDType::F32;
            (index.to_string(), Fetch { shape: vec![4], dtype, fetch: Box::new(fetch) })
        });
        let error = write(tensors.collect(), None, &path).unwrap_err();
        assert!(matches!(error, CheckpointError::Device(_)), "{error}");
        assert!(error.to_string().contains("failed at 1"), "{error}");
        assert_eq!(fetched.get(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let linear = LinearConfig::new(2, 2).init(&Device::flex());
        let path = Path::new("no/such/folder/x.safetensors");
        let error = export(&linear, &KeyMap::new("x"), FloatDType::F32, None, path).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
