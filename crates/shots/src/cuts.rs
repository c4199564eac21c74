//! Scores become cuts.
//!
//! Source: PySceneDetect, `FlashFilter` (since 0.6.4; in 0.7 `scenedetect/detector.py`),
//! `detectors/content_detector.py` and `detectors/adaptive_detector.py`.

use crate::settings::{Flashes, Method, Release, Settings};
use std::collections::VecDeque;

/// Finds cuts in a row of scores.
#[derive(Debug, Clone)]
pub(crate) struct Cuts {
    min_scene_len: usize,
    /// Frames so far.
    frames: usize,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Suppress {
        threshold: f64,
        last_cut: usize,
    },
    Merge {
        threshold: f64,
        /// The last frame that reached the threshold; the first one of all until then.
        last_above: usize,
        /// Whether there was a cut: before, there is nothing to merge with.
        enabled: bool,
        /// The first of the cuts that are being merged.
        start: Option<usize>,
    },
    Adaptive {
        ratio: f64,
        window: usize,
        min_score: f64,
        /// Frames behind a cut that count as its scene's where the shortest one is measured.
        ahead: usize,
        last_cut: usize,
        /// The last scores, as many as a window has.
        scores: VecDeque<f64>,
    },
}

impl Cuts {
    pub(crate) fn new(settings: &Settings) -> Self {
        let old = settings.release == Release::V0_6_3;
        let state = match settings.method {
            // Where no scene is too short, nothing is too close either.
            Method::Content { threshold, flashes }
                if old || flashes == Flashes::Suppress || settings.min_scene_len == 0 =>
            {
                State::Suppress { threshold, last_cut: 0 }
            }
            Method::Content { threshold, .. } => {
                State::Merge { threshold, last_above: 0, enabled: false, start: None }
            }
            Method::Adaptive { ratio, window, min_score } => State::Adaptive {
                ratio,
                window,
                min_score,
                ahead: if settings.release == Release::V0_7 { 0 } else { window },
                last_cut: 0,
                scores: VecDeque::with_capacity(2 * window + 2),
            },
        };
        Self { min_scene_len: settings.min_scene_len, frames: 0, state }
    }

    /// Frames so far.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Takes the next frame's score, and gives a cut where one is certain by now: the number of the
    /// frame that begins a scene, this one or an earlier one.
    pub(crate) fn push(&mut self, score: f64) -> Option<usize> {
        let frame = self.frames;
        self.frames += 1;
        let shortest = self.min_scene_len;
        match &mut self.state {
            State::Suppress { threshold, last_cut } => {
                let cut = score >= *threshold && frame - *last_cut >= shortest;
                cut.then(|| *last_cut = frame).map(|()| frame)
            }
            State::Merge { threshold, last_above, enabled, start } => {
                let above = score >= *threshold;
                let long_enough = frame - *last_above >= shortest;
                if above {
                    *last_above = frame;
                }
                match *start {
                    Some(first) => {
                        let over = long_enough && !above && *last_above - first >= shortest;
                        over.then(|| *start = None).map(|()| *last_above)
                    }
                    None if above && long_enough => {
                        *enabled = true;
                        Some(frame)
                    }
                    None => {
                        *start = (above && *enabled).then_some(frame);
                        None
                    }
                }
            }
            State::Adaptive { ratio, window, min_score, ahead, last_cut, scores } => {
                scores.push_back(score);
                if scores.len() > 2 * *window + 1 {
                    scores.pop_front();
                }
                if scores.len() <= 2 * *window {
                    return None;
                }
                let (target, score) = (frame - *window, scores[*window]);
                let others = scores.iter().enumerate().filter(|(at, _)| *at != *window);
                let mean = others.map(|(_, score)| score).sum::<f64>() / (2 * *window) as f64;
                let found = match mean.abs() < 1e-5 {
                    // The reference divides by no zero and takes a ratio of 255.
                    true => score >= *min_score && 255.0 >= *ratio,
                    false => score >= *min_score && (score / mean).min(255.0) >= *ratio,
                };
                let cut = found && target + *ahead - *last_cut >= shortest;
                cut.then(|| *last_cut = target).map(|()| target)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts where these of 200 frames score 100 and the others nothing.
    fn cuts(settings: &Settings, loud: &[usize]) -> Vec<usize> {
        let mut cuts = Cuts::new(settings);
        let score = |frame| if loud.contains(&frame) { 100.0 } else { 0.0 };
        (0..200).filter_map(|frame| cuts.push(score(frame))).collect()
    }

    fn content(flashes: Flashes) -> Settings {
        let method = Method::Content { threshold: 27.0, flashes };
        Settings { method, ..Settings::default() }
    }

    #[test]
    fn suppressed_cuts_count_from_the_last_one() {
        let suppress = content(Flashes::Suppress);
        let old = Settings { release: Release::V0_6_3, ..content(Flashes::Merge) };
        for settings in [suppress, old] {
            assert_eq!(cuts(&settings, &[14, 20, 34, 35, 60]), [20, 35, 60]);
        }
    }

    #[test]
    fn merged_cuts_are_where_the_last_one_is() {
        let merge = content(Flashes::Merge);
        assert_eq!(cuts(&merge, &[20, 40, 60]), [20, 40, 60]);
        // Before the first cut there is nothing to merge with, and the count starts anew.
        assert_eq!(cuts(&merge, &[10, 20, 40]), [40]);
        // A flash: those from 60 on are one, but not within a scene's length of the start.
        assert_eq!(cuts(&merge, &[40, 60, 65, 70, 75, 80, 85]), [40, 60, 85]);
        assert_eq!(cuts(&merge, &[40, 60, 65, 70]), [40, 60]);
        // Merging is still going on at the end.
        assert_eq!(cuts(&merge, &[160, 170, 190]), [160]);
    }

    #[test]
    fn without_a_shortest_scene_every_frame_counts() {
        for flashes in [Flashes::Merge, Flashes::Suppress] {
            let settings = Settings { min_scene_len: 0, ..content(flashes) };
            assert_eq!(cuts(&settings, &[1, 2, 3, 50]), [1, 2, 3, 50]);
        }
    }

    #[test]
    fn adaptive_cuts_stand_out_of_their_window() {
        let adaptive =
            |release| Settings { method: Method::ADAPTIVE, release, ..Settings::default() };
        // Neighbours that are as loud hide one another; what is near the end is never looked at.
        let loud = [20, 50, 51, 52, 80, 94, 120, 133, 199];
        assert_eq!(cuts(&adaptive(Release::V0_7), &loud), [20, 80, 120]);
        for release in [Release::V0_6_3, Release::V0_6_7] {
            assert_eq!(cuts(&adaptive(release), &loud), [20, 80, 94, 120, 133]);
        }
    }
}
