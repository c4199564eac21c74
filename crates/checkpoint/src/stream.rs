//! Large models part by part: read, used, dropped, so that memory holds the largest part only.

use crate::{
    Checkpoint, CheckpointError, ImportReport, KeyMap,
    import::{check_import, fill, parameter_slots, read_as, read_float},
};
use burn::{
    module::Module,
    tensor::{Bytes, FloatDType, TensorData},
};
use std::{
    collections::HashMap,
    panic::resume_unwind,
    sync::Arc,
    thread::{self, JoinHandle},
};

/// A thread that reads tensors of a part, by published key.
type Reading = JoinHandle<Result<HashMap<String, TensorData>, CheckpointError>>;

/// A checkpoint that fits a module, whose parts are read when they are asked for.
pub struct StreamedImport {
    /// Shared with the thread that reads ahead.
    checkpoint: Arc<Checkpoint>,
    map: KeyMap,
    dtype: FloatDType,
}

impl StreamedImport {
    /// Compares all of `module` with `checkpoint`, as strictly as [`import`](crate::import()), and
    /// reads nothing yet. Parts will come in `dtype`.
    ///
    /// # Errors
    /// Where keys or shapes do not fit.
    pub fn new<M: Module>(
        module: &M,
        checkpoint: Checkpoint,
        map: KeyMap,
        dtype: FloatDType,
    ) -> Result<(Self, ImportReport), CheckpointError> {
        let report = check_import(module, &checkpoint, &map)?;
        Ok((Self { checkpoint: Arc::new(checkpoint), map, dtype }, report))
    }

    /// Type in which parts come.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }

    /// Fills `part`, a fresh module or parameter that stands at `path` in the whole one, such as
    /// `blocks.3.`: what a parameter is called inside the part is put behind it.
    ///
    /// # Errors
    /// Where a tensor is not of floating point or its bytes cannot be read.
    pub fn part<M: Module>(&self, path: &str, part: M) -> Result<M, CheckpointError> {
        fill(part, path, &self.checkpoint, &self.map, self.dtype, HashMap::new())
    }

    /// Parts that are used one after the other, at `paths`, each made by `fresh`. With `ahead` the bytes
    /// of the next one are read, by a thread of their own, while a part is in use: for devices that
    /// compute on hardware of their own. Memory of the host then holds the bytes of one part more.
    pub fn parts<'a, M: Module + 'a>(
        &'a self,
        paths: Vec<String>,
        fresh: impl Fn() -> M + 'a,
        ahead: bool,
    ) -> impl ExactSizeIterator<Item = Result<M, CheckpointError>> + 'a {
        let mut reading: Option<Reading> = None;
        (0..paths.len()).map(move |index| {
            let values = match reading.take() {
                Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic))?,
                None => HashMap::new(),
            };
            if let Some(next) = paths.get(index + 1).filter(|_| ahead) {
                reading = Some(self.read_ahead(next, &fresh()));
            }
            let path = &paths[index];
            fill(fresh(), path, &self.checkpoint, &self.map, self.dtype, values)
        })
    }

    /// Starts to read the tensors of `part` at `path`.
    fn read_ahead<M: Module>(&self, path: &str, part: &M) -> Reading {
        let keys: Vec<String> = parameter_slots(part)
            .into_iter()
            .map(|slot| self.map.published_key(&format!("{path}{}", slot.path)))
            .filter(|key| self.checkpoint.contains(key))
            .collect();
        let (checkpoint, dtype) = (Arc::clone(&self.checkpoint), self.dtype);
        thread::spawn(move || {
            let read = |key: String| {
                let data = read_float(&checkpoint, &key, dtype)?;
                Ok((key, data))
            };
            keys.into_iter().map(read).collect()
        })
    }

    /// Rows of the matrix `[R, C]` at `path`: `[rows, C]`. The matrix is held in the file's own
    /// type while they are taken out.
    ///
    /// # Errors
    /// Where the tensor is no matrix of floating point or its bytes cannot be read.
    ///
    /// # Panics
    /// Where there is no parameter at `path` or the matrix has no such row.
    pub fn rows(&self, path: &str, rows: &[usize]) -> Result<TensorData, CheckpointError> {
        let key = self.map.published_key(path);
        read_as(&self.checkpoint, &key, |data| {
            let [count, width] = data.shape()[..] else {
                return Err(format!("shape {:?} found, a matrix expected", data.shape()));
            };
            assert!(rows.iter().all(|&row| row < count), "{key} has {count} rows");
            let (dtype, row_bytes) = (data.dtype(), width * data.dtype().size());
            let bytes: Vec<u8> = rows
                .iter()
                .flat_map(|&row| &data.bytes()[row * row_bytes..(row + 1) * row_bytes])
                .copied()
                .collect();
            let picked = Bytes::from_bytes_vec(bytes);
            TensorData::from_bytes(picked, [rows.len(), width], dtype)
                .try_cast(self.dtype.into())
                .map_err(|error| error.to_string())
        })
    }
}

impl std::fmt::Debug for StreamedImport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} from {}", self.map.artefact(), self.checkpoint.path().display())
    }
}
