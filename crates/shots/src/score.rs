//! How much a frame differs from the one before.
//!
//! Source: PySceneDetect, `scenedetect/detectors/content_detector.py`, `_calculate_frame_score`.

use crate::{
    downscale::{Downscale, Source},
    hsv::hsv,
    settings::{Settings, Weights},
};
use opensora_video::{picks::Picks, vectors::vectorized};

/// Differences of a frame from the one before: means over the pixels, each in 0..=255 (of hues, in
/// 0..180).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// What is compared with thresholds: the weighted mean of the other three.
    pub content: f64,
    /// Of hues, in steps of two degrees. They are taken as numbers, not as places on a circle.
    pub hue: f64,
    /// Of saturations.
    pub saturation: f64,
    /// Of values (HSV).
    pub value: f64,
}

/// Hue, saturation and value of a small frame, each a plane.
#[derive(Debug, Clone, Default)]
struct Planes([Vec<u8>; 3]);

/// Scores the frames of one video.
#[derive(Debug, Clone)]
pub(crate) struct Scorer {
    weights: Weights,
    downscale: Downscale,
    /// Of this frame and the one before, in turn.
    now: Planes,
    before: Planes,
    first: bool,
}

impl Scorer {
    /// For frames of this size, which is not 0.
    pub(crate) fn new(settings: &Settings, width: usize, height: usize) -> Self {
        Self::between(settings, (width, height), settings.compared_size(width, height))
    }

    /// For frames of which there are these pixels, of which there are some.
    pub(crate) fn of_picks(
        settings: &Settings,
        (width, height): (usize, usize),
        picks: &Picks,
    ) -> Self {
        let from = (picks.columns.len(), picks.rows.len());
        Self::between(settings, from, settings.compared_size(width, height))
    }

    /// The pixels of frames of this size that are looked at; `None` for all of them.
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

    /// The score of the next frame; 0 of the first one.
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

/// The mean absolute difference.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    // Short sums fit into 32 bits and so are added several at once.
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
