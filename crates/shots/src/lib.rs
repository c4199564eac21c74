//! Shot detection: finds the frames at which one shot of a video ends and the next begins.
//!
//! Cuts and scores match [PySceneDetect](https://www.scenedetect.com)'s `ContentDetector` and
//! `AdaptiveDetector`, in a selectable release ([`Release`]), on equal decoded frames. Frames are scaled down
//! as in OpenCV, converted to hue, saturation and value, and compared with the previous frame. Neither Python
//! nor OpenCV is needed. H.264 in MP4 is decoded in this process, other files by the `ffmpeg` program.
//!
//! [`of_video`] reads a video file:
//!
//! ```no_run
//! use opensora_shots::{Settings, of_video};
//! use opensora_video::Decoder;
//!
//! let found = of_video("video.mp4".as_ref(), Decoder::Auto, &Settings::default())?;
//! for scene in &found.shots.scenes {
//!     println!("frames {scene:?}, from {:.3} s", found.times[scene.start]);
//! }
//! # Ok::<(), opensora_shots::ShotsError>(())
//! ```
//!
//! [`detect`] and [`Detector`] take frames that the caller has decoded:
//!
//! ```
//! use opensora_shots::{Rgb, Settings, detect};
//!
//! let (red, blue) = ([255, 0, 0].repeat(16), [0, 0, 255].repeat(16));
//! let frames = (0..40).map(|frame| if frame < 20 { &red } else { &blue });
//! let shots = detect(frames.filter_map(|rgb| Rgb::new(rgb, 4, 4)), &Settings::default())?;
//! assert_eq!(shots.scenes, [0..20, 20..40]);
//! assert_eq!(shots.scores[20].hue, 120.0);
//! # Ok::<(), opensora_shots::ShotsError>(())
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `settings` | detector, thresholds and release |
//! | `downscale` | downscaling as in OpenCV, reading only the pixels that it samples |
//! | `frame` | RGB and planar frames as pixel sources |
//! | `hsv` | hue, saturation and value as in OpenCV |
//! | `score` | difference between a frame and the previous one |
//! | `cuts` | from scores to cuts |
//! | `video` | shots of a video file |
//!
//! Source: PySceneDetect 0.6.3, 0.6.7.1 and 0.7.2 (BSD 3-clause). The shortest scene is measured as in the
//! release: 0.7 compares times, earlier releases count frames, which differs for variable frame rates.
//! Deviation: 0.7 numbers a frame by its time multiplied by the mean rate; here, a frame's number is its
//! position in the video in all releases.

mod cuts;
mod downscale;
mod error;
mod frame;
mod hsv;
mod score;
mod settings;
mod video;

use cuts::Cuts;
use score::Scorer;
use std::ops::Range;

pub use downscale::Source;
pub use error::ShotsError;
pub use frame::{Rgb, Yuv420};
pub use score::Score;
pub use settings::{Flashes, Method, Release, Settings, Weights};
pub use video::{VideoShots, of_video};

/// The shots of a video.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shots {
    /// Frames of each shot, in order and without gaps; one for a video without cuts.
    pub scenes: Vec<Range<usize>>,
    /// The score of each frame; 0 for the first one.
    pub scores: Vec<Score>,
}

/// Finds cuts in a stream of frames. Memory grows only with the number of cuts.
#[derive(Debug, Clone)]
pub struct Detector {
    settings: Settings,
    /// The size of the first frame, and the scorer for it.
    scorer: Option<((usize, usize), Scorer)>,
    cuts: Cuts,
    /// First frames of scenes, except frame 0.
    starts: Vec<usize>,
    /// Mean frames per second, if frames have times.
    rate: Option<f64>,
}

impl Detector {
    /// Starts a video.
    ///
    /// # Errors
    /// Returns an error if a setting is invalid.
    pub fn new(settings: &Settings) -> Result<Self, ShotsError> {
        settings.validate()?;
        let cuts = Cuts::new(settings, None);
        Ok(Self { settings: *settings, scorer: None, cuts, starts: vec![], rate: None })
    }

    /// Starts a video whose frames have times ([`push_at`](Self::push_at)); `fps` is its mean
    /// frame rate. [`Release::V0_7`] measures the shortest scene by these times.
    ///
    /// # Errors
    /// Returns an error if a setting is invalid, or `fps` is not a positive number.
    pub fn with_rate(settings: &Settings, fps: f64) -> Result<Self, ShotsError> {
        if !(fps.is_finite() && fps > 0.0) {
            let (field, expected) = ("fps", "a positive number");
            return Err(ShotsError::Setting { field, found: fps.to_string(), expected });
        }
        let cuts = Cuts::new(settings, Some(fps));
        Ok(Self { cuts, rate: Some(fps), ..Self::new(settings)? })
    }

    /// Takes the next frame and returns its score, and a cut that is now certain: the first frame of a scene,
    /// this frame or an earlier one.
    ///
    /// # Errors
    /// Returns an error if the frame is empty or differs in size from the first one.
    pub fn push(&mut self, frame: &impl Source) -> Result<(Score, Option<usize>), ShotsError> {
        self.push_at(frame, self.frames() as f64 / self.rate.unwrap_or(1.0))
    }

    /// Takes the next frame, which is shown `seconds` after the first one, as [`push`](Self::push) does. Times
    /// must not decrease. They are used if the detector has a frame rate ([`with_rate`](Self::with_rate)).
    ///
    /// # Errors
    /// Returns an error if the frame is empty or differs in size from the first one.
    pub fn push_at(
        &mut self,
        frame: &impl Source,
        seconds: f64,
    ) -> Result<(Score, Option<usize>), ShotsError> {
        let size @ (width, height) = frame.size();
        let settings = &self.settings;
        let (expected, scorer) =
            self.scorer.get_or_insert_with(|| (size, Scorer::new(settings, width, height)));
        if size != *expected || width == 0 || height == 0 {
            return Err(ShotsError::FrameSize {
                frame: self.cuts.frames(),
                found: size,
                expected: *expected,
            });
        }
        let score = scorer.push(frame);
        Ok((score, self.push_score(score, seconds)))
    }

    /// Takes the score of the next frame and returns a cut that is now certain, as [`push`](Self::push)
    /// does.
    fn push_score(&mut self, score: Score, seconds: f64) -> Option<usize> {
        let cut = self.cuts.push(score.content, seconds);
        self.starts.extend(cut);
        cut
    }

    /// Returns the number of frames so far.
    pub fn frames(&self) -> usize {
        self.cuts.frames()
    }

    /// Returns the frames of each shot so far, in order and without gaps; one for a video without cuts.
    pub fn scenes(&self) -> Vec<Range<usize>> {
        let ends = self.starts.iter().copied().chain([self.frames()]);
        let starts = [0].into_iter().chain(self.starts.iter().copied());
        starts.zip(ends).map(|(start, end)| start..end).filter(|scene| !scene.is_empty()).collect()
    }
}

/// Finds the shots of a video's frames.
///
/// # Errors
/// Returns an error if a setting is invalid, or the frames differ in size.
pub fn detect<S: Source>(
    frames: impl IntoIterator<Item = S>,
    settings: &Settings,
) -> Result<Shots, ShotsError> {
    let mut detector = Detector::new(settings)?;
    let mut scores = Vec::new();
    for frame in frames {
        scores.push(detector.push(&frame)?.0);
    }
    Ok(Shots { scenes: detector.scenes(), scores })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the scenes of 40 frames that change their colour at frames 10 and 30, shown at `seconds`; by
    /// [`Detector::push`] if `None`.
    fn scenes(detector: &mut Detector, seconds: Option<fn(usize) -> f64>) -> Vec<Range<usize>> {
        for frame in 0..40 {
            let colour = if (10..30).contains(&frame) { [255, 0, 0] } else { [0, 0, 255] };
            let data = colour.repeat(4);
            let rgb = Rgb::new(&data, 2, 2).unwrap();
            match seconds {
                Some(seconds) => detector.push_at(&rgb, seconds(frame)).unwrap(),
                None => detector.push(&rgb).unwrap(),
            };
        }
        assert_eq!(detector.frames(), 40);
        detector.scenes()
    }

    #[test]
    fn frames_without_times_are_evenly_spaced() {
        let method = Method::Content { threshold: 27.0, flashes: Flashes::Suppress };
        let settings = Settings { method, ..Settings::default() };
        // The shortest scene has 15 frames, at any rate.
        for rate in [1.0, 8.0, 60.0] {
            let mut detector = Detector::with_rate(&settings, rate).unwrap();
            assert_eq!(scenes(&mut detector, None), [0..30, 30..40], "{rate}");
        }
        assert_eq!(scenes(&mut Detector::new(&settings).unwrap(), None), [0..30, 30..40]);
        // Ten frames of two seconds are 20 frames at the mean rate.
        let mut detector = Detector::with_rate(&settings, 10.0).unwrap();
        let slow = |frame| frame as f64 / 5.0;
        assert_eq!(scenes(&mut detector, Some(slow)), [0..10, 10..30, 30..40]);
    }

    #[test]
    fn rates_are_positive_numbers() {
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Detector::with_rate(&Settings::default(), fps).unwrap_err().to_string();
            assert!(error.starts_with("fps"), "{error}");
        }
    }
}

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
