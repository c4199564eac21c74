//! Finds cuts in a sequence of scores.
//!
//! Source: PySceneDetect, `FlashFilter` (since 0.6.4; in 0.7 `scenedetect/detector.py`),
//! `detectors/content_detector.py` and `detectors/adaptive_detector.py`.

use crate::settings::{Flashes, Method, Release, Settings};
use std::collections::VecDeque;

/// Finds cuts in a sequence of scores.
#[derive(Debug, Clone)]
pub(crate) struct Cuts {
    shortest: Shortest,
    /// Number of frames so far.
    frames: usize,
    state: State,
}

/// The shortest scene.
#[derive(Debug, Clone, Copy)]
struct Shortest {
    frames: usize,
    /// Frames per second for lengths in time; `None` if lengths are numbers of frames.
    rate: Option<f64>,
}

/// A frame and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct At {
    frame: usize,
    /// Time in microseconds, to which the reference rounds.
    microseconds: i64,
}

impl Shortest {
    /// Returns true if the shortest scene fits between two frames, with `ahead` frames after the second.
    ///
    /// Source: `scenedetect/common.py` (0.7.2), `FrameTimecode`: a time difference is converted to the nearest
    /// number of frames at the mean rate, ties to even.
    fn lies_between(self, from: At, to: At, ahead: usize) -> bool {
        let between = match self.rate {
            None => to.frame - from.frame,
            Some(rate) => {
                let seconds = (to.microseconds - from.microseconds) as f64 / 1e6;
                (seconds * rate).round_ties_even() as usize
            }
        };
        between + ahead >= self.frames
    }
}

#[derive(Debug, Clone)]
enum State {
    Suppress {
        threshold: f64,
        last_cut: At,
    },
    Merge {
        threshold: f64,
        /// The last frame that reached the threshold; the first frame until then.
        last_above: At,
        /// True after the first cut: before it there is no cut to merge with.
        enabled: bool,
        /// The first of the cuts that are being merged.
        start: Option<At>,
    },
    Adaptive {
        ratio: f64,
        window: usize,
        min_score: f64,
        /// Frames after a cut that count for the shortest scene.
        ahead: usize,
        last_cut: At,
        /// The last frames and their scores: one window.
        scores: VecDeque<(At, f64)>,
    },
}

impl Cuts {
    /// Starts a sequence. `rate` is the mean number of frames per second; releases before 0.7 count frames.
    pub(crate) fn new(settings: &Settings, rate: Option<f64>) -> Self {
        let old = settings.release == Release::V0_6_3;
        let first = At::default();
        let state = match settings.method {
            // Without a shortest scene, no cuts are too close.
            Method::Content { threshold, flashes }
                if old || flashes == Flashes::Suppress || settings.min_scene_len == 0 =>
            {
                State::Suppress { threshold, last_cut: first }
            }
            Method::Content { threshold, .. } => {
                State::Merge { threshold, last_above: first, enabled: false, start: None }
            }
            Method::Adaptive { ratio, window, min_score } => State::Adaptive {
                ratio,
                window,
                min_score,
                ahead: if settings.release == Release::V0_7 { 0 } else { window },
                last_cut: first,
                scores: VecDeque::with_capacity(2 * window + 2),
            },
        };
        let rate = rate.filter(|_| settings.release == Release::V0_7);
        Self { shortest: Shortest { frames: settings.min_scene_len, rate }, frames: 0, state }
    }

    /// Returns the number of frames so far.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Takes the score and time of the next frame, in seconds from the first frame. Returns a cut that is now
    /// certain: the first frame of a scene, this frame or an earlier one.
    pub(crate) fn push(&mut self, score: f64, seconds: f64) -> Option<usize> {
        let at = At { frame: self.frames, microseconds: (seconds * 1e6).round_ties_even() as i64 };
        self.frames += 1;
        let shortest = self.shortest;
        match &mut self.state {
            State::Suppress { threshold, last_cut } => {
                let cut = score >= *threshold && shortest.lies_between(*last_cut, at, 0);
                cut.then(|| *last_cut = at).map(|()| at.frame)
            }
            State::Merge { threshold, last_above, enabled, start } => {
                let above = score >= *threshold;
                let long_enough = shortest.lies_between(*last_above, at, 0);
                if above {
                    *last_above = at;
                }
                match *start {
                    Some(first) => {
                        let is_over =
                            long_enough && !above && shortest.lies_between(first, *last_above, 0);
                        is_over.then(|| *start = None).map(|()| last_above.frame)
                    }
                    None if above && long_enough => {
                        *enabled = true;
                        Some(at.frame)
                    }
                    None => {
                        *start = (above && *enabled).then_some(at);
                        None
                    }
                }
            }
            State::Adaptive { ratio, window, min_score, ahead, last_cut, scores } => {
                scores.push_back((at, score));
                if scores.len() > 2 * *window + 1 {
                    scores.pop_front();
                }
                if scores.len() <= 2 * *window {
                    return None;
                }
                let (target, score) = scores[*window];
                let others = scores.iter().enumerate().filter(|(at, _)| *at != *window);
                let sum = others.map(|(_, (_, score))| score).sum::<f64>();
                let mean = sum / (2 * *window) as f64;
                let found = match mean.abs() < 1e-5 {
                    // The reference does not divide by zero and takes a ratio of 255.
                    true => score >= *min_score && 255.0 >= *ratio,
                    false => score >= *min_score && (score / mean).min(255.0) >= *ratio,
                };
                let cut = found && shortest.lies_between(*last_cut, target, *ahead);
                cut.then(|| *last_cut = target).map(|()| target.frame)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the cuts of 200 frames, of which the `loud` ones score 100 and the others 0.
    fn cuts(settings: &Settings, loud: &[usize]) -> Vec<usize> {
        let by_frame = cuts_at(settings, None, loud, |frame| frame as f64);
        let by_time = cuts_at(settings, Some(30.0), loud, |frame| frame as f64 / 30.0);
        assert_eq!(by_frame, by_time);
        by_frame
    }

    /// Returns the cuts of such frames at these times.
    fn cuts_at(
        settings: &Settings,
        rate: Option<f64>,
        loud: &[usize],
        seconds: impl Fn(usize) -> f64,
    ) -> Vec<usize> {
        let mut cuts = Cuts::new(settings, rate);
        let score = |frame| if loud.contains(&frame) { 100.0 } else { 0.0 };
        (0..200).filter_map(|frame| cuts.push(score(frame), seconds(frame))).collect()
    }

    fn content(flashes: Flashes) -> Settings {
        let method = Method::Content { threshold: 27.0, flashes };
        Settings { method, ..Settings::default() }
    }

    #[test]
    fn suppressed_cuts_are_within_a_scene_length_of_the_last_one() {
        let suppress = content(Flashes::Suppress);
        let old = Settings { release: Release::V0_6_3, ..content(Flashes::Merge) };
        for settings in [suppress, old] {
            assert_eq!(cuts(&settings, &[14, 20, 34, 35, 60]), [20, 35, 60]);
        }
    }

    #[test]
    fn merged_cuts_are_at_the_last_of_them() {
        let merge = content(Flashes::Merge);
        assert_eq!(cuts(&merge, &[20, 40, 60]), [20, 40, 60]);
        // Before the first cut there is nothing to merge with, and the count starts again.
        assert_eq!(cuts(&merge, &[10, 20, 40]), [40]);
        // A flash: cuts from 60 on are merged, but not with those within a scene length of the start.
        assert_eq!(cuts(&merge, &[40, 60, 65, 70, 75, 80, 85]), [40, 60, 85]);
        assert_eq!(cuts(&merge, &[40, 60, 65, 70]), [40, 60]);
        // Merging is not finished at the end.
        assert_eq!(cuts(&merge, &[160, 170, 190]), [160]);
    }

    #[test]
    fn without_a_shortest_scene_every_frame_can_be_a_cut() {
        for flashes in [Flashes::Merge, Flashes::Suppress] {
            let settings = Settings { min_scene_len: 0, ..content(flashes) };
            assert_eq!(cuts(&settings, &[1, 2, 3, 50]), [1, 2, 3, 50]);
        }
    }

    #[test]
    fn the_newest_release_measures_scenes_in_time() {
        // Five frames per second up to frame 40, then fifty.
        let seconds =
            |frame: usize| if frame < 40 { frame as f64 / 5.0 } else { 7.2 + frame as f64 / 50.0 };
        let loud = [10, 15, 40, 50, 100, 110, 160];
        let found = |release, method| {
            let settings = Settings { release, method, ..Settings::default() };
            cuts_at(&settings, Some(20.0), &loud, seconds)
        };
        // 15 frames at the mean rate are 0.75 s: 4 frames of the first part, 38 of the second.
        assert_eq!(found(Release::V0_7, Method::ADAPTIVE), [10, 15, 40, 100, 160]);
        assert_eq!(found(Release::V0_6_7, Method::ADAPTIVE), [15, 40, 100, 160]);
        let suppress = Method::Content { threshold: 27.0, flashes: Flashes::Suppress };
        assert_eq!(found(Release::V0_7, suppress), [10, 15, 40, 100, 160]);
        assert_eq!(found(Release::V0_6_3, suppress), [15, 40, 100, 160]);
        assert_eq!(found(Release::V0_7, Method::CONTENT), [10, 15, 40, 110, 160]);
    }

    #[test]
    fn adaptive_cuts_are_a_multiple_of_the_mean_around_them() {
        let found_in = |window, ratio, min_score, scores: &[f64]| {
            let method = Method::Adaptive { ratio, window, min_score };
            let settings = Settings { method, min_scene_len: 0, ..Settings::default() };
            let mut cuts = Cuts::new(&settings, None);
            let cuts = scores.iter().map(|score| cuts.push(*score, 0.0));
            cuts.flatten().collect::<Vec<_>>()
        };
        let found = |ratio, min_score, scores: &[f64]| found_in(3, ratio, min_score, scores);
        let none: [usize; 0] = [];
        // The mean of the six others is 10.
        assert_eq!(found(3.0, 15.0, &[4.0, 10.0, 16.0, 30.0, 20.0, 7.0, 3.0]), [3]);
        assert_eq!(found(3.0, 15.0, &[4.0, 10.0, 16.0, 29.0, 20.0, 7.0, 3.0]), none);
        assert_eq!(found(3.0, 30.0, &[4.0, 10.0, 16.0, 30.0, 20.0, 7.0, 3.0]), [3]);
        assert_eq!(found(3.0, 31.0, &[4.0, 10.0, 16.0, 30.0, 20.0, 7.0, 3.0]), none);
        // One frame less than a window, and one more.
        assert_eq!(found(3.0, 15.0, &[4.0, 10.0, 16.0, 30.0, 20.0, 7.0]), none);
        assert_eq!(found(3.0, 15.0, &[90.0, 4.0, 10.0, 16.0, 30.0, 20.0, 7.0, 3.0]), [4]);
        // The ratio to a mean of about zero is 255.
        let small = [0.0, 4e-6, 4e-6, 4e-6, 4e-6, 0.0, 0.0];
        assert_eq!(found(255.0, 0.0, &small), [3]);
        assert_eq!(found(256.0, 0.0, &small), none);
        assert_eq!(found(255.0, 1.0, &small), none);
        // A mean of 1e-5 is divided by.
        let divided = |ratio| found_in(1, ratio, 0.0, &[1e-5, 1e-3, 1e-5]);
        assert_eq!((divided(99.0), divided(101.0)), (vec![1], none.to_vec()));
        // Larger ratios are 255, too.
        let large = [1e-3, 1e-3, 1e-3, 100.0, 1e-3, 1e-3, 1e-3];
        assert_eq!(
            (found(255.0, 15.0, &large), found(256.0, 15.0, &large)),
            (vec![3], none.to_vec())
        );
    }

    #[test]
    fn adaptive_cuts_exceed_their_window() {
        let adaptive =
            |release| Settings { method: Method::ADAPTIVE, release, ..Settings::default() };
        // Equally loud neighbours hide each other; frames near the end are not compared.
        let loud = [20, 50, 51, 52, 80, 94, 120, 133, 199];
        assert_eq!(cuts(&adaptive(Release::V0_7), &loud), [20, 80, 120]);
        for release in [Release::V0_6_3, Release::V0_6_7] {
            assert_eq!(cuts(&adaptive(release), &loud), [20, 80, 94, 120, 133]);
        }
    }
}
