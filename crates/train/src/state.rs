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
    observer::{CheckpointDamaged, Observer, RemovalFailed},
    parameters::FlatTensors,
    ranks::Ranks,
    trainer::Trainer,
};
use burn::{module::Module, optim::AdaptiveMomentumState, tensor::Device};
use opensora_files::{AtomicFolder, Existing, remove_folder, remove_leftovers};
use opensora_parallel::gather_bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{self, ErrorKind},
    iter,
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
        Ok(self.complete_steps()?.into_iter().map(|(_, path)| path).collect())
    }

    /// Returns steps and folders of complete checkpoints, the newest first.
    fn complete_steps(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
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
        Ok(found)
    }

    /// Returns an error if there is a complete checkpoint of a later step than `step`, at which a run begins: a save at
    /// that later step would keep the checkpoint, which may be of another run.
    pub(crate) fn check_start(&self, step: u64) -> Result<(), TrainError> {
        match self.complete_steps()?.into_iter().next() {
            Some((newest, path)) if newest > step => {
                let reason = format!(
                    "a checkpoint of step {newest}, but the run begins at step {step}; resume from it, or \
                     choose another folder"
                );
                Err(TrainError::state(path, reason))
            }
            _ => Ok(()),
        }
    }

    /// Writes a checkpoint, removes the oldest ones beyond the number to keep, and returns its folder. A
    /// collective: ranks write their slices of the state, and rank 0 completes the folder.
    ///
    /// A removal that fails, such as of files that are open elsewhere on a network file system, is reported to
    /// `observer` and retried by the next call.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written, such as for a full disk, or a value is not
    /// finite. Earlier checkpoints are kept.
    pub fn save<M: Module>(
        &self,
        trainer: &Trainer<M>,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, TrainError> {
        let ranks = trainer.ranks();
        let path = self.folder.join(format!("step-{:08}", progress.step));
        if ranks.any(ranks.is_main() && path.join(MARK).exists()) {
            // The same step of the same run has the same contents.
            return Ok(path);
        }
        let building = ranks.on_main(|| self.begin(&path, observer))?;
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
                Some(building) => self.complete_one(&path, building, observer),
                None => Ok(()),
            }
        })?;
        Ok(path)
    }

    /// Creates the temporary folder of a checkpoint.
    fn begin(&self, path: &Path, observer: &mut dyn Observer) -> Result<AtomicFolder, TrainError> {
        fs::create_dir_all(&self.folder).map_err(TrainError::io(&self.folder))?;
        report(self.remove_leftovers(), observer);
        AtomicFolder::create(path, Existing::Replace).map_err(TrainError::io(path))
    }

    /// Gives a checkpoint its name, and removes the oldest ones.
    fn complete_one(
        &self,
        path: &Path,
        building: AtomicFolder,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        remove(path)?;
        building.commit().map_err(TrainError::io(path))?;
        report(self.remove_old(), observer);
        Ok(())
    }

    /// Removes the oldest checkpoints beyond the number to keep. Returns the first error after it has tried all.
    fn remove_old(&self) -> Result<(), TrainError> {
        let mut result = Ok(());
        for old in self.complete()?.into_iter().skip(self.keep) {
            // Renamed first, so that a partly removed folder is not a checkpoint and is removed later.
            result = result.and(remove_folder(&old).map_err(TrainError::io(&old)));
        }
        result
    }

    /// Removes temporary folders of killed processes, also under the names of earlier versions. Only one
    /// process at a time trains in a folder, so none of them is in use.
    fn remove_leftovers(&self) -> Result<(), TrainError> {
        let io = || TrainError::io(&self.folder);
        let mut result = remove_leftovers(&self.folder, Duration::ZERO).map_err(io());
        for entry in fs::read_dir(&self.folder).map_err(io())? {
            let entry = entry.map_err(io())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".step-") && name.ends_with(".partial") {
                result = result.and(remove(&entry.path()));
            }
        }
        result
    }

    /// Loads the newest undamaged checkpoint into `trainer`. Returns `None` if there are no
    /// checkpoints. Newer damaged ones are renamed to `step-....damaged` and reported to
    /// `observer`.
    ///
    /// # Errors
    /// Returns the error of the newest checkpoint if all are damaged. Returns errors of the system at once, since the
    /// checkpoint may be intact: permissions, a failed read of a disk or network file system, or too many open files.
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
    let first: &(dyn Error + 'static) = error;
    let found = iter::successors(Some(first), |&cause| cause.source())
        .find_map(|cause| cause.downcast_ref::<io::Error>());
    // These kinds mean damage: the file is missing, truncated, malformed or a folder, or an offset in it is invalid.
    found.is_some_and(|error| {
        !matches!(
            error.kind(),
            ErrorKind::NotFound
                | ErrorKind::UnexpectedEof
                | ErrorKind::InvalidData
                | ErrorKind::InvalidInput
                | ErrorKind::IsADirectory
        )
    })
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

/// Reports the error of a removal, which the new checkpoint does not depend on.
fn report(removed: Result<(), TrainError>, observer: &mut dyn Observer) {
    if let Err(error) = &removed {
        observer.removal_failed(&RemovalFailed { error });
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
    use opensora_checkpoint::CheckpointError;

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

    #[test]
    fn errors_of_the_system_are_found_behind_those_of_readers() {
        let of = |source: io::Error| -> [TrainError; 2] {
            let (path, copy) =
                (PathBuf::from("values.safetensors"), io::Error::from(source.kind()));
            let reason = "cannot read".to_string();
            let (key, source) = ("weight".to_string(), Some(source.into()));
            let tensor =
                CheckpointError::Tensor { path: path.clone(), key, reason: reason.clone(), source };
            let format = CheckpointError::Format { path, reason, source: Some(copy.into()) };
            [tensor.into(), format.into()]
        };
        for kind in [
            ErrorKind::StaleNetworkFileHandle,
            ErrorKind::TimedOut,
            ErrorKind::NotConnected,
            ErrorKind::PermissionDenied,
            ErrorKind::OutOfMemory,
        ] {
            assert!(of(kind.into()).iter().all(is_of_system), "{kind}");
        }
        // EIO, which has no kind.
        #[cfg(unix)]
        assert!(is_of_system(&of(io::Error::from_raw_os_error(5))[0]));
        for kind in [ErrorKind::NotFound, ErrorKind::UnexpectedEof, ErrorKind::InvalidData] {
            assert!(!of(kind.into()).iter().any(is_of_system), "{kind}");
        }
        assert!(!is_of_system(&CheckpointError::format("values.safetensors", "truncated").into()));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_removed_does_not_keep_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 1);
        let path = |step: u64| checkpoints.folder.join(format!("step-{step:08}"));
        for step in 1..=3 {
            fs::create_dir_all(path(step)).unwrap();
            fs::write(path(step).join(MARK), "{}").unwrap();
        }
        // Occupies the name that the folder gets before its removal.
        let occupied = checkpoints.folder.join(".opensora-step-00000002.part/file");
        fs::create_dir_all(&occupied).unwrap();
        let error = checkpoints.remove_old().unwrap_err();
        assert!(
            matches!(&error, TrainError::Io { path: found, .. } if *found == path(2)),
            "{error}"
        );
        assert_eq!(checkpoints.complete().unwrap(), [path(3), path(2)]);
        // The next save removes the remains first.
        checkpoints.remove_leftovers().unwrap();
        checkpoints.remove_old().unwrap();
        assert_eq!(checkpoints.complete().unwrap(), [path(3)]);
    }

    #[test]
    fn a_run_begins_at_its_newest_checkpoint_or_later() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 2);
        checkpoints.check_start(0).unwrap();
        for (name, file) in [("step-00000007", MARK), ("step-00000009", "values.safetensors")] {
            fs::create_dir_all(checkpoints.folder.join(name)).unwrap();
            fs::write(checkpoints.folder.join(name).join(file), "{}").unwrap();
        }
        checkpoints.check_start(7).unwrap();
        checkpoints.check_start(8).unwrap();
        let error = checkpoints.check_start(6).unwrap_err();
        assert!(matches!(error, TrainError::State { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("step-00000007: ") && text.contains("begins at step 6"), "{text}");
    }
}
