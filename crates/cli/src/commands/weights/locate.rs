//! Finds weights by path, preset or repository.

use super::{hub, repository};
use anyhow::bail;
use opensora::{
    Preset,
    checkpoint::Checkpoint,
    hub::{Hub, Repository, RepositoryFile},
    presets::Origin,
};
use std::path::{Path, PathBuf};

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
pub(super) fn locate(weights: &str, file: Option<&str>, revision: &str) -> anyhow::Result<Place> {
    let path = Path::new(weights);
    if path.exists() {
        return Ok(Place::Path(path.into()));
    }
    // Only from here on is a home folder needed.
    let hub = hub()?;
    let (repository, file) = match Preset::find(weights).map(|preset| preset.origin) {
        Some(Origin::Url(url)) => {
            let path = hub.address_path(url)?;
            if !path.is_file() {
                bail!("{url}: not in the cache: fetch it with `opensora weights fetch {weights}`");
            }
            return Ok(Place::Path(path));
        }
        Some(Origin::Hub { repository, file }) => (repository.parse()?, Some(file)),
        _ => (repository(weights)?, file),
    };
    Ok(match cached(&hub, &repository, revision, file) {
        Some(path) => Place::Path(path),
        None => Place::Hub { repository, file: file.map(String::from) },
    })
}

/// Returns the path of cached weights: of `file`, else of the folder of the commit; `None` if they are
/// not cached.
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
            Checkpoint::open(&folder).is_ok().then_some(folder)
        }
    }
}
