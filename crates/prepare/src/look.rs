//! A look into a file: what it says of itself, and single pictures of it.

use opensora_video::{Frames, VideoError, gif, mp4, png};
use serde::Serialize;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Facts {
    /// Pixels in a row.
    pub width: usize,
    /// Rows of a frame.
    pub height: usize,
    /// Number of frames; 1 for stills.
    pub num_frames: usize,
    /// Frames per second; stills and folders of frames have none.
    pub fps: Option<f64>,
}

impl Facts {
    /// Seconds that it lasts.
    pub fn duration(&self) -> Option<f64> {
        self.fps.filter(|fps| *fps > 0.0).map(|fps| self.num_frames as f64 / fps)
    }
}

/// A row whose file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Which row, from 1.
    pub row: usize,
    /// Its file.
    pub path: String,
    /// Why, in one line.
    pub reason: String,
}

/// Opens a file and reads what it says of itself.
///
/// # Errors
/// One line without the path, where it cannot be read.
pub fn facts(path: &Path) -> Result<Facts, String> {
    read(path).map(|(_, facts)| facts)
}

/// Frames at `places` of a file, 0 being the first frame and 1 the last; a still comes once.
///
/// # Errors
/// One line without the path, where it cannot be read.
pub fn frames_at(path: &Path, places: &[f64]) -> Result<(Frames, Facts), String> {
    let (frames, facts) = read(path)?;
    let last = frames.len() - 1;
    let mut indices: Vec<usize> =
        places.iter().map(|place| (place.clamp(0.0, 1.0) * last as f64).round() as usize).collect();
    if last == 0 {
        indices.truncate(1);
    }
    let data: Vec<u8> =
        indices.iter().filter_map(|&index| frames.frame(index)).flatten().copied().collect();
    let shape = [indices.len(), frames.height(), frames.width()];
    let chosen = Frames::from_rgb(data, shape).map_err(|error| error.to_string())?;
    Ok((chosen, facts))
}

/// All of a file: the one place where this crate's looks meet its decoders.
fn read(path: &Path) -> Result<(Frames, Facts), String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let (frames, fps) = match ending.to_ascii_lowercase().as_str() {
        _ if path.is_dir() => (png::read_folder(path), None),
        "png" => (png::read(path), None),
        "gif" => split(gif::read(path)),
        _ => split(mp4::read(path)),
    };
    let frames = frames.map_err(|error| without_path(&error, path))?;
    let (width, height, num_frames) = (frames.width(), frames.height(), frames.len());
    Ok((frames, Facts { width, height, num_frames, fps }))
}

fn split(read: Result<(Frames, f64), VideoError>) -> (Result<Frames, VideoError>, Option<f64>) {
    match read {
        Ok((frames, fps)) => (Ok(frames), Some(fps)),
        Err(error) => (Err(error), None),
    }
}

/// An error's words on one line; the path stands beside them already.
fn without_path(error: &VideoError, path: &Path) -> String {
    let text = error.to_string();
    let rest = text.strip_prefix(&path.display().to_string()).unwrap_or(&text);
    rest.trim_start_matches([':', '/', '\\', ' ']).replace(['\n', '\r'], " ")
}

/// Looks into `count` files, several at once; results are in order. `advanced` hears how many of
/// how many are done. A panic is that file's failure. (Nothing is kept for a next time: work that
/// is worth that is a [`step`](crate::step).)
pub(crate) fn each<T: Send>(
    count: usize,
    look: impl Fn(usize) -> Result<T, String> + Sync,
    advanced: &mut dyn FnMut(usize, usize),
) -> Vec<Result<T, String>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Option<Result<T, String>>> = (0..count).map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (sender, next, look) = (sender.clone(), &next, &look);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = catch_unwind(AssertUnwindSafe(|| look(index)));
                    let result = result.unwrap_or_else(|_| Err(PANIC.into()));
                    if sender.send((index, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (index, result)) in receiver.iter().enumerate() {
            results[index] = Some(result);
            advanced(done + 1, count);
        }
    });
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(PANIC.into()))).collect()
}

/// The reason where a decoder panicked.
const PANIC: &str = "the program made a mistake on it (a panic)";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use opensora_video::{VideoSpec, Writer};
    use std::path::PathBuf;

    /// Writes a video of ten frames that grow brighter, 64 x 48, 8 frames per second.
    pub(crate) fn video(folder: &Path, name: &str) -> PathBuf {
        let data = (0..10u8).flat_map(|index| vec![20 * index; 3 * 48 * 64]).collect();
        let clip = Frames::from_rgb(data, [10, 48, 64]).unwrap();
        let spec = VideoSpec { frames: 10, width: 64, height: 48, fps: 8.0 };
        let writer = Writer::open(&folder.join(name), &spec).unwrap();
        writer.write(&clip, &serde_json::json!({})).unwrap()
    }

    #[test]
    fn frames_are_taken_from_where_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = video(folder.path(), "a.mp4");
        let (frames, facts) = frames_at(&path, &[0.2, 0.5, 1.0]).unwrap();
        assert_eq!(facts, Facts { width: 64, height: 48, num_frames: 10, fps: Some(8.0) });
        assert_eq!(facts.duration(), Some(1.25));
        // 0.5 lies between frames 4 and 5.
        for (frame, index) in frames.iter().zip([2u8, 5, 9]) {
            assert!(frame[0].abs_diff(20 * index) < 8, "{} {index}", frame[0]);
        }
        let still = folder.path().join("still.png");
        png::write(&still, &frames).unwrap();
        let (frames, facts) = frames_at(&still, &[0.2, 0.5, 0.8]).unwrap();
        assert_eq!((frames.len(), facts.num_frames, facts.duration()), (1, 1, None));
    }

    #[test]
    fn what_cannot_be_read_says_why_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.mp4");
        std::fs::write(&path, "no video").unwrap();
        for path in [path, folder.path().join("none.mp4"), folder.path().into()] {
            let reason = facts(&path).unwrap_err();
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
            assert!(!reason.contains("text.mp4") && !reason.contains("none.mp4"), "{reason}");
        }
    }

    #[test]
    fn looks_come_back_in_order_and_panics_are_failures() {
        let mut heard = vec![];
        let look = |index: usize| match index {
            3 => panic!("on purpose"),
            7 => Err("bad".into()),
            _ => Ok(index * index),
        };
        let results = each(20, look, &mut |done, total| heard.push((done, total)));
        assert_eq!(heard, (1..=20).map(|done| (done, 20)).collect::<Vec<_>>());
        for (index, result) in results.into_iter().enumerate() {
            match index {
                3 => assert!(result.unwrap_err().contains("panic")),
                7 => assert_eq!(result.unwrap_err(), "bad"),
                _ => assert_eq!(result.unwrap(), index * index),
            }
        }
        assert!(each(0, Ok, &mut |_, _| ()).is_empty());
    }
}
