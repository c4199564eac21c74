//! Which frames of a video become a clip, and whether they are mirrored.

use crate::DataError;
use opensora_nn::random::{HostRng, Purpose};
use serde::{Deserialize, Serialize};

/// How rows become clips.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipSpec {
    /// Frames of a clip.
    pub num_frames: usize,
    /// One of so many frames of the video is taken.
    #[serde(default = "one")]
    pub frame_interval: usize,
    /// Height and width of a clip.
    pub image_size: [usize; 2],
    /// Whether every other video, at random, is mirrored; images never are.
    #[serde(default = "yes")]
    pub horizontal_flip: bool,
    /// How many draws of window and mirroring a row has: epochs take them in turn, so that they
    /// can be kept in a cache. None: every epoch draws anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variants: Option<u64>,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

impl ClipSpec {
    /// Checks the settings by themselves.
    ///
    /// # Errors
    /// Where a number is zero.
    pub fn check(&self) -> Result<(), DataError> {
        let fail =
            |field, found: String| Err(DataError::Spec { field, found, expected: "at least 1" });
        match self {
            Self { num_frames: 0, .. } => fail("num_frames", "0".into()),
            Self { frame_interval: 0, .. } => fail("frame_interval", "0".into()),
            Self { image_size: size @ ([0, _] | [_, 0]), .. } => {
                fail("image_size", format!("{size:?}"))
            }
            Self { variants: Some(0), .. } => fail("variants", "0".into()),
            _ => Ok(()),
        }
    }

    /// `[3, T, H, W]` of a clip.
    pub fn shape(&self) -> [usize; 4] {
        let [height, width] = self.image_size;
        [3, self.num_frames, height, width]
    }

    /// The draw that an epoch takes.
    pub fn variant(&self, epoch: u64) -> u64 {
        self.variants.map_or(epoch, |variants| epoch % variants.max(1))
    }
}

/// What is random about a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Draw {
    /// Its first frame in the video.
    pub begin: usize,
    /// Whether it is mirrored.
    pub flip: bool,
}

impl Draw {
    /// The draw of a row of `total_frames` in an epoch.
    pub fn new(spec: &ClipSpec, total_frames: usize, seed: u64, row: usize, epoch: u64) -> Self {
        let mut rng = HostRng::new(seed, Purpose::Augmentation, row as u64, spec.variant(epoch));
        // Both numbers are always drawn, the one that depends on the video last, so that neither a
        // setting nor a length changes the other.
        let flip = rng.uniform() < 0.5 && spec.horizontal_flip;
        Self { begin: rng.below(last_begin(spec, total_frames) + 1), flip }
    }
}

fn last_begin(spec: &ClipSpec, total_frames: usize) -> usize {
    let size = spec.num_frames.saturating_mul(spec.frame_interval);
    total_frames.saturating_sub(size).saturating_sub(1)
}
