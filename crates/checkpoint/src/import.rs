//! Strict import of a checkpoint into a module.

use crate::{
    Checkpoint, CheckpointError, KeyMap, Mismatch, ParameterNames, ShapeMismatch, TensorEntry,
    error::{Cause, because, quoted},
    telltale,
};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{FloatDType, Tensor, TensorData},
};
use opensora_files::one_line;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::PathBuf,
};

/// Maximum size of all tensors as a multiple of the files' size (plus 1 MiB). It is above 1 since
/// several tensors can share a storage, such as tied embeddings.
const SHARED_STORAGE: u64 = 8;

/// Path and shape of a parameter that need not be allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSlot {
    /// Chain of field names with PyTorch's leaf name, such as `blocks.0.attn.qkv.weight`.
    pub path: String,
    /// Shape as PyTorch stores the parameter: a linear layer's weight is `[out, in]`.
    pub shape: Vec<usize>,
}

/// File, tensors and sizes of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportReport {
    /// Name of the artefact.
    pub artefact: String,
    /// The file or index that was read.
    pub file: PathBuf,
    /// Prefixes and dictionaries around the weights that were removed, such as `module`.
    pub wrappers: Vec<String>,
    /// Number of tensors outside those wrappers, such as an optimizer's.
    pub outside: usize,
    /// Number of parameters that were filled.
    pub tensors: usize,
    /// Number of elements of these parameters.
    pub elements: usize,
    /// Keys of the file that the model does not use and the key map allows.
    pub ignored: Vec<String>,
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = self.elements as f64 / 1e6;
        write!(f, "{}: {} tensors, {millions:.1} M parameters", self.artefact, self.tensors)?;
        if let Some(name) = self.file.file_name() {
            write!(f, " from {}", one_line(name.to_string_lossy()))?;
        }
        if !self.wrappers.is_empty() {
            write!(f, ", unwrapped from {}", quoted(&self.wrappers))?;
        }
        if self.outside > 0 {
            write!(f, " ({} tensors outside not used)", self.outside)?;
        }
        if !self.ignored.is_empty() {
            write!(f, " ({} known keys not used)", self.ignored.len())?;
        }
        Ok(())
    }
}

/// Returns the parameters of `module` in order without allocating any.
pub fn parameter_slots<M: Module>(module: &M) -> Vec<ParameterSlot> {
    let mut visitor = SlotVisitor::default();
    module.visit(&mut visitor);
    visitor.slots
}

/// Compares the parameters of a model with the keys and shapes of a file.
///
/// # Errors
/// Returns the keys that are missing, unused or of another shape, with the likely cause.
pub fn check(
    slots: &[ParameterSlot],
    file: &BTreeMap<String, Vec<usize>>,
    map: &KeyMap,
) -> Result<(), Box<Mismatch>> {
    let mut missing = Vec::new();
    let mut shapes = Vec::new();
    let mut used = BTreeSet::new();
    for slot in slots {
        let key = map.published_key(&slot.path);
        match file.get(&key) {
            None if map.may_be_missing(&key) => {}
            None => missing.push(key),
            Some(found) => {
                if !map.shapes_fit(&key, found, &slot.shape) {
                    shapes.push(ShapeMismatch {
                        key: key.clone(),
                        found: found.clone(),
                        expected: slot.shape.clone(),
                    });
                }
                used.insert(key);
            }
        }
    }
    let left_over = |key: &&String| !used.contains(*key) && !map.may_be_unused(key);
    let unused: Vec<String> = file.keys().filter(left_over).cloned().collect();
    if missing.is_empty() && unused.is_empty() && shapes.is_empty() {
        return Ok(());
    }
    let keys = file.keys().map(String::as_str);
    Err(Box::new(telltale::explain(map.artefact(), keys, slots.len(), missing, unused, shapes)))
}

/// Fills `module` from `checkpoint` in `dtype`, one tensor at a time.
///
/// Every parameter must have a key, and every key must be used or allowed. Keys and shapes are compared
/// before any tensor is read. Weights are loaded to the device of the module.
///
/// # Errors
/// Returns an error if keys or shapes do not match, or a tensor is not a float tensor or cannot be read.
pub fn import<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    map: &KeyMap,
    dtype: FloatDType,
) -> Result<(M, ImportReport), CheckpointError> {
    let report = check_import(&module, checkpoint, map)?;
    Ok((fill(module, "", checkpoint, map, dtype, HashMap::new())?, report))
}

/// Compares `module` with `checkpoint` and returns the report of an import, without reading a tensor or
/// allocating a parameter.
///
/// # Errors
/// Returns an error if keys or shapes do not match, or a needed tensor is not a float tensor or is of an
/// unsupported kind.
pub fn check_import<M: Module>(
    module: &M,
    checkpoint: &Checkpoint,
    map: &KeyMap,
) -> Result<ImportReport, CheckpointError> {
    let slots = parameter_slots(module);
    let file: BTreeMap<String, Vec<usize>> = checkpoint
        .tensors()
        .iter()
        .map(|(key, tensor)| (key.clone(), tensor.shape().to_vec()))
        .collect();
    if let Err(mut mismatch) = check(&slots, &file, map) {
        // The shape of an unsupported tensor may be unknown.
        let unreadable =
            |shape: &&ShapeMismatch| checkpoint.tensors()[&shape.key].dtype().is_none();
        if let Some(ShapeMismatch { key, .. }) = mismatch.shapes.iter().find(unreadable) {
            check_float(&checkpoint.tensors()[key], key)?;
        }
        mismatch.wrappers = checkpoint.wrappers().to_vec();
        return Err(CheckpointError::Mismatch { path: checkpoint.path().into(), mismatch });
    }
    let used: BTreeSet<String> = slots
        .iter()
        .map(|slot| map.published_key(&slot.path))
        .filter(|key| file.contains_key(key))
        .collect();
    check_sizes(checkpoint, &used)?;
    Ok(ImportReport {
        artefact: map.artefact().into(),
        file: checkpoint.taken().into(),
        wrappers: checkpoint.wrappers().to_vec(),
        outside: checkpoint.outside(),
        tensors: used.len(),
        elements: used.iter().map(|key| file[key].iter().product::<usize>()).sum(),
        ignored: file.into_keys().filter(|key| !used.contains(key)).collect(),
    })
}

/// Returns an error if a needed tensor is not a readable float tensor, or all of them take more
/// memory than their files can hold.
fn check_sizes(checkpoint: &Checkpoint, used: &BTreeSet<String>) -> Result<(), CheckpointError> {
    let mut needed = 0u64;
    for key in used {
        let entry = &checkpoint.tensors()[key];
        check_float(entry, key)?;
        needed = needed.saturating_add(entry.byte_len());
    }
    check_total(checkpoint, needed)
}

/// Returns an error if tensors of `needed` bytes are more than the checkpoint's files can hold.
pub(crate) fn check_total(checkpoint: &Checkpoint, needed: u64) -> Result<(), CheckpointError> {
    let mut files = 0u64;
    for file in checkpoint.files() {
        let metadata = std::fs::metadata(file);
        files +=
            metadata.map_err(|source| CheckpointError::Open { path: file.into(), source })?.len();
    }
    let limit = files.saturating_mul(SHARED_STORAGE).saturating_add(1 << 20);
    if needed > limit {
        let reason = format!(
            "its tensors take {needed} bytes, expected at most {limit}: {SHARED_STORAGE} times its files and \
             1 MiB"
        );
        return Err(CheckpointError::format(checkpoint.taken(), reason));
    }
    Ok(())
}

/// Returns an error if a tensor is not a readable float tensor.
fn check_float(entry: &TensorEntry, key: &str) -> Result<(), CheckpointError> {
    match entry.dtype() {
        Some(dtype) if dtype.is_float() => Ok(()),
        Some(dtype) => {
            let reason = format!("element type {dtype:?} found, a float expected");
            Err(CheckpointError::tensor(entry.file(), key)(reason))
        }
        // Reading returns the reason.
        None => entry.read(key).map(|_| ()),
    }
}

/// Fills `module`, the part at `prefix` of a module that [`check_import`] accepted. Tensors that
/// were read before are taken from `read_before`, by published key.
pub(crate) fn fill<M: Module>(
    module: M,
    prefix: &str,
    checkpoint: &Checkpoint,
    map: &KeyMap,
    dtype: FloatDType,
    read_before: HashMap<String, TensorData>,
) -> Result<M, CheckpointError> {
    let names = ParameterNames::default();
    let mut filler = Filler { names, prefix, checkpoint, map, dtype, read_before, error: None };
    let module = module.map(&mut filler);
    match filler.error {
        Some(error) => Err(error),
        None => Ok(module),
    }
}

#[derive(Default)]
struct SlotVisitor {
    names: ParameterNames,
    slots: Vec<ParameterSlot>,
}

impl ModuleVisitor for SlotVisitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if self.names.is_transposed() {
            shape.reverse();
        }
        self.slots.push(ParameterSlot { path: self.names.path(), shape });
    }
}

struct Filler<'a> {
    names: ParameterNames,
    prefix: &'a str,
    checkpoint: &'a Checkpoint,
    map: &'a KeyMap,
    dtype: FloatDType,
    read_before: HashMap<String, TensorData>,
    error: Option<CheckpointError>,
}

/// Reads a tensor in `dtype`.
pub(crate) fn read_float(
    checkpoint: &Checkpoint,
    key: &str,
    dtype: FloatDType,
) -> Result<TensorData, CheckpointError> {
    read_as(checkpoint, key, |data| {
        data.try_cast(dtype.into()).map_err(because(format!("cannot convert to {dtype:?}")))
    })
}

/// Reads a float tensor and changes it by `cast`.
pub(crate) fn read_as(
    checkpoint: &Checkpoint,
    key: &str,
    cast: impl FnOnce(TensorData) -> Result<TensorData, Cause>,
) -> Result<TensorData, CheckpointError> {
    let entry = &checkpoint.tensors()[key];
    check_float(entry, key)?;
    cast(entry.read(key)?).map_err(CheckpointError::tensor(entry.file(), key))
}

impl ModuleMapper for Filler<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // burn's walk always visits all parameters: after the first error the rest stay unchanged.
        if self.error.is_some() {
            return param;
        }
        let key = self.map.published_key(&format!("{}{}", self.prefix, self.names.path()));
        // After the check, only keys that are allowed to be missing can be missing.
        if !self.checkpoint.contains(&key) {
            return param;
        }
        let data = self
            .read_before
            .remove(&key)
            .map_or_else(|| read_float(self.checkpoint, &key, self.dtype), Ok);
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let device = param.lazy_device();
        let id = param.id;
        // Shapes were compared before; they can differ only by axes of length one.
        let mut shape = param.lazy_shape();
        let transposed = self.names.is_transposed();
        if transposed {
            shape = shape.iter().rev().copied().collect::<Vec<_>>().into();
        }
        let data = TensorData::from_bytes(data.into_bytes(), shape, self.dtype.into());
        let tensor = Tensor::<D>::from_data(data, (&device, self.dtype.into()));
        let tensor = if transposed { tensor.transpose() } else { tensor };
        param.transform_for_load(tensor, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Contents;
    use burn::tensor::DType;
    use opensora_files::error_line;
    use std::{path::Path, sync::Arc};

    #[test]
    fn tensors_take_at_most_a_multiple_of_their_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0; 10]).unwrap();
        let path: Arc<Path> = file.path().into();
        let error = |bytes: usize| {
            let contents =
                Contents::Readable { dtype: DType::F16, read: Arc::new(|| Ok(Vec::new())) };
            let entry = TensorEntry { file: path.clone(), shape: vec![bytes / 2], contents };
            let checkpoint = Checkpoint::of_tensors([("a".to_string(), entry)].into());
            check_sizes(&checkpoint, &["a".to_string()].into()).err().map(|e| error_line(&e))
        };
        let most = 8 * 10 + (1 << 20);
        assert_eq!(error(most), None);
        let text = error(most + 2).unwrap_or_default();
        let expected = "its tensors take 1048658 bytes, expected at most 1048656";
        assert!(text.contains(expected), "{text}");
    }
}
