//! Burn's own reader of `torch.save` files finds the same tensors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_checkpoint::Checkpoint;
use opensora_tests::fixture;
use pytorch_reader::PytorchReader;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if ["pth", "pt", "bin", "ckpt"]
            .iter()
            .any(|end| path.extension() == Some(end.as_ref()))
        {
            found.push(path);
        }
    }
}

#[test]
fn both_readers_find_the_same_tensors() {
    let mut paths = Vec::new();
    files(&fixture(""), &mut paths);
    let (mut compared, mut tensors) = (0, 0);
    for path in paths {
        let checkpoint = Checkpoint::open(&path).unwrap();
        // It fails at a tensor that it cannot read, and fills a shared dictionary once.
        let Ok(theirs) = PytorchReader::new(&path) else { continue };
        let prefix: String = checkpoint.wrappers().iter().map(|name| format!("{name}.")).collect();
        for (key, entry) in checkpoint.tensors() {
            let Some(theirs) = theirs.get(&format!("{prefix}{key}")) else {
                assert!(path.to_string_lossy().contains("shared"), "{}: {key}", path.display());
                continue;
            };
            assert_eq!(theirs.shape(), entry.shape(), "{}: {key}", path.display());
            let data = entry.read(key).unwrap();
            // Burn's types of truth values say how they are stored.
            let dtype = format!("{:?}", data.dtype());
            assert_eq!(format!("{:?}", theirs.dtype()), dtype.trim_end_matches("(Native)"));
            assert_eq!(theirs.read().unwrap(), data.bytes()[..], "{}: {key}", path.display());
            tensors += 1;
        }
        let inside = theirs.keys().iter().filter(|key| key.starts_with(&prefix)).count();
        assert!(checkpoint.tensors().len() >= inside, "{}", path.display());
        compared += 1;
    }
    assert!(compared >= 15 && tensors > 500, "{compared} files, {tensors} tensors");
}
