//! A folder of videos as a table.
//!
//! Folders are walked to the bottom; the rows are sorted by path. Names that begin with a dot are
//! passed over, and so are links, which lead to files that are listed anyway, out of the folder,
//! or round in circles. What looks like a video but cannot be opened is listed apart with the
//! reason.

use crate::{
    PrepareError,
    assemble::{Fields, Keys, Summary, Tables, journal_path, make_folder},
    open::open,
    step::{self, Run, Shard, Watch},
};
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH},
};
use opensora_video::reader::Decoder;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Endings of videos.
pub const VIDEOS: [&str; 15] = [
    "3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "ts",
    "webm", "wmv",
];

/// What a walk found.
#[derive(Debug, Default)]
pub struct Found {
    /// Files with a video's ending in the folders, and all files that were named, sorted.
    pub files: Vec<PathBuf>,
    /// Files and folders that cannot be used, and why.
    pub unusable: Vec<(PathBuf, String)>,
    /// Links that were passed over.
    pub links: usize,
}

impl Found {
    /// Walks `places`: folders, and files, which are taken whatever their ending.
    ///
    /// # Errors
    /// Where one of the places is not there.
    pub fn walk(places: &[PathBuf]) -> Result<Self, PrepareError> {
        let mut found = Self::default();
        for place in places {
            let kind = std::fs::metadata(place);
            let kind = kind.map_err(|source| PrepareError::Io { path: place.clone(), source })?;
            if kind.is_dir() {
                found.folder(place);
            } else {
                found.file(place.clone());
            }
        }
        found.files.sort();
        found.files.dedup();
        found.unusable.sort();
        Ok(found)
    }

    fn file(&mut self, path: PathBuf) {
        // Tables hold text.
        if path.to_str().is_some() {
            self.files.push(path);
        } else {
            self.unusable.push((path, "its name is no UTF-8".into()));
        }
    }

    /// Takes what is in a folder. (A stack of folders: a path may be as deep as it likes.)
    fn folder(&mut self, folder: &Path) {
        let mut folders = vec![folder.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    self.unusable.push((folder, error.to_string()));
                    continue;
                }
            };
            for entry in entries {
                if let Err(error) = entry.and_then(|entry| self.entry(&entry, &mut folders)) {
                    self.unusable.push((folder.clone(), error.to_string()));
                }
            }
        }
    }

    fn entry(&mut self, entry: &std::fs::DirEntry, folders: &mut Vec<PathBuf>) -> io::Result<()> {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        let is_video = ending.is_some_and(|ending| VIDEOS.contains(&ending.as_str()));
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            return Ok(());
        }
        if kind.is_symlink() {
            self.links += 1;
        } else if kind.is_dir() {
            folders.push(path);
        } else if kind.is_file() && is_video {
            self.file(path);
        }
        Ok(())
    }
}

/// What a video's header says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Probe {
    width: usize,
    height: usize,
    fps: f64,
    num_frames: Option<usize>,
    duration: Option<f64>,
}

impl Probe {
    fn of(path: &Path, decoder: Decoder) -> Result<Self, String> {
        let reader = open(path, decoder)?;
        let info = reader.info();
        Ok(Self {
            width: info.width,
            height: info.height,
            fps: info.fps,
            num_frames: info.num_frames,
            duration: info.duration,
        })
    }

    /// What is not known stays empty.
    fn fields(&self) -> Fields {
        let known = |number: Option<f64>| number.filter(|n| n.is_finite() && *n > 0.0);
        let text = |number: Option<f64>| known(number).map_or_else(String::new, |n| n.to_string());
        let duration = known(self.duration).map(|seconds| format!("{seconds:.3}"));
        vec![
            ("width", self.width.to_string()),
            ("height", self.height.to_string()),
            ("fps", text(Some(self.fps))),
            (NUM_FRAMES, self.num_frames.map(|frames| frames.to_string()).unwrap_or_default()),
            ("duration", duration.unwrap_or_default()),
        ]
    }
}

/// Columns that the step adds.
const COLUMNS: [&str; 5] = ["width", "height", "fps", NUM_FRAMES, "duration"];

/// How a folder is scanned.
#[derive(Debug, Clone)]
pub struct Job {
    /// The table of videos.
    pub out: PathBuf,
    /// Who reads the headers.
    pub decoder: Decoder,
    /// Files worked on at once.
    pub workers: usize,
    /// Whether files that could not be opened in an earlier run are tried again.
    pub retry_failed: bool,
}

/// Opens what a walk found and writes the table of videos, with width, height, fps, num_frames and
/// duration where a video states them. Its pictures are not decoded: that is what later steps do.
///
/// Done again, only new and changed files are opened.
///
/// # Errors
/// Where the journal cannot be used, a table cannot be written, or the watcher stops the step.
pub fn scan(found: &Found, job: &Job, watch: &mut dyn Watch) -> Result<Summary, PrepareError> {
    make_folder(&job.out)?;
    let mut input = Table::new([PATH]);
    for file in &found.files {
        input.push([(PATH, file.to_string_lossy().into_owned())]);
    }
    let names = Keys::of(&input, PATH, &job.out);
    // A file that is another one now is opened again.
    let version = |(name, path): (&String, &PathBuf)| {
        let file = std::fs::metadata(path).ok();
        let time = file.as_ref().and_then(|file| file.modified().ok());
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let size = file.map_or(0, |file| file.len());
        format!("{name}\n{size} bytes of {}.{:09}", time.as_secs(), time.subsec_nanos())
    };
    let keys: Vec<String> = names.all().iter().zip(&found.files).map(version).collect();
    let run = Run {
        journal: journal_path(&job.out),
        settings: json!({"step": "scan"}),
        workers: job.workers,
        shard: Shard::WHOLE,
        retry_failed: job.retry_failed,
    };
    let work = |row: usize| {
        names.check(row)?;
        Probe::of(&found.files[row], job.decoder)
    };
    let mut outcomes = step::run(&run, &keys, work, watch)?;
    for (path, reason) in &found.unusable {
        input.push([(PATH, path.to_string_lossy().into_owned())]);
        outcomes.push(Some(step::Outcome::Failed(reason.clone())));
    }
    let given = outcomes.len();
    let probed = |_, probe: Probe| Ok(vec![probe.fields()]);
    let tables = Tables::assemble(&input, &COLUMNS, outcomes, probed);
    tables.write(&job.out)?;
    Ok(tables.summary(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_sorted_and_stays_inside() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("raw");
        for name in ["b/2.MP4", "b/1.mkv", "a.mp4", "b/notes.txt", ".hidden/x.mp4", "b/._1.mkv"] {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        std::fs::write(root.path().join("outside.mp4"), "x").unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.path(), folder.join("up")).unwrap();
            std::os::unix::fs::symlink("../outside.mp4", folder.join("c.mp4")).unwrap();
        }
        let named = folder.join("b/notes.txt");
        let found = Found::walk(&[folder.clone(), named, folder.join("a.mp4")]).unwrap();
        let expected = ["a.mp4", "b/1.mkv", "b/2.MP4", "b/notes.txt"];
        assert_eq!(found.files, expected.map(|name| folder.join(name)));
        assert_eq!(found.links, if cfg!(unix) { 2 } else { 0 });
        assert!(found.unusable.is_empty());
        let missing = Found::walk(&[folder.join("none")]).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }
}
