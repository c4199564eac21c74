//! The settings file of a pipeline (TOML).
//!
//! ```toml
//! input = "raw"          # a folder of videos, or a table of videos
//! work = "work"          # the work folder
//! out = "clips.csv"      # the final table
//!
//! [scan]
//! follow_links = true    # into a cache of the Hugging Face hub
//!
//! [split]                # missing keys have their defaults
//! fps = 24
//! shorter_side = 256
//!
//! [filter]
//! duplicates = true
//! min = { num_frames = 16, motion = 0.002 }
//!
//! [caption]              # with the feature `caption`
//! endpoint = "http://localhost:8000"
//! model = "llava"
//!
//! [clean]
//! ```

#[cfg(feature = "caption")]
use super::sections::CaptionSection;
use super::{
    Stage,
    sections::{CleanSection, FilterSection},
};
use crate::{PrepareError, RunOptions, Shard, scan, split};
use opensora_files::one_line;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The stages of a pipeline and their settings. Each section adds a stage; the order of the stages is
/// fixed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A folder of videos, which is scanned, or a table of videos.
    pub input: PathBuf,
    /// The work folder.
    pub work: PathBuf,
    /// The final table.
    pub out: PathBuf,
    /// Rows processed at once.
    #[serde(default = "one")]
    pub workers: usize,
    /// Options of the scan of a folder.
    #[serde(default)]
    pub scan: scan::Walk,
    /// Cuts videos into clips.
    pub split: Option<split::Settings>,
    /// Measures clips and drops those out of bounds.
    pub filter: Option<FilterSection>,
    /// Captions clips.
    #[cfg(feature = "caption")]
    pub caption: Option<CaptionSection>,
    /// A section whose step was not compiled in.
    #[cfg(not(feature = "caption"))]
    caption: Option<serde::de::IgnoredAny>,
    /// Cleans captions and paths.
    pub clean: Option<CleanSection>,
    /// The file's folder.
    #[serde(skip)]
    folder: PathBuf,
}

fn one() -> usize {
    1
}

impl Config {
    /// Reads a settings file. Its relative paths are relative to its folder.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, has unknown keys, lacks required ones, or has a
    /// section whose step was not compiled in ([`PrepareError::Feature`]).
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        let text = std::fs::read_to_string(path).map_err(PrepareError::io(path))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or("", |span| &text[..span.start]);
            let line = before.matches('\n').count() + 1;
            // Not a source: its text is an excerpt of several lines.
            let reason = one_line(error.message());
            PrepareError::Config { path: path.into(), line, reason }
        })?;
        #[cfg(not(feature = "caption"))]
        if config.caption.is_some() {
            let (what, feature) = ("[caption]", "caption");
            return Err(PrepareError::Feature { path: path.into(), what, feature });
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        for path in [&mut config.input, &mut config.work, &mut config.out] {
            *path = folder.join(&*path);
        }
        config.folder = folder;
        Ok(config)
    }

    /// Returns the stages in their order. They take workers and retries from `options`; the shard is
    /// that of the [pipeline's job](super::Job).
    ///
    /// # Errors
    /// Returns an error if a section has an invalid value, or a file that it names cannot be read.
    pub fn stages(&self, options: RunOptions) -> Result<Vec<Box<dyn Stage>>, PrepareError> {
        let options = RunOptions { shard: Shard::WHOLE, ..options };
        let mut stages: Vec<Box<dyn Stage>> = Vec::new();
        if self.input.is_dir() {
            stages.push(Box::new(scan::Job { walk: self.scan, options, ..Default::default() }));
        }
        if let Some(settings) = self.split.clone() {
            stages.push(Box::new(split::Job { settings, options, ..Default::default() }));
        }
        if let Some(section) = &self.filter {
            stages.push(Box::new(section.job(options)?));
        }
        #[cfg(feature = "caption")]
        if let Some(section) = &self.caption {
            stages.push(Box::new(section.job(&self.folder, options)?));
        }
        if let Some(section) = &self.clean {
            stages.push(Box::new(section.job(&self.folder, options)?));
        }
        Ok(stages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::Rate;

    #[test]
    fn sections_are_stages_and_paths_are_relative_to_the_file() {
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
        let stages = config.stages(RunOptions::default()).unwrap();
        assert_eq!(stages.iter().map(|stage| stage.name()).collect::<Vec<_>>(), ["scan", "split"]);
        let other = Config { input: "clips.csv".into(), ..config };
        assert_eq!(other.stages(RunOptions::default()).unwrap().len(), 1);
        let all = "[clean]\n[filter]\nmin = { motion = 0.1 }\nmax = { motion = 0.5, fps = 60 }\n";
        let names = |text: &str| {
            let stages =
                read(&format!("{head}{text}")).unwrap().stages(RunOptions::default()).unwrap();
            stages.iter().map(|stage| stage.name().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(all), ["scan", "filter", "clean"]);
        let caption = "[caption]\nendpoint = 'http://localhost:1'\nmodel = 'm'\nframes = 'grid'\n";
        #[cfg(feature = "caption")]
        assert_eq!(names(&format!("{all}{caption}")), ["scan", "filter", "caption", "clean"]);
        #[cfg(not(feature = "caption"))]
        {
            let error = read(&format!("{head}{all}{caption}")).unwrap_err();
            assert!(matches!(error, PrepareError::Feature { feature: "caption", .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("pipeline.toml: [caption] needs the feature"), "{text}");
        }
        let upside_down = read(&format!("{head}[filter]\nmin.fps = 9\nmax.fps = 8\n")).unwrap();
        let error = upside_down.stages(RunOptions::default()).err().unwrap().to_string();
        assert!(error.contains("fps: no number is from 9 to 8"), "{error}");
        for (text, word) in [("[splt]", "splt"), ("[split]\nfps = 0", "0.01"), ("wrk = 1", "wrk")] {
            let error = read(&format!("{head}{text}\n")).unwrap_err().to_string();
            assert!(error.contains("pipeline.toml") && error.contains(word), "{error}");
        }
    }
}
