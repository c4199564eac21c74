//! A pipeline as a file.
//!
//! ```toml
//! input = "raw"          # a folder of videos, or a table of them
//! work = "work"          # the folder of the steps
//! out = "clips.csv"      # the final table
//!
//! [split]                # what is not named has its default
//! fps = 24
//! shorter_side = 256
//! ```

use super::{
    Stage,
    stages::{Scan, Split},
};
use crate::{PrepareError, split};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Which steps there are and what they do. A section that is there is a step; their order is
/// always the same.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A folder of videos, which is scanned, or a table of them.
    pub input: PathBuf,
    /// The folder of the steps.
    pub work: PathBuf,
    /// The final table.
    pub out: PathBuf,
    /// Rows worked on at once.
    #[serde(default = "one")]
    pub workers: usize,
    /// Videos are cut into clips.
    pub split: Option<split::Settings>,
}

fn one() -> usize {
    1
}

impl Config {
    /// Reads a file; its paths start from its folder.
    ///
    /// # Errors
    /// Where it cannot be read, names what does not exist, or lacks what is needed.
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PrepareError::Io { path: path.into(), source })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let place = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            let reason = format!("line {}: {}", place + 1, error.message().replace('\n', " "));
            PrepareError::Config { path: path.into(), reason }
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for path in [&mut config.input, &mut config.work, &mut config.out] {
            *path = folder.join(&*path);
        }
        Ok(config)
    }

    /// The steps in their order.
    pub fn stages(&self, retry_failed: bool) -> Vec<Box<dyn Stage>> {
        let workers = self.workers;
        let mut stages: Vec<Box<dyn Stage>> = Vec::new();
        if self.input.is_dir() {
            stages.push(Box::new(Scan { workers, retry_failed }));
        }
        if let Some(settings) = self.split.clone() {
            stages.push(Box::new(Split { settings, workers, retry_failed }));
        }
        stages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::Rate;

    #[test]
    fn sections_are_steps_and_paths_start_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pipeline.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Config::read(&file)
        };
        std::fs::create_dir(folder.path().join("raw")).unwrap();
        let head = "input = 'raw'\nwork = 'work'\nout = '/else/clips.csv'\n";
        let config = read(&format!("{head}[split]\nfps = 24\n")).unwrap();
        assert_eq!(config.work, folder.path().join("work"));
        assert_eq!(config.out, Path::new("/else/clips.csv"));
        let split = config.split.as_ref().unwrap();
        assert_eq!((split.fps, split.shorter_side), (Rate::Fixed(24.0), 512));
        let stages = config.stages(false);
        assert_eq!(stages.iter().map(|stage| stage.name()).collect::<Vec<_>>(), ["scan", "split"]);
        let other = Config { input: "clips.csv".into(), ..config };
        assert_eq!(other.stages(false).len(), 1);
        for (text, word) in [("[splt]", "splt"), ("[split]\nfps = 0", "0.01"), ("wrk = 1", "wrk")] {
            let error = read(&format!("{head}{text}\n")).unwrap_err().to_string();
            assert!(error.contains("pipeline.toml") && error.contains(word), "{error}");
        }
    }
}
