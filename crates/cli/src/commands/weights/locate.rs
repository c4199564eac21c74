//! Finds weights by path, preset or repository.

use super::{hub, repository};
use anyhow::{bail, ensure};
use opensora::{
    Preset,
    checkpoint::{Checkpoint, CheckpointError},
    hub::{Hub, Repository, RepositoryFile},
    presets::Origin,
    pretrained::{Pretrained, has_file_ending},
};
use std::path::{Path, PathBuf};

/// Default of `--revision`.
pub(super) const MAIN: &str = "main";

/// Location of weights: a path on the disk, or a repository of the hub.
pub(super) enum Place {
    /// A file or folder on the disk, possibly in the cache.
    Path(PathBuf),
    /// A repository of the hub that is not in the cache.
    Hub {
        /// Owner and name.
        repository: Repository,
        /// The file; `None`: all weights of the repository.
        file: Option<String>,
    },
}

/// Finds the weights of a path, of a preset, or of a repository.
///
/// # Errors
/// Returns an error if `file` is given for a path or a preset, or a `revision` other than [`MAIN`] for a path or a
/// preset from outside the hub, because neither would have an effect.
pub(super) fn locate(weights: &str, file: Option<&str>, revision: &str) -> anyhow::Result<Place> {
    let path = Path::new(weights);
    if path.exists() {
        ensure!(
            file.is_none() && revision == MAIN,
            "{weights}: FILE and --revision are for repositories, this is a path"
        );
        return Ok(Place::Path(path.into()));
    }
    if let Some(preset) = Preset::find(weights) {
        ensure!(file.is_none(), "{weights}: FILE is for repositories, a preset has a fixed file");
        return locate_preset(preset, revision);
    }
    let hub = hub()?;
    let repository = repository(weights)?;
    Ok(match cached(&hub, &repository, revision, file) {
        Some(path) => Place::Path(path),
        None => Place::Hub { repository, file: file.map(String::from) },
    })
}

/// Finds the file of a preset as sampling does: in `pretrained_models`, else in the cache.
fn locate_preset(preset: &Preset, revision: &str) -> anyhow::Result<Place> {
    let source = Pretrained { revision: revision.into(), ..Pretrained::new(hub()?) };
    match (source.find_denoiser(preset)?, preset.origin) {
        (Some(path), _) => Ok(Place::Path(path)),
        (None, Origin::Hub { repository, file }) => {
            Ok(Place::Hub { repository: repository.parse()?, file: Some(file.into()) })
        }
        (None, origin) => bail!(
            "{}: not in the cache: fetch it with `opensora weights fetch {}`",
            origin.place(),
            preset.name
        ),
    }
}

/// Returns the path of cached weights: of `file`, else of the folder of the commit; `None` if they are
/// not cached. Weights that are cached and cannot be opened have a path too, so that opening it tells why.
fn cached(
    hub: &Hub,
    repository: &Repository,
    revision: &str,
    file: Option<&str>,
) -> Option<PathBuf> {
    match file {
        Some(name) => hub.cache().find(&RepositoryFile { repository, revision, name }),
        None => {
            let commit = hub.cache().commit(repository, revision)?;
            let folder = hub.cache().snapshot(repository, &commit);
            let is_cached = match Checkpoint::open(&folder) {
                Ok(_) => true,
                // Part of a download, which fetching completes.
                Err(CheckpointError::MissingShard { .. }) => false,
                // No weights, or several.
                Err(CheckpointError::Folder { .. }) => has_weights(&folder),
                Err(_) => folder.exists(),
            };
            is_cached.then_some(folder)
        }
    }
}

/// Returns true if a file of the folder has the ending of weights.
fn has_weights(folder: &Path) -> bool {
    folder.read_dir().into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        has_file_ending(&name) && !name.ends_with(".json") && entry.path().is_file()
    })
}
