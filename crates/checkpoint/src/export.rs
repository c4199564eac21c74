//! Writing a module as safetensors under published key names.

use crate::{CheckpointError, KeyMap, ParameterNames};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Tensor, TensorData},
};
use opensora_files::write_atomically;
use safetensors::{Dtype, View};
use std::{borrow::Cow, collections::HashMap, path::Path};

/// Writes the parameters of `module` to `path` as one safetensors file in `dtype`, under the keys
/// and in the layout of `map`'s artefact, so that whatever reads the published file reads this one.
/// A `note`, name and text, is kept in the file for [`Checkpoint::notes`](crate::Checkpoint::notes).
///
/// The file appears complete or not at all. Tensors are fetched from the device one at a time.
///
/// # Errors
/// Where the file cannot be written or a tensor not be fetched.
pub fn export<M: Module>(
    module: &M,
    map: &KeyMap,
    dtype: FloatDType,
    note: Option<(&str, &str)>,
    path: &Path,
) -> Result<(), CheckpointError> {
    export_with_buffers(module, map, Vec::new(), dtype, note, path)
}

/// Like [`export`], and writes `buffers` under their published keys: tensors that are no parameters
/// here, because they can be computed, and that other programs expect in the file.
///
/// # Errors
/// Returns the errors of [`export`].
pub fn export_with_buffers<M: Module>(
    module: &M,
    map: &KeyMap,
    buffers: Vec<(String, TensorData)>,
    dtype: FloatDType,
    note: Option<(&str, &str)>,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mut collector = Collector { names: ParameterNames::default(), map, dtype, views: vec![] };
    module.visit(&mut collector);
    collector.views.extend(buffers.into_iter().map(|(key, data)| {
        let shape = data.shape().to_vec();
        let fetch = move || data.clone().convert_dtype(dtype.into());
        (key, Fetch { shape, dtype, fetch: Box::new(fetch) })
    }));
    // One entry only: several would stand in another order in every run, and files that are equal in
    // all numbers would differ. `format` is what transformers asks of files that it opens itself.
    let (name, text) = note.unwrap_or(("format", "pt"));
    let metadata = HashMap::from([(name.to_string(), text.to_string())]);
    write_atomically(path, |file| {
        safetensors::serialize_to_file(collector.views, Some(metadata), file)
            .map_err(std::io::Error::other)
    })
    .map_err(|source| CheckpointError::Write { path: path.into(), source })
}

/// The parameters of `module` as [`export`] would write them in f32: published key and tensor.
pub fn published_tensors<M: Module>(module: &M, map: &KeyMap) -> Vec<(String, TensorData)> {
    let dtype = FloatDType::F32;
    let mut collector = Collector { names: ParameterNames::default(), map, dtype, views: vec![] };
    module.visit(&mut collector);
    collector.views.into_iter().map(|(key, tensor)| (key, (tensor.fetch)())).collect()
}

/// A tensor that is fetched when it is written.
struct Fetch {
    shape: Vec<usize>,
    dtype: FloatDType,
    fetch: Box<dyn Fn() -> TensorData>,
}

impl View for Fetch {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            FloatDType::F64 => Dtype::F64,
            FloatDType::F16 => Dtype::F16,
            FloatDType::BF16 => Dtype::BF16,
            FloatDType::F32 | FloatDType::Flex32 => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.fetch)().into_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * DType::from(self.dtype).size()
    }
}

struct Collector<'a> {
    names: ParameterNames,
    map: &'a KeyMap,
    dtype: FloatDType,
    views: Vec<(String, Fetch)>,
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
        let fetch = move || tensor.to_data().convert_dtype(dtype.into());
        let key = self.map.published_key(&self.names.path());
        self.views.push((key, Fetch { shape, dtype, fetch: Box::new(fetch) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, import};
    use burn::{nn::LinearConfig, tensor::Device};

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
    fn a_folder_that_is_not_there_is_named() {
        let linear = LinearConfig::new(2, 2).init(&Device::flex());
        let path = Path::new("no/such/folder/x.safetensors");
        let error = export(&linear, &KeyMap::new("x"), FloatDType::F32, None, path).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
