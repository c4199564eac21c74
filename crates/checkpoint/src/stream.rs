//! Import of a large model part by part, so that memory holds the largest part only.

use crate::{
    Checkpoint, CheckpointError, ImportReport, KeyMap,
    error::because,
    import::{check_import, fill, parameter_slots, read_as, read_float},
};
use burn::{
    module::Module,
    tensor::{Bytes, FloatDType, TensorData},
};
use std::{
    collections::HashMap,
    io,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Tensors of a part, by published key.
type Values = Result<HashMap<String, TensorData>, CheckpointError>;

/// Reads the tensors of a part.
type Read = Box<dyn FnOnce() -> Values + Send>;

/// Starts a thread.
type Spawn = fn(Read) -> io::Result<JoinHandle<Values>>;

/// A thread that reads the tensors of a part. Dropping it waits until the thread ends, which is after the
/// current tensor.
struct ReadAhead {
    thread: Option<JoinHandle<Values>>,
    is_cancelled: Arc<AtomicBool>,
}

impl ReadAhead {
    /// Waits for the tensors.
    fn finish(mut self) -> Values {
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            None => Ok(HashMap::new()),
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Tensors and errors of a cancelled read are not needed.
            let _ = thread.join();
        }
    }
}

/// A checkpoint that fits a module, whose parts are read when they are needed.
pub struct StreamedImport {
    /// Shared with the thread that reads ahead.
    checkpoint: Arc<Checkpoint>,
    map: KeyMap,
    dtype: FloatDType,
}

impl StreamedImport {
    /// Compares `module` with `checkpoint` as strictly as [`import`](crate::import()) does, and reads no
    /// tensor yet. Parts are read in `dtype`.
    ///
    /// # Errors
    /// Returns an error if keys or shapes do not match.
    pub fn new<M: Module>(
        module: &M,
        checkpoint: Checkpoint,
        map: KeyMap,
        dtype: FloatDType,
    ) -> Result<(Self, ImportReport), CheckpointError> {
        let report = check_import(module, &checkpoint, &map)?;
        Ok((Self { checkpoint: Arc::new(checkpoint), map, dtype }, report))
    }

    /// Returns the type of the parts.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }

    /// Fills `part`, a fresh module or parameter of the whole module. The names of its parameters follow
    /// `path`, such as `blocks.3.`.
    ///
    /// # Errors
    /// Returns an error if a tensor is not a float tensor or cannot be read.
    pub fn part<M: Module>(&self, path: &str, part: M) -> Result<M, CheckpointError> {
        fill(part, path, &self.checkpoint, &self.map, self.dtype, HashMap::new())
    }

    /// Returns the parts at `paths` one after the other, each made by `fresh`. With `ahead`, a
    /// thread reads the bytes of the next part while a part is in use: for devices other than the
    /// host. Host memory then holds the bytes of one more part. If no thread can be started, parts
    /// are read when they are needed. Dropping the iterator ends the thread.
    pub fn parts<'a, M: Module + 'a>(
        &'a self,
        paths: Vec<String>,
        fresh: impl Fn() -> M + 'a,
        ahead: bool,
    ) -> impl ExactSizeIterator<Item = Result<M, CheckpointError>> + 'a {
        let spawn: Spawn = |read| thread::Builder::new().name("read ahead".into()).spawn(read);
        self.parts_by(paths, fresh, ahead.then_some(spawn))
    }

    fn parts_by<'a, M: Module + 'a>(
        &'a self,
        paths: Vec<String>,
        fresh: impl Fn() -> M + 'a,
        spawn: Option<Spawn>,
    ) -> impl ExactSizeIterator<Item = Result<M, CheckpointError>> + 'a {
        let mut reading: Option<ReadAhead> = None;
        (0..paths.len()).map(move |index| {
            let values = reading.take().map_or_else(|| Ok(HashMap::new()), ReadAhead::finish)?;
            let path = &paths[index];
            let part = fill(fresh(), path, &self.checkpoint, &self.map, self.dtype, values)?;
            // Started after the current part was read, since both are read from the same file.
            if let (Some(next), Some(spawn)) = (paths.get(index + 1), spawn) {
                reading = self.read_ahead(next, &fresh(), spawn);
            }
            Ok(part)
        })
    }

    /// Starts to read the tensors of `part` at `path`. Returns `None` if no thread can be started.
    fn read_ahead<M: Module>(&self, path: &str, part: &M, spawn: Spawn) -> Option<ReadAhead> {
        let keys: Vec<String> = parameter_slots(part)
            .into_iter()
            .map(|slot| self.map.published_key(&format!("{path}{}", slot.path)))
            .filter(|key| self.checkpoint.contains(key))
            .collect();
        let (checkpoint, dtype) = (Arc::clone(&self.checkpoint), self.dtype);
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_cancelled);
        let thread = spawn(Box::new(move || {
            let read = |key: String| {
                let data = read_float(&checkpoint, &key, dtype)?;
                Ok((key, data))
            };
            keys.into_iter().take_while(|_| !stop.load(Ordering::Relaxed)).map(read).collect()
        }));
        Some(ReadAhead { thread: Some(thread.ok()?), is_cancelled })
    }

    /// Returns rows `[rows, C]` of the matrix `[R, C]` at `path`. Memory holds the whole matrix in
    /// the file's type meanwhile.
    ///
    /// # Errors
    /// Returns an error if the tensor is not a float matrix or cannot be read.
    ///
    /// # Panics
    /// Panics if there is no parameter at `path`, or the matrix has no such row.
    pub fn rows(&self, path: &str, rows: &[usize]) -> Result<TensorData, CheckpointError> {
        let key = self.map.published_key(path);
        read_as(&self.checkpoint, &key, |data| {
            let [count, width] = data.shape()[..] else {
                return Err(
                    format!("shape {:?} found, a matrix expected", data.shape().to_vec()).into()
                );
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
                .map_err(because(format!("cannot convert to {:?}", self.dtype)))
        })
    }
}

impl std::fmt::Debug for StreamedImport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} from {}", self.map.artefact(), self.checkpoint.path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Contents, TensorEntry};
    use burn::{
        module::Param,
        nn::{Linear, LinearConfig},
        tensor::{DType, Device, Tensor},
    };
    use std::{
        sync::{Mutex, PoisonError},
        time::{Duration, Instant},
    };

    /// Parameters of a block.
    const BLOCK: usize = 16;

    /// Three blocks, whose parameters `BLOCK.LAYER.weight` take 10 ms each to read, and the keys
    /// that were read.
    fn slow() -> (StreamedImport, Arc<Mutex<Vec<String>>>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file: Arc<std::path::Path> = folder.path().join("x.safetensors").into();
        std::fs::write(&file, "").unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let names = (0..3).flat_map(|block| (0..BLOCK).map(move |layer| (block, layer)));
        let tensors = names.map(|(block, layer)| {
            let key = format!("{block}.{layer}.weight");
            let (name, log) = (key.clone(), Arc::clone(&log));
            let read = move || {
                thread::sleep(Duration::from_millis(10));
                log.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
                Ok(((100 * block + layer) as f32).to_ne_bytes().to_vec())
            };
            let contents = Contents::Readable { dtype: DType::F32, read: Arc::new(read) };
            (key, TensorEntry { file: file.clone(), shape: vec![1, 1], contents })
        });
        let checkpoint = Checkpoint::of_tensors(tensors.collect());
        let whole: Vec<Vec<Linear>> = (0..3).map(|_| block()).collect();
        let map = KeyMap::new("blocks");
        let (import, _) = StreamedImport::new(&whole, checkpoint, map, FloatDType::F32).unwrap();
        (import, log, folder)
    }

    fn block() -> Vec<Linear> {
        let layer = || LinearConfig::new(1, 1).with_bias(false).init(&Device::flex());
        (0..BLOCK).map(|_| layer()).collect()
    }

    fn paths() -> Vec<String> {
        ["0.", "1.", "2."].map(String::from).to_vec()
    }

    fn first(block: &[Linear]) -> f32 {
        let weight: &Param<Tensor<2>> = &block[0].weight;
        weight.to_data().iter::<f32>().sum()
    }

    fn keys(log: &Mutex<Vec<String>>) -> Vec<String> {
        log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[test]
    fn parts_are_read_one_after_the_other() {
        let (import, log, _folder) = slow();
        let mut parts = import.parts(paths(), block, true);
        let firsts: Vec<f32> = parts.by_ref().map(|part| first(&part.unwrap())).collect();
        assert_eq!(firsts, [0.0, 100.0, 200.0]);
        let blocks: Vec<char> = keys(&log).iter().filter_map(|key| key.chars().next()).collect();
        assert!(blocks.is_sorted(), "{blocks:?}");
        assert_eq!(blocks.len(), 3 * BLOCK);
    }

    #[test]
    fn the_next_part_is_read_while_a_part_is_in_use() {
        let (import, log, _folder) = slow();
        let read = |ahead| {
            let before = keys(&log).len();
            let mut parts = import.parts(paths(), block, ahead);
            let _part = parts.next().unwrap().unwrap();
            let expected = if ahead { 2 * BLOCK } else { BLOCK };
            let deadline = Instant::now() + Duration::from_secs(8);
            while keys(&log).len() - before < expected && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            keys(&log).len() - before
        };
        assert_eq!((read(true), read(false)), (2 * BLOCK, BLOCK));
    }

    #[test]
    fn dropped_parts_are_not_read_on() {
        let (import, log, _folder) = slow();
        let mut parts = import.parts(paths(), block, true);
        parts.next().unwrap().unwrap();
        drop(parts);
        let found = keys(&log).len();
        // One tensor may have been under way.
        assert!(found <= BLOCK + 2, "{found} tensors");
        thread::sleep(Duration::from_millis(60));
        assert_eq!(keys(&log).len(), found);
    }

    #[test]
    fn parts_are_read_in_place_if_there_is_no_thread() {
        let (import, log, _folder) = slow();
        let spawn: Spawn = |_| Err(io::ErrorKind::WouldBlock.into());
        let parts = import.parts_by(paths(), block, Some(spawn));
        let firsts: Vec<f32> = parts.map(|part| first(&part.unwrap())).collect();
        assert_eq!(firsts, [0.0, 100.0, 200.0]);
        assert_eq!(keys(&log).len(), 3 * BLOCK);
    }
}
