//! The frames of a video that become a clip, and whether they are mirrored.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/datasets/video_transforms.py`, `TemporalRandomCrop`
//! and `RandomHorizontalFlipVideo`, `opensora/datasets/datasets.py`, `DatasetFromCSV`. Deviation:
//! random draws are keyed by (seed, row, variant) instead of coming from a generator with a history.

use crate::SettingError;
use opensora_nn::random::{HostRng, Purpose};
use opensora_video::frames::MAX_SIDE;
use serde::{Deserialize, Serialize};

/// Maximum number of frames of a clip: far more than any model takes, and small enough that sizes do not overflow.
const MAX_FRAMES: usize = 1 << 16;

/// Frames, frame interval, size and augmentation of the clips that rows become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipSpec {
    /// Frames of a clip.
    pub num_frames: usize,
    /// Distance of two frames of the clip, in frames of the video.
    #[serde(default = "one")]
    pub frame_interval: usize,
    /// Height and width of a clip in pixels.
    pub image_size: [usize; 2],
    /// Mirrors half of the videos, at random. Images are not mirrored.
    #[serde(default = "yes")]
    pub horizontal_flip: bool,
    /// Number of different random windows and flips per row. Epochs cycle through these variants, so that a
    /// cache can hold all variants. `None`: every epoch draws anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variants: Option<u64>,
}

impl Default for ClipSpec {
    /// Returns the defaults: Stage 2 as published: 16 frames of 256x256, every third frame of the video.
    fn default() -> Self {
        Self {
            num_frames: 16,
            frame_interval: 3,
            image_size: [256, 256],
            horizontal_flip: true,
            variants: None,
        }
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

impl ClipSpec {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a setting is out of range.
    pub fn validate(&self) -> Result<(), SettingError> {
        let side = |pixels: &usize| (1..=MAX_SIDE).contains(pixels);
        if !(1..=MAX_FRAMES).contains(&self.num_frames) {
            Err(SettingError::new("num_frames", self.num_frames, "1 to 65536"))
        } else if self.frame_interval == 0 {
            Err(SettingError::new("frame_interval", 0, "at least 1"))
        } else if !self.image_size.iter().all(side) {
            let found = format!("{:?}", self.image_size);
            Err(SettingError::new("image_size", found, "height and width of 1 to 16384 pixels"))
        } else if self.variants == Some(0) {
            Err(SettingError::new("variants", 0, "at least 1, or none"))
        } else {
            Ok(())
        }
    }

    /// Returns the shape of a clip, `[3, T, H, W]`.
    pub fn shape(&self) -> [usize; 4] {
        let [height, width] = self.image_size;
        [3, self.num_frames, height, width]
    }

    /// Returns the length of the window that a clip is sampled from, in frames of the video:
    /// `num_frames * frame_interval`.
    pub fn window(&self) -> usize {
        self.num_frames.saturating_mul(self.frame_interval)
    }

    /// Returns the number of the random draw that an epoch uses.
    pub fn variant(&self, epoch: u64) -> u64 {
        self.variants.map_or(epoch, |variants| epoch % variants.max(1))
    }
}

/// Key of a clip's random numbers: seed, row and epoch, of which only the variant counts
/// ([`ClipSpec::variant`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawKey {
    /// Seed of the data set.
    pub seed: u64,
    /// Row of the manifest.
    pub row: usize,
    /// Number of the pass through the data.
    pub epoch: u64,
}

/// Random choices for a clip: its first frame, and whether it is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Draw {
    /// First frame of the clip in the video.
    pub begin: usize,
    /// True if the clip is mirrored.
    pub flip: bool,
}

impl Draw {
    /// Draws the first frame and the flip of a clip of a video of `total_frames` frames.
    pub fn new(spec: &ClipSpec, total_frames: usize, key: DrawKey) -> Self {
        let DrawKey { seed, row, epoch } = key;
        let mut rng = HostRng::new(seed, Purpose::Augmentation, row as u64, spec.variant(epoch));
        // Both numbers are always drawn, and the one that depends on the video last: neither a
        // setting nor the length of a video changes the other number.
        let flip = rng.uniform() < 0.5 && spec.horizontal_flip;
        Self { begin: rng.below(last_begin(spec, total_frames) + 1), flip }
    }
}

/// Returns the last frame at which a window can begin: one before the last possible one, as in the
/// reference.
pub fn last_begin(spec: &ClipSpec, total_frames: usize) -> usize {
    total_frames.saturating_sub(spec.window()).saturating_sub(1)
}

/// Returns the `num_frames` frames of the window that begins at `begin`, or `None` if the video has fewer
/// frames from there on. A video shorter than the window is used whole, at a smaller interval.
pub fn frame_indices(spec: &ClipSpec, total_frames: usize, begin: usize) -> Option<Vec<usize>> {
    let end = begin.saturating_add(spec.window()).min(total_frames);
    (end.saturating_sub(begin) >= spec.num_frames).then(|| linspace(begin, end, spec.num_frames))
}

/// Returns `num_frames` indices from `begin` to `end - 1` at equal distances, each rounded down
/// (`numpy.linspace(begin, end - 1, num_frames, dtype=int)`).
pub fn linspace(begin: usize, end: usize, num_frames: usize) -> Vec<usize> {
    let last = end.saturating_sub(1);
    let step = last.saturating_sub(begin) as f64 / num_frames.saturating_sub(1).max(1) as f64;
    let index = |k: usize| match k {
        0 => begin,
        k if k + 1 == num_frames => last,
        k => (k as f64 * step + begin as f64) as usize,
    };
    (0..num_frames).map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(num_frames: usize, frame_interval: usize) -> ClipSpec {
        ClipSpec {
            num_frames,
            frame_interval,
            image_size: [16, 16],
            horizontal_flip: true,
            variants: None,
        }
    }

    fn key(row: usize, epoch: u64) -> DrawKey {
        DrawKey { seed: 3, row, epoch }
    }

    #[test]
    fn windows_begin_anywhere_except_at_the_last_possible_frame() {
        let spec = spec(4, 2);
        let mut seen = [0; 12];
        for row in 0..2000 {
            seen[Draw::new(&spec, 12, key(row, 0)).begin] += 1;
        }
        // 12 - 8 = 4 would be possible. Four places share 2000 draws, each within six deviations.
        assert!(seen[..4].iter().all(|&count: &i32| (count - 500).abs() < 117), "{seen:?}");
        assert!(seen[4..].iter().all(|&count| count == 0), "{seen:?}");
    }

    #[test]
    fn half_of_the_clips_are_mirrored_if_enabled() {
        let mut spec = spec(4, 1);
        let flips =
            |spec: &ClipSpec| (0..2000).filter(|&row| Draw::new(spec, 9, key(row, 0)).flip).count();
        assert!(flips(&spec).abs_diff(1000) < 135);
        spec.horizontal_flip = false;
        assert_eq!(flips(&spec), 0);
    }

    #[test]
    fn draws_repeat_after_as_many_epochs_as_variants() {
        let mut spec = spec(4, 1);
        let draws = |spec: &ClipSpec, epochs: std::ops::Range<u64>| -> Vec<Draw> {
            epochs.map(|epoch| Draw::new(spec, 1000, key(7, epoch))).collect()
        };
        let endless = draws(&spec, 0..6);
        assert_ne!(endless[..3], endless[3..]);
        spec.variants = Some(3);
        assert_eq!(draws(&spec, 0..3), endless[..3]);
        assert_eq!(draws(&spec, 3..6), endless[..3]);
    }

    #[test]
    fn settings_do_not_change_other_draws() {
        let plain = spec(4, 1);
        let still = ClipSpec { horizontal_flip: false, image_size: [8, 24], ..plain.clone() };
        for row in 0..50 {
            let draw = Draw::new(&plain, 100, key(row, 0));
            assert_eq!(Draw::new(&still, 100, key(row, 0)).begin, draw.begin);
            assert_eq!(Draw::new(&plain, 200, key(row, 0)).flip, draw.flip);
        }
    }

    #[test]
    fn indices_are_frames_of_the_video() {
        for (frames, interval, total) in
            [(1, 1, 1), (1, 5, 3), (16, 3, 16), (16, 3, 47), (7, usize::MAX, 9), (64, 2, 500)]
        {
            let spec = spec(frames, interval);
            for begin in 0..=last_begin(&spec, total) {
                let indices = frame_indices(&spec, total, begin).unwrap();
                assert_eq!((indices.len(), indices[0]), (frames, begin));
                assert!(indices.is_sorted() && indices.iter().all(|&index| index < total));
            }
        }
        assert_eq!(frame_indices(&spec(16, 1), 15, 0), None);
        assert_eq!(frame_indices(&spec(16, 1), 20, usize::MAX), None);
    }

    #[test]
    fn settings_are_validated_and_read_from_json() {
        let text = r#"{"num_frames": 16, "image_size": [256, 512]}"#;
        let read: ClipSpec = serde_json::from_str(text).unwrap();
        assert_eq!((read.frame_interval, read.horizontal_flip, read.variants), (1, true, None));
        assert_eq!((read.shape(), read.validate().is_ok()), ([3, 16, 256, 512], true));
        assert!(serde_json::from_str::<ClipSpec>(r#"{"num_frames": 16, "size": 1}"#).is_err());
        for (wrong, field) in [
            (ClipSpec { num_frames: 0, ..read.clone() }, "num_frames"),
            (ClipSpec { frame_interval: 0, ..read.clone() }, "frame_interval"),
            (ClipSpec { image_size: [0, 8], ..read.clone() }, "image_size"),
            (ClipSpec { image_size: [8, 1 << 20], ..read.clone() }, "image_size"),
            (ClipSpec { num_frames: usize::MAX, ..read.clone() }, "num_frames"),
            (ClipSpec { variants: Some(0), ..read }, "variants"),
        ] {
            let error = wrong.validate().unwrap_err().to_string();
            assert!(error.starts_with(field) && !error.contains('\n'), "{error}");
        }
    }
}
