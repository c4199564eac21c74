//! Shot detection: finds the frames at which one shot of a video ends and the next begins.
//!
//! The cuts are those of [PySceneDetect](https://www.scenedetect.com)'s `ContentDetector` and
//! `AdaptiveDetector`, in a release of choice ([`Release`]), and so are the scores where the decoded
//! frames are equal. Frames are scaled down as OpenCV does it, converted to hue, saturation and value,
//! and compared with the frame before. Neither Python nor OpenCV is needed; H.264 in MP4 is decoded
//! in process, other files by the `ffmpeg` program.
//!
//! [`of_video`] reads a video file:
//!
//! ```no_run
//! use opensora_shots::{Settings, of_video};
//! use opensora_video::Decoder;
//!
//! let found = of_video("film.mp4".as_ref(), Decoder::Auto, &Settings::default())?;
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
//! | `settings` | detector, thresholds, and the release that is followed |
//! | `downscale` | downscaling as in OpenCV, reading only the pixels that it samples |
//! | `frame` | RGB and planar frames as pixel sources |
//! | `hsv` | hue, saturation and value as in OpenCV |
//! | `score` | difference between a frame and the one before |
//! | `cuts` | from scores to cuts |
//! | `video` | shots of a video file |
//!
//! Source: PySceneDetect 0.6.3, 0.6.7.1 and 0.7.2 (BSD 3-clause). The shortest scene is measured as the
//! release does it: 0.7 compares times, earlier ones count frames, which differs for videos with a
//! variable frame rate. Deviation: 0.7 calls a frame by its time multiplied by the mean rate; here a frame's
//! number is its position in the video, whatever the release.

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
    /// A score for each frame; that of the first one is 0.
    pub scores: Vec<Score>,
}

/// Finds cuts while frames come in; memory grows with the number of cuts alone.
#[derive(Debug, Clone)]
pub struct Detector {
    settings: Settings,
    /// Made for the first frame's size.
    scorer: Option<((usize, usize), Scorer)>,
    cuts: Cuts,
    /// Frames that begin a scene, but for the first one.
    starts: Vec<usize>,
    /// Mean frames per second, if frames come with their times.
    rate: Option<f64>,
}

impl Detector {
    /// Starts a video.
    ///
    /// # Errors
    /// Where the settings cannot be.
    pub fn new(settings: &Settings) -> Result<Self, ShotsError> {
        settings.check()?;
        let cuts = Cuts::new(settings, None);
        Ok(Self { settings: *settings, scorer: None, cuts, starts: vec![], rate: None })
    }

    /// Starts a video whose frames come with their times ([`push_at`](Self::push_at)); `fps` is its mean
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

    /// Takes the next frame and gives its score, and a cut where one is certain by now: the number
    /// of the frame that begins a scene, this one or an earlier one.
    ///
    /// # Errors
    /// Where the frame is empty or its size is not that of the first one.
    pub fn push(&mut self, frame: &impl Source) -> Result<(Score, Option<usize>), ShotsError> {
        self.push_at(frame, self.frames() as f64 / self.rate.unwrap_or(1.0))
    }

    /// As [`push`](Self::push), for a frame that is shown `seconds` after the first one. Times do not
    /// decrease. They count if the detector knows the frame rate ([`with_rate`](Self::with_rate)).
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

    /// As [`push_at`](Self::push_at), for a frame whose score is known.
    fn push_score(&mut self, score: Score, seconds: f64) -> Option<usize> {
        let cut = self.cuts.push(score.content, seconds);
        self.starts.extend(cut);
        cut
    }

    /// Frames so far.
    pub fn frames(&self) -> usize {
        self.cuts.frames()
    }

    /// Frames of each shot so far, in order and without gaps; one for a video without cuts.
    pub fn scenes(&self) -> Vec<Range<usize>> {
        let ends = self.starts.iter().copied().chain([self.frames()]);
        let starts = [0].into_iter().chain(self.starts.iter().copied());
        starts.zip(ends).map(|(start, end)| start..end).filter(|scene| !scene.is_empty()).collect()
    }
}

/// Finds the shots of a video's frames.
///
/// # Errors
/// Where the settings cannot be, or frames are not all of one size.
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

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
