//! Shot detection in a video file.

use crate::{Detector, Score, Settings, Shots, ShotsError, Yuv420, frame::Yuv444, score::Scorer};
use opensora_video::{
    VideoError,
    picks::Picks,
    reader::{Decoder, PlanarFrame, PlanarFrames, PlanarHalves, VideoInfo, VideoReader},
};
use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

/// Frames that are decoded ahead of the comparison.
const AHEAD: usize = 4;

/// The shots of a video and the times of its frames.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoShots {
    /// The header of the container.
    pub info: VideoInfo,
    /// The shots.
    pub shots: Shots,
    /// Seconds at which each frame is shown, from the first frame.
    pub times: Vec<f64>,
    /// Seconds at which the last frame ends.
    pub end: f64,
    /// The decoder that was used. Another decoder can return other frames, for example because of edit lists,
    /// so decode the video again with the same one.
    pub decoder: Decoder,
}

/// Finds the shots of a video file.
///
/// Only compared pixels are converted to RGB, and the `ffmpeg` program transfers only these if it can select
/// them exactly. Two `ffmpeg` processes share a long video, each on one core; otherwise one thread decodes
/// while another compares. With [`Decoder::Auto`], this process decodes what the program cannot.
///
/// # Errors
/// Returns an error if a setting is invalid, or if the file cannot be decoded or has no frames.
pub fn of_video(
    path: &Path,
    decoder: Decoder,
    settings: &Settings,
) -> Result<VideoShots, ShotsError> {
    settings.validate()?;
    let is_empty = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
    if is_empty {
        return Err(unusable(path, "it is empty".into()));
    }
    if decoder != Decoder::InProcess
        && let Some(found) = in_halves(path, settings)
    {
        return Ok(found);
    }
    match in_one_pass(path, decoder, settings) {
        // Some builds of the program lack decoders, for example that of H.264.
        Err(error @ ShotsError::Video(VideoError::Decode { .. })) if decoder == Decoder::Auto => {
            in_one_pass(path, Decoder::InProcess, settings).map_err(|_| error)
        }
        found => found,
    }
}

impl VideoShots {
    /// Returns the shots of frames with these scores and times.
    fn of(
        settings: &Settings,
        info: VideoInfo,
        scores: Vec<Score>,
        times: Vec<f64>,
        decoder: Decoder,
    ) -> Result<Self, ShotsError> {
        let is_rate = info.fps.is_finite() && info.fps > 0.0;
        let mut detector = match is_rate {
            true => Detector::with_rate(settings, info.fps)?,
            false => Detector::new(settings)?,
        };
        for (&score, &time) in scores.iter().zip(&times) {
            detector.push_score(score, time);
        }
        let last = times.last().copied().unwrap_or(0.0);
        let even = is_rate.then(|| times.len() as f64 / info.fps);
        let ends = [info.duration, even].into_iter().flatten();
        let next = last + if is_rate { 1.0 / info.fps } else { 0.0 };
        let end = ends.into_iter().find(|end| end.is_finite() && *end > last).unwrap_or(next);
        let shots = Shots { scenes: detector.scenes(), scores };
        Ok(Self { info, shots, times, end, decoder })
    }

    /// Returns the second at which a frame is shown, or the end of the video for a number after the last
    /// frame.
    pub fn time(&self, frame: usize) -> f64 {
        self.times.get(frame).copied().unwrap_or(self.end)
    }
}

fn unusable(path: &Path, reason: String) -> ShotsError {
    ShotsError::Unusable { path: path.into(), reason }
}

fn in_one_pass(
    path: &Path,
    decoder: Decoder,
    settings: &Settings,
) -> Result<VideoShots, ShotsError> {
    let wanted = |width, height| Scorer::picks(settings, (width, height));
    let (info, frames) = VideoReader::open_planar(path, decoder, wanted)?;
    let decoder = frames.decoder();
    let mut comparison = Comparison::new(settings, &info, frames.picks());
    let (mut scores, mut times) = (Vec::new(), Vec::new());
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for frame in frames {
                // The other thread has stopped with an error.
                if sender.send(frame).is_err() {
                    break;
                }
            }
        });
        for frame in receiver {
            let frame = frame?;
            let score = comparison.push(&frame).ok_or_else(|| {
                let reason = format!("frame {} has another size than the first", times.len() + 1);
                unusable(path, reason)
            })?;
            scores.push(score);
            times.push(frame.time);
        }
        Ok::<_, ShotsError>(())
    })?;
    if times.is_empty() {
        return Err(unusable(path, "it has no frames".into()));
    }
    VideoShots::of(settings, info, scores, times, decoder)
}

/// Returns the shots of a long video, decoded by two processes at once. `None` if that is not possible, or if
/// the halves do not match: decoding in one pass then finds the problem.
fn in_halves(path: &Path, settings: &Settings) -> Option<VideoShots> {
    let wanted = |width, height| Scorer::picks(settings, (width, height));
    let PlanarHalves { info, first, second, place } =
        VideoReader::open_planar_halves(path, wanted)?;
    let picks = first.picks().cloned();
    of_halves(settings, info, picks.as_ref(), [first, second], place)
}

/// Returns the shots of frames that are read by two threads: `first` returns all frames, `second` those from
/// index `place`. `None` if frames cannot be read, or if the halves do not match.
fn of_halves<F: Frames>(
    settings: &Settings,
    info: VideoInfo,
    picks: Option<&Picks>,
    [first, second]: [F; 2],
    place: usize,
) -> Option<VideoShots> {
    let rest = info.num_frames?.checked_sub(place)?;
    let comparison = || Comparison::new(settings, &info, picks);
    let (of_first, of_second) = (comparison(), comparison());
    let failed = &AtomicBool::new(false);
    // The frame at `place` is the last one of the first half and the first one of the second.
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| Half::read(second, usize::MAX, of_second, failed));
        let first = Half::read(first, place + 1, of_first, failed);
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
    VideoShots::of(settings, info, scores, times, Decoder::Ffmpeg).ok()
}

/// The frames of one of two readers.
trait Frames: Iterator<Item = Result<PlanarFrame, VideoError>> + Send {
    /// Returns the planes of a processed frame for reuse by a later frame.
    fn reuse(&mut self, planes: Vec<u8>);
}

impl Frames for PlanarFrames {
    fn reuse(&mut self, planes: Vec<u8>) {
        self.reuse(planes);
    }
}

/// Scores a decoder's frames: whole frames, or frames of picked pixels.
struct Comparison {
    scorer: Scorer,
    /// Width and height of the decoder's frames.
    size: (usize, usize),
    are_picked: bool,
}

impl Comparison {
    fn new(settings: &Settings, info: &VideoInfo, picks: Option<&Picks>) -> Self {
        let whole = (info.width, info.height);
        match picks {
            Some(picks) => Self {
                scorer: Scorer::of_picks(settings, whole, picks),
                size: (picks.columns.len(), picks.rows.len()),
                are_picked: true,
            },
            None => Self {
                scorer: Scorer::new(settings, whole.0, whole.1),
                size: whole,
                are_picked: false,
            },
        }
    }

    /// Returns the score of the next frame; `None` if its size differs.
    fn push(&mut self, frame: &PlanarFrame) -> Option<Score> {
        let (width, height) = self.size;
        let PlanarFrame { planes, to_rgb, .. } = frame;
        Some(match self.are_picked {
            true => self.scorer.push(&Yuv444::new(planes, width, height, *to_rgb)?),
            false => self.scorer.push(&Yuv420::new(planes, width, height, *to_rgb)?),
        })
    }
}

/// The result of one of two readers.
#[derive(Default)]
struct Half {
    scores: Vec<Score>,
    times: Vec<f64>,
    first_frame: Vec<u8>,
    last_frame: Vec<u8>,
}

impl Half {
    /// Reads at most `most` frames; `None` after an error in this half or, by `failed`, in the other one.
    fn read(
        mut frames: impl Frames,
        most: usize,
        mut comparison: Comparison,
        failed: &AtomicBool,
    ) -> Option<Self> {
        let mut half = Self::default();
        while half.scores.len() < most {
            let Some(frame) = frames.next() else { break };
            let frame = frame.ok().filter(|_| !failed.load(Ordering::Relaxed));
            let Some((frame, score)) =
                frame.and_then(|frame| comparison.push(&frame).map(|score| (frame, score)))
            else {
                failed.store(true, Ordering::Relaxed);
                return None;
            };
            half.times.push(frame.time);
            half.scores.push(score);
            if half.scores.len() == 1 {
                half.first_frame.clone_from(&frame.planes);
            }
            frames.reuse(std::mem::replace(&mut half.last_frame, frame.planes));
        }
        Some(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_video::{
        PixelAspect,
        yuv::{Colour, ToRgb},
    };
    use std::sync::atomic::AtomicUsize;

    /// The header of a video of 2x2 pixels.
    fn info(fps: f64, duration: Option<f64>) -> VideoInfo {
        VideoInfo {
            width: 2,
            height: 2,
            fps,
            num_frames: None,
            duration,
            codec: "h264".into(),
            pixel_aspect: PixelAspect::SQUARE,
        }
    }

    /// Returns the end of a video with frames at `times`.
    fn end(fps: f64, duration: Option<f64>, times: &[f64]) -> f64 {
        let info = info(fps, duration);
        let scores = vec![Score::default(); times.len()];
        let settings = Settings::default();
        let found = VideoShots::of(&settings, info, scores, times.to_vec(), Decoder::Auto).unwrap();
        assert_eq!(found.shots.scenes, std::slice::from_ref(&(0..times.len())));
        assert_eq!((found.time(0), found.time(times.len())), (times[0], found.end));
        found.end
    }

    #[test]
    fn a_video_ends_after_its_last_frame() {
        let times = [0.0, 0.25, 0.5];
        assert_eq!(end(4.0, Some(1.5), &times), 1.5);
        // Three frames of a quarter second, as the stated end is none.
        for duration in [None, Some(0.5), Some(0.25), Some(f64::INFINITY), Some(f64::NAN)] {
            assert_eq!(end(4.0, duration, &times), 0.75, "{duration:?}");
        }
        // Later than the mean rate says: one frame after the last.
        assert_eq!(end(4.0, None, &[0.0, 1.0, 2.0]), 2.25);
        // Without a rate, the last frame has no length.
        for fps in [0.0, -4.0, f64::NAN, f64::INFINITY] {
            assert_eq!(end(fps, None, &times), 0.5, "{fps}");
            assert_eq!(end(fps, Some(0.6), &times), 0.6, "{fps}");
        }
    }

    type Decoded = Result<PlanarFrame, VideoError>;

    type BothHalves = [Vec<Decoded>; 2];

    /// A frame of 2x2 pixels of this brightness.
    fn frame(time: usize, luma: u8) -> Decoded {
        let to_rgb = ToRgb::stated(Colour { matrix: 1, full_range: false }).unwrap();
        let planes = [[luma; 4].as_slice(), &[128; 2]].concat();
        Ok(PlanarFrame { time: time as f64, planes, to_rgb })
    }

    /// Prepared frames, and the number of planes that were returned for reuse.
    struct Prepared<'a>(std::vec::IntoIter<Decoded>, &'a AtomicUsize);

    impl Iterator for Prepared<'_> {
        type Item = Decoded;

        fn next(&mut self) -> Option<Self::Item> {
            self.0.next()
        }
    }

    impl Frames for Prepared<'_> {
        fn reuse(&mut self, planes: Vec<u8>) {
            self.1.fetch_add(usize::from(!planes.is_empty()), Ordering::Relaxed);
        }
    }

    const PLACE: usize = 20;
    const FRAMES: usize = 50;

    /// Returns frames from index `start` on. Their brightness changes much at 10, `PLACE` and 40, and slightly at
    /// each frame.
    fn frames_from(start: usize) -> Vec<Decoded> {
        let luma = |index: usize| match index {
            ..10 => 60,
            10..PLACE => 200,
            PLACE..40 => 90,
            _ => 220,
        };
        (start..FRAMES).map(|index| frame(index, luma(index) + (index % 3) as u8)).collect()
    }

    /// Returns the shots of two halves, and the number of planes that were reused.
    fn joined(halves: BothHalves, num_frames: Option<usize>) -> (Option<VideoShots>, usize) {
        let info = VideoInfo { num_frames, ..info(1.0, None) };
        let settings = Settings { min_scene_len: 5, ..Settings::default() };
        let reused = AtomicUsize::new(0);
        let halves = halves.map(|frames| Prepared(frames.into_iter(), &reused));
        let found = of_halves(&settings, info, None, halves, PLACE);
        (found, reused.into_inner())
    }

    #[test]
    fn halves_are_joined_at_their_common_frame() {
        let (found, reused) = joined([frames_from(0), frames_from(PLACE)], Some(FRAMES));
        let found = found.unwrap();
        assert_eq!(found.shots.scenes, [0..10, 10..PLACE, PLACE..40, 40..FRAMES]);
        assert_eq!(found.times, (0..FRAMES).map(|index| index as f64).collect::<Vec<_>>());
        assert_eq!(found.decoder, Decoder::Ffmpeg);
        // All frames but the last of each half.
        assert_eq!(reused, PLACE + (FRAMES - PLACE - 1));

        // One pass has the same scores.
        let mut pass = Comparison::new(&Settings::default(), &info(1.0, None), None);
        let scores = frames_from(0).into_iter().map(|frame| pass.push(&frame.unwrap()).unwrap());
        assert_eq!(found.shots.scores, scores.collect::<Vec<_>>());
    }

    #[test]
    fn halves_that_do_not_match_are_rejected() {
        let damaged = || Err(VideoError::Decode { path: "x".into(), source: "damaged".into() });
        let halves = || [frames_from(0), frames_from(PLACE)];
        let of = |change: fn(&mut BothHalves)| {
            let mut halves = halves();
            change(&mut halves);
            joined(halves, Some(FRAMES)).0
        };
        assert!(of(|_| {}).is_some());
        // Another number of frames than the container states, or none.
        for count in [None, Some(PLACE - 1), Some(FRAMES - 1), Some(FRAMES + 1)] {
            assert_eq!(joined(halves(), count).0, None, "{count:?}");
        }
        // The second half begins one frame early or late, or with another frame.
        assert_eq!(of(|[_, second]| *second = frames_from(PLACE - 1)), None);
        assert_eq!(of(|[_, second]| *second = frames_from(PLACE + 1)), None);
        assert_eq!(of(|[_, second]| second[0] = frame(PLACE, 99)), None);
        // The first half ends before the common frame, or has other frames there.
        assert_eq!(of(|[first, _]| first.truncate(PLACE)), None);
        assert_eq!(of(|[first, _]| *first = frames_from(1)), None);
        // Frames after the common one are not read.
        assert!(of(|[first, _]| first.truncate(PLACE + 1)).is_some());
        for (half, at) in [(0, 0), (0, PLACE), (1, 0), (1, FRAMES - PLACE - 1)] {
            let mut halves = halves();
            halves[half][at] = damaged();
            assert_eq!(joined(halves, Some(FRAMES)).0, None, "{half} {at}");
        }
    }

    #[test]
    fn an_error_in_one_half_ends_the_other() {
        let comparison = || Comparison::new(&Settings::default(), &info(1.0, None), None);
        let reused = AtomicUsize::new(0);
        let read = |frames: Vec<_>, failed: &AtomicBool| {
            Half::read(Prepared(frames.into_iter(), &reused), FRAMES, comparison(), failed)
        };
        let failed = AtomicBool::new(false);
        assert!(read(frames_from(0), &failed).is_some() && !failed.load(Ordering::Relaxed));
        let mut frames = frames_from(0);
        frames[7].as_mut().unwrap().planes.pop();
        assert!(read(frames, &failed).is_none() && failed.load(Ordering::Relaxed));
        assert!(read(frames_from(0), &failed).is_none());
    }
}
