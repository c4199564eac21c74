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
//!
//! Ranks that divide the state (ZeRO) write one file of each kind per rank, with the rank's slices of every
//! tensor: `values-00000-of-00004.safetensors`. Any number of ranks can resume from either kind of checkpoint;
//! all of them need the run's folder.

mod tensors;

use crate::{
    error::TrainError,
    observer::{CheckpointDamaged, Observer},
    parameters::FlatTensors,
    ranks::Ranks,
    trainer::Trainer,
};
use burn::{module::Module, optim::AdaptiveMomentumState, tensor::Device};
use opensora_checkpoint::CheckpointError;
use opensora_files::{AtomicFolder, Existing, remove_folder, remove_leftovers};
use opensora_parallel::gather_bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};
use tensors::{Stored, Wrong, checksum, write_tensors};

/// Format of whole tensors, and of slices.
const WHOLE: u32 = 1;
const SLICES: u32 = 2;
/// Limit of the ranks that a checkpoint names: a damaged one may name any number.
const MAX_RANKS: usize = 1 << 16;
const VALUES: &str = "values";
const AVERAGE: &str = "average";
const OPTIMIZER: &str = "optimizer";
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
    /// Number of ranks that wrote slices; `None` for whole tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slices: Option<usize>,
}

impl State {
    /// Returns the files of one kind of tensors in the folder of the checkpoint.
    fn paths(&self, folder: &Path, kind: &str) -> Vec<PathBuf> {
        let ranks = self.slices.unwrap_or(1);
        let name = |rank| file_name(kind, self.slices.map(|ranks| (rank, ranks)));
        (0..ranks).map(|rank| folder.join(name(rank))).collect()
    }
}

/// The tensors of a checkpoint that this rank holds.
struct Loaded {
    progress: Progress,
    values: FlatTensors,
    average: FlatTensors,
    moments: Vec<(String, AdaptiveMomentumState<1>)>,
}

/// Returns the name of a file of tensors, or of the slices of a rank of several.
fn file_name(kind: &str, slices: Option<(usize, usize)>) -> String {
    match slices {
        Some((rank, ranks)) => format!("{kind}-{rank:05}-of-{ranks:05}.safetensors"),
        None => format!("{kind}.safetensors"),
    }
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
    /// Returns an error if the folder or a checkpoint exists and cannot be examined.
    pub fn complete(&self) -> Result<Vec<PathBuf>, TrainError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TrainError::io(&self.folder))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(TrainError::io(&self.folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let step = name.as_deref().and_then(|name| name.strip_prefix("step-"));
            if let Some(Ok(step)) = step.map(str::parse::<u64>)
                && exists(&path.join(MARK))?
            {
                found.push((step, path));
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// Writes a checkpoint, removes the oldest ones beyond the number to keep, and returns its folder. A
    /// collective: ranks write their slices of the state, and rank 0 completes the folder.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written, such as for a full disk, or a value is not
    /// finite. Earlier checkpoints are kept.
    pub fn save<M: Module>(
        &self,
        trainer: &Trainer<M>,
        progress: &Progress,
    ) -> Result<PathBuf, TrainError> {
        let ranks = trainer.ranks();
        let path = self.folder.join(format!("step-{:08}", progress.step));
        if ranks.any(ranks.is_main() && path.join(MARK).exists()) {
            // The same step of the same run has the same contents.
            return Ok(path);
        }
        let building = ranks.on_main(|| self.begin(&path))?;
        let name = building.as_ref().and_then(|building| building.temporary_path().file_name());
        let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let names = gather_bytes(&**ranks.world(), name.as_bytes());
        let folder = match &building {
            Some(building) => building.temporary_path().to_path_buf(),
            None => self.folder.join(&*String::from_utf8_lossy(&names[0])),
        };
        // Without ZeRO, every rank has the same state.
        let writes = ranks.is_main() || trainer.is_divided();
        let step = progress.step;
        let files = if writes { write(trainer, step, &folder) } else { Ok(BTreeMap::new()) };
        let files = all_files(&ranks, &ranks.agree(files)?)?;
        ranks.on_main(|| {
            let slices = trainer.is_divided().then(|| ranks.world().size());
            let state = State {
                format: if slices.is_some() { SLICES } else { WHOLE },
                progress: *progress,
                updates: trainer.moments().map(|(name, s)| (name.clone(), s.time)).collect(),
                files,
                slices,
            };
            write_mark(&folder.join(MARK), &state)?;
            match building {
                Some(building) => self.complete_one(&path, building),
                None => Ok(()),
            }
        })?;
        Ok(path)
    }

    /// Creates the temporary folder of a checkpoint.
    fn begin(&self, path: &Path) -> Result<AtomicFolder, TrainError> {
        fs::create_dir_all(&self.folder).map_err(TrainError::io(&self.folder))?;
        self.remove_leftovers()?;
        AtomicFolder::create(path, Existing::Replace).map_err(TrainError::io(path))
    }

    /// Gives a checkpoint its name, and removes the oldest ones.
    fn complete_one(&self, path: &Path, building: AtomicFolder) -> Result<(), TrainError> {
        remove(path)?;
        building.commit().map_err(TrainError::io(path))?;
        for old in self.complete()?.into_iter().skip(self.keep) {
            // Renamed first, so that a partly removed folder is not a checkpoint and is removed later.
            remove_folder(&old).map_err(TrainError::io(&old))?;
        }
        Ok(())
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
    /// Returns the error of the newest checkpoint if all are damaged. Returns errors of the system at once, since the
    /// checkpoint may be intact: permissions, a network file system, or too many open files.
    pub fn load_newest<M: Module>(
        &self,
        trainer: &mut Trainer<M>,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<Option<Progress>, TrainError> {
        let ranks = trainer.ranks();
        let mut damaged: Vec<(PathBuf, TrainError)> = Vec::new();
        for path in self.complete_on(&ranks)? {
            match Self::try_load(&path, trainer, &ranks, device)? {
                Ok(progress) => {
                    ranks.on_main(|| {
                        for (path, error) in &damaged {
                            let moved_to = &set_aside(path)?;
                            observer.checkpoint_damaged(&CheckpointDamaged { error, moved_to });
                        }
                        Ok(())
                    })?;
                    return Ok(Some(progress));
                }
                Err(error) => damaged.push((path, error)),
            }
        }
        damaged.into_iter().next().map_or(Ok(None), |(_, error)| Err(error))
    }

    /// Returns the complete checkpoints that rank 0 finds, on all ranks. A collective.
    fn complete_on(&self, ranks: &Ranks) -> Result<Vec<PathBuf>, TrainError> {
        let found = ranks.on_main(|| self.complete())?;
        let names = found.iter().flatten().filter_map(|path| path.file_name());
        let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        let names = gather_bytes(&**ranks.world(), names.join("\n").as_bytes());
        let names = String::from_utf8_lossy(&names[0]).into_owned();
        Ok(names.lines().map(|name| self.folder.join(name)).collect())
    }

    /// Loads the checkpoint at `path` into `trainer`: this rank's slices of it with ZeRO. A collective.
    ///
    /// # Errors
    /// Returns an error if a file is missing, damaged, or of another model or recipe.
    pub fn load<M: Module>(
        path: &Path,
        trainer: &mut Trainer<M>,
        device: &Device,
    ) -> Result<Progress, TrainError> {
        let ranks = trainer.ranks();
        Self::try_load(path, trainer, &ranks, device)?
    }

    /// Loads like [`load`](Self::load). Returns the error of a damaged checkpoint inside `Ok`, any other as `Err`.
    fn try_load<M: Module>(
        path: &Path,
        trainer: &mut Trainer<M>,
        ranks: &Ranks,
        device: &Device,
    ) -> Result<Result<Progress, TrainError>, TrainError> {
        let read = read_checkpoint(path, trainer, ranks, device);
        let may_be_intact = ranks.any(read.as_ref().is_err_and(is_of_system));
        match ranks.agree(read) {
            Ok(Loaded { progress, values, average, moments }) => {
                trainer.restore(progress.step, values, average, moments);
                Ok(Ok(progress))
            }
            Err(error) if may_be_intact => Err(error),
            Err(error) => Ok(Err(error)),
        }
    }
}

/// Returns true for an error of the operating system, after which the file may be intact.
fn is_of_system(error: &TrainError) -> bool {
    let source = match error {
        TrainError::Io { source, .. } => source,
        TrainError::Checkpoint(CheckpointError::Open { source, .. }) => source,
        _ => return false,
    };
    // ENFILE and EMFILE, which have no kind.
    let too_many_files = cfg!(unix) && matches!(source.raw_os_error(), Some(23 | 24));
    let kind = source.kind();
    let is_temporary = matches!(
        kind,
        ErrorKind::PermissionDenied
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::TimedOut
            | ErrorKind::OutOfMemory
    );
    too_many_files || is_temporary
}

/// Reads what this rank holds of the checkpoint at `path`.
fn read_checkpoint<M: Module>(
    path: &Path,
    trainer: &Trainer<M>,
    ranks: &Ranks,
    device: &Device,
) -> Result<Loaded, TrainError> {
    let mark = path.join(MARK);
    let text = fs::read(&mark).map_err(TrainError::io(&mark))?;
    let state: State =
        serde_json::from_slice(&text).map_err(malformed(&mark, "not the state of a run"))?;
    if !matches!((state.format, state.slices), (WHOLE, None) | (SLICES, Some(1..=MAX_RANKS))) {
        let reason = format!("format {}, expected {WHOLE} or {SLICES}", state.format);
        return Err(TrainError::state(&mark, reason));
    }
    let kinds = [VALUES, AVERAGE, OPTIMIZER].map(|kind| state.paths(path, kind));
    // Each rank checks some of the files.
    let share = kinds.iter().flatten().skip(ranks.world().rank()).step_by(ranks.world().size());
    for file in share {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        let expected = name.and_then(|name| state.files.get(&name).copied());
        if expected != Some(checksum(file)?) {
            return Err(TrainError::state(file, "damaged: the checksum differs"));
        }
    }
    let [values, average, moments] = kinds;
    let (lengths, trainable) = (trainer.lengths(), trainer.trainable());
    let trained = lengths.iter().filter(|(name, _)| trainable.contains(*name));
    let trained = trained.map(|(name, length)| (name.clone(), *length)).collect();
    let values = read_own(&values, "parameters", &lengths, trainer, device)?;
    let average = read_own(&average, "averages", &trained, trainer, device)?;
    let stored = Stored::open(&moments)?;
    let mut moments = Vec::with_capacity(state.updates.len());
    for (name, time) in state.updates {
        let length = lengths.get(&name).copied();
        let read = |prefix: &str| {
            let key = format!("{prefix}.{name}");
            match stored.lengths.get(&key).copied() {
                Some(found) if Some(found) == length => {
                    stored.read(&key, trainer.own(found), device)
                }
                _ => Err(TrainError::state(stored.path(), format!("no {key} that fits"))),
            }
        };
        if trainer.own(length.unwrap_or(1)).is_empty() {
            continue;
        }
        let (moment_1, moment_2) = (read("m")?, read("v")?);
        let momentum = AdaptiveMomentumState { time, moment_1, moment_2, max_moment_2: None };
        moments.push((name, momentum));
    }
    Ok(Loaded { progress: state.progress, values, average, moments })
}

/// Reads what this rank holds of the tensors of some files, which must be those of `expected` lengths.
fn read_own<M: Module>(
    files: &[PathBuf],
    what: &str,
    expected: &BTreeMap<String, usize>,
    trainer: &Trainer<M>,
    device: &Device,
) -> Result<FlatTensors, TrainError> {
    let stored = Stored::open(files)?;
    check_shapes(what, &stored, expected)?;
    let own = |length: usize| -> Range<usize> { trainer.own(length) };
    let held =
        expected.iter().filter(|(_, length)| !trainer.is_divided() || !own(**length).is_empty());
    held.map(|(name, length)| Ok((name.clone(), stored.read(name, own(*length), device)?)))
        .collect()
}

/// Writes the tensors that this rank holds into `folder`. Returns the checksums of the files.
fn write<M: Module>(
    trainer: &Trainer<M>,
    step: u64,
    folder: &Path,
) -> Result<BTreeMap<String, u32>, TrainError> {
    let mut moments = FlatTensors::new();
    for (name, state) in trainer.moments() {
        moments.insert(format!("m.{name}"), state.moment_1.clone());
        moments.insert(format!("v.{name}"), state.moment_2.clone());
    }
    let world = trainer.ranks().world().clone();
    let slices = trainer.is_divided().then(|| (world.rank(), world.size()));
    let mut files = BTreeMap::new();
    for (kind, tensors) in
        [(VALUES, trainer.held_values()), (AVERAGE, trainer.held_average()), (OPTIMIZER, &moments)]
    {
        let name = file_name(kind, slices);
        let path = folder.join(&name);
        match write_tensors(tensors, &path).map_err(TrainError::io(&path))? {
            None => {}
            Some(Wrong::Unread(error)) => return Err(error.into()),
            Some(Wrong::NotFinite(tensor)) => {
                let tensor = format!("{tensor} of {name}");
                return Err(TrainError::Exploded { step, tensor });
            }
        }
        files.insert(name, checksum(&path)?);
    }
    Ok(files)
}

/// Returns the checksums of the files of all ranks. A collective.
fn all_files(
    ranks: &Ranks,
    own: &BTreeMap<String, u32>,
) -> Result<BTreeMap<String, u32>, TrainError> {
    let own = serde_json::to_vec(own).map_err(TrainError::other)?;
    let mut all = BTreeMap::new();
    for files in gather_bytes(&**ranks.world(), &own) {
        let files: BTreeMap<String, u32> =
            serde_json::from_slice(&files).map_err(TrainError::other)?;
        all.extend(files);
    }
    Ok(all)
}

/// Writes the mark of a complete checkpoint.
fn write_mark(path: &Path, state: &State) -> Result<(), TrainError> {
    let text = serde_json::to_vec_pretty(state)
        .map_err(malformed(path, "cannot write the state as JSON"))?;
    fs::write(path, text).map_err(TrainError::io(path))
}

/// Returns a function that makes an error of a JSON file at `path`.
fn malformed(path: &Path, reason: &str) -> impl FnOnce(serde_json::Error) -> TrainError {
    let (path, reason) = (path.to_path_buf(), reason.to_string());
    move |source| TrainError::State { path, reason, source: Some(source) }
}

/// Returns an error if names or lengths of the stored tensors are not those of the model.
fn check_shapes(
    what: &str,
    stored: &Stored,
    expected: &BTreeMap<String, usize>,
) -> Result<(), TrainError> {
    if stored.lengths == *expected {
        return Ok(());
    }
    let (found, expected) = (stored.lengths.len(), expected.len());
    let reason = format!("its {found} {what} are not the {expected} of this recipe's model");
    Err(TrainError::state(stored.path(), reason))
}

/// Returns true if there is a file at `path`. An error of the system does not mean that there is none.
fn exists(path: &Path) -> Result<bool, TrainError> {
    match path.try_exists() {
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(false),
        found => found.map_err(TrainError::io(path)),
    }
}

/// Removes a folder with its contents, if it exists.
fn remove(folder: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(TrainError::io(folder)(error)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn errors_of_the_system_do_not_make_a_checkpoint_damaged() {
        let path = Path::new("step-00000005");
        let of = |source: io::Error| TrainError::io(path)(source);
        assert!(is_of_system(&of(ErrorKind::PermissionDenied.into())));
        #[cfg(unix)]
        assert!(is_of_system(&of(io::Error::from_raw_os_error(24))));
        let source = ErrorKind::StaleNetworkFileHandle.into();
        assert!(is_of_system(&CheckpointError::Open { path: path.into(), source }.into()));
        assert!(!is_of_system(&of(ErrorKind::NotFound.into())));
        assert!(!is_of_system(&of(ErrorKind::UnexpectedEof.into())));
        assert!(!is_of_system(&TrainError::state(path, "damaged")));
    }
}
