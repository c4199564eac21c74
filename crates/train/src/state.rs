//! Checkpoints of a run: saving, listing and resuming.
//!
//! ```text
//! RUN/checkpoints/step-00000200/
//!   values.safetensors     all parameters, f32
//!   average.safetensors    their moving average
//!   optimizer.safetensors  first and second moments, `m.NAME` and `v.NAME`
//!   state.json             step, position in the data, checksums: written last, marks a complete checkpoint
//! RUN/checkpoints/step-00000200.damaged/   renamed by a resume that skipped it
//! ```
//!
//! A checkpoint is built in a temporary folder, synced and renamed, so that a killed process leaves
//! the last complete checkpoint intact. Values that are not finite are never saved. There is no
//! random state to save: every draw is keyed by the seed and the sample's position in the data.

use crate::{
    error::TrainError,
    observer::{CheckpointDamaged, Observer},
    parameters::FlatTensors,
    trainer::Trainer,
};
use burn::{
    module::Module,
    optim::AdaptiveMomentumState,
    tensor::{DType, Device, Tensor},
};
use opensora_checkpoint::Checkpoint;
use opensora_files::{AtomicFolder, Existing, remove_leftovers, write_atomically};
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

/// Progress of a run: steps, samples, seconds and position in the data.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Next slot of the data's order.
    pub next_slot: u64,
    /// Samples so far.
    pub samples: u64,
    /// Seconds of training, over all resumes.
    pub seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    progress: Progress,
    /// Number of updates of each parameter's moments.
    updates: BTreeMap<String, usize>,
    /// CRC-32 of each file.
    files: BTreeMap<String, u32>,
}

/// Reads and writes the checkpoints in a run's folder.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Returns the checkpoints of the run in `run`, of which the newest `keep` (at least one) are kept.
    pub fn new(run: &Path, keep: usize) -> Self {
        Self { folder: run.join("checkpoints"), keep: keep.max(1) }
    }

    /// Returns complete checkpoints, the newest first.
    ///
    /// # Errors
    /// Returns an error if the folder exists and cannot be listed.
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

    /// Writes a checkpoint, removes the oldest ones beyond the number to keep, and returns its folder.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written, such as for a full disk, or a value is not
    /// finite. Earlier checkpoints are kept.
    pub fn save<M: Module>(
        &self,
        trainer: &Trainer<M>,
        progress: &Progress,
    ) -> Result<PathBuf, TrainError> {
        let name = format!("step-{:08}", progress.step);
        let path = self.folder.join(&name);
        if path.join(MARK).exists() {
            // The same step of the same run has the same contents.
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
            // The mark first, so that a partly removed folder is not a checkpoint.
            fs::remove_file(old.join(MARK)).map_err(TrainError::io(&old))?;
            remove(&old)?;
        }
        Ok(path)
    }

    /// Removes temporary folders of killed processes, also under the names of earlier versions. Only one
    /// process at a time trains in a folder, so none of them is in use.
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

    /// Loads the newest undamaged checkpoint into `trainer`. Returns `None` if there are no
    /// checkpoints. Newer damaged ones are renamed to `step-....damaged` and reported to
    /// `observer`.
    ///
    /// # Errors
    /// Returns the error of the newest checkpoint if all are damaged.
    pub fn load_newest<M: Module>(
        &self,
        trainer: &mut Trainer<M>,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<Option<Progress>, TrainError> {
        let mut damaged: Vec<(PathBuf, TrainError)> = Vec::new();
        for path in self.complete()? {
            match Self::load(&path, trainer, device) {
                Ok(progress) => {
                    for (path, error) in &damaged {
                        let moved_to = &set_aside(path)?;
                        observer.checkpoint_damaged(&CheckpointDamaged { error, moved_to });
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
            .map_err(malformed(&path, "cannot write the state as JSON"))?;
        fs::write(&path, text).map_err(TrainError::io(&path))
    }

    /// Loads the checkpoint at `path` into `trainer`.
    ///
    /// # Errors
    /// Returns an error if a file is missing, damaged, or of another model or recipe.
    pub fn load<M: Module>(
        path: &Path,
        trainer: &mut Trainer<M>,
        device: &Device,
    ) -> Result<Progress, TrainError> {
        let mark = path.join(MARK);
        let text = fs::read(&mark).map_err(TrainError::io(&mark))?;
        let state: State =
            serde_json::from_slice(&text).map_err(malformed(&mark, "not the state of a run"))?;
        if state.format != FORMAT {
            let reason = format!("format {}, expected {FORMAT}", state.format);
            return Err(TrainError::state(&mark, reason));
        }
        let read = |name: &str| read_tensors(&path.join(name), state.files.get(name), device);
        let (values, average, mut moments) = (read(VALUES)?, read(AVERAGE)?, read(OPTIMIZER)?);
        check_shapes("parameters", &path.join(VALUES), &values, trainer.values())?;
        check_shapes("averages", &path.join(AVERAGE), &average, trainer.average())?;
        let mut restored = Vec::with_capacity(state.updates.len());
        for (name, time) in state.updates {
            let length = trainer.values().get(&name).map(|value| value.dims()[0]);
            let mut take = |prefix: &str| {
                moments
                    .remove(&format!("{prefix}.{name}"))
                    .filter(|tensor| Some(tensor.dims()[0]) == length)
                    .ok_or_else(|| {
                        let reason = format!("no {prefix}.{name} that fits");
                        TrainError::state(path.join(OPTIMIZER), reason)
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

/// Returns a function that makes an error of a JSON file at `path`.
fn malformed(path: &Path, reason: &str) -> impl FnOnce(serde_json::Error) -> TrainError {
    let (path, reason) = (path.to_path_buf(), reason.to_string());
    move |source| TrainError::State { path, reason, source: Some(source) }
}

/// Reads flat f32 tensors from a file of this checksum.
fn read_tensors(
    file: &Path,
    expected: Option<&u32>,
    device: &Device,
) -> Result<FlatTensors, TrainError> {
    if expected != Some(&checksum(file)?) {
        return Err(TrainError::state(file, "damaged: the checksum differs"));
    }
    let checkpoint = Checkpoint::open(file)?;
    let tensors = checkpoint.tensors().iter().map(|(key, tensor)| {
        let flat = tensor.shape().len() == 1 && tensor.dtype() == Some(DType::F32);
        if !flat {
            return Err(TrainError::state(file, format!("'{key}' is not a flat f32 tensor")));
        }
        Ok((key.clone(), Tensor::<1>::from_data(tensor.read(key)?, device)))
    });
    tensors.collect()
}

/// Returns an error if names or lengths of the tensors of a file are not those of the model.
fn check_shapes(
    what: &str,
    file: &Path,
    found: &FlatTensors,
    expected: &FlatTensors,
) -> Result<(), TrainError> {
    let shape = |(name, tensor): (&String, &Tensor<1>)| (name.clone(), tensor.dims()[0]);
    if found.iter().map(shape).eq(expected.iter().map(shape)) {
        return Ok(());
    }
    let (found, expected) = (found.len(), expected.len());
    let reason = format!("its {found} {what} are not the {expected} of this recipe's model");
    Err(TrainError::state(file, reason))
}

/// Removes a folder with its contents, if it exists.
fn remove(folder: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::io(folder)(error))
        }
        _ => Ok(()),
    }
}

/// Renames a damaged checkpoint, so that the run does not resume from it and can write a new one at
/// its step.
fn set_aside(path: &Path) -> Result<PathBuf, TrainError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    let aside = PathBuf::from(name);
    remove(&aside)?;
    fs::rename(path, &aside).map_err(TrainError::io(path))?;
    Ok(aside)
}

/// A flat tensor for the safetensors crate, checked while it is written.
struct Flat<'a> {
    name: &'a str,
    tensor: Tensor<1>,
    shape: [usize; 1],
    /// The problem of the first bad tensor.
    wrong: &'a RefCell<Option<Wrong>>,
}

/// A problem that keeps a tensor out of a checkpoint.
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
fn write_tensors(tensors: &FlatTensors, path: &Path) -> std::io::Result<Option<Wrong>> {
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
