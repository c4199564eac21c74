//! Videos cut at their shots into clips of a few seconds.
//!
//! Every video is decoded twice: once for its shots and the times of its frames, once for the
//! pictures of its clips, as long as there are any. In memory is one clip for each worker, never a
//! video. Clips have no sound, square pixels and the shown proportion.
//!
//! A record of the journal counts as long as the video has the size and time that it had and the clips are
//! there; else the video is cut again, and clips that it does not have any more are removed. A video that is
//! gone is not cut again. Videos of 30 seconds and more are resumed at the clip at which they
//! were interrupted.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect`. Kept: clips of 1 to 5 seconds at 30
//! frames per second, whose shorter side has 512 pixels; names, and how scenes are counted; of a
//! scene that is longer, the first 5 seconds; slower videos are brought to 30 frames per second by
//! repeating frames. Deviations: small pictures are not enlarged; frames go by their times; a video
//! that breaks off gives no clips.

mod names;
mod plan;
mod progress;
mod size;
mod video;

pub use video::Clip;

use crate::{
    PrepareError,
    assemble::{Fields, Keys, LEFTOVER, Summary, Tables, journal_path, make_folder},
    open, shots,
    step::{self, Fault, Run, Shard, State, Trust, Watch},
};
use opensora_files::{hex, remove_leftovers};
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH},
    value,
};
use opensora_video::{frames::MAX_SIDE, reader::Decoder};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, Once, PoisonError},
};
use video::Place;

/// What clips are like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Shorter scenes give no clip. Seconds.
    pub min_seconds: f64,
    /// Longer scenes give a clip of their beginning. Seconds.
    pub max_seconds: f64,
    /// Frames per second of the clips.
    pub fps: Rate,
    /// Pixels of the shorter side; even.
    pub shorter_side: usize,
    /// Whether smaller pictures are enlarged.
    pub enlarge: bool,
    /// Whether longer scenes give several clips.
    pub keep_long: bool,
    /// How shots are found.
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

/// Frames per second of clips; in files a number, or "source".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Rate {
    /// Those of the video; of one with a variable rate, their mean.
    Source,
    /// The same for all.
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

/// A rate in a file.
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
    /// # Errors
    /// Where no clip can be like that.
    fn check(&self) -> Result<(), PrepareError> {
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
        Ok(self.shots.check()?)
    }
}

/// Where clips go and how the work is done.
#[derive(Debug, Clone)]
pub struct Job {
    /// The table of clips.
    pub out: PathBuf,
    /// The folder of clips.
    pub clips: PathBuf,
    /// Who decodes.
    pub decoder: Decoder,
    /// Videos worked on at once.
    pub workers: usize,
    /// Which videos.
    pub shard: Shard,
    /// Whether videos that failed in an earlier run are tried again.
    pub retry_failed: bool,
}

impl Job {
    /// All videos of a table, one at a time, into the table `out` and the folder of the same name
    /// beside it, less its ending.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        let out = out.into();
        let mut clips = out.with_extension("");
        if clips == out {
            clips.as_mut_os_string().push("_clips");
        }
        Self {
            out,
            clips,
            decoder: Decoder::Auto,
            workers: 1,
            shard: Shard::WHOLE,
            retry_failed: false,
        }
    }
}

/// What became of a video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Scenes that it has.
    scenes: usize,
    /// At least one.
    clips: Vec<Clip>,
}

/// Cuts the videos of `input` into clips and writes the table of the clips. Its rows are the
/// video's, with the clip's own `path`, `start`, `end`, `fps`, `width`, `height`, `num_frames` and
/// `duration`, and with `source`: the video, unless the video's row names a source already; then
/// `start` and `end` count from where the row's `start` is in that one.
///
/// Videos that give no clip are listed with the reason.
///
/// # Errors
/// Where the settings cannot be, the journal is of other ones, a table cannot be written, or the
/// watcher stops the step.
pub fn split(
    input: &Table,
    settings: &Settings,
    job: &Job,
    watch: &mut dyn Watch,
) -> Result<Summary, PrepareError> {
    settings.check()?;
    make_folder(&job.out)?;
    let io = |source| PrepareError::Io { path: job.clips.clone(), source };
    remove_leftovers(&job.clips, LEFTOVER).map_err(io)?;
    let keys = Keys::of(input, PATH, &job.out);
    let stems = names::stems(keys.all());
    let run = Run {
        journal: journal_path(&job.out),
        settings: json!({"step": "split", "clips": beside(&job.clips, &job.out), "settings": settings}),
        workers: job.workers,
        shard: job.shard,
        retry_failed: job.retry_failed,
    };
    let path = |row: usize| Path::new(input.get(row, PATH).unwrap_or_default());
    // Clips of records that no longer count.
    let outdated = Mutex::new(HashMap::<usize, Vec<Clip>>::new());
    let lock = || outdated.lock().unwrap_or_else(PoisonError::into_inner);
    let holds = |row: usize, record: &Record| {
        lock().insert(row, record.clips.clone());
        record.clips.iter().all(|clip| clip.is_in(&job.clips))
    };
    let unfinished = unfinished(job);
    let cleared = Once::new();
    let work = |row: usize| {
        keys.check(row)?;
        // With the journal open, no other process is at work here.
        cleared.call_once(|| drop(fs::remove_dir_all(&unfinished)));
        fs::create_dir_all(&unfinished).map_err(|error| format!("its clips: {error}"))?;
        let place = Place { folder: &job.clips, unfinished: &unfinished, stem: &stems[row] };
        let state = open::state(path(row));
        if state == State::Gone {
            // Clips of a video that is gone cannot be made again.
            let reason = open::check(path(row)).err();
            return Err(reason.unwrap_or_else(|| "it was gone for a moment".into()));
        }
        let (scenes, clips) = video::cut(path(row), place, job.decoder, settings, state.known())?;
        let kept: HashSet<&str> = clips.iter().map(|clip| clip.file.as_str()).collect();
        for clip in lock().remove(&row).into_iter().flatten() {
            if !kept.contains(clip.file.as_str()) {
                // No table will name it. Where it cannot be removed, it stays.
                let _ = fs::remove_file(job.clips.join(clip.file));
            }
        }
        Ok(Record { scenes, clips })
    };
    let trust = Trust { state: &|row| open::state(path(row)), holds: &holds };
    let work = |row: usize| work(row).map_err(Fault::Row);
    let outcomes = step::run_checked(&run, keys.all(), &trust, work, watch);
    // Empty, unless the process was killed before.
    let _ = fs::remove_dir_all(&unfinished);
    let outcomes = outcomes?;
    let given = outcomes.iter().flatten().count();
    let tables = Tables::assemble(input, &COLUMNS, outcomes, |row, record: Record| {
        Ok(record.clips.iter().map(|clip| fields(input, row, &job.clips, clip)).collect())
    });
    tables.write(&job.out)?;
    Ok(tables.summary(given))
}

/// The folder of clips that are not complete: one for each journal, so that what a killed process left in
/// it can be removed while other shards write to the same folder of clips.
fn unfinished(job: &Job) -> PathBuf {
    let name = job.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let digest = hex(&Sha256::digest(name)[..8]);
    job.clips.join(format!(".opensora-{digest}.part"))
}

/// Columns that the step sets.
const COLUMNS: [&str; 9] =
    [PATH, "source", "start", "end", "fps", "width", "height", NUM_FRAMES, "duration"];

/// What a clip's row does not take from its video's.
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

/// A folder as seen from a file's, so that both may be moved.
fn beside(folder: &Path, file: &Path) -> PathBuf {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let (folder, file) = (absolute(folder), absolute(file));
    let parent = file.parent().unwrap_or(Path::new(""));
    folder.strip_prefix(parent).map_or_else(|_| folder.clone(), Path::to_path_buf)
}
