//! SHA-256 of files, folders and models.

use super::io_error;
use crate::DataError;
use opensora_checkpoint::Checkpoint;
use opensora_files::{hex, read::open_regular};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

pub(super) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns the size of a file in bytes. For a folder of frames, returns the sum over its files: the size of the folder
/// itself depends on the file system.
pub(super) fn size(path: &Path) -> Result<u64, DataError> {
    match path.is_dir() {
        true => total(&files(path)?),
        false => file_size(path),
    }
}

fn file_size(path: &Path) -> Result<u64, DataError> {
    fs::metadata(path).map(|found| found.len()).map_err(io_error(path))
}

fn total(files: &[PathBuf]) -> Result<u64, DataError> {
    files.iter().map(|file| file_size(file)).sum()
}

/// Returns size and SHA-256 of a file. For a folder of frames, both are of all its files.
pub(super) fn hash_file(path: &Path) -> Result<(u64, String), DataError> {
    if path.is_dir() {
        let files = files(path)?;
        return Ok((total(&files)?, hash_files(&files)?));
    }
    let mut file = open_regular(path).map_err(io_error(path))?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(io_error(path))? {
            0 => return Ok((bytes, hex(&hasher.finalize()))),
            read => {
                bytes += read as u64;
                hasher.update(&buffer[..read]);
            }
        }
    }
}

/// Runs `check` on every item, on all cores. If several fail, returns the error of the first item.
pub(super) fn for_each_parallel<T: Sync>(
    items: &[T],
    check: impl Fn(&T) -> Result<(), DataError> + Sync,
) -> Result<(), DataError> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(None::<(usize, DataError)>));
    let work = || {
        while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&k| k < items.len())
        {
            if let Err(error) = check(&items[at])
                && let Ok(mut found) = found.lock()
                && found.as_ref().is_none_or(|(earlier, _)| at < *earlier)
            {
                *found = Some((at, error));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match found.into_inner().ok().flatten() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Returns the SHA-256 of a model: all files of its folder, or a checkpoint's files and the configuration
/// beside it.
pub(super) fn hash_model(path: &Path) -> Result<String, DataError> {
    if path.is_dir() {
        return hash_files(&files(path)?);
    }
    let checkpoint = Checkpoint::open(path)?;
    let config = path.with_file_name("config.json");
    let all: BTreeSet<PathBuf> = checkpoint
        .files()
        .into_iter()
        .chain([path])
        .chain(config.exists().then_some(config.as_path()))
        .map(Path::to_path_buf)
        .collect();
    hash_files(&all.into_iter().collect::<Vec<_>>())
}

/// Returns the files of a folder in order, without subfolders.
fn files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(io_error(folder))?;
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

/// Returns the SHA-256 of names and contents.
fn hash_files(files: &[PathBuf]) -> Result<String, DataError> {
    let mut all = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        all += &format!("{name} {}\n", hash_file(file)?.1);
    }
    Ok(digest(all.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_folder_is_that_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("frames/not a frame")).unwrap();
        fs::write(path("frames/0.png"), "one").unwrap();
        fs::write(path("frames/1.png"), "second").unwrap();
        assert_eq!(size(&path("frames")).unwrap(), 9);
        assert_eq!(hash_file(&path("frames")).unwrap().0, 9);
        let frame = path("frames/0.png");
        assert_eq!((size(&frame).unwrap(), hash_file(&frame).unwrap().0), (3, 3));
        assert!(matches!(size(&path("none")), Err(DataError::Io { .. })));
    }
}
