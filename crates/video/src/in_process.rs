//! Decoding of the video of an MP4 in this process.
//!
//! Memory does not grow with the length of the video: only the header, one sample and the frames that are not
//! displayed yet are held.

use crate::{
    aspect::PixelAspect,
    color::{Matrix, Planes},
    decode::{Decode, H264, Picture, begins_anew},
    orientation::Orientation,
    reader::VideoInfo,
    refusal::Refusal,
    tables::Sample,
    track::Track,
};
use opensora_files::read::open_regular;
use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    vec,
};

/// A shown frame.
pub(crate) struct Shown {
    /// Seconds since the first shown frame.
    pub(crate) time: f64,
    pub(crate) planes: Planes,
    pub(crate) matrix: Matrix,
}

/// The shown frames of an MP4.
pub(crate) struct Stream {
    file: File,
    /// Samples that the shown frames need, in decoding order.
    samples: vec::IntoIter<Sample>,
    decoder: Box<dyn Decode + Send>,
    /// Decoded frames that can be displayed.
    ready: VecDeque<Picture>,
    /// True if the first sample is an IDR picture.
    begins_anew: bool,
    /// Times of the shown frames.
    window: Range<i64>,
    /// Time of the first shown frame in ticks.
    first: i64,
    /// Ticks per second.
    timescale: u32,
    orientation: Orientation,
    pub(crate) info: VideoInfo,
}

impl Stream {
    /// Opens a file and decodes its first shown frame.
    pub(crate) fn open(path: &Path) -> Result<Self, Refusal> {
        let mut file = open_regular(path)?;
        let length = file.metadata()?.len();
        let track = guarded(|| Track::read(&mut file, length))?;
        let container = track.aspect;
        let mut stream = guarded(|| Self::of(file, track))?;
        stream.fill()?;
        let Some(picture) = stream.ready.front() else {
            return Err(Refusal::unusable("it has no frames"));
        };
        let size = (picture.planes.width, picture.planes.height);
        (stream.info.width, stream.info.height) = stream.orientation.swap(size);
        let aspect = container.or(stream.decoder.aspect()).unwrap_or(PixelAspect::SQUARE);
        stream.info.pixel_aspect = aspect.upright(stream.orientation);
        Ok(stream)
    }

    fn of(mut file: File, track: Track) -> Result<Self, Refusal> {
        let Track { timescale, mut samples, length_size, window, .. } = track;
        let sets = track.parameters.iter().map(Vec::as_slice);
        let decoder = H264::new(sets, length_size, track.colour)?;
        let timing = Timing::of(&samples, &window, timescale);
        let Some(Timing { first, frames, fps, duration }) = timing else {
            return Err(Refusal::unusable("it has no frames"));
        };
        let (needed, begins_anew) = needed(&mut file, &samples, &window, length_size)?;
        samples.truncate(needed.end);
        let info = VideoInfo {
            width: 0,
            height: 0,
            fps,
            num_frames: Some(frames),
            duration: Some(duration),
            codec: "h264".into(),
            pixel_aspect: PixelAspect::SQUARE,
        };
        Ok(Self {
            file,
            samples: samples.split_off(needed.start).into_iter(),
            decoder: Box::new(decoder),
            ready: VecDeque::new(),
            begins_anew,
            window,
            first,
            timescale,
            orientation: track.orientation,
            info,
        })
    }

    /// Returns the next shown frame; `None` after the last.
    pub(crate) fn next_picture(&mut self) -> Result<Option<Shown>, Refusal> {
        self.fill()?;
        Ok(self.ready.pop_front().map(|Picture { time, planes, matrix }| Shown {
            time: seconds(time.saturating_sub(self.first), self.timescale),
            planes: upright(planes, self.orientation),
            matrix,
        }))
    }

    /// Decodes until a shown frame is available or the stream ends.
    fn fill(&mut self) -> Result<(), Refusal> {
        let Self { file, samples, decoder, ready, window, .. } = self;
        guarded(|| {
            while ready.is_empty() {
                let decoded = match samples.next() {
                    Some(sample) => decoder.sample(&read(file, &sample)?, sample.shown)?,
                    None => {
                        ready.extend(shown(decoder.finish(), window));
                        break;
                    }
                };
                ready.extend(shown(decoded, window));
            }
            Ok(())
        })
        .map_err(|refused| match refused {
            Refusal::Io(_) => refused,
            _ if !self.begins_anew => Refusal::unsupported(NO_BEGINNING),
            _ => refused,
        })
    }
}

/// Returns the frames that an edit list does not hide: those whose time is in `window`, in the same
/// units.
fn shown(pictures: Vec<Picture>, window: &Range<i64>) -> impl Iterator<Item = Picture> {
    pictures.into_iter().filter(|picture| window.contains(&picture.time))
}

fn upright(planes: Planes, orientation: Orientation) -> Planes {
    if orientation.is_as_stored() {
        return planes;
    }
    let Planes { width, height, y, u, v } = planes;
    let chroma = (width / 2, height / 2);
    let (shown_width, shown_height) = orientation.swap((width, height));
    Planes {
        width: shown_width,
        height: shown_height,
        y: orientation.apply::<1>(&y, (width, height)),
        u: orientation.apply::<1>(&u, chroma),
        v: orientation.apply::<1>(&v, chroma),
    }
}

fn read(file: &mut File, sample: &Sample) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::with_capacity(sample.size as usize);
    file.seek(SeekFrom::Start(sample.offset))?;
    file.take(sample.size.into()).read_to_end(&mut bytes)?;
    if bytes.len() < sample.size as usize {
        return Err(Refusal::unusable("truncated: the file has become shorter"));
    }
    Ok(bytes)
}

/// Returns the range of samples to decode for the frames of a window, from the last IDR picture before them,
/// and true if there is such a picture.
fn needed(
    file: &mut File,
    samples: &[Sample],
    window: &Range<i64>,
    length_size: usize,
) -> Result<(Range<usize>, bool), Refusal> {
    let is_shown = |sample: &Sample| window.contains(&sample.shown);
    let first = samples.iter().position(is_shown).unwrap_or(0);
    let end = samples.iter().rposition(is_shown).map_or(0, |last| last + 1);
    for start in (0..=first).rev().filter(|&start| samples[start].is_key) {
        if begins_anew(&read(file, &samples[start])?, length_size) {
            return Ok((start..end, true));
        }
    }
    // Frames displayed before the first sample may depend on missing samples.
    let earliest = samples.first().map_or(0, |first| first.shown);
    match samples.iter().any(|sample| is_shown(sample) && sample.shown < earliest) {
        true => Err(Refusal::unsupported(NO_BEGINNING)),
        false => Ok((0..end, false)),
    }
}

/// The reason for files that were cut at a recovery point instead of an IDR picture.
const NO_BEGINNING: &str = "H.264 that does not begin with an IDR picture";

fn seconds(ticks: i64, timescale: u32) -> f64 {
    ticks as f64 / f64::from(timescale)
}

/// Times of the shown frames.
#[derive(Debug, PartialEq)]
struct Timing {
    /// Time of the first frame in ticks.
    first: i64,
    /// Number of frames.
    frames: usize,
    /// Frames per second; 0 if all durations are 0.
    fps: f64,
    /// Seconds from the first frame to the end of the last.
    duration: f64,
}

impl Timing {
    /// Returns `None` if no frame is shown.
    fn of(samples: &[Sample], window: &Range<i64>, timescale: u32) -> Option<Self> {
        let shown = || samples.iter().filter(|sample| window.contains(&sample.shown));
        let first = shown().map(|sample| sample.shown).min()?;
        let last = shown().max_by_key(|sample| sample.shown)?;
        let end = last.shown.saturating_add(last.ticks.into()).min(window.end);
        // The mean of all samples, as in FFmpeg.
        let ticks: i64 = samples.iter().map(|sample| i64::from(sample.ticks)).sum();
        let fps = samples.len() as f64 / seconds(ticks, timescale);
        // Durations are whole ticks: use the integer rate that they approximate, if any.
        let whole = fps.round();
        let fps = if whole >= 1.0 && (fps - whole).abs() < 1e-3 { whole } else { fps };
        Some(Self {
            first,
            frames: shown().count(),
            fps: if fps.is_finite() { fps } else { 0.0 },
            duration: seconds(end.saturating_sub(first), timescale),
        })
    }
}

/// Converts a panic of the decoder, which is a young library, to the refusal of a damaged file.
fn guarded<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Refusal::unusable("the decoder gave up on damaged data")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of these ticks and times.
    fn samples(times: &[(u32, i64)]) -> Vec<Sample> {
        let sample = |&(ticks, shown)| Sample { offset: 0, size: 1, ticks, shown, is_key: false };
        times.iter().map(sample).collect()
    }

    #[test]
    fn times_are_those_of_what_is_shown() {
        // Decoded 0, 30, 10, 20; each takes ten ticks of a hundredth, the last twice as much.
        let four = samples(&[(10, 0), (20, 30), (10, 10), (10, 20)]);
        let all = Timing { first: 0, frames: 4, fps: 8.0, duration: 0.5 };
        assert_eq!(Timing::of(&four, &(i64::MIN..i64::MAX), 100), Some(all));
        let two = Timing { first: 10, frames: 2, fps: 8.0, duration: 0.2 };
        assert_eq!(Timing::of(&four, &(5..30), 100), Some(two));
        // The window ends before the last frame does.
        assert_eq!(Timing::of(&four, &(5..35), 100).unwrap().duration, 0.25);
        assert_eq!(Timing::of(&four, &(40..50), 100), None);
        // One frame that takes no time.
        let one = Timing::of(&samples(&[(0, 0)]), &(0..1), 100).unwrap();
        assert_eq!((one.fps, one.duration), (0.0, 0.0));
    }
}
