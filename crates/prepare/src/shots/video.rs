//! Shots of a video file.

use super::{Detector, Score, Settings, Shots, Yuv420, score::Scorer};
use crate::open::without_path;
use opensora_video::reader::{Decoder, PlanarFrames, PlanarHalves, VideoInfo, VideoReader};
use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

/// Frames that are decoded ahead of the comparison.
const AHEAD: usize = 4;

/// The shots of a video, and its frames' times.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoShots {
    /// What the container says.
    pub info: VideoInfo,
    /// The shots.
    pub shots: Shots,
    /// Seconds at which each frame is shown, from the first frame.
    pub times: Vec<f64>,
    /// Who decoded. Another decoder may see other frames (it may heed an edit list, say), so that
    /// who looks at the frames again has to take the same one.
    pub decoder: Decoder,
}

/// Finds the shots of a video file. Pixels that are not compared are never turned into RGB. Where the
/// `ffmpeg` program decodes, two of them share a long video, each on one core; otherwise one thread
/// decodes while another compares.
///
/// # Errors
/// One line without the path, where the file cannot be decoded or the settings cannot be.
pub fn of_video(path: &Path, decoder: Decoder, settings: &Settings) -> Result<VideoShots, String> {
    let detector = Detector::new(settings).map_err(|error| error.to_string())?;
    let is_empty = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
    if is_empty {
        return Err("it is empty".into());
    }
    if decoder != Decoder::InProcess
        && let Some(found) = in_halves(path, detector.clone())
    {
        return Ok(found);
    }
    in_one_pass(path, decoder, detector)
}

fn in_one_pass(
    path: &Path,
    decoder: Decoder,
    mut detector: Detector,
) -> Result<VideoShots, String> {
    let words = |error: &dyn std::fmt::Display| without_path(error, path);
    let (info, frames) = VideoReader::open_planar(path, decoder).map_err(|error| words(&error))?;
    let decoder = frames.decoder();
    let (mut scores, mut times) = (Vec::new(), Vec::new());
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for frame in frames {
                // Nobody listens any more: there was an error over there.
                if sender.send(frame).is_err() {
                    break;
                }
            }
        });
        for frame in receiver {
            let frame = frame.map_err(|error| words(&error))?;
            let (width, height) = (info.width, info.height);
            let planes =
                Yuv420::new(frame.planes, width, height, frame.to_rgb).ok_or_else(|| {
                    format!("frame {} has another size than the first", times.len() + 1)
                })?;
            let (score, _) = detector.push(&planes).map_err(|error| error.to_string())?;
            scores.push(score);
            times.push(frame.time);
        }
        Ok::<_, String>(())
    })?;
    if times.is_empty() {
        return Err("it holds no pictures".into());
    }
    Ok(VideoShots { info, shots: Shots { scenes: detector.scenes(), scores }, times, decoder })
}

/// The shots of a long video, decoded by two programs at once. `None` where that is not possible,
/// and on any sign that the two do not fit together: one pass will see what the matter is.
fn in_halves(path: &Path, mut detector: Detector) -> Option<VideoShots> {
    let PlanarHalves { info, first, second, place } = VideoReader::open_planar_halves(path)?;
    let rest = info.num_frames?.checked_sub(place)?;
    let scorer = || Scorer::new(&detector.settings, info.width, info.height);
    let (scorer_of_first, scorer_of_second) = (scorer(), scorer());
    let failed = &AtomicBool::new(false);
    // The frame at `place` is the last of the one and the first of the other.
    let (first, second) = std::thread::scope(|scope| {
        let second =
            scope.spawn(|| Half::read(second, usize::MAX, &info, scorer_of_second, failed));
        let first = Half::read(first, place + 1, &info, scorer_of_first, failed);
        (first, second.join().ok().flatten())
    });
    let (first, second) = (first?, second?);
    let fit = [first.scores.len(), second.scores.len()] == [place + 1, rest]
        && first.last_frame == second.first_frame;
    if !fit {
        return None;
    }
    let scores: Vec<Score> =
        first.scores.into_iter().chain(second.scores.into_iter().skip(1)).collect();
    let times = first.times.into_iter().chain(second.times.into_iter().skip(1)).collect();
    for &score in &scores {
        detector.push_score(score);
    }
    let shots = Shots { scenes: detector.scenes(), scores };
    Some(VideoShots { info, shots, times, decoder: Decoder::Ffmpeg })
}

/// What one of two programs saw.
#[derive(Default)]
struct Half {
    scores: Vec<Score>,
    times: Vec<f64>,
    first_frame: Vec<u8>,
    last_frame: Vec<u8>,
}

impl Half {
    /// Reads at most `most` frames; `None` where there was an error here or, by `failed`, over there.
    fn read(
        frames: PlanarFrames,
        most: usize,
        info: &VideoInfo,
        mut scorer: Scorer,
        failed: &AtomicBool,
    ) -> Option<Self> {
        let mut half = Self::default();
        for frame in frames.take(most) {
            let frame = frame.ok().filter(|_| !failed.load(Ordering::Relaxed));
            let planes = frame.and_then(|frame| {
                half.times.push(frame.time);
                Yuv420::new(frame.planes, info.width, info.height, frame.to_rgb)
            });
            let Some(planes) = planes else {
                failed.store(true, Ordering::Relaxed);
                return None;
            };
            half.scores.push(scorer.push(&planes));
            let bytes = planes.into_data();
            if half.scores.len() == 1 {
                half.first_frame.clone_from(&bytes);
            }
            half.last_frame = bytes;
        }
        Some(half)
    }
}
