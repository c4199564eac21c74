//! Reads headers and single frames of files, without a journal.

use crate::{
    Advanced, Observer, PrepareError, RowError, pool,
    source::{self, Header, Stream},
};
use opensora_video::Frames;
use serde::Serialize;
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// A row whose file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The row, counted from 1.
    pub row: usize,
    /// Path of the file.
    pub path: String,
    /// The reason, in one line.
    pub reason: String,
}

/// Returns the header of a file.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(crate) fn header(path: &Path) -> Result<Header, RowError> {
    source::open(path).map(|(header, _)| header)
}

/// Returns the frames at `places` of a file, from 0 (first frame) to 1 (last frame), and its header with
/// the true number of frames. An image gives one frame.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(crate) fn frames_at(path: &Path, places: &[f64]) -> Result<(Frames, Header), RowError> {
    let (mut header, stream) = source::open(path)?;
    let mut length = header.num_frames.unwrap_or(0);
    let mut picked = pick(stream, places, length)?;
    if let Err(true_length) = picked {
        // The stated number of frames is missing or wrong: read again with the true one.
        length = true_length;
        picked = pick(source::open(path)?.1, places, length)?;
    }
    let Ok(frames) = picked else { return Err("its number of frames changes".into()) };
    header.num_frames = Some(length);
    let shape = [frames.len(), header.height, header.width];
    let frames = Frames::from_rgb(frames.concat(), shape)?;
    Ok((frames, header))
}

/// Returns the frames at `places` (0: first, 1: last) of a stream of `length` frames. Decoding stops after
/// the last requested frame. If the stream ends earlier, the inner error is its number of frames.
fn pick(
    stream: Stream,
    places: &[f64],
    length: usize,
) -> Result<Result<Vec<Vec<u8>>, usize>, RowError> {
    let last = length.saturating_sub(1);
    let mut indices: Vec<usize> =
        places.iter().map(|place| (place.clamp(0.0, 1.0) * last as f64).round() as usize).collect();
    if length == 1 {
        indices.truncate(1);
    }
    let (mut picked, mut seen) = (Vec::new(), 0);
    for frame in stream {
        let frame = frame?;
        // In a short clip, several places can fall on one frame.
        while length > 0 && indices.get(picked.len()) == Some(&seen) {
            picked.push(frame.clone());
        }
        seen += 1;
        if picked.len() == indices.len() {
            return Ok(Ok(picked));
        }
    }
    if seen == 0 { Err(RowError::NoFrames) } else { Ok(Err(seen)) }
}

/// Calls `look` for each of `count` files, on one thread per core, and returns the results in order. A
/// panic is a failure of that file. Nothing is journalled, unlike in a [`step`](crate::step).
///
/// # Errors
/// Returns [`PrepareError::Interrupted`] if the observer stops the work before all files are read.
pub(crate) fn each<T: Send>(
    count: usize,
    look: impl Fn(usize) -> Result<T, RowError> + Sync,
    observer: &mut dyn Observer,
) -> Result<Vec<Result<T, RowError>>, PrepareError> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<Option<Result<T, RowError>>> = (0..count).map(|_| None).collect();
    let mut progress = Advanced { done: 0, failed: 0, total: count };
    let stop = AtomicBool::new(false);
    pool::run(workers, count, &stop, look, |looks| {
        for (index, look) in looks {
            let look = look.unwrap_or(Err(RowError::Panic));
            progress.done += 1;
            progress.failed += usize::from(look.is_err());
            results[index] = Some(look);
            if observer.advanced(&progress).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    let Advanced { done, total, .. } = progress;
    if done < total {
        return Err(PrepareError::Interrupted { done, total });
    }
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use opensora_video::{VideoSpec, Writer, png};
    use std::{ops::ControlFlow, path::PathBuf};

    /// Writes a video of ten frames that grow brighter, 64 x 48, 8 frames per second.
    pub(crate) fn video(folder: &Path, name: &str) -> PathBuf {
        let data = (0..10u8).flat_map(|index| vec![20 * index; 3 * 48 * 64]).collect();
        let clip = Frames::from_rgb(data, [10, 48, 64]).unwrap();
        let spec = VideoSpec { frames: 10, width: 64, height: 48, fps: 8.0 };
        let writer = Writer::open(&folder.join(name), &spec).unwrap();
        writer.write(&clip, &serde_json::json!({})).unwrap()
    }

    #[test]
    fn frames_are_those_at_the_requested_places() {
        let folder = tempfile::tempdir().unwrap();
        let path = video(folder.path(), "a.mp4");
        let (frames, header) = frames_at(&path, &[0.2, 0.5, 1.0]).unwrap();
        assert_eq!((header.width, header.height, header.num_frames), (64, 48, Some(10)));
        assert_eq!((header.fps, header.duration), (Some(8.0), Some(1.25)));
        // 0.5 lies between frames 4 and 5.
        for (frame, index) in frames.iter().zip([2u8, 5, 9]) {
            assert!(frame[0].abs_diff(20 * index) < 8, "{} {index}", frame[0]);
        }
        let still = folder.path().join("still.png");
        png::write(&still, &frames).unwrap();
        let (frames, header) = frames_at(&still, &[0.2, 0.5, 0.8]).unwrap();
        assert_eq!((frames.len(), header.num_frames, header.duration), (1, Some(1), None));
    }

    #[test]
    fn wrong_stated_lengths_are_detected() {
        let stream = || -> Stream { Box::new((0..10u8).map(|index| Ok(vec![index]))) };
        let places = [0.2, 0.5, 0.8];
        assert_eq!(pick(stream(), &places, 10).unwrap(), Ok(vec![vec![2], vec![5], vec![7]]));
        for stated in [0, 13, 1000] {
            assert_eq!(pick(stream(), &places, stated).unwrap(), Err(10), "{stated}");
        }
        // Two frames, three places.
        assert_eq!(pick(stream(), &places, 2).unwrap(), Ok(vec![vec![0], vec![1], vec![1]]));
        assert_eq!(pick(stream(), &places, 1).unwrap(), Ok(vec![vec![0]]));
        assert!(pick(Box::new(std::iter::empty()), &places, 0).is_err());
        let broken = Box::new([Ok(vec![0]), Err("torn".into())].into_iter());
        assert_eq!(pick(broken, &places, 10).unwrap_err().to_string(), "torn");
    }

    #[test]
    fn reasons_are_one_line_without_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.mp4");
        std::fs::write(&path, "no video").unwrap();
        for path in [path, folder.path().join("none.mp4"), folder.path().into()] {
            let reason = header(&path).unwrap_err().reason(Some(&path));
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
            assert!(!reason.contains("text.mp4") && !reason.contains("none.mp4"), "{reason}");
        }
    }

    /// Records `done` and `total` of each event, and stops at `done` = `until`.
    struct Heard {
        events: Vec<(usize, usize)>,
        until: usize,
    }

    impl Observer for Heard {
        fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
            self.events.push((event.done, event.total));
            if event.done < self.until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
    }

    #[test]
    fn results_are_in_order_and_panics_are_failures() {
        let mut heard = Heard { events: vec![], until: 99 };
        let look = |index: usize| match index {
            3 => panic!("on purpose"),
            7 => Err("bad".into()),
            _ => Ok(index * index),
        };
        let results = each(20, look, &mut heard).unwrap();
        assert_eq!(heard.events, (1..=20).map(|done| (done, 20)).collect::<Vec<_>>());
        for (index, result) in results.into_iter().enumerate() {
            match index {
                3 => assert!(result.unwrap_err().to_string().contains("panic")),
                7 => assert_eq!(result.unwrap_err().to_string(), "bad"),
                _ => assert_eq!(result.unwrap(), index * index),
            }
        }
        assert!(each(0, Ok, &mut ()).unwrap().is_empty());
    }

    #[test]
    fn a_break_of_the_observer_ends_the_work() {
        let mut heard = Heard { events: vec![], until: 2 };
        let stopped = each(100_000, Ok, &mut heard).unwrap_err();
        assert!(matches!(stopped, PrepareError::Interrupted { done: 2.., total: 100_000 }));
        assert!(heard.events.len() < 1000, "{}", heard.events.len());
    }
}
