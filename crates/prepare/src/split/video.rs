//! Cuts one video into clips, in two passes.

use super::{
    Rate, Settings, names,
    plan::{self, Cut, Scene},
    possible,
    progress::{Left, Progress, Scan},
    scans::Scans,
    size,
};
use crate::{
    RowError,
    open::{check, open_stored},
    ranges::ClipRange,
    shots::{self, VideoShots},
};
use opensora_files::sync_folder;
use opensora_video::{
    Frames, VideoSpec, Writer,
    pillow::{Filter, Resize},
    reader::{Decoder, VideoReader},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{cell::OnceCell, collections::VecDeque, error::Error, path::Path, sync::Arc};

/// Maximum size of a clip's frames in bytes.
const MAX_CLIP: usize = 2 << 30;

/// Maximum duration of a video in seconds; longer ones have broken timestamps.
const MAX_SECONDS: f64 = 360_000.0;

/// Minimum duration in seconds of a video or clip range that is resumed after an interruption; shorter ones start
/// again.
const LONG: f64 = 30.0;

/// A written clip: file, times, size and number of frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// File name in the folder of clips.
    pub file: String,
    /// Start in seconds of the video.
    pub start: f64,
    /// End in seconds of the video.
    pub end: f64,
    /// Frames per second.
    pub fps: f64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub num_frames: usize,
    /// Size of the file in bytes; `None` in journals of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Clip {
    /// Returns true if the file exists in the folder of clips with its recorded size.
    pub(crate) fn is_in(&self, folder: &Path) -> bool {
        let found = std::fs::metadata(folder.join(&self.file));
        found.is_ok_and(|file| {
            file.is_file() && self.bytes.map_or(file.len() > 0, |bytes| bytes == file.len())
        })
    }
}

/// The folders and names of a video's clips.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The folder of clips.
    pub(crate) folder: &'a Path,
    /// An existing folder in it for incomplete clips.
    pub(crate) unfinished: &'a Path,
    /// Prefix of the clips' names.
    pub(crate) stem: &'a str,
}

/// A video, or one of its clip ranges.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The video's file.
    pub(crate) path: &'a Path,
    /// The version of the file; `None` if it is not known.
    pub(crate) state: Option<&'a str>,
    /// The clip range; `None` for the whole video.
    pub(crate) range: Option<ClipRange>,
}

/// Cuts a video or clip range; returns the number of scenes and the clips, at least one. Clips of the same
/// names in the folder are replaced. Ranges of one video share its first pass in `scans`.
///
/// # Errors
/// Returns an error if the video gives no clip.
pub(crate) fn cut(
    source: Source<'_>,
    place: Place<'_>,
    decoder: Decoder,
    settings: &Settings,
    scans: &Scans,
) -> Result<(usize, Vec<Clip>), RowError> {
    let Source { path, state, range } = source;
    check(path)?;
    let at = (place.folder, place.stem);
    let left = Progress::left(at, state, settings).map_err(progress_error)?;
    let first_pass = || scan(path, decoder, settings);
    let (scan, mut progress, written) = match (left, range, state) {
        (Some(Left { progress, scan, clips }), ..) => (Arc::new(scan), Some(progress), clips),
        (None, Some(_), Some(state)) => (scans.get(path, state, first_pass)?, None, vec![]),
        _ => (Arc::new(first_pass()?), None, vec![]),
    };
    let Scan { scenes: shots, times, end, .. } = &*scan;
    let square = size::resize(scan.square, settings.shorter_side, settings.enlarge)?;
    let resize = Resize { source: scan.size, ..square };
    let fps = frame_rate(&scan, settings)?;
    check_times(times, *end)?;
    let scenes = plan::scenes(shots, times, *end, range);
    let cuts = plan::plan(&scenes, times, fps, settings);
    if cuts.is_empty() {
        return Err(too_short(&scenes, *end, settings).into());
    }
    let seconds = range.map_or(*end, |range| range.end.min(*end) - range.start);
    if let (None, Some(state), true) = (&progress, state, seconds >= LONG) {
        progress = Some(Progress::begin(at, state, settings, &scan).map_err(progress_error)?);
    }
    let mut clips = vec![None; cuts.len()];
    for (cut, clip) in written {
        if cut < clips.len() && clip.is_in(place.folder) {
            clips[cut] = Some(clip);
        }
    }
    let mut writing = Writing { place, fps, resize, settings, clips, progress };
    let done = open_stored(path, scan.decoder()).and_then(|reader| writing.all(cuts, reader));
    let Writing { clips, progress, .. } = writing;
    let done = match done {
        // The next run resumes a long video after its last complete clip.
        Err(error) if progress.is_some() && error.is_of_output() => return Err(error),
        done => done,
    };
    // If it cannot be removed, the next run finds that it is outdated.
    let _ = progress.map(Progress::remove);
    let clips: Vec<Clip> = clips.into_iter().flatten().collect();
    if let Err(error) = done {
        for clip in clips {
            // Errors are ignored: no table lists the clip.
            let _ = std::fs::remove_file(place.folder.join(clip.file));
        }
        return Err(error);
    }
    Ok((scenes.len(), clips))
}

fn progress_error(error: std::io::Error) -> RowError {
    RowError::part("its progress", error)
}

fn clip_error(error: impl Into<Box<dyn Error + Send + Sync>>) -> RowError {
    RowError::part("its clip", error)
}

/// Returns the frame rate of the clips of a video.
fn frame_rate(scan: &Scan, settings: &Settings) -> Result<f64, RowError> {
    let rate = plan::rate(scan.fps, &scan.times);
    let rate = rate.ok_or("it states no frame rate and has one frame")?;
    match settings.fps {
        Rate::Fixed(fps) => Ok(fps),
        Rate::Source if possible(rate) => Ok(rate),
        Rate::Source => Err(format!("it has {rate} frames a second, expected 0.01 to 1000").into()),
    }
}

/// Runs the first pass: finds the frames of each scene and the time of each frame.
fn scan(path: &Path, decoder: Decoder, settings: &Settings) -> Result<Scan, RowError> {
    let VideoShots { info, shots, times, end, decoder } =
        shots::of_video(path, decoder, &settings.shots)?;
    let sizes = ([info.height, info.width], info.square_size());
    Ok(Scan::new(sizes, info.fps, (shots.scenes, times, end), decoder))
}

/// Returns an error if times decrease or are too long; `end` is the second at which the last frame ends.
fn check_times(times: &[f64], end: f64) -> Result<(), RowError> {
    if let Some(pair) = times.windows(2).find(|pair| !pair.is_sorted()) {
        return Err(format!("a frame at {} s comes after one at {} s", pair[1], pair[0]).into());
    }
    let seconds = end - times[0];
    if seconds.is_nan() || seconds > MAX_SECONDS {
        return Err(format!("it lasts {seconds:.0} s, expected at most {MAX_SECONDS:.0}").into());
    }
    Ok(())
}

/// Returns why a video or range gives no clip; `end` is the second at which the video ends.
fn too_short(scenes: &[Scene], end: f64, settings: &Settings) -> String {
    if scenes.is_empty() {
        return format!("its clip range has no frames: the video ends at {end:.2} s");
    }
    let longest = scenes.iter().map(|scene| scene.end - scene.start).fold(0.0, f64::max);
    format!(
        "no scene is long enough: the longest of {} has {longest:.2} s, expected at least {} s and \
         two frames",
        scenes.len(),
        settings.min_seconds
    )
}

/// The second pass: writes frames to clips.
struct Writing<'a> {
    place: Place<'a>,
    fps: f64,
    resize: Resize,
    settings: &'a Settings,
    /// Written clips, by their indices among the cuts.
    clips: Vec<Option<Clip>>,
    progress: Option<Progress>,
}

impl Writing<'_> {
    /// Writes the missing clips. Decoding ends after the last one.
    fn all(&mut self, cuts: Vec<Cut>, reader: VideoReader) -> Result<(), RowError> {
        let [height, width] = self.resize.source;
        let missing = cuts.into_iter().enumerate().filter(|(cut, _)| self.clips[*cut].is_none());
        let mut cuts: VecDeque<(usize, Cut)> = missing.collect();
        if cuts.is_empty() {
            return Ok(());
        }
        let mut open = None;
        for (index, frame) in reader.enumerate() {
            let frame = frame?;
            if frame.rgb.len() != 3 * height * width {
                return Err(RowError::FrameSize { frame: index });
            }
            let resized = OnceCell::new();
            // The last frame of a clip can be the first of the next one.
            while let Some((_, cut)) = cuts.front() {
                let clip = match &mut open {
                    Some(clip) => clip,
                    None => open.insert(self.open(cut)?),
                };
                let shown = cut.picks[clip.frames..].iter().take_while(|pick| **pick == index);
                for _ in shown {
                    let pixels =
                        resized.get_or_init(|| self.resize.apply(&frame.rgb, Filter::Bicubic));
                    clip.rgb.extend(pixels);
                    clip.frames += 1;
                }
                if clip.frames < cut.picks.len() {
                    break;
                }
                if let (Some(clip), Some((place, cut))) = (open.take(), cuts.pop_front()) {
                    self.write(clip, place, &cut)?;
                }
            }
            if cuts.is_empty() {
                return Ok(());
            }
        }
        Err("it has fewer frames than in the first pass: has it changed since?".into())
    }

    /// Creates a clip's file before its frames are decoded.
    fn open(&self, cut: &Cut) -> Result<OpenClip, RowError> {
        let [height, width] = self.resize.size;
        let frames = cut.picks.len();
        let bytes = (3 * height * width).checked_mul(frames).filter(|bytes| *bytes <= MAX_CLIP);
        let bytes = bytes.ok_or_else(|| {
            format!(
                "a clip of {frames} frames of {height}x{width} takes more than {} GiB of memory: \
                 choose shorter or smaller clips, or fewer frames per second",
                MAX_CLIP >> 30
            )
        })?;
        let part = self.settings.keep_long.then_some(cut.part);
        let file = names::clip(self.place.stem, cut.scene, part);
        let spec = VideoSpec { frames, width, height, fps: self.fps };
        let writer = Writer::open(&self.place.unfinished.join(&file), &spec).map_err(clip_error)?;
        Ok(OpenClip { file, writer, rgb: Vec::with_capacity(bytes), frames: 0 })
    }

    /// Writes the clip of `cut`, renames the file to its final name, and records the clip as number
    /// `place`.
    fn write(&mut self, clip: OpenClip, place: usize, cut: &Cut) -> Result<(), RowError> {
        let OpenClip { file, writer, rgb, frames: num_frames } = clip;
        let [height, width] = self.resize.size;
        let frames = Frames::from_rgb(rgb, [num_frames, height, width])?;
        // The table names the source of the clip, so the file has no metadata.
        let unfinished = writer.write(&frames, &Value::Null).map_err(clip_error)?;
        let target = self.place.folder.join(&file);
        let bytes = std::fs::metadata(&unfinished)
            .and_then(|written| std::fs::rename(&unfinished, &target).map(|()| written.len()))
            .and_then(|bytes| sync_folder(&target).map(|()| bytes))
            .map_err(clip_error)?;
        let (&Cut { start, end, .. }, fps) = (cut, self.fps);
        let bytes = Some(bytes);
        let clip = Clip { file, start, end, fps, width, height, num_frames, bytes };
        if let Some(progress) = &mut self.progress {
            progress.add(place, &clip).map_err(progress_error)?;
        }
        self.clips[place] = Some(clip);
        Ok(())
    }
}

/// A clip whose frames are being collected.
struct OpenClip {
    file: String,
    writer: Writer,
    rgb: Vec<u8>,
    frames: usize,
}
