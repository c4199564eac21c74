//! Export of a module as safetensors under published keys.

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

/// Settings of an export. The default is f32 without metadata and buffers.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Float type of the tensors.
    pub dtype: FloatDType,
    /// Name and text that [`Checkpoint::metadata`](crate::Checkpoint::metadata) finds in the file.
    pub metadata: Option<(String, String)>,
    /// Tensors under published keys that are not parameters of the module, because they can be
    /// computed, and that other programs expect in the file.
    pub buffers: Vec<(String, TensorData)>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { dtype: FloatDType::F32, metadata: None, buffers: Vec::new() }
    }
}

impl ExportOptions {
    /// Sets the float type of the tensors.
    pub fn with_dtype(self, dtype: FloatDType) -> Self {
        Self { dtype, ..self }
    }

    /// Sets the metadata: one entry of this name and text.
    pub fn with_metadata(self, name: &str, text: &str) -> Self {
        Self { metadata: Some((name.into(), text.into())), ..self }
    }

    /// Sets the buffers.
    pub fn with_buffers(self, buffers: Vec<(String, TensorData)>) -> Self {
        Self { buffers, ..self }
    }
}

/// Writes the parameters of `module` to `path` as one safetensors file, under the keys and in the layout
/// of `map`'s artefact, so that every reader of the published file reads this one.
///
/// The file appears complete or not at all. Tensors are fetched from the device one at a time.
///
/// # Errors
/// Returns an error if the file cannot be written, the device fails, or two tensors have the same key.
pub fn export<M: Module>(
    module: &M,
    map: &KeyMap,
    options: ExportOptions,
    path: &Path,
) -> Result<(), CheckpointError> {
    let ExportOptions { dtype, metadata, buffers } = options;
    let mut collector = Collector::of(module, map, dtype);
    collector.tensors.extend(buffers.into_iter().map(|(key, data)| {
        let shape = data.shape().to_vec();
        let fetch = move || Ok(data.clone().convert_dtype(dtype.into()));
        (key, Fetch { shape, dtype, fetch: Box::new(fetch) })
    }));
    write(collector.tensors, metadata, path)
}

/// Writes tensors, by published key.
fn write(
    tensors: Vec<(String, Fetch)>,
    metadata: Option<(String, String)>,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mut keys = HashSet::new();
    if let Some((key, _)) = tensors.iter().find(|(key, _)| !keys.insert(key.as_str())) {
        return Err(CheckpointError::DuplicateKey { path: path.into(), key: key.clone() });
    }
    // One entry only: the order of several differs between runs, so that equal tensors would make
    // different files. transformers requires `format` of files that it opens itself.
    let metadata = HashMap::from([metadata.unwrap_or_else(|| ("format".into(), "pt".into()))]);
    let unread = RefCell::new(None);
    let views = tensors.into_iter().map(|(key, tensor)| {
        let view = Fetched { tensor, unread: &unread };
        (key, view)
    });
    let written = write_atomically(path, |file| {
        safetensors::serialize_to_file(views, Some(metadata), file)
            .map_err(std::io::Error::other)?;
        // The file lacks the bytes that the device did not return.
        if unread.borrow().is_some() { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    if let Some(error) = unread.into_inner() {
        return Err(error.into());
    }
    written.map_err(|source| CheckpointError::Write { path: path.into(), source })
}

/// Returns published keys and tensors of `module` as [`export`] writes them in f32.
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

/// A parameter that is read from its device when it is written.
struct Fetch {
    shape: Vec<usize>,
    dtype: FloatDType,
    fetch: Box<dyn Fn() -> Result<TensorData, ReadError>>,
}

/// A tensor of a file; its bytes are fetched when they are written.
struct Fetched<'a> {
    tensor: Fetch,
    /// The first error of a device, since [`View::data`] returns no errors.
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
        // The writer cannot be stopped: after an error, nothing more is fetched and nothing written.
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
    /// Published keys and tensors.
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
    fn an_export_loads_again_and_replaces_an_older_file() {
        let device = Device::flex();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.safetensors");
        std::fs::write(&path, "old").unwrap();
        let map = KeyMap::new("a linear layer").rename(|path| format!("model.{path}"));
        let linear = LinearConfig::new(3, 5).init(&device);
        export(&linear, &map, ExportOptions::default().with_metadata("made_by", "a test"), &path)
            .unwrap();

        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.tensors()["model.weight"].shape(), [5, 3]);
        assert_eq!(checkpoint.metadata().unwrap()["made_by"], "a test");
        let (read, _) =
            import(LinearConfig::new(3, 5).init(&device), &checkpoint, &map, FloatDType::F32)
                .unwrap();
        assert_eq!(read.weight.to_data(), linear.weight.to_data());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn published_tensors_are_those_of_an_export() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.safetensors");
        let map = KeyMap::new("a linear layer").rename(|path| format!("model.{path}"));
        let linear = LinearConfig::new(3, 5).init(&Device::flex());
        export(&linear, &map, ExportOptions::default(), &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut tensors = published_tensors(&linear, &map).unwrap();
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let keys: Vec<&str> = tensors.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["model.bias", "model.weight"]);
        for (key, tensor) in &tensors {
            assert_eq!(*tensor, checkpoint.tensors()[key.as_str()].read(key).unwrap());
        }
    }

    #[test]
    fn buffers_are_written_beside_parameters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.safetensors");
        let linear = LinearConfig::new(3, 5).init(&Device::flex());
        let table = TensorData::new(vec![1.0f32, 2.0], [1, 2]);
        let buffers = vec![("table".to_string(), table)];
        let map = KeyMap::new("a linear layer");
        let options = ExportOptions::default().with_dtype(FloatDType::F16).with_buffers(buffers);
        export(&linear, &map, options, &path).unwrap();
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
            let options = ExportOptions::default().with_buffers(buffers);
            let written = export(&linear, map, options, &path);
            match written.unwrap_err() {
                CheckpointError::DuplicateKey { key, .. } => assert_eq!(key, twice),
                other => panic!("{other}"),
            }
        }
        assert!(!path.exists());
        // Keys of buffers are not mapped.
        let buffers = vec![buffer("bias")];
        let options = ExportOptions::default().with_buffers(buffers);
        export(&linear, &prefixed, options, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.keys().collect::<Vec<_>>(), ["bias", "model.bias", "model.weight"]);
    }

    #[test]
    fn every_float_type_is_written() {
        let linear = LinearConfig::new(2, 3).init(&Device::flex());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        for (dtype, found) in [
            (FloatDType::F64, DType::F64),
            (FloatDType::F32, DType::F32),
            (FloatDType::F16, DType::F16),
            (FloatDType::BF16, DType::BF16),
        ] {
            let options = ExportOptions::default().with_dtype(dtype);
            export(&linear, &KeyMap::new("x"), options, &path).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let tensor = &checkpoint.tensors()["weight"];
            assert_eq!((tensor.dtype(), tensor.shape()), (Some(found), &[3, 2][..]));
            tensor.read("weight").unwrap();
        }
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
    fn the_error_names_a_missing_folder() {
        let linear = LinearConfig::new(2, 2).init(&Device::flex());
        let path = Path::new("no/such/folder/x.safetensors");
        let error = export(&linear, &KeyMap::new("x"), ExportOptions::default(), path).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
