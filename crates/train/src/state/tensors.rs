//! Files of flat f32 tensors: written with a check for finite values, read by ranges.

use crate::{error::TrainError, parameters::FlatTensors, shards::slice};
use burn::tensor::{DType, Device, Tensor, TensorData};
use opensora_checkpoint::Checkpoint;
use opensora_files::write_atomically;
use opensora_nn::read::{ReadError, read};
use safetensors::{Dtype, View};
use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

/// A flat tensor for the safetensors crate, checked while it is written.
struct Flat<'a> {
    name: &'a str,
    tensor: Tensor<1>,
    shape: [usize; 1],
    /// The problem of the first bad tensor.
    wrong: &'a RefCell<Option<Wrong>>,
}

/// A problem that keeps a tensor out of a checkpoint.
pub(super) enum Wrong {
    /// A value of the tensor of this name is not finite.
    NotFinite(String),
    /// The device did not return its values.
    Unread(ReadError),
}

impl View for Flat<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // A failed device returns no more values.
        let has_failed = matches!(*self.wrong.borrow(), Some(Wrong::Unread(_)));
        if has_failed {
            return Cow::Owned(vec![0; self.data_len()]);
        }
        let bytes = match read(self.tensor.clone()) {
            Ok(data) => data.into_bytes().to_vec(),
            Err(error) => {
                self.wrong.borrow_mut().get_or_insert(Wrong::Unread(error));
                // The file is discarded, but its writer expects this number of bytes.
                vec![0; self.data_len()]
            }
        };
        let (values, _) = bytes.as_chunks::<4>();
        if !values.iter().all(|value| f32::from_ne_bytes(*value).is_finite()) {
            self.wrong.borrow_mut().get_or_insert_with(|| Wrong::NotFinite(self.name.to_string()));
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        4 * self.shape[0]
    }
}

/// Writes tensors. Returns the first problem that makes them unfit for a checkpoint.
pub(super) fn write_tensors(tensors: &FlatTensors, path: &Path) -> std::io::Result<Option<Wrong>> {
    let wrong = RefCell::default();
    let views = tensors.iter().map(|(name, tensor)| {
        let (tensor, shape) = (tensor.clone(), tensor.dims());
        (name, Flat { name, tensor, shape, wrong: &wrong })
    });
    // The safetensors crate makes its files private; this function sets the usual permissions.
    write_atomically(path, |file| {
        safetensors::serialize_to_file(views, None, file).map_err(std::io::Error::other)
    })?;
    Ok(wrong.into_inner())
}

pub(super) fn checksum(path: &Path) -> Result<u32, TrainError> {
    let mut file = File::open(path).map_err(TrainError::io(path))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(TrainError::io(path))? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Flat tensors that a checkpoint holds in one file, or in one file per rank with the ranks' slices of each.
pub(super) struct Stored {
    files: Vec<(PathBuf, Checkpoint)>,
    /// Elements of each whole tensor.
    pub(super) lengths: BTreeMap<String, usize>,
}

impl Stored {
    /// Opens the files of one kind of tensors, in the order of the ranks that wrote them.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or holds a tensor that is not flat and f32.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, TrainError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut lengths = BTreeMap::new();
        for path in paths {
            let checkpoint = Checkpoint::open(path)?;
            for (key, tensor) in checkpoint.tensors() {
                let (&[length], Some(DType::F32)) = (tensor.shape(), tensor.dtype()) else {
                    let reason = format!("'{key}' is not a flat f32 tensor");
                    return Err(TrainError::state(path, reason));
                };
                *lengths.entry(key.clone()).or_insert(0) += length;
            }
            files.push((path.clone(), checkpoint));
        }
        Ok(Self { files, lengths })
    }

    /// Returns the first file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// Returns the elements `range` of a tensor.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or its slice is not that of its rank.
    pub(super) fn read(
        &self,
        key: &str,
        range: Range<usize>,
        device: &Device,
    ) -> Result<Tensor<1>, TrainError> {
        let length = self.lengths.get(key).copied().unwrap_or(0);
        let mut values: Vec<f32> = Vec::with_capacity(range.len());
        for (rank, (path, file)) in self.files.iter().enumerate() {
            let held = slice(length, rank, self.files.len());
            let (from, to) = (range.start.max(held.start), range.end.min(held.end));
            if from >= to {
                continue;
            }
            let tensors = file.tensors();
            let Some(tensor) = tensors.get(key).filter(|tensor| tensor.shape() == [held.len()])
            else {
                let reason = format!("no slice {held:?} of '{key}'");
                return Err(TrainError::state(path, reason));
            };
            let data = tensor.read(key)?;
            let wanted = from - held.start..to - held.start;
            match data.as_slice::<f32>() {
                Ok(found) => values.extend_from_slice(&found[wanted]),
                Err(_) => values.extend(data.iter::<f32>().skip(wanted.start).take(wanted.len())),
            }
        }
        let data = TensorData::new(values, [range.len()]);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }
}
