//! The bundled model: a few megabytes of weights, trained with this workspace (`model-cards/demo.md`).
//!
//! The weights are part of the binary and are unpacked at the first use into the user's cache folder,
//! `$XDG_CACHE_HOME/opensora` or the platform's equivalent, because models are loaded from files. A shared
//! temporary folder would let other users of the machine replace them.
//!
//! Without the feature `weights` the binary does not contain them.

use opensora::{ModelError, ModelFiles};
use opensora_files::write_atomically;
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
};

/// Name of the model for `--model`.
pub const NAME: &str = "demo";

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        /// Contents of the files by their paths in the model's folder; none without the feature `weights`.
        const FILES: &[(&str, &[u8])] = &[$(
            #[cfg(feature = "weights")]
            ($name, include_bytes!(concat!("../model/", $name))),
        )+];
    };
}

files![
    "model.json",
    "stdit.safetensors",
    "t5/config.json",
    "t5/model.safetensors",
    "t5/special_tokens_map.json",
    "t5/tokenizer.json",
    "t5/tokenizer_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Error for the bundled model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The feature `weights` is off.
    #[error("this build does not contain the demo model")]
    NotBundled,
    /// The environment has no cache folder for this user.
    #[error("no folder to unpack the demo model into: set XDG_CACHE_HOME or HOME")]
    NoCacheFolder,
    /// A file or folder cannot be read or written.
    #[error("the demo model cannot be unpacked: {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Another user could change the contents of the folder.
    #[error("the demo model cannot be unpacked: {}: {found}, expected {expected}", path.display())]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// What was found.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// The unpacked model cannot be opened.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Returns the size of all files in bytes; 0 without the feature `weights`.
pub fn size() -> usize {
    FILES.iter().map(|(_, bytes)| bytes.len()).sum()
}

/// Returns the bundled model, after unpacking it into the user's cache folder. Files that differ from the bundled
/// ones are replaced.
///
/// # Errors
/// Returns an error if the feature `weights` is off, there is no cache folder, another user could write to it, or
/// writing fails.
pub fn model_files() -> Result<ModelFiles, UnpackError> {
    if FILES.is_empty() {
        return Err(UnpackError::NotBundled);
    }
    let cache = cache_folder().ok_or(UnpackError::NoCacheFolder)?;
    let folder = cache.join("opensora").join(folder_name(FILES));
    unpack(&folder)?;
    Ok(ModelFiles::open(&folder)?)
}

/// Returns the name of the folder for a model of these files. Each model has its own, so that programs with different
/// models do not replace each other's files.
fn folder_name(files: &[(&str, &[u8])]) -> String {
    // Another release of the standard library may compute other digits, which only costs a second copy.
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    format!("{NAME}-{}-{:016x}", env!("CARGO_PKG_VERSION"), hasher.finish())
}

/// Returns the user's cache folder, by the conventions of the platform.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable("XDG_CACHE_HOME").or_else(|| {
        if cfg!(windows) {
            return variable("LOCALAPPDATA");
        }
        let home = env::home_dir().filter(|home| home.is_absolute())?;
        Some(home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
    })
}

/// Writes the files that are missing or differ into `folder`.
fn unpack(folder: &Path) -> Result<(), UnpackError> {
    create_private(folder)?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| UnpackError::Io { path, source }
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail(parent))?;
        }
        // Compared in full: the files are small.
        let is_regular = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        if is_regular && fs::read(&path).is_ok_and(|found| found == *bytes) {
            continue;
        }
        write_atomically(&path, |file| fs::write(file, bytes)).map_err(fail(&path))?;
    }
    Ok(())
}

/// Creates `folder`, or checks that an existing one is writable by this user only.
fn create_private(folder: &Path) -> Result<(), UnpackError> {
    let fail = |source| UnpackError::Io { path: folder.into(), source };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(fail)?;
    let found = fs::symlink_metadata(folder).map_err(fail)?;
    let unsafe_folder =
        |found, expected| Err(UnpackError::Unsafe { path: folder.into(), found, expected });
    if !found.is_dir() {
        return unsafe_folder("a link", "a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if found.mode() & 0o022 != 0 {
            return unsafe_folder("others may write to it", "mode 0700");
        }
        // The owner of a new file is this user, which avoids a call of the C library.
        let probe = tempfile::Builder::new().prefix(".owner").tempfile_in(folder).map_err(fail)?;
        let own = probe.as_file().metadata().map_err(fail)?;
        if own.uid() != found.uid() {
            return unsafe_folder("it belongs to another user", "a folder of this user");
        }
    }
    Ok(())
}

#[cfg(test)]
#[cfg(feature = "weights")]
mod tests {
    use super::*;

    fn says(result: Result<(), UnpackError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn the_model_is_small_and_changed_files_are_replaced() {
        assert!(size() < 8 << 20, "{}", size());
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/demo");
        unpack(&folder).unwrap();
        let config = folder.join("t5/config.json");
        let original = fs::read_to_string(&config).unwrap();
        fs::write(&config, "changed").unwrap();
        unpack(&folder).unwrap();
        assert_eq!(fs::read_to_string(config).unwrap(), original);
        assert_eq!(ModelFiles::open(&folder).unwrap().defaults.num_frames, 12);
    }

    #[test]
    fn models_of_the_same_size_have_different_folders() {
        let name = |weights: &[u8]| folder_name(&[("model.json", b"{}"), ("weights", weights)]);
        assert_eq!(name(b"trained"), name(b"trained"));
        assert_ne!(name(b"trained"), name(b"another"));
        assert_ne!(folder_name(FILES), name(b"trained"));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_folders_of_others_are_rejected() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("elsewhere");
        fs::create_dir(&target).unwrap();
        let link = folder.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(says(unpack(&link)).contains("a link"));
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);

        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(says(unpack(&open)).contains("others may write"));
    }

    /// A link in place of a file is replaced; its target is not changed.
    #[cfg(unix)]
    #[test]
    fn a_link_in_place_of_a_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("demo");
        unpack(&model).unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let config = model.join("model.json");
        fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink(&victim, &config).unwrap();
        unpack(&model).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(&config).unwrap().is_file());
    }
}
