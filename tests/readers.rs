//! Every reader of untrusted files as a function of bytes.
//!
//! The mutation tests (`tests/mutations.rs`) and the fuzz targets (`fuzz/`) call the same functions. A reader returns
//! `Ok` or an error of one line and never panics. Its memory and time are bounded by its input and by fixed limits.

mod media;
mod models;
mod runs;
mod tables;

use crate::fixture;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A reader with its seeds.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// Name, equal to that of its fuzz target.
    pub name: &'static str,
    /// Number of damaged files in a test run.
    pub inputs: usize,
    seeds: fn() -> Vec<Vec<u8>>,
    read: fn(&Scratch, &[u8]) -> Result<(), String>,
}

impl Reader {
    /// Returns valid files, from which damaged files are made.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }

    /// Reads all contents of a file with these bytes.
    ///
    /// # Errors
    /// Returns the reader's error as text.
    pub fn read(&self, scratch: &Scratch, bytes: &[u8]) -> Result<(), String> {
        (self.read)(scratch, bytes)
    }
}

/// Returns all readers.
pub fn all() -> Vec<Reader> {
    [models::READERS, media::READERS, tables::READERS, runs::READERS].concat()
}

/// Returns the reader of this name.
///
/// # Panics
/// Panics if no reader has the name.
pub fn named(name: &str) -> Reader {
    let found = all().into_iter().find(|reader| reader.name == name);
    found.unwrap_or_else(|| panic!("there is no reader {name}"))
}

/// A temporary folder, in memory if the system supports it, for files that are read once.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Creates an empty folder.
    ///
    /// # Panics
    /// Panics if the folder cannot be created.
    #[expect(clippy::new_without_default, reason = "creates a folder")]
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        Self(tempfile::tempdir_in(folder).expect("a folder for files of tests"))
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file. An existing one is removed first: some file systems flush files that are truncated and
    /// written again.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("a place for a file of a test");
        path
    }

    /// Returns a folder that `fill` fills on first use.
    fn once(&self, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let folder = self.folder().join(name);
        if !folder.exists() {
            std::fs::create_dir(&folder).expect("a place for a folder of a test");
            fill(&folder);
        }
        folder
    }
}

/// Reads fixtures as seeds.
fn fixtures(names: &[&str]) -> Vec<Vec<u8>> {
    let read = |name: &&str| {
        std::fs::read(fixture(name)).unwrap_or_else(|error| panic!("the fixture {name}: {error}"))
    };
    names.iter().map(read).collect()
}

/// Copies the files of a fixture.
fn copy(from: &str, to: &Path) {
    for entry in std::fs::read_dir(fixture(from)).expect("a fixture") {
        let file = entry.expect("a fixture").path();
        if let Some(name) = file.file_name().filter(|_| file.is_file()) {
            std::fs::copy(&file, to.join(name)).expect("a place for a file of a test");
        }
    }
}

fn text(error: impl std::error::Error + 'static) -> String {
    crate::with_causes(&error)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(text)
}
