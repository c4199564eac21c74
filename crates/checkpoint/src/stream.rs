//! Large models part by part: read, used, dropped, so that memory holds the largest part only.

use crate::{
    Checkpoint, CheckpointError, ImportReport, KeyMap,
    import::{check_import, fill, read_as},
};
use burn::{
    module::Module,
    tensor::{Bytes, FloatDType, TensorData},
};

/// A checkpoint that fits a module, whose parts are read when they are asked for.
pub struct StreamedImport {
    checkpoint: Checkpoint,
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
        Ok((Self { checkpoint, map, dtype }, report))
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
        fill(part, path, &self.checkpoint, &self.map, self.dtype)
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
