//! Where one shot of a video ends and the next begins.
//!
//! Finds the same cuts as PySceneDetect, the tool of the reference: frames are made small, their
//! hues, saturations and values are compared with those of the frame before, and where the mean
//! difference is large there is a cut. Scores are equal to PySceneDetect's where the decoded frames
//! are; nothing of it or of OpenCV is needed.
//!
//! | module | thought |
//! |---|---|
//! | `settings` | detector, thresholds, and the release that is followed |
//! | `downscale` | frames made smaller as OpenCV does it, looking at nothing that is not sampled |
//! | `frame` | frames of RGB and of planes as sources of pixels |
//! | `hsv` | hue, saturation and value as OpenCV has them |
//! | `score` | how much a frame differs from the one before |
//! | `cuts` | scores become cuts |
//! | `video` | shots of a video file |
//!
//! ```
//! use opensora_prepare::shots::{self, Rgb, Settings};
//!
//! # fn main() -> Result<(), opensora_prepare::PrepareError> {
//! let (red, blue) = ([255, 0, 0].repeat(16), [0, 0, 255].repeat(16));
//! let frames = (0..40).map(|frame| if frame < 20 { &red } else { &blue });
//! let shots = shots::detect(frames.filter_map(|rgb| Rgb::new(rgb, 4, 4)), &Settings::default())?;
//! assert_eq!(shots.scenes, [0..20, 20..40]);
//! assert_eq!(shots.scores[20].hue, 120.0);
//! # Ok(())
//! # }
//! ```
//!
//! Source: PySceneDetect 0.6.3, 0.6.7.1 and 0.7.2 (BSD 3-clause); numbers of frames stand for its
//! timecodes. Deviation: in 0.7 the number of a frame of a video with a variable rate is its time
//! multiplied by the mean rate; here it is its place in the video.

mod cuts;
mod downscale;
mod frame;
mod hsv;
mod score;
mod settings;
mod video;

use crate::PrepareError;
use cuts::Cuts;
use score::Scorer;
use std::ops::Range;

pub use downscale::Source;
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
}

impl Detector {
    /// Starts a video.
    ///
    /// # Errors
    /// Where the settings cannot be.
    pub fn new(settings: &Settings) -> Result<Self, PrepareError> {
        settings.check()?;
        Ok(Self { settings: *settings, scorer: None, cuts: Cuts::new(settings), starts: vec![] })
    }

    /// Takes the next frame and gives its score, and a cut where one is certain by now: the number
    /// of the frame that begins a scene, this one or an earlier one.
    ///
    /// # Errors
    /// Where the frame is empty or its size is not that of the first one.
    pub fn push(&mut self, frame: &impl Source) -> Result<(Score, Option<usize>), PrepareError> {
        let size @ (width, height) = frame.size();
        let settings = &self.settings;
        let (expected, scorer) =
            self.scorer.get_or_insert_with(|| (size, Scorer::new(settings, width, height)));
        if size != *expected || width == 0 || height == 0 {
            return Err(PrepareError::FrameSize {
                frame: self.cuts.frames(),
                found: size,
                expected: *expected,
            });
        }
        let score = scorer.push(frame);
        Ok((score, self.push_score(score)))
    }

    /// As [`push`](Self::push), for a frame whose score is known.
    fn push_score(&mut self, score: Score) -> Option<usize> {
        let cut = self.cuts.push(score.content);
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
) -> Result<Shots, PrepareError> {
    let mut detector = Detector::new(settings)?;
    let mut scores = Vec::new();
    for frame in frames {
        scores.push(detector.push(&frame)?.0);
    }
    Ok(Shots { scenes: detector.scenes(), scores })
}
