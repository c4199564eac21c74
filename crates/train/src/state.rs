//! Checkpoints of a run: written whole or not at all, found again, resumed from.
//!
//! ```text
//! RUN/checkpoints/step-00000200/
//!   values.safetensors     all parameters, f32
//!   average.safetensors    their moving average
//!   optimizer.safetensors  first and second moments, `m.NAME` and `v.NAME`
//!   state.json             step, place in the data, checksums: written last, the mark of completeness
//! RUN/checkpoints/step-00000200.damaged/   set aside by a resume that fell back over it
//! ```
//!
//! A checkpoint is built in a temporary folder, synced and renamed, so a process that is killed at
//! any moment leaves the last good one. Values that are not finite are never saved. There is no
//! random state to keep: every draw is keyed by the seed and the sample's place in the data.

use crate::{error::TrainError, parameters::FlatTensors, trainer::Trainer};
use burn::{
    module::Module,
    optim::AdaptiveMomentumState,
    tensor::{DType, Device, Tensor},
};
use opensora_checkpoint::Checkpoint;
use opensora_files::{AtomicFolder, Existing, one_line, remove_leftovers, write_atomically};
use opensora_nn::read::{ReadError, read};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
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
    /// Returns an error if it cannot be written, for a full disk above all, or a value is not
    /// finite. The checkpoints before it stay.
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
        fs::create_dir_all(&self.folder).map_err(TrainError::io(&self.folder))?;
        self.remove_leftovers()?;
        let building =
            AtomicFolder::create(&path, Existing::Replace).map_err(TrainError::io(&path))?;
        self.write(trainer, progress, building.temporary_path())?;
        remove(&path)?;
        building.commit().map_err(TrainError::io(&path))?;
        for old in self.complete()?.into_iter().skip(self.keep) {
            // The mark first: a folder that is half removed is not a checkpoint.
            fs::remove_file(old.join(MARK)).map_err(TrainError::io(&old))?;
            remove(&old)?;
        }
        Ok(path)
    }

    /// Removes what killed processes left, also under the names of earlier versions. Only one
    /// process at a time trains in a folder, so none of it is in use.
    fn remove_leftovers(&self) -> Result<(), TrainError> {
        let io = || TrainError::io(&self.folder);
        remove_leftovers(&self.folder, Duration::ZERO).map_err(io())?;
        for entry in fs::read_dir(&self.folder).map_err(io())? {
            let entry = entry.map_err(io())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".step-") && name.ends_with(".partial") {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Puts the newest whole checkpoint into `trainer`, or does nothing if there are none. Damaged
    /// ones that are newer are renamed to `step-....damaged`, and `tell` is told.
    ///
    /// # Errors
    /// Returns the newest checkpoint's error if none is whole.
    pub fn load_newest<M: Module>(
        &self,
        trainer: &mut Trainer<M>,
        device: &Device,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Option<Progress>, TrainError> {
        let mut damaged: Vec<(PathBuf, TrainError)> = Vec::new();
        for path in self.complete()? {
            match Self::load(&path, trainer, device) {
                Ok(progress) => {
                    for (path, error) in &damaged {
                        let aside = set_aside(path)?;
                        let aside = aside.display();
                        tell(&format!("checkpoint left out: {error}; it is now {aside}"));
                    }
                    return Ok(Some(progress));
                }
                Err(error) => damaged.push((path, error)),
            }
        }
        damaged.into_iter().next().map_or(Ok(None), |(_, error)| Err(error))
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
            match write_tensors(tensors, &path).map_err(TrainError::io(&path))? {
                None => {}
                Some(Wrong::Unread(error)) => return Err(error.into()),
                Some(Wrong::NotFinite(tensor)) => {
                    let tensor = format!("{tensor} of {name}");
                    return Err(TrainError::Exploded { step: progress.step, tensor });
                }
            }
            files.insert(name.to_string(), checksum(&path)?);
        }
        let state = State { format: FORMAT, progress: *progress, updates, files };
        let path = folder.join(MARK);
        let text = serde_json::to_vec_pretty(&state)
            .map_err(|error| TrainError::State { path: path.clone(), reason: error.to_string() })?;
        fs::write(&path, text).map_err(TrainError::io(&path))
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
            serde_json::from_slice(&text).map_err(|error| bad(&mark, one_line(error)))?;
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

/// Renames a damaged checkpoint, so that it is neither resumed from nor taken for the one that the
/// run will write at its step.
fn set_aside(path: &Path) -> Result<PathBuf, TrainError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    let aside = PathBuf::from(name);
    remove(&aside)?;
    fs::rename(path, &aside).map_err(TrainError::io(path))?;
    Ok(aside)
}

/// A flat tensor as the safetensors crate wants to see it, looked through while it is written.
struct Flat<'a> {
    name: &'a str,
    tensor: Tensor<1>,
    shape: [usize; 1],
    /// What is wrong with the first tensor that cannot be written.
    wrong: &'a RefCell<Option<Wrong>>,
}

/// Why a tensor cannot be part of a checkpoint.
enum Wrong {
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
        // After a device failed, there is nothing more to fetch.
        let has_failed = matches!(*self.wrong.borrow(), Some(Wrong::Unread(_)));
        if has_failed {
            return Cow::Owned(vec![0; self.data_len()]);
        }
        let bytes = match read(self.tensor.clone()) {
            Ok(data) => data.into_bytes().to_vec(),
            Err(error) => {
                self.wrong.borrow_mut().get_or_insert(Wrong::Unread(error));
                // The file is thrown away; its writer wants as many bytes as it was told.
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

/// Writes tensors; returns what is wrong with them if they make no checkpoint.
fn write_tensors(tensors: &FlatTensors, path: &Path) -> std::io::Result<Option<Wrong>> {
    let wrong = RefCell::default();
    let views = tensors.iter().map(|(name, tensor)| {
        let (tensor, shape) = (tensor.clone(), tensor.dims());
        (name, Flat { name, tensor, shape, wrong: &wrong })
    });
    // The writer of safetensors makes its files private; through this one they get the usual rights.
    write_atomically(path, |file| {
        safetensors::serialize_to_file(views, None, file).map_err(std::io::Error::other)
    })?;
    Ok(wrong.into_inner())
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
