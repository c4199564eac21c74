//! A look into a file: what it says of itself, and single pictures of it.

use crate::{
    pool::{self, PANIC},
    source::{self, Header, Stream},
};
use opensora_video::Frames;
use serde::Serialize;
use std::{path::Path, sync::atomic::AtomicBool};

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

/// What a file says of itself.
///
/// # Errors
/// One line without the path, where it cannot be read.
pub(crate) fn header(path: &Path) -> Result<Header, String> {
    source::open(path).map(|(header, _)| header)
}

/// Frames at `places` of a file, 0 being the first frame and 1 the last; a still comes once. What
/// it says of itself then tells its true number of frames.
///
/// # Errors
/// One line without the path, where it cannot be read.
pub(crate) fn frames_at(path: &Path, places: &[f64]) -> Result<(Frames, Header), String> {
    let (mut header, stream) = source::open(path)?;
    let mut length = header.num_frames.unwrap_or(0);
    let mut picked = pick(stream, places, length)?;
    if let Err(true_length) = picked {
        // The file did not tell how long it is, or not the truth: once more, now that it is known.
        length = true_length;
        picked = pick(source::open(path)?.1, places, length)?;
    }
    let Ok(frames) = picked else { return Err("its number of frames changes".into()) };
    header.num_frames = Some(length);
    let shape = [frames.len(), header.height, header.width];
    let frames = Frames::from_rgb(frames.concat(), shape).map_err(|error| error.to_string())?;
    Ok((frames, header))
}

/// The frames at `places` of a stream that should have `length` frames; nothing behind the last of
/// them is looked at. Where the stream ends before, the inner error tells how many it has.
fn pick(
    stream: Stream,
    places: &[f64],
    length: usize,
) -> Result<Result<Vec<Vec<u8>>, usize>, String> {
    let last = length.saturating_sub(1);
    let mut indices: Vec<usize> =
        places.iter().map(|place| (place.clamp(0.0, 1.0) * last as f64).round() as usize).collect();
    if length == 1 {
        indices.truncate(1);
    }
    let (mut picked, mut seen) = (Vec::new(), 0);
    for frame in stream {
        let frame = frame?;
        // A short clip may show one frame in several places.
        while length > 0 && indices.get(picked.len()) == Some(&seen) {
            picked.push(frame.clone());
        }
        seen += 1;
        if picked.len() == indices.len() {
            return Ok(Ok(picked));
        }
    }
    if seen == 0 { Err("it has no frames".into()) } else { Ok(Err(seen)) }
}

/// Looks into `count` files, several at once; results are in order. `advanced` hears how many of
/// how many are done. A panic is that file's failure. (Nothing is kept for a next time: work that
/// is worth that is a [`step`](crate::step).)
pub(crate) fn each<T: Send>(
    count: usize,
    look: impl Fn(usize) -> Result<T, String> + Sync,
    advanced: &mut dyn FnMut(usize, usize),
) -> Vec<Result<T, String>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<Option<Result<T, String>>> = (0..count).map(|_| None).collect();
    pool::run(workers, count, &AtomicBool::new(false), look, |looks| {
        for (done, (index, look)) in looks.iter().enumerate() {
            results[index] = look;
            advanced(done + 1, count);
        }
    });
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(PANIC.into()))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use opensora_video::{VideoSpec, Writer, png};
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
    fn frames_are_found_whatever_length_a_file_states() {
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
        assert_eq!(pick(broken, &places, 10).unwrap_err(), "torn");
    }

    #[test]
    fn what_cannot_be_read_says_why_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.mp4");
        std::fs::write(&path, "no video").unwrap();
        for path in [path, folder.path().join("none.mp4"), folder.path().into()] {
            let reason = header(&path).unwrap_err();
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
