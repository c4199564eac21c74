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

/// Maximum size in bytes of a model that is compared with that of a cache. Each start of a run compares, and T5 v1.1 XXL
/// has 19 GB.
const MAX_COMPARED: u64 = 2 << 30;

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
    hash_files(&model_files(path)?)
}

/// Returns false if the [`hash_model`] of the model at `path` is not `hash`. Returns true also for a model that is not
/// compared: without complete weights at `path`, or of more than [`MAX_COMPARED`] bytes.
pub(super) fn may_be_model(path: &Path, hash: &str) -> Result<bool, DataError> {
    let Ok(checkpoint) = Checkpoint::open(path) else { return Ok(true) };
    let own = model_files(path)?;
    if total(&own)? > MAX_COMPARED || hash_files(&own)? == hash {
        return Ok(true);
    }
    // A folder and the weights in it are one model, but the folder's hash covers all files in it.
    let other = match path.is_dir() {
        true => checkpoint.taken().to_path_buf(),
        // Not the parent, which is empty for a path without a folder.
        false => path.with_file_name("."),
    };
    let other = model_files(&other)?;
    Ok(total(&other)? > MAX_COMPARED || hash_files(&other)? == hash)
}

/// Returns the files of a model, in order.
fn model_files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if path.is_dir() {
        return files(path);
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
    Ok(all.into_iter().collect())
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
    use safetensors::tensor::{Dtype, TensorView};

    /// Writes weights of one number.
    fn write_weights(path: &Path, number: f32) {
        let bytes = number.to_le_bytes();
        let tensor = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
        safetensors::serialize_to_file(vec![("weight".to_string(), tensor)], None, path).unwrap();
    }

    #[test]
    fn a_model_is_compared_by_its_folder_and_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let vae = path("vae");
        fs::create_dir(&vae).unwrap();
        let file = path("vae/model.safetensors");
        write_weights(&file, 1.0);
        fs::write(path("vae/config.json"), "{}").unwrap();
        fs::write(path("vae/README.md"), "in the folder's hash only").unwrap();
        let hashes = [&vae, &file].map(|path| hash_model(path).unwrap());
        assert_ne!(hashes[0], hashes[1]);
        let all_are = |expected: bool| {
            let mut pairs = hashes.iter().flat_map(|hash| [(&vae, hash), (&file, hash)]);
            pairs.all(|(path, hash)| may_be_model(path, hash).unwrap() == expected)
        };
        assert!(all_are(true));
        write_weights(&file, 2.0);
        assert!(all_are(false));
        fs::write(&file, "no weights").unwrap();
        assert!(all_are(true), "there is no complete model to compare");
        assert!(may_be_model(&path("none"), &hashes[0]).unwrap());
    }

    #[test]
    fn a_large_model_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        write_weights(&folder.path().join("model.safetensors"), 1.0);
        assert!(!may_be_model(folder.path(), "another hash").unwrap());
        // A sparse file, which takes no space.
        let large = fs::File::create(folder.path().join("large")).unwrap();
        large.set_len(MAX_COMPARED).unwrap();
        assert!(may_be_model(folder.path(), "another hash").unwrap());
    }

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
