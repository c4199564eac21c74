//! Scores: how much a frame differs from the previous one.
//!
//! Source: PySceneDetect, `scenedetect/detectors/content_detector.py`, `_calculate_frame_score`.

use crate::{
    downscale::{Downscale, Source},
    hsv::hsv,
    settings::{Settings, Weights},
};
use opensora_video::{picks::Picks, vectors::vectorized};

/// The differences of a frame from the previous one: means over the pixels, each in 0..=255 (hue: 0..180).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// The weighted mean of the other three, which is compared with thresholds.
    pub content: f64,
    /// Difference of hues in steps of two degrees, without wrapping around the circle.
    pub hue: f64,
    /// Difference of saturations.
    pub saturation: f64,
    /// Difference of values (HSV).
    pub value: f64,
}

/// Planes of hue, saturation and value of a small frame.
#[derive(Debug, Clone, Default)]
struct Planes([Vec<u8>; 3]);

/// Scores the frames of one video.
#[derive(Debug, Clone)]
pub(crate) struct Scorer {
    weights: Weights,
    downscale: Downscale,
    /// The current and the previous frame, swapped for each frame.
    now: Planes,
    before: Planes,
    first: bool,
}

impl Scorer {
    /// Returns a scorer of frames of this size; both sides are above 0.
    pub(crate) fn new(settings: &Settings, width: usize, height: usize) -> Self {
        Self::between(settings, (width, height), settings.compared_size(width, height))
    }

    /// Returns a scorer of frames that consist of `picks`, at least one pixel, of frames of `width` and
    /// `height`.
    pub(crate) fn of_picks(
        settings: &Settings,
        (width, height): (usize, usize),
        picks: &Picks,
    ) -> Self {
        let from = (picks.columns.len(), picks.rows.len());
        Self::between(settings, from, settings.compared_size(width, height))
    }

    /// Returns the pixels of frames of this size that are compared; `None` for all.
    pub(crate) fn picks(settings: &Settings, (width, height): (usize, usize)) -> Option<Picks> {
        Downscale::picks((width, height), settings.compared_size(width, height))
    }

    fn between(settings: &Settings, from: (usize, usize), to: (usize, usize)) -> Self {
        let planes = || Planes([(); 3].map(|()| vec![0; to.0 * to.1]));
        Self {
            weights: settings.weights,
            downscale: Downscale::new(from, to),
            now: planes(),
            before: planes(),
            first: true,
        }
    }

    /// Returns the score of the next frame; 0 for the first one.
    pub(crate) fn push(&mut self, frame: &impl Source) -> Score {
        std::mem::swap(&mut self.now, &mut self.before);
        let (width, _) = self.downscale.size();
        let Planes([hue, saturation, value]) = &mut self.now;
        self.downscale.rows(frame, |y, row| {
            let line = y * width..(y + 1) * width;
            hsv(row, [&mut hue[line.clone()], &mut saturation[line.clone()], &mut value[line]]);
        });
        if std::mem::take(&mut self.first) {
            return Score::default();
        }
        let [hue, saturation, value] =
            [0, 1, 2].map(|plane| distance(&self.now.0[plane], &self.before.0[plane]));
        Score { content: self.weights.mean(hue, saturation, value), hue, saturation, value }
    }
}

/// Returns the mean absolute difference.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    // Short sums fit 32 bits, in which the loop is vectorized.
    let sums = a.chunks(1 << 16).zip(b.chunks(1 << 16)).map(|(a, b)| {
        let sum: u32 = vectorized(|| a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b))).sum());
        u64::from(sum)
    });
    sums.sum::<u64>() as f64 / a.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Rgb;

    #[test]
    fn sampled_pixels_are_picked_for_odd_factors() {
        let settings = Settings::default();
        let picks = Scorer::picks(&settings, (1280, 720)).unwrap();
        assert_eq!((picks.columns.len(), picks.rows.len()), (256, 144));
        assert_eq!((picks.columns[1], picks.rows[1]), (7, 7));
        assert!(Scorer::picks(&settings, (640, 360)).is_none());
    }

    #[test]
    fn differences_are_means_over_pixels() {
        let mut scorer = Scorer::new(&Settings::default(), 2, 1);
        let black_and_red = [0, 0, 0, 255, 0, 0];
        let white_and_blue = [255, 255, 255, 0, 0, 255];
        let mut push = |data: &[u8]| scorer.push(&Rgb::new(data, 2, 1).unwrap());
        assert_eq!(push(&black_and_red), Score::default());
        let score = push(&white_and_blue);
        // Hue 0 to 0 and 0 to 120; saturation alike; value 0 to 255 and alike.
        let expected = Score { content: 62.5, hue: 60.0, saturation: 0.0, value: 127.5 };
        assert_eq!(score, expected);
        assert_eq!(push(&white_and_blue), Score::default());
        assert_eq!(push(&black_and_red), expected);
    }

    #[test]
    fn large_frames_do_not_overflow() {
        let (a, b) = (vec![255; 300_000], vec![0; 300_000]);
        assert_eq!(distance(&a, &b), 255.0);
    }
}
