//! One video and its clips.

use super::{
    Rate, Settings, names,
    plan::{self, Cut},
    possible,
    progress::{Left, Progress, Scan},
    size,
};
use crate::{
    open::{check, open_stored, strip_path, without_path},
    shots::{self, VideoShots},
};
use opensora_files::{error_line, sync_folder};
use opensora_video::{
    Frames, VideoSpec, Writer,
    pillow::{Filter, Resize},
    reader::{Decoder, VideoReader},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{cell::OnceCell, collections::VecDeque, ops::Range, path::Path};

/// Most bytes that a clip's pictures may take.
const MAX_CLIP: usize = 2 << 30;

/// Most seconds of a video; what claims more has broken times.
const MAX_SECONDS: f64 = 360_000.0;

/// Videos of so many seconds are resumed where they were; shorter ones are cut again.
const LONG: f64 = 30.0;

/// A clip that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// Its name in the folder of clips.
    pub file: String,
    /// Where it begins in the video, in seconds.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
    /// Frames per second.
    pub fps: f64,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Frames.
    pub num_frames: usize,
    /// Length of the file; journals of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Clip {
    /// Returns true if the file is in the folder of clips, as long as it was.
    pub(crate) fn is_in(&self, folder: &Path) -> bool {
        let found = std::fs::metadata(folder.join(&self.file));
        found.is_ok_and(|file| {
            file.is_file() && self.bytes.map_or(file.len() > 0, |bytes| bytes == file.len())
        })
    }
}

/// Where the clips of a video go.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The folder of clips.
    pub(crate) folder: &'a Path,
    /// A folder in it for clips that are not complete, which is there.
    pub(crate) unfinished: &'a Path,
    /// The beginning of their names.
    pub(crate) stem: &'a str,
}

/// Cuts a video; returns the number of its scenes and its clips, at least one. Clips of the same
/// names in the folder are replaced. `state` tells the video from later versions of the file.
///
/// # Errors
/// Why there is no clip; one line without the path.
pub(crate) fn cut(
    path: &Path,
    place: Place<'_>,
    decoder: Decoder,
    settings: &Settings,
    state: Option<&str>,
) -> Result<(usize, Vec<Clip>), String> {
    check(path)?;
    let at = (place.folder, place.stem);
    let kept = |error: std::io::Error| format!("its progress: {error}");
    let left = Progress::left(at, state, settings).map_err(kept)?;
    let (scan, mut progress, written) = match left {
        Some(Left { progress, scan, clips }) => (scan, Some(progress), clips),
        None => (scan(path, decoder, settings)?, None, vec![]),
    };
    let Scan { scenes, times, end, .. } = &scan;
    let square = size::resize(scan.square, settings.shorter_side, settings.enlarge)?;
    let resize = Resize { source: scan.size, ..square };
    let rate = plan::rate(scan.fps, times).ok_or("it states no frame rate and has one frame")?;
    check_times(times, *end)?;
    let fps = match settings.fps {
        Rate::Fixed(fps) => fps,
        Rate::Source if possible(rate) => rate,
        Rate::Source => {
            return Err(format!("it has {rate} frames a second, expected 0.01 to 1000"));
        }
    };
    let cuts = plan::plan(scenes, times, *end, fps, settings);
    if cuts.is_empty() {
        return Err(too_short(scenes, times, *end, settings));
    }
    if let (None, Some(state), true) = (&progress, state, *end >= LONG) {
        progress = Some(Progress::begin(at, state, settings, &scan).map_err(kept)?);
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
    // Where it cannot be removed, the next run finds that it is of no use.
    let _ = progress.map(Progress::remove);
    let clips: Vec<Clip> = clips.into_iter().flatten().collect();
    match done {
        Ok(()) => Ok((scenes.len(), clips)),
        Err(error) => {
            for clip in clips {
                // No table will name it. Where it cannot be removed, it stays.
                let _ = std::fs::remove_file(place.folder.join(clip.file));
            }
            Err(strip_path(&error, path))
        }
    }
}

/// The first pass: the frames of each scene, and the time of each frame.
fn scan(path: &Path, decoder: Decoder, settings: &Settings) -> Result<Scan, String> {
    let VideoShots { info, shots, times, end, decoder } =
        shots::of_video(path, decoder, &settings.shots)
            .map_err(|error| without_path(&error, path))?;
    let sizes = ([info.height, info.width], info.square_size());
    Ok(Scan::new(sizes, info.fps, (shots.scenes, times, end), decoder))
}

fn other_size(frame: usize) -> String {
    format!("frame {} has another size than the first one", frame + 1)
}

/// Fails where times run backwards, or away; `end` is when the last frame ends.
fn check_times(times: &[f64], end: f64) -> Result<(), String> {
    if let Some(pair) = times.windows(2).find(|pair| !pair.is_sorted()) {
        return Err(format!("a frame at {} s comes after one at {} s", pair[1], pair[0]));
    }
    let seconds = end - times[0];
    if seconds.is_nan() || seconds > MAX_SECONDS {
        return Err(format!("it lasts {seconds:.0} s, expected at most {MAX_SECONDS:.0}"));
    }
    Ok(())
}

/// Why a video gives no clip.
fn too_short(scenes: &[Range<usize>], times: &[f64], end: f64, settings: &Settings) -> String {
    let time = |frame: usize| times.get(frame).copied().unwrap_or(end);
    let longest = scenes.iter().map(|scene| time(scene.end) - time(scene.start));
    let longest = longest.fold(0.0, f64::max);
    format!(
        "no scene is long enough: the longest of {} has {longest:.2} s, expected at least {} s and \
         two frames",
        scenes.len(),
        settings.min_seconds
    )
}

/// The second pass: pictures to clips.
struct Writing<'a> {
    place: Place<'a>,
    fps: f64,
    resize: Resize,
    settings: &'a Settings,
    /// Those that are written, by their places among the cuts.
    clips: Vec<Option<Clip>>,
    progress: Option<Progress>,
}

impl Writing<'_> {
    /// Writes the clips that are missing; decoding ends with the last one.
    fn all(&mut self, cuts: Vec<Cut>, reader: VideoReader) -> Result<(), String> {
        let [height, width] = self.resize.source;
        let missing = cuts.into_iter().enumerate().filter(|(cut, _)| self.clips[*cut].is_none());
        let mut cuts: VecDeque<(usize, Cut)> = missing.collect();
        if cuts.is_empty() {
            return Ok(());
        }
        let mut open = None;
        for (index, frame) in reader.enumerate() {
            let frame = frame.map_err(|error| error_line(&error))?;
            if frame.rgb.len() != 3 * height * width {
                return Err(other_size(index));
            }
            let resized = OnceCell::new();
            // The frame that ends a clip may begin the next one, too.
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
        Err("it had more frames when its shots were looked for: has it changed since?".into())
    }

    /// Opens a clip's file, before anything is decoded for it.
    fn open(&self, cut: &Cut) -> Result<OpenClip, String> {
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
        let writer = Writer::open(&self.place.unfinished.join(&file), &spec);
        let writer = writer.map_err(|error| format!("its clip: {}", error_line(&error)))?;
        Ok(OpenClip { file, writer, rgb: Vec::with_capacity(bytes), frames: 0 })
    }

    /// Gives a clip its name.
    fn write(&mut self, clip: OpenClip, place: usize, cut: &Cut) -> Result<(), String> {
        let OpenClip { file, writer, rgb, frames: num_frames } = clip;
        let [height, width] = self.resize.size;
        let frames = Frames::from_rgb(rgb, [num_frames, height, width])
            .map_err(|error| error.to_string())?;
        let fail = |error: &(dyn std::error::Error + 'static)| {
            format!("its clip: {}", error_line(error))
        };
        // Where a clip comes from stands in the table.
        let unfinished = writer.write(&frames, &Value::Null).map_err(|error| fail(&error))?;
        let target = self.place.folder.join(&file);
        let bytes = std::fs::metadata(&unfinished)
            .and_then(|written| std::fs::rename(&unfinished, &target).map(|()| written.len()))
            .and_then(|bytes| sync_folder(&target).map(|()| bytes))
            .map_err(|error| fail(&error))?;
        let (&Cut { start, end, .. }, fps) = (cut, self.fps);
        let bytes = Some(bytes);
        let clip = Clip { file, start, end, fps, width, height, num_frames, bytes };
        if let Some(progress) = &mut self.progress {
            progress.add(place, &clip).map_err(|error| format!("its progress: {error}"))?;
        }
        self.clips[place] = Some(clip);
        Ok(())
    }
}

/// A clip whose frames are being gathered.
struct OpenClip {
    file: String,
    writer: Writer,
    rgb: Vec<u8>,
    frames: usize,
}
