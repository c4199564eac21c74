//! Filling a module from a checkpoint, strictly.

use crate::{
    Checkpoint, CheckpointError, KeyMap, Mismatch, ParameterNames, ShapeMismatch, TensorEntry,
    error::quoted, telltale,
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

/// Tensors of one storage, such as tied embeddings, take more memory than their file has bytes: this
/// many times as much, and a megabyte, are expected at most.
const SHARED_STORAGE: u64 = 8;

/// A parameter of a module, described without being allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSlot {
    /// Chain of field names with PyTorch's leaf name, such as `blocks.0.attn.qkv.weight`.
    pub path: String,
    /// Its shape as PyTorch stores it: a linear layer's weight is `[out, in]`.
    pub shape: Vec<usize>,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportReport {
    /// What was loaded.
    pub artefact: String,
    /// The file or index that was read.
    pub file: PathBuf,
    /// Prefixes and dictionaries that the weights were taken out of, such as `module`.
    pub wrappers: Vec<String>,
    /// Tensors of the file outside those wrappers: an optimizer, other models.
    pub outside: usize,
    /// Parameters filled.
    pub tensors: usize,
    /// Numbers in them.
    pub elements: usize,
    /// Keys of the file that the artefact is known to carry and the model does not use.
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

/// The parameters of `module` in order; none is allocated.
pub fn parameter_slots<M: Module>(module: &M) -> Vec<ParameterSlot> {
    let mut visitor = SlotVisitor::default();
    module.visit(&mut visitor);
    visitor.slots
}

/// Compares a model with the keys and shapes of a file, both only described.
///
/// # Errors
/// The keys that are missing, left over or of another shape, with the likely cause.
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
/// Every parameter must be fed and every key used or allowed; the check comes before the first
/// byte is read, so a file that does not fit costs nothing. Weights go to the device that the
/// module was made for.
///
/// # Errors
/// Where keys or shapes do not fit, a tensor is not of floating point, or its bytes cannot be
/// read.
pub fn import<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    map: &KeyMap,
    dtype: FloatDType,
) -> Result<(M, ImportReport), CheckpointError> {
    let report = check_import(&module, checkpoint, map)?;
    Ok((fill(module, "", checkpoint, map, dtype, HashMap::new())?, report))
}

/// Compares `module` with `checkpoint` and says what an import would do; no tensor is read and none
/// of the module's parameters allocated.
///
/// # Errors
/// Returns an error if keys or shapes do not fit, or a tensor that is needed has another type than
/// floating point or cannot be read.
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
        // The shape of a tensor that cannot be read may be unknown.
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

/// Fails if a needed tensor cannot be read as floating point, or all together take more memory than
/// their files can hold.
fn check_sizes(checkpoint: &Checkpoint, used: &BTreeSet<String>) -> Result<(), CheckpointError> {
    let mut needed = 0u64;
    for key in used {
        let entry = &checkpoint.tensors()[key];
        check_float(entry, key)?;
        needed = needed.saturating_add(entry.byte_len());
    }
    let mut files = 0u64;
    for file in checkpoint.files() {
        let metadata = std::fs::metadata(file);
        files +=
            metadata.map_err(|source| CheckpointError::Open { path: file.into(), source })?.len();
    }
    let limit = files.saturating_mul(SHARED_STORAGE).saturating_add(1 << 20);
    if needed > limit {
        return Err(CheckpointError::Format {
            path: checkpoint.taken().into(),
            reason: format!("its tensors take {needed} bytes in memory, its files have {files}"),
        });
    }
    Ok(())
}

/// Fails if a tensor cannot be read or is of another type than floating point.
fn check_float(entry: &TensorEntry, key: &str) -> Result<(), CheckpointError> {
    match entry.dtype() {
        Some(dtype) if dtype.is_float() => Ok(()),
        Some(dtype) => Err(CheckpointError::Tensor {
            path: entry.file().into(),
            key: key.into(),
            reason: format!("element type {dtype:?} found, a float expected"),
        }),
        // Reading it says why it cannot be read.
        None => entry.read(key).map(|_| ()),
    }
}

/// Fills `module`, which stands at `prefix` in what [`check_import`] has found to fit. Tensors that were
/// read before are taken out of `at_hand`, by published key.
pub(crate) fn fill<M: Module>(
    module: M,
    prefix: &str,
    checkpoint: &Checkpoint,
    map: &KeyMap,
    dtype: FloatDType,
    at_hand: HashMap<String, TensorData>,
) -> Result<M, CheckpointError> {
    let names = ParameterNames::default();
    let mut filler = Filler { names, prefix, checkpoint, map, dtype, at_hand, error: None };
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
    at_hand: HashMap<String, TensorData>,
    error: Option<CheckpointError>,
}

/// Reads a tensor in `dtype`.
pub(crate) fn read_float(
    checkpoint: &Checkpoint,
    key: &str,
    dtype: FloatDType,
) -> Result<TensorData, CheckpointError> {
    read_as(checkpoint, key, |data| data.try_cast(dtype.into()))
}

/// Reads a tensor of floating point and changes it by `cast`.
pub(crate) fn read_as<E: fmt::Display>(
    checkpoint: &Checkpoint,
    key: &str,
    cast: impl FnOnce(TensorData) -> Result<TensorData, E>,
) -> Result<TensorData, CheckpointError> {
    let entry = &checkpoint.tensors()[key];
    let fail = |reason: String| CheckpointError::Tensor {
        path: entry.file().into(),
        key: key.into(),
        reason,
    };
    check_float(entry, key)?;
    cast(entry.read(key)?).map_err(|error| fail(error.to_string()))
}

impl ModuleMapper for Filler<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // burn's walk cannot be stopped: after the first error the rest is left as it is.
        if self.error.is_some() {
            return param;
        }
        let key = self.map.published_key(&format!("{}{}", self.prefix, self.names.path()));
        // Only keys that may be missing still are, after the check.
        if !self.checkpoint.contains(&key) {
            return param;
        }
        let data = self
            .at_hand
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
        // Shapes were compared before; they may differ by axes of length one here.
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
