//! Checkpoints of a run: written whole or not at all, found again, gone on from.
//!
//! ```text
//! RUN/checkpoints/step-00000200/
//!   values.safetensors     all parameters, f32
//!   average.safetensors    their moving average
//!   optimizer.safetensors  first and second moments, `m.NAME` and `v.NAME`
//!   state.json             step, place in the data, checksums: written last, the mark of completeness
//! ```
//!
//! A checkpoint is built in a hidden folder, brought to the disk and renamed, so a process that
//! is killed at any moment leaves the last good one. There is no random state to keep: every draw
//! is named by the seed and the sample's place in the data.

use crate::{error::TrainError, parameters::FlatTensors, trainer::Trainer};
use burn::{
    module::Module,
    optim::AdaptiveMomentumState,
    tensor::{DType, Device, Tensor},
};
use opensora_checkpoint::Checkpoint;
use opensora_files::sync_folder;
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;
const VALUES: &str = "values.safetensors";
const AVERAGE: &str = "average.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const MARK: &str = "state.json";

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// The next slot of the data's order.
    pub next_slot: u64,
    /// Samples seen.
    pub samples: u64,
    /// Seconds of work, over all resumes.
    pub seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    progress: Progress,
    /// Updates that each parameter's moments have seen.
    updates: BTreeMap<String, usize>,
    /// CRC-32 of each file.
    files: BTreeMap<String, u32>,
}

/// The folder of a run's checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Checkpoints of the run in `run`, of which the newest `keep` (at least one) are kept.
    pub fn new(run: &Path, keep: usize) -> Self {
        Self { folder: run.join("checkpoints"), keep: keep.max(1) }
    }

    /// Complete checkpoints, the newest first.
    ///
    /// # Errors
    /// Where the folder is there and cannot be listed.
    pub fn complete(&self) -> Result<Vec<PathBuf>, TrainError> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(TrainError::io(&self.folder))? {
            let path = entry.map_err(TrainError::io(&self.folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let step = name.as_deref().and_then(|name| name.strip_prefix("step-"));
            if let Some(Ok(step)) = step.map(str::parse::<u64>)
                && path.join(MARK).exists()
            {
                found.push((step, path));
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// Writes a checkpoint and removes those that are too many.
    ///
    /// # Errors
    /// Where it cannot be written, a full disk above all: what was there before stays.
    pub fn save<M: Module>(
        &self,
        trainer: &Trainer<M>,
        progress: &Progress,
    ) -> Result<PathBuf, TrainError> {
        let name = format!("step-{:08}", progress.step);
        let path = self.folder.join(&name);
        if path.join(MARK).exists() {
            // The same step of the same run: the same content.
            return Ok(path);
        }
        let building = self.folder.join(format!(".{name}.partial"));
        remove(&building)?;
        fs::create_dir_all(&building).map_err(TrainError::io(&building))?;
        let written = self.write(trainer, progress, &building).and_then(|()| {
            remove(&path)?;
            fs::rename(&building, &path).map_err(TrainError::io(&path))?;
            sync_folder(&path).map_err(TrainError::io(&path))
        });
        if let Err(error) = written {
            // Makes room on a full disk; the first error is the one that matters.
            let _ = fs::remove_dir_all(&building);
            return Err(error);
        }
        for old in self.complete()?.into_iter().skip(self.keep) {
            // The mark first: a folder that is half removed is not a checkpoint.
            fs::remove_file(old.join(MARK)).map_err(TrainError::io(&old))?;
            remove(&old)?;
        }
        Ok(path)
    }

    fn write<M: Module>(
        &self,
        trainer: &Trainer<M>,
        progress: &Progress,
        folder: &Path,
    ) -> Result<(), TrainError> {
        let mut moments = FlatTensors::new();
        let mut updates = BTreeMap::new();
        for (name, state) in trainer.moments() {
            moments.insert(format!("m.{name}"), state.moment_1.clone());
            moments.insert(format!("v.{name}"), state.moment_2.clone());
            updates.insert(name.clone(), state.time);
        }
        let mut files = BTreeMap::new();
        for (name, tensors) in
            [(VALUES, trainer.values()), (AVERAGE, trainer.average()), (OPTIMIZER, &moments)]
        {
            let path = folder.join(name);
            write_tensors(tensors, &path).map_err(TrainError::io(&path))?;
            files.insert(name.to_string(), checksum(&path)?);
        }
        let state = State { format: FORMAT, progress: *progress, updates, files };
        let path = folder.join(MARK);
        let text = serde_json::to_vec_pretty(&state)
            .map_err(|error| TrainError::State { path: path.clone(), reason: error.to_string() })?;
        fs::write(&path, text)
            .and_then(|()| File::open(&path)?.sync_all())
            .and_then(|()| sync_folder(&path))
            .map_err(TrainError::io(&path))
    }

    /// Puts the checkpoint at `path` into `trainer`.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or of another model or recipe.
    pub fn load<M: Module>(
        path: &Path,
        trainer: &mut Trainer<M>,
        device: &Device,
    ) -> Result<Progress, TrainError> {
        let mark = path.join(MARK);
        let bad = |path: &Path, reason: String| TrainError::State { path: path.into(), reason };
        let text = fs::read(&mark).map_err(TrainError::io(&mark))?;
        let state: State =
            serde_json::from_slice(&text).map_err(|error| bad(&mark, error.to_string()))?;
        if state.format != FORMAT {
            return Err(bad(&mark, format!("format {}, expected {FORMAT}", state.format)));
        }
        let read = |name: &str| -> Result<FlatTensors, TrainError> {
            let file = path.join(name);
            let (found, expected) = (checksum(&file)?, state.files.get(name));
            if expected != Some(&found) {
                return Err(bad(&file, "damaged: the checksum is another one".into()));
            }
            let checkpoint = Checkpoint::open(&file)?;
            let tensors = checkpoint.tensors().iter().map(|(key, tensor)| {
                let flat = tensor.shape().len() == 1 && tensor.dtype() == Some(DType::F32);
                if !flat {
                    return Err(bad(&file, format!("'{key}' is not a flat f32 tensor")));
                }
                Ok((key.clone(), Tensor::<1>::from_data(tensor.read(key)?, device)))
            });
            tensors.collect()
        };
        let (values, average, mut moments) = (read(VALUES)?, read(AVERAGE)?, read(OPTIMIZER)?);
        for (what, file, found, expected) in [
            ("parameters", VALUES, &values, trainer.values()),
            ("averages", AVERAGE, &average, trainer.average()),
        ] {
            let shapes = |tensors: &FlatTensors| -> Vec<(String, usize)> {
                tensors.iter().map(|(n, t)| (n.clone(), t.dims()[0])).collect()
            };
            if shapes(found) != shapes(expected) {
                let reason = format!(
                    "its {} {what} are not the {} of this recipe's model",
                    found.len(),
                    expected.len()
                );
                return Err(bad(&path.join(file), reason));
            }
        }
        let mut restored = Vec::with_capacity(state.updates.len());
        for (name, time) in state.updates {
            let length = trainer.values().get(&name).map(|value| value.dims()[0]);
            let mut take = |prefix: &str| {
                moments
                    .remove(&format!("{prefix}.{name}"))
                    .filter(|tensor| Some(tensor.dims()[0]) == length)
                    .ok_or_else(|| {
                        bad(&path.join(OPTIMIZER), format!("no {prefix}.{name} that fits"))
                    })
            };
            let (moment_1, moment_2) = (take("m")?, take("v")?);
            let momentum = AdaptiveMomentumState { time, moment_1, moment_2, max_moment_2: None };
            restored.push((name, momentum));
        }
        trainer.restore(state.progress.step, values, average, restored);
        Ok(state.progress)
    }
}

/// Removes a folder with its content, if it is there.
fn remove(folder: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::io(folder)(error))
        }
        _ => Ok(()),
    }
}

/// A flat tensor as the safetensors crate wants to see it.
struct Flat {
    tensor: Tensor<1>,
    shape: [usize; 1],
}

impl View for Flat {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.tensor.to_data().into_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        4 * self.shape[0]
    }
}

fn write_tensors(tensors: &FlatTensors, path: &Path) -> std::io::Result<()> {
    let views: Vec<(String, Flat)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (tensor, shape) = (tensor.clone(), tensor.dims());
            (name.clone(), Flat { tensor, shape })
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).map_err(std::io::Error::other)?;
    File::open(path)?.sync_all()
}

fn checksum(path: &Path) -> Result<u32, TrainError> {
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
