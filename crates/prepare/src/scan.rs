//! A folder of videos as a table.
//!
//! Folders are walked to the bottom; the rows are sorted by path. A file has one row, however many paths
//! lead to it. Names that begin with a dot are passed over, and so are links, unless they are to be
//! followed ([`Walk::follow_links`]). Anything with a video's ending that is no file or cannot be opened
//! (folders, pipes, links that lead nowhere, damaged files) is listed apart with the reason.
//!
//! Sizes are those that are shown: upright and in square pixels. Frames are those that decode.

use crate::{
    PrepareError,
    assemble::{Fields, Keys, Summary, Tables, journal_path, make_folder},
    open::{identity, open, regular},
    step::{self, Fault, Run, Shard, Watch},
};
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH},
};
use opensora_video::reader::Decoder;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    path::{Path, PathBuf},
};

/// Endings of videos.
pub const VIDEOS: [&str; 15] = [
    "3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "ts",
    "webm", "wmv",
];

/// How folders are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Walk {
    /// Whether symbolic links to videos and folders are followed, as in a cache of the Hugging Face hub.
    /// The rows have the names of the links. A folder is walked once, however many links lead to it.
    pub follow_links: bool,
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Found {
    /// Files with a video's ending in the folders, and all files that were named, sorted; each file
    /// once, by the first of its paths.
    pub files: Vec<PathBuf>,
    /// Files and folders that cannot be used, and why.
    pub unusable: Vec<(PathBuf, String)>,
    /// Links that were passed over.
    pub links: usize,
    /// Other paths to files that are listed: the path, and the one that is listed.
    pub again: Vec<(PathBuf, PathBuf)>,
    walk: Walk,
}

impl Found {
    /// Walks `places`: folders, and files, which are taken whatever their ending. Links in folders are
    /// not followed.
    ///
    /// # Errors
    /// Returns an error if one of the places does not exist.
    pub fn walk(places: &[PathBuf]) -> Result<Self, PrepareError> {
        Self::walk_with(places, Walk::default())
    }

    /// Walks `places` with other settings.
    ///
    /// # Errors
    /// Returns an error if one of the places does not exist.
    pub fn walk_with(places: &[PathBuf], walk: Walk) -> Result<Self, PrepareError> {
        let mut found = Self { walk, ..Self::default() };
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
        let mut first = HashMap::<PathBuf, PathBuf>::new();
        let again = &mut found.again;
        found.files.retain(|path| match first.entry(identity(path)) {
            Entry::Vacant(entry) => {
                entry.insert(path.clone());
                true
            }
            Entry::Occupied(entry) => {
                again.push((path.clone(), entry.get().clone()));
                false
            }
        });
        found.unusable.sort();
        found.unusable.dedup();
        Ok(found)
    }

    /// Takes a regular file. (Nothing else is opened: opening a pipe waits for its writer.)
    fn file(&mut self, path: PathBuf) {
        // Tables hold text.
        if path.to_str().is_none() {
            self.unusable.push((path, "its name is no UTF-8".into()));
            return;
        }
        match regular(&path) {
            Ok(_) => self.files.push(path),
            Err(reason) => self.unusable.push((path, reason)),
        }
    }

    /// Takes what is in a folder. (A stack of folders: a path may be as deep as it likes.)
    fn folder(&mut self, folder: &Path) {
        let mut folders = vec![folder.to_path_buf()];
        // Folders by their paths without links, as links may lead round in circles.
        let mut walked = HashSet::new();
        while let Some(folder) = folders.pop() {
            if !walked.insert(identity(&folder)) {
                continue;
            }
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
        let (path, mut kind) = (entry.path(), entry.file_type()?);
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            return Ok(());
        }
        let is_video = is_video(&path);
        if kind.is_symlink() {
            match std::fs::metadata(&path) {
                Ok(target) if self.walk.follow_links => kind = target.file_type(),
                Ok(_) => {
                    self.links += 1;
                    return Ok(());
                }
                // A link that leads nowhere.
                Err(_) if is_video => {
                    self.file(path);
                    return Ok(());
                }
                Err(_) => {
                    self.links += 1;
                    return Ok(());
                }
            }
        }
        if kind.is_dir() {
            if is_video && !holds_videos(&path) {
                let reason = "it is a folder without videos, expected a file";
                self.unusable.push((path.clone(), reason.into()));
            }
            folders.push(path);
        } else if is_video {
            self.file(path);
        }
        Ok(())
    }
}

/// Returns true for a path with a video's ending.
fn is_video(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| VIDEOS.contains(&ending.as_str()))
}

/// Returns true if something in a folder has a video's ending.
fn holds_videos(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| is_video(&entry.path()))
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
    let run = Run {
        journal: journal_path(&job.out),
        settings: json!({"step": "scan"}),
        workers: job.workers,
        shard: Shard::WHOLE,
        retry_failed: job.retry_failed,
    };
    let path = |row: usize| found.files[row].as_path();
    let work = |row: usize| {
        let probe = names.check(row).and_then(|()| Probe::of(path(row), job.decoder));
        probe.map_err(Fault::Row)
    };
    let mut outcomes = step::run_on_files(&run, names.all(), path, work, watch)?;
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
        assert!(found.again.is_empty());
        let missing = Found::walk(&[folder.join("none")]).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_on_request_and_a_file_is_listed_once() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        // As the Hugging Face hub keeps files: two revisions with links to the same blobs.
        let (blobs, snapshots) = (root.path().join("blobs"), root.path().join("snapshots"));
        std::fs::create_dir(&blobs).unwrap();
        for revision in ["a", "b"] {
            std::fs::create_dir_all(snapshots.join(revision)).unwrap();
        }
        for (blob, name) in [("1f", "fox.mp4"), ("2e", "sea.mp4")] {
            std::fs::write(blobs.join(blob), blob).unwrap();
            for revision in ["a", "b"] {
                symlink(format!("../../blobs/{blob}"), snapshots.join(revision).join(name))
                    .unwrap();
            }
        }
        symlink("..", snapshots.join("b/round")).unwrap();
        symlink("gone", snapshots.join("b/gone.mp4")).unwrap();
        std::fs::hard_link(blobs.join("2e"), snapshots.join("a/hard.mp4")).unwrap();

        let found = Found::walk_with(std::slice::from_ref(&snapshots), Walk { follow_links: true })
            .unwrap();
        let listed = ["a/fox.mp4", "a/hard.mp4"].map(|name| snapshots.join(name));
        assert_eq!(found.files, listed);
        assert_eq!((found.links, found.again.len()), (0, 3));
        assert!(found.again.contains(&(snapshots.join("b/fox.mp4"), listed[0].clone())));
        let [(path, reason)] = &found.unusable[..] else { panic!("{:?}", found.unusable) };
        assert_eq!(*path, snapshots.join("b/gone.mp4"));
        assert!(reason.starts_with("it is a link to gone: "), "{reason}");

        let plain = Found::walk(&[snapshots.clone(), snapshots.join("b/sea.mp4")]).unwrap();
        assert_eq!(plain.files, [snapshots.join("a/hard.mp4")]);
        assert_eq!((plain.links, plain.again.len(), plain.unusable.len()), (5, 1, 1));
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_file_is_listed_with_its_reason() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir(path("empty.mp4")).unwrap();
        std::fs::create_dir(path("film.mp4")).unwrap();
        std::fs::write(path("film.mp4/part.mp4"), "x").unwrap();
        let made = std::process::Command::new("mkfifo").arg(path("pipe.mp4")).status();
        let made = made.is_ok_and(|status| status.success());
        let found = Found::walk(&[root.path().into()]).unwrap();
        assert_eq!(found.files, [path("film.mp4/part.mp4")]);
        let mut expected =
            vec![(path("empty.mp4"), "it is a folder without videos, expected a file".to_string())];
        if made {
            expected.push((path("pipe.mp4"), "it is a pipe (FIFO), expected a file".into()));
        }
        assert_eq!(found.unusable, expected);
    }
}
