//! Lists the videos of folders in a table.
//!
//! Folders are walked recursively, and rows are sorted by path. A file has one row, even if several paths
//! lead to it. Names that start with a dot are skipped, and so are symbolic links, unless
//! [`Walk::follow_links`] is set. Other entries with a video's extension that are not regular files or fail
//! to open (folders, pipes, dangling links, damaged files) are listed with the reason.
//!
//! Clips that the step [`split`](mod@crate::split) wrote are skipped if the journal beside their table is in one of
//! the folders: otherwise a scan of a folder that also holds the output would give clips of clips. To list clips,
//! scan their own folder.
//!
//! A file belongs to a shard by a hash of its path below the scanned folder. So files that are added between the
//! starts of two shards do not move other files from one shard to another.
//!
//! Width and height are those of the displayed frames: upright and in square pixels. The number of
//! frames is that of the frames that decoders return.

use crate::{
    Observer, PrepareError, RowError, RunOptions, Shard, Summary,
    assemble::{Fields, Keys, Tables, journal_path, make_folder},
    open::{identity, open, regular},
    split,
    step::{self, Outcome, Run},
};
use opensora_files::folder_of;
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH},
};
use opensora_video::reader::Decoder;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

/// File extensions of videos.
pub const VIDEOS: [&str; 15] = [
    "3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "ts",
    "webm", "wmv",
];

/// Settings of a walk through folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Walk {
    /// Follows symbolic links to videos and folders, as in a cache of the Hugging Face hub. The rows have
    /// the paths of the links. A folder is walked once, even if several links lead to it.
    pub follow_links: bool,
}

/// Videos that a walk found, and paths that it could not use.
#[derive(Debug, Default)]
pub struct Found {
    /// Files in the folders with a video's extension, and all files that were named. Sorted; each file
    /// once, with the first of its paths.
    pub files: Vec<PathBuf>,
    /// Unusable files and folders, and why.
    pub unusable: Vec<(PathBuf, RowError)>,
    /// Number of links that were skipped.
    pub links: usize,
    /// Further paths to listed files: the path, and the listed path.
    pub again: Vec<(PathBuf, PathBuf)>,
    /// Number of clips of the step `split` that were skipped.
    pub clips: usize,
    walk: Walk,
    /// The folders and files that were walked.
    places: Vec<PathBuf>,
}

impl Found {
    /// Walks `places`: folders, and files, which may have any extension.
    ///
    /// # Errors
    /// Returns an error if one of the places does not exist.
    pub fn walk(places: &[PathBuf], walk: Walk) -> Result<Self, PrepareError> {
        let mut found = Self { walk, places: places.to_vec(), ..Self::default() };
        for place in places {
            let kind = std::fs::metadata(place).map_err(PrepareError::io(place))?;
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
        let key = |(path, error): &(PathBuf, RowError)| (path.clone(), error.reason(None));
        found.unusable.sort_by_cached_key(key);
        found.unusable.dedup_by_key(|unusable| key(unusable));
        Ok(found)
    }

    /// Adds a regular file. Anything else is not opened: opening a pipe would wait for its writer.
    fn file(&mut self, path: PathBuf) {
        // Tables are text.
        if path.to_str().is_none() {
            self.unusable.push((path, "its name is not UTF-8".into()));
            return;
        }
        match regular(&path) {
            Ok(_) => self.files.push(path),
            Err(error) => self.unusable.push((path, error)),
        }
    }

    /// Adds the files of a folder, with a stack of folders in place of recursion, for paths of any depth.
    fn folder(&mut self, folder: &Path) {
        let mut folders = vec![folder.to_path_buf()];
        // Folders by their paths without links, as links can form cycles.
        let mut walked = HashSet::new();
        let (first, mut folders_of_clips) = (self.files.len(), HashSet::new());
        while let Some(folder) = folders.pop() {
            if !walked.insert(identity(&folder)) {
                continue;
            }
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    self.unusable.push((folder, error.into()));
                    continue;
                }
            };
            for entry in entries {
                let added = entry.and_then(|entry| {
                    folders_of_clips.extend(folder_of_clips(&entry.path()));
                    self.entry(&entry, &mut folders)
                });
                if let Err(error) = added {
                    self.unusable.push((folder.clone(), error.into()));
                }
            }
        }
        // Who names the folder of the clips means them.
        folders_of_clips.remove(&identity(folder));
        if !folders_of_clips.is_empty() {
            // Afterwards, as a journal can be found later than the clips.
            let files = self.files.split_off(first);
            let (clips, videos): (Vec<_>, Vec<_>) =
                files.into_iter().partition(|file| is_clip(file, &folders_of_clips));
            self.clips += clips.len();
            self.files.extend(videos);
        }
    }

    /// Returns true if the file at `path` belongs to a shard.
    fn is_of(&self, shard: Shard, path: &Path) -> bool {
        let below = self.places.iter().find_map(|place| path.strip_prefix(place).ok());
        // A named file has no path below itself.
        let below = below.filter(|below| !below.as_os_str().is_empty());
        holds(shard, below.unwrap_or(path))
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
                // A dangling link.
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

/// Returns the identity of the folder of clips whose journal is at `path`; `None` for other files.
fn folder_of_clips(path: &Path) -> Option<PathBuf> {
    if !path.as_os_str().as_encoded_bytes().ends_with(b".journal.jsonl") {
        return None;
    }
    split::clips_of_journal(path).map(|folder| identity(&folder))
}

/// Returns true if a file has the name of a clip and is in one of these folders. The folder can hold videos as well.
fn is_clip(path: &Path, folders: &HashSet<PathBuf>) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(split::is_clip)
        && folders.contains(&identity(folder_of(path)))
}

/// Returns true if a file belongs to a shard, by its path below the scanned folder.
pub(crate) fn holds(shard: Shard, below: &Path) -> bool {
    let mut sha = Sha256::new();
    for part in below.components() {
        sha.update(part.as_os_str().as_encoded_bytes());
        // The separator depends on the system.
        sha.update([0_u8]);
    }
    let digest = sha.finalize();
    shard.holds(digest[..4].iter().fold(0_usize, |sum, &byte| (sum << 8) | usize::from(byte)))
}

/// Returns true for a path with a video's extension.
fn is_video(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| VIDEOS.contains(&ending.as_str()))
}

/// Returns true if an entry of a folder has a video's extension.
fn holds_videos(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| is_video(&entry.path()))
}

/// Size, frame rate and length of a video, from its header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Probe {
    width: usize,
    height: usize,
    fps: f64,
    num_frames: Option<usize>,
    duration: Option<f64>,
}

impl Probe {
    fn of(path: &Path, decoder: Decoder) -> Result<Self, RowError> {
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

    /// Returns the fields of the table; unknown ones are empty.
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

/// Walk, decoder and run options of a scan.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Settings of the walk through folders.
    pub walk: Walk,
    /// The decoder that reads the headers.
    pub decoder: Decoder,
    /// Workers, shard of the files, and retries of files that could not be opened.
    pub options: RunOptions,
}

/// Opens the files that a walk found and writes the table of videos, with width, height, fps,
/// num_frames and duration if the video states them. Frames are not decoded.
///
/// Run again, the step opens new and changed files only.
///
/// # Errors
/// Returns an error if the walk skipped clips and found no other file, the journal cannot be used, a table cannot be
/// written, or the observer stops the step.
pub fn run(
    job: &Job,
    found: &Found,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Summary, PrepareError> {
    if found.files.is_empty() && found.clips > 0 {
        return Err(PrepareError::OnlyClips { count: found.clips });
    }
    make_folder(out)?;
    let shard = job.options.shard;
    let is_mine = |path: &Path| found.is_of(shard, path);
    let files: Vec<&Path> =
        found.files.iter().map(PathBuf::as_path).filter(|path| is_mine(path)).collect();
    let mut input = Table::new([PATH]);
    for file in &files {
        input.push([(PATH, file.to_string_lossy().into_owned())]);
    }
    let names = Keys::of(&input, PATH, out);
    let run = Run {
        journal: journal_path(out),
        // Earlier versions divided files by their numbers.
        settings: match shard == Shard::WHOLE {
            true => json!({"step": "scan"}),
            false => json!({"step": "scan", "division": "by path"}),
        },
        // The rows are those of the shard.
        options: RunOptions { shard: Shard::WHOLE, ..job.options },
    };
    let path = |row: usize| files[row];
    let work = |row: usize| {
        names.check(row)?;
        Ok(Probe::of(path(row), job.decoder)?)
    };
    let mut outcomes = step::run_on_files(&run, names.all(), path, work, observer)?;
    for (path, error) in found.unusable.iter().filter(|(path, _)| is_mine(path)) {
        input.push([(PATH, path.to_string_lossy().into_owned())]);
        outcomes.push(Some(Outcome::Failed(error.reason(Some(path)))));
    }
    let given = outcomes.iter().flatten().count();
    let probed = |_, probe: Probe| Ok(vec![probe.fields()]);
    let tables = Tables::assemble(&input, &COLUMNS, outcomes, probed);
    tables.write(out)?;
    Ok(tables.summary(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_sorted_and_does_not_follow_links() {
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
        let found =
            Found::walk(&[folder.clone(), named, folder.join("a.mp4")], Walk::default()).unwrap();
        let expected = ["a.mp4", "b/1.mkv", "b/2.MP4", "b/notes.txt"];
        assert_eq!(found.files, expected.map(|name| folder.join(name)));
        assert_eq!(found.links, if cfg!(unix) { 2 } else { 0 });
        assert!(found.unusable.is_empty());
        assert!(found.again.is_empty());
        let missing = Found::walk(&[folder.join("none")], Walk::default());
        let missing = missing.unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }

    #[test]
    fn clips_of_a_split_are_skipped_unless_their_folder_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        // The table `b/sea.csv` has its clips in a folder that also holds videos and is walked before `b`, or after.
        for name in ["a/clips/a_scene-0.mp4", "a/clips/a_scene-1_part-0.mp4", "z/a_scene-0.mp4"] {
            std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            std::fs::write(path(name), "clip").unwrap();
        }
        for name in ["a/clips/film.mp4", "film_scene-0.mp4", "z/film.mp4"] {
            std::fs::write(path(name), "video").unwrap();
        }
        let journal = |step: &str, clips: &str| json!({"step": step, "clips": clips}).to_string();
        std::fs::write(path("a/clips.csv.journal.jsonl"), journal("split", "clips") + "\n")
            .unwrap();
        std::fs::create_dir(path("b")).unwrap();
        let shared = path("z").display().to_string();
        std::fs::write(path("b/sea.csv.journal.jsonl"), journal("split", &shared) + "\n").unwrap();
        // Journals of other steps, and files that are none.
        std::fs::write(path("film.csv.journal.jsonl"), journal("filter", ".") + "\n").unwrap();
        std::fs::write(path("torn.csv.journal.jsonl"), "torn").unwrap();
        let found = Found::walk(&[root.path().into()], Walk::default()).unwrap();
        let videos = ["a/clips/film.mp4", "film_scene-0.mp4", "z/film.mp4"];
        assert_eq!((found.files, found.clips), (videos.map(path).to_vec(), 3));

        let named = Found::walk(&[path("a/clips")], Walk::default()).unwrap();
        assert_eq!((named.files.len(), named.clips), (3, 0));
        // Also if the journal is beside the clips.
        std::fs::write(path("z/sea.csv.journal.jsonl"), journal("split", &shared) + "\n").unwrap();
        let named = Found::walk(&[path("z")], Walk::default()).unwrap();
        assert_eq!((named.files.len(), named.clips), (2, 0));
    }

    #[test]
    fn added_files_move_no_file_to_another_shard() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: String| std::fs::write(root.path().join(name), "no video").unwrap();
        (0..20).for_each(|file| write(format!("{file}.mp4")));
        let out = |shard| crate::assemble::shard_path(&root.path().join("videos.csv"), shard);
        let failed = |index: usize| -> Vec<String> {
            let shard = Shard::new(index, 2).unwrap();
            let options = RunOptions { shard, ..RunOptions::default() };
            let job = Job { options, decoder: Decoder::InProcess, ..Job::default() };
            let found = Found::walk(&[root.path().into()], job.walk).unwrap();
            let summary = run(&job, &found, &out(shard), &mut ()).unwrap();
            let failed = Table::read(&crate::assemble::failed_path(&out(shard))).unwrap();
            assert_eq!((summary.input, summary.failed), (failed.len(), failed.len()));
            (0..failed.len()).map(|row| failed.get(row, PATH).unwrap().to_string()).collect()
        };
        let mut all = failed(0);
        assert!((1..20).contains(&all.len()), "{all:?}");
        // It is sorted before all others.
        write("!.mp4".into());
        all.extend(failed(1));
        all.retain(|path| !path.ends_with("!.mp4"));
        all.sort();
        let mut expected: Vec<String> = (0..20)
            .map(|file| root.path().join(format!("{file}.mp4")).display().to_string())
            .collect();
        expected.sort();
        assert_eq!(all, expected);
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_on_request_and_a_file_is_listed_once() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        // The layout of a Hugging Face cache: two revisions with links to the same blobs.
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

        let found =
            Found::walk(std::slice::from_ref(&snapshots), Walk { follow_links: true }).unwrap();
        let listed = ["a/fox.mp4", "a/hard.mp4"].map(|name| snapshots.join(name));
        assert_eq!(found.files, listed);
        assert_eq!((found.links, found.again.len()), (0, 3));
        assert!(found.again.contains(&(snapshots.join("b/fox.mp4"), listed[0].clone())));
        let [(path, error)] = &found.unusable[..] else { panic!("{:?}", found.unusable) };
        assert_eq!(*path, snapshots.join("b/gone.mp4"));
        let reason = error.reason(None);
        assert!(reason.starts_with("it is a link to gone: "), "{reason}");

        let plain = Found::walk(&[snapshots.clone(), snapshots.join("b/sea.mp4")], Walk::default());
        let plain = plain.unwrap();
        assert_eq!(plain.files, [snapshots.join("a/hard.mp4")]);
        assert_eq!((plain.links, plain.again.len(), plain.unusable.len()), (5, 1, 1));
    }

    #[test]
    #[cfg(unix)]
    fn folders_and_pipes_are_listed_with_their_reasons() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir(path("empty.mp4")).unwrap();
        std::fs::create_dir(path("film.mp4")).unwrap();
        std::fs::write(path("film.mp4/part.mp4"), "x").unwrap();
        let made = std::process::Command::new("mkfifo").arg(path("pipe.mp4")).status();
        let made = made.is_ok_and(|status| status.success());
        let found = Found::walk(&[root.path().into()], Walk::default()).unwrap();
        assert_eq!(found.files, [path("film.mp4/part.mp4")]);
        let mut expected =
            vec![(path("empty.mp4"), "it is a folder without videos, expected a file".to_string())];
        if made {
            expected.push((path("pipe.mp4"), "it is a pipe (FIFO), expected a file".into()));
        }
        let reason = |(path, error): &(PathBuf, RowError)| (path.clone(), error.reason(None));
        assert_eq!(found.unusable.iter().map(reason).collect::<Vec<_>>(), expected);
    }
}
