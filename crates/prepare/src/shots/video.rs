//! Shots of a video file.

use super::{Detector, Settings, Shots, Yuv420};
use crate::open::without_path;
use opensora_video::reader::{Decoder, VideoInfo, VideoReader};
use std::{path::Path, sync::mpsc};

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

/// Finds the shots of a video file. One thread decodes while another compares, and pixels that are
/// not compared are never turned into RGB.
///
/// # Errors
/// One line without the path, where the file cannot be decoded or the settings cannot be.
pub fn of_video(path: &Path, decoder: Decoder, settings: &Settings) -> Result<VideoShots, String> {
    let mut detector = Detector::new(settings).map_err(|error| error.to_string())?;
    let is_empty = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
    if is_empty {
        return Err("it is empty".into());
    }
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
