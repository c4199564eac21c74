//! Cuts videos at their shots into clips of a few seconds.
//!
//! Every video is decoded twice: for its shots and the times of its frames, and for the frames of its
//! clips, up to the last clip. Memory holds one clip per worker, never a whole video. Clips have no sound,
//! square pixels and the displayed aspect ratio.
//!
//! A record of the journal is valid while the video's size and time are unchanged and its clips exist.
//! Otherwise the video is cut again, and its outdated clips are removed. The record of a deleted video
//! stays valid. Videos of 30 s and more are resumed at the clip at which they were interrupted.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect`. As there: clips of 1 to 5 s at 30 frames per
//! second with a shorter side of 512 pixels; names, and numbers of scenes; only the first 5 s of longer
//! scenes; slower videos repeat frames. Deviations: small frames are not enlarged; frames are chosen by
//! their times; a truncated video gives no clips.
//!
//! # Clip ranges
//! A row with a value in [`CLIP_START`] or [`CLIP_END`], as the step `download` writes it, is a range of its video;
//! several rows may be different ranges of one video. Shots are found in the whole video, once for neighbouring
//! rows. Scenes are cut at the bounds of the range and numbered within it. A range that ends after the video is cut
//! at the video's end. The rows of the clips have no clip range.

mod names;
mod plan;
mod progress;
mod scans;
mod size;
mod video;

pub(crate) use names::is_clip;
pub use video::Clip;

use crate::{
    Observer, PrepareError, RowError, RunOptions, Summary,
    assemble::{Fields, Keys, LEFTOVER, Tables, journal_path, make_folder},
    filter, open,
    ranges::ClipRange,
    shots,
    step::{self, Fault, Run, State, Trust},
};
use names::Sharing;
use opensora_files::{folder_of, hex, read::open_regular, remove_leftovers};
use opensora_manifest::{
    Table,
    table::{CLIP_END, CLIP_START, NUM_FRAMES, PATH},
    value,
};
use opensora_video::{frames::MAX_SIDE, reader::Decoder};
use scans::Scans;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
};
use video::{Place, Source};

/// Length, size and frame rate of clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Length of the shortest clip in seconds; shorter scenes give none.
    pub min_seconds: f64,
    /// Length of the longest clip in seconds; of longer scenes, only the beginning is used.
    pub max_seconds: f64,
    /// Frame rate of the clips.
    pub fps: Rate,
    /// Shorter side in pixels; even.
    pub shorter_side: usize,
    /// Enlarges smaller frames.
    pub enlarge: bool,
    /// Cuts longer scenes into several clips.
    pub keep_long: bool,
    /// Settings of shot detection.
    pub shots: shots::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_seconds: 1.0,
            max_seconds: 5.0,
            fps: Rate::Fixed(30.0),
            shorter_side: 512,
            enlarge: false,
            keep_long: false,
            shots: shots::Settings::default(),
        }
    }
}

/// Frame rate of clips; in files a number of frames per second, or "source".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Rate {
    /// The video's; the mean of a variable frame rate.
    Source,
    /// The same for all videos.
    Fixed(f64),
}

impl std::str::FromStr for Rate {
    type Err = PrepareError;

    fn from_str(text: &str) -> Result<Self, PrepareError> {
        let fixed = || text.parse().ok().filter(|fps| possible(*fps)).map(Self::Fixed);
        let rate = if text == "source" { Some(Self::Source) } else { fixed() };
        rate.ok_or_else(|| spec("fps", text, "0.01 to 1000, or source"))
    }
}

/// A rate as it is written in a file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Word(String),
}

impl TryFrom<Written> for Rate {
    type Error = PrepareError;

    fn try_from(written: Written) -> Result<Self, PrepareError> {
        match written {
            Written::Number(fps) => fps.to_string().parse(),
            Written::Word(word) => word.parse(),
        }
    }
}

impl From<Rate> for Written {
    fn from(rate: Rate) -> Self {
        match rate {
            Rate::Fixed(fps) => Self::Number(fps),
            Rate::Source => Self::Word("source".into()),
        }
    }
}

fn possible(fps: f64) -> bool {
    (0.01..=1000.0).contains(&fps)
}

fn spec(field: &'static str, found: impl ToString, expected: &'static str) -> PrepareError {
    PrepareError::Spec { field, found: found.to_string(), expected }
}

impl Settings {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a setting is out of its range.
    pub fn validate(&self) -> Result<(), PrepareError> {
        let Self { min_seconds, max_seconds, shorter_side, .. } = *self;
        if !(min_seconds.is_finite() && min_seconds >= 0.0) {
            return Err(spec("min_seconds", min_seconds, "a number of seconds from 0"));
        }
        if !(max_seconds.is_finite() && max_seconds > 0.0 && max_seconds >= min_seconds) {
            return Err(spec("max_seconds", max_seconds, "no less than min_seconds, and above 0"));
        }
        if let Rate::Fixed(fps) = self.fps
            && !possible(fps)
        {
            return Err(spec("fps", fps, "0.01 to 1000, or source"));
        }
        if !shorter_side.is_multiple_of(2) || !(2..=MAX_SIDE).contains(&shorter_side) {
            return Err(spec("shorter_side", shorter_side, "an even number from 2 to 16384"));
        }
        Ok(self.shots.validate()?)
    }
}

/// Settings, folder, decoder and run options of the step `split`.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Length, size and frame rate of the clips.
    pub settings: Settings,
    /// The folder of the clips. `None`: [`clips_folder`] of the table of clips.
    pub clips: Option<PathBuf>,
    /// Other tables write to the same folder of clips, so every clip's name has digits that depend on the path of
    /// its video and on the settings. Shards of one table do not need this.
    pub shared: bool,
    /// The decoder.
    pub decoder: Decoder,
    /// Workers, shard of the videos, and retries of videos that gave no clips. Each worker holds one
    /// clip in memory.
    pub options: RunOptions,
}

/// The name of the step in its journals.
const STEP: &str = "split";

/// Upper limit of the first line of a journal in bytes; it has a few hundred.
const MAX_HEAD: u64 = 1 << 16;

/// The first line of a journal of this step, without the settings of the clips.
#[derive(Deserialize)]
struct Head {
    step: String,
    clips: PathBuf,
}

/// Returns the folder of the clips whose journal is at `path`; `None` for other journals and unreadable files.
pub(crate) fn clips_of_journal(path: &Path) -> Option<PathBuf> {
    let mut line = String::new();
    BufReader::new(open_regular(path).ok()?.take(MAX_HEAD)).read_line(&mut line).ok()?;
    let head: Head = serde_json::from_str(&line).ok()?;
    (head.step == STEP).then(|| folder_of(path).join(head.clips))
}

/// Returns the default folder of the clips of a table: `clips` for `clips.csv`.
pub fn clips_folder(out: &Path) -> PathBuf {
    let mut clips = out.with_extension("");
    if clips == out {
        clips.as_mut_os_string().push("_clips");
    }
    clips
}

/// The record of a video that was cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Number of scenes.
    scenes: usize,
    /// The clips, at least one.
    clips: Vec<Clip>,
}

/// Cuts the videos of `input` into clips and writes the table of the clips. Its rows are the
/// video's, with the clip's own `path`, `start`, `end`, `fps`, `width`, `height`, `num_frames` and
/// `duration`, and with `source`: the video, unless the video's row names a source already; then
/// `start` and `end` count from the row's `start` in that source.
///
/// Of a row with a clip range ([`CLIP_START`], [`CLIP_END`]), only the range is cut. The table of the clips does
/// not have these columns.
///
/// Videos that give no clip are listed with the reason.
///
/// # Errors
/// Returns an error if a setting is invalid, the journal was written with other settings, a table or the clips
/// cannot be written (the disk is full, the folder is read-only), or the observer stops the step.
pub fn run(
    job: &Job,
    input: &Table,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Summary, PrepareError> {
    job.settings.validate()?;
    make_folder(out)?;
    let clips = job.clips.clone().unwrap_or_else(|| clips_folder(out));
    let from_out = beside(&clips, out);
    // Tables and settings are text.
    if clips.to_str().is_none() || from_out.to_str().is_none() {
        return Err(spec("clips", clips.display(), "a folder whose path is UTF-8"));
    }
    remove_leftovers(&clips, LEFTOVER).map_err(PrepareError::io(&clips))?;
    let keys = Keys::of(input, PATH, out);
    let folder = std::path::absolute(folder_of(out)).map_err(PrepareError::io(out))?;
    let run = Run {
        journal: journal_path(out),
        settings: json!({
            "step": STEP, "clips": from_out, "settings": job.settings,
        }),
        options: job.options,
    };
    let settings = json!(job.settings).to_string();
    let sharing = Sharing { folder: &folder, settings: &settings };
    let videos = Videos {
        job,
        input,
        unfinished: unfinished(&clips, out),
        clips: &clips,
        stems: names::stems(keys.all(), job.shared.then_some(&sharing)),
        scans: Scans::new(job.options.workers),
        recorded: Mutex::default(),
        cleared: Once::new(),
    };
    let work = |row: usize| -> Result<Record, Fault> {
        keys.check(row)?;
        videos.cut(row).map_err(|error| match error.is_of_output() {
            true => Fault::Step(Arc::new(error)),
            false => error.into(),
        })
    };
    let trust = Trust {
        state: &|row| open::state(videos.path(row)),
        path: &|row| Some(videos.path(row)),
        holds: &|row, record| videos.holds(row, record),
    };
    // After an error, the folder may be in use by the process that holds the journal.
    let outcomes = step::run_checked(&run, keys.all(), &trust, work, observer)?;
    // It is empty now, as clips are moved out when they are complete, unless another process has started meanwhile.
    let _ = fs::remove_dir(&videos.unfinished);
    let given = outcomes.iter().flatten().count();
    let mut tables = Tables::assemble(input, &COLUMNS, outcomes, |row, record: Record| {
        Ok(record.clips.iter().map(|clip| fields(input, row, &clips, clip)).collect())
    });
    // Clips are whole files, and measurements of a video do not hold for its clips.
    for column in [CLIP_START, CLIP_END].into_iter().chain(filter::of_frames()) {
        tables.output.remove(column);
    }
    tables.write(out)?;
    Ok(tables.summary(given))
}

/// The videos of a table and the folders of their clips.
struct Videos<'a> {
    job: &'a Job,
    input: &'a Table,
    /// The folder of the clips.
    clips: &'a Path,
    /// The folder of incomplete clips.
    unfinished: PathBuf,
    /// Name prefixes of the videos' clips.
    stems: Vec<String>,
    /// First passes over videos of several ranges.
    scans: Scans,
    /// Clips of the journal's records.
    recorded: Mutex<Recorded>,
    /// Set when the incomplete clips of a killed process are removed.
    cleared: Once,
}

/// Clips of the records of a journal.
#[derive(Default)]
struct Recorded {
    /// The clips of each row.
    clips: HashMap<usize, Vec<Clip>>,
    /// Number of records that name a file: several if videos had equal names in different runs.
    uses: HashMap<String, usize>,
}

impl Recorded {
    fn add(&mut self, row: usize, clips: &[Clip]) {
        for clip in clips {
            *self.uses.entry(clip.file.clone()).or_insert(0) += 1;
        }
        self.clips.insert(row, clips.to_vec());
    }

    /// Removes the record of a row. Returns the files that no other record names.
    fn remove(&mut self, row: usize) -> Vec<String> {
        let files = self.clips.remove(&row).into_iter().flatten().map(|clip| clip.file);
        let is_last = |file: &String| {
            let uses = self.uses.get_mut(file);
            uses.is_some_and(|uses| {
                *uses -= 1;
                *uses == 0
            })
        };
        files.filter(is_last).collect()
    }
}

impl<'a> Videos<'a> {
    fn path(&self, row: usize) -> &'a Path {
        Path::new(self.input.get(row, PATH).unwrap_or_default())
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if all clips of a record exist; remembers them.
    fn holds(&self, row: usize, record: &Record) -> bool {
        self.recorded().add(row, &record.clips);
        record.clips.iter().all(|clip| clip.is_in(self.clips))
    }

    /// Cuts a video, or the clip range of its row, and removes clips of its earlier version.
    fn cut(&self, row: usize) -> Result<Record, RowError> {
        let range = ClipRange::of(self.input, row)?;
        // The journal is open: no other process works in this folder.
        self.cleared.call_once(|| drop(fs::remove_dir_all(&self.unfinished)));
        fs::create_dir_all(&self.unfinished).map_err(|error| RowError::part("its clips", error))?;
        let place =
            Place { folder: self.clips, unfinished: &self.unfinished, stem: &self.stems[row] };
        let path = self.path(row);
        let state = open::state(path);
        if state == State::Gone {
            // The clips of a deleted video cannot be made again, so they are kept.
            return Err(open::check(path).err().unwrap_or("it was missing for a moment".into()));
        }
        let Job { settings, decoder, .. } = self.job;
        let source = Source { path, state: state.known(), range };
        let (scenes, clips) = video::cut(source, place, *decoder, settings, &self.scans)?;
        let kept: HashSet<&str> = clips.iter().map(|clip| clip.file.as_str()).collect();
        let outdated = self.recorded().remove(row);
        for file in outdated.iter().filter(|file| !kept.contains(file.as_str())) {
            // Errors are ignored: no table lists the clip.
            let _ = fs::remove_file(self.clips.join(file));
        }
        Ok(Record { scenes, clips })
    }
}

/// Returns the folder of incomplete clips: one for each journal, so that what a killed process left
/// can be removed while other shards and tables write to the same folder of clips.
fn unfinished(clips: &Path, out: &Path) -> PathBuf {
    let out = std::path::absolute(out).unwrap_or_else(|_| out.into());
    let digest = hex(&Sha256::digest(out.as_os_str().as_encoded_bytes())[..8]);
    clips.join(format!(".opensora-{digest}.part"))
}

/// Columns that the step sets.
const COLUMNS: [&str; 9] =
    [PATH, "source", "start", "end", "fps", "width", "height", NUM_FRAMES, "duration"];

/// Returns the fields of a clip's row that differ from its video's row.
fn fields(input: &Table, row: usize, folder: &Path, clip: &Clip) -> Fields {
    let field = |column| input.get(row, column).filter(|field| !value::is_missing(field));
    let offset: f64 = match field("source") {
        Some(_) => field("start").and_then(value::number).unwrap_or(0.0),
        None => 0.0,
    };
    let source = field("source").or(field(PATH)).unwrap_or_default();
    let seconds = |seconds: f64| format!("{seconds:.3}");
    vec![
        (PATH, folder.join(&clip.file).to_string_lossy().into_owned()),
        ("source", source.into()),
        ("start", seconds(offset + clip.start)),
        ("end", seconds(offset + clip.end)),
        ("fps", clip.fps.to_string()),
        ("width", clip.width.to_string()),
        ("height", clip.height.to_string()),
        (NUM_FRAMES, clip.num_frames.to_string()),
        ("duration", seconds(clip.num_frames as f64 / clip.fps)),
    ]
}

/// Returns a folder relative to that of a file, so that both can be moved together.
fn beside(folder: &Path, file: &Path) -> PathBuf {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let (folder, file) = (absolute(folder), absolute(file));
    let parent = file.parent().unwrap_or(Path::new(""));
    folder.strip_prefix(parent).map_or_else(|_| folder.clone(), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::Journal;

    #[test]
    fn a_run_that_cannot_start_keeps_the_open_clips_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("clips.csv");
        let open = unfinished(&clips_folder(&out), &out);
        fs::create_dir_all(&open).unwrap();
        fs::write(open.join("sea_scene-0.mp4"), "half a clip").unwrap();
        let mut input = Table::new([PATH]);
        input.push([(PATH, folder.path().join("sea.mp4").display().to_string())]);

        let running = Journal::open(&journal_path(&out)).unwrap();
        let busy = run(&Job::default(), &input, &out, &mut ()).unwrap_err();
        assert!(matches!(busy, PrepareError::Journal { .. }), "{busy}");
        assert!(open.join("sea_scene-0.mp4").exists());
        // The video is missing: a failed row.
        drop(running);
        assert_eq!(run(&Job::default(), &input, &out, &mut ()).unwrap().failed, 1);
        assert!(!open.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_of_clips_that_no_table_can_name_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let clips = folder.path().join(std::ffi::OsStr::from_bytes(b"\xe9"));
        let job = Job { clips: Some(clips), ..Job::default() };
        let out = folder.path().join("clips.csv");
        let refused = run(&job, &Table::new([PATH]), &out, &mut ()).unwrap_err();
        assert!(refused.to_string().contains("UTF-8"), "{refused}");
    }

    #[test]
    fn tables_of_one_name_have_separate_folders_of_open_clips() {
        let clips = Path::new("shared");
        let of = |out: &str| unfinished(clips, Path::new(out));
        assert_ne!(of("a/clips.csv"), of("b/clips.csv"));
        assert_eq!(of("clips.csv"), of("./clips.csv"));
    }

    #[test]
    #[cfg(unix)]
    fn a_folder_that_cannot_be_written_ends_the_step() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("clips.csv");
        let clips = clips_folder(&out);
        fs::create_dir(&clips).unwrap();
        fs::write(folder.path().join("sea.mp4"), "no video").unwrap();
        let mut input = Table::new([PATH]);
        input.push([(PATH, folder.path().join("sea.mp4").display().to_string())]);

        fs::set_permissions(&clips, fs::Permissions::from_mode(0o555)).unwrap();
        // An administrator may write to it nevertheless.
        let is_closed = fs::write(clips.join("try"), "").is_err();
        let result = run(&Job::default(), &input, &out, &mut ());
        fs::set_permissions(&clips, fs::Permissions::from_mode(0o755)).unwrap();
        if is_closed {
            let error = result.unwrap_err();
            assert!(matches!(error, PrepareError::Halted { done: 0, total: 1, .. }), "{error}");
            // Nothing is recorded: now the row is processed.
            assert_eq!(run(&Job::default(), &input, &out, &mut ()).unwrap().failed, 1);
        }
    }
}
