//! The demo model, which comes with the crate.
//!
//! A few megabytes that this project's own code trained on its demo world; see
//! `model-cards/demo.md`. Models are read from files, so that large ones need not be in memory twice;
//! this one is part of the program and becomes files when it is first asked for.

use crate::model_files::ModelError;
use opensora_files::write_atomically;
use std::path::PathBuf;

/// What `--model` calls it.
pub const NAME: &str = "demo";

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        /// Its files by their places in its folder.
        const FILES: &[(&str, &[u8])] =
            &[$(($name, include_bytes!(concat!("../demo/", $name)))),+];
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

/// Bytes of all its files.
pub fn size() -> usize {
    FILES.iter().map(|(_, bytes)| bytes.len()).sum()
}

/// The folder that holds it, after making sure that it does.
///
/// # Errors
/// Where a file cannot be read or written.
pub(crate) fn unpack() -> Result<PathBuf, ModelError> {
    // A folder for each version and user: what another user has left cannot be replaced.
    let user = std::env::var("USER").or_else(|_| std::env::var("USERNAME")).unwrap_or_default();
    let user: String = user.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let folder = format!("opensora-{}-demo-{}-{user}", env!("CARGO_PKG_VERSION"), size());
    let folder = std::env::temp_dir().join(folder);
    for (name, bytes) in FILES {
        let path = folder.join(name);
        let fail = |source| ModelError::Unpack { path: path.clone(), source };
        // Compared in full: it is small, and anyone may write to such folders.
        if std::fs::read(&path).is_ok_and(|found| found == *bytes) {
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        write_atomically(&path, |file| std::fs::write(file, bytes)).map_err(fail)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_what_was_changed_is_put_right() {
        assert!(size() < 8 << 20, "{}", size());
        let folder = unpack().unwrap();
        let config = folder.join("t5/config.json");
        std::fs::write(&config, "changed").unwrap();
        unpack().unwrap();
        assert_ne!(std::fs::read_to_string(config).unwrap(), "changed");
    }
}
