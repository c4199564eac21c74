//! One video and its clips.

use super::{
    Rate, Settings, names,
    plan::{self, Cut},
    possible, size,
};
use crate::{
    open::{open, without_path},
    shots::{self, VideoShots},
};
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
}

/// Cuts a video; returns the number of its scenes and its clips, at least one. Clips of the same
/// names in `folder` are replaced.
///
/// # Errors
/// Why there is no clip; one line without the path.
pub(crate) fn cut(
    path: &Path,
    stem: &str,
    folder: &Path,
    decoder: Decoder,
    settings: &Settings,
) -> Result<(usize, Vec<Clip>), String> {
    // The first pass: the frames of each scene, and the time of each frame.
    let VideoShots { info, shots, times, decoder } =
        shots::of_video(path, decoder, &settings.shots)
            .map_err(|error| without_path(&error, path))?;
    let scenes = shots.scenes;
    let resize = size::resize([info.height, info.width], settings.shorter_side, settings.enlarge)?;
    let rate = plan::rate(info.fps, &times).ok_or("it states no frame rate and has one frame")?;
    let last = 1.0 / rate;
    check(&times, last)?;
    let fps = match settings.fps {
        Rate::Fixed(fps) => fps,
        Rate::Source if possible(rate) => rate,
        Rate::Source => {
            return Err(format!("it has {rate} frames a second, expected 0.01 to 1000"));
        }
    };
    let cuts = plan::plan(&scenes, &times, last, fps, settings);
    if cuts.is_empty() {
        return Err(too_short(&scenes, &times, last, settings));
    }
    let mut writing = Writing { stem, folder, fps, resize, settings, clips: vec![] };
    match writing.all(cuts, open(path, decoder)?) {
        Ok(()) => Ok((scenes.len(), writing.clips)),
        Err(error) => {
            for clip in writing.clips {
                // No table will name it. Where it cannot be removed, it stays.
                let _ = std::fs::remove_file(folder.join(clip.file));
            }
            Err(without_path(&error, path))
        }
    }
}

fn other_size(frame: usize) -> String {
    format!("frame {} has another size than the first one", frame + 1)
}

/// Fails where times run backwards, or away; `last` is how long the last frame is shown.
fn check(times: &[f64], last: f64) -> Result<(), String> {
    if let Some(pair) = times.windows(2).find(|pair| !pair.is_sorted()) {
        return Err(format!("a frame at {} s comes after one at {} s", pair[1], pair[0]));
    }
    let seconds = times[times.len() - 1] - times[0] + last;
    if seconds.is_nan() || seconds > MAX_SECONDS {
        return Err(format!("it lasts {seconds:.0} s, expected at most {MAX_SECONDS:.0}"));
    }
    Ok(())
}

/// Why a video gives no clip.
fn too_short(scenes: &[Range<usize>], times: &[f64], last: f64, settings: &Settings) -> String {
    let time = |frame: usize| times.get(frame).copied().unwrap_or(times[times.len() - 1] + last);
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
    stem: &'a str,
    folder: &'a Path,
    fps: f64,
    resize: Resize,
    settings: &'a Settings,
    clips: Vec<Clip>,
}

impl Writing<'_> {
    /// Writes the clips; decoding ends with the last one.
    fn all(&mut self, cuts: Vec<Cut>, reader: VideoReader) -> Result<(), String> {
        let [height, width] = self.resize.source;
        let mut cuts = VecDeque::from(cuts);
        let mut open = None;
        for (index, frame) in reader.enumerate() {
            let frame = frame.map_err(|error| error.to_string())?;
            if frame.rgb.len() != 3 * height * width {
                return Err(other_size(index));
            }
            let resized = OnceCell::new();
            // The frame that ends a clip may begin the next one, too.
            while let Some(cut) = cuts.front() {
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
                if let (Some(clip), Some(cut)) = (open.take(), cuts.pop_front()) {
                    self.write(clip, &cut)?;
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
        let file = names::clip(self.stem, cut.scene, part);
        let spec = VideoSpec { frames, width, height, fps: self.fps };
        let writer = Writer::open(&self.folder.join(&file), &spec);
        let writer = writer.map_err(|error| format!("its clip: {error}"))?;
        Ok(OpenClip { file, writer, rgb: Vec::with_capacity(bytes), frames: 0 })
    }

    /// Gives a clip its name.
    fn write(&mut self, clip: OpenClip, cut: &Cut) -> Result<(), String> {
        let OpenClip { file, writer, rgb, frames: num_frames } = clip;
        let [height, width] = self.resize.size;
        let frames = Frames::from_rgb(rgb, [num_frames, height, width])
            .map_err(|error| error.to_string())?;
        // Where a clip comes from stands in the table.
        writer.write(&frames, &Value::Null).map_err(|error| format!("its clip: {error}"))?;
        let Cut { start, end, .. } = *cut;
        self.clips.push(Clip { file, start, end, fps: self.fps, width, height, num_frames });
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
