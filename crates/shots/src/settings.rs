//! What a detection depends on besides the video.

use crate::ShotsError;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The release of PySceneDetect whose cuts are found. Between the named ones nothing changed that
/// matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Release {
    /// 0.6.3, which Open-Sora 1.0 was made with. Frames are made smaller by whole factors of their
    /// width; cuts that follow an earlier one too soon are left out ([`Flashes::Suppress`]).
    #[serde(rename = "0.6.3")]
    V0_6_3,
    /// 0.6.5 to 0.6.7. The longer side becomes 256 pixels; [`Flashes`] are a choice; the adaptive
    /// detector measures the shortest scene up to the end of its window.
    #[serde(rename = "0.6.7")]
    V0_6_7,
    /// 0.7 and today's. The adaptive detector measures up to the cut.
    #[default]
    #[serde(rename = "0.7")]
    V0_7,
}

impl FromStr for Release {
    type Err = ShotsError;

    fn from_str(text: &str) -> Result<Self, ShotsError> {
        match text {
            "0.6.3" => Ok(Self::V0_6_3),
            "0.6.5" | "0.6.6" | "0.6.7" | "0.6.7.1" => Ok(Self::V0_6_7),
            "0.7" | "0.7.1" | "0.7.2" => Ok(Self::V0_7),
            _ => Err(ShotsError::Setting {
                field: "compat",
                found: text.into(),
                expected: "a release of PySceneDetect: 0.6.3, 0.6.7 or 0.7",
            }),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0_6_3 => "0.6.3",
            Self::V0_6_7 => "0.6.7",
            Self::V0_7 => "0.7",
        })
    }
}

/// What becomes of cuts that follow one another within the shortest scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flashes {
    /// They become one, where the last of them is.
    #[default]
    Merge,
    /// The first of them counts.
    Suppress,
}

/// How scores become cuts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Where a score reaches a threshold (`ContentDetector`).
    Content {
        /// Least score of a cut, 27 in the reference.
        threshold: f64,
        /// What becomes of cuts that are too close; 0.6.3 knows [`Flashes::Suppress`] alone.
        flashes: Flashes,
    },
    /// Where a score is a multiple of those about it (`AdaptiveDetector`).
    Adaptive {
        /// Least ratio of a cut's score to the mean of its neighbours', 3 in the reference.
        ratio: f64,
        /// Neighbours on either side, 2 in the reference; at least 1.
        window: usize,
        /// Least score of a cut, 15 in the reference.
        min_score: f64,
    },
}

impl Method {
    /// `ContentDetector` with the reference's defaults.
    pub const CONTENT: Self = Self::Content { threshold: 27.0, flashes: Flashes::Merge };
    /// `AdaptiveDetector` with the reference's defaults.
    pub const ADAPTIVE: Self = Self::Adaptive { ratio: 3.0, window: 2, min_score: 15.0 };
}

/// How much the differences count in a score.
///
/// The reference can count edges as well, but by default does not, and nor is it done here.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Difference of hues, in steps of two degrees.
    pub hue: f64,
    /// Difference of saturations.
    pub saturation: f64,
    /// Difference of values (HSV), which the reference calls luma.
    pub value: f64,
}

impl Weights {
    /// All alike.
    pub const EQUAL: Self = Self { hue: 1.0, saturation: 1.0, value: 1.0 };
    /// `luma_only` of the reference.
    pub const VALUE: Self = Self { hue: 0.0, saturation: 0.0, value: 1.0 };

    /// The weighted mean of a score's parts.
    pub(crate) fn mean(&self, hue: f64, saturation: f64, value: f64) -> f64 {
        let sum = hue * self.hue + saturation * self.saturation + value * self.value;
        sum / (self.hue.abs() + self.saturation.abs() + self.value.abs())
    }
}

/// What a detection depends on besides the video.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How scores become cuts.
    pub method: Method,
    /// Frames that a scene has at least, but for the last one.
    pub min_scene_len: usize,
    /// What a score is made of.
    pub weights: Weights,
    /// Whether frames are compared at about 256 pixels instead of their own size.
    pub downscale: bool,
    /// The release that is followed.
    pub release: Release,
}

impl Default for Settings {
    /// Those of Open-Sora 1.0, with today's release: threshold 27, scenes of 15 frames and more.
    fn default() -> Self {
        Self {
            method: Method::CONTENT,
            min_scene_len: 15,
            weights: Weights::EQUAL,
            downscale: true,
            release: Release::default(),
        }
    }
}

impl Settings {
    /// Checks what the types leave open.
    ///
    /// # Errors
    /// Where a threshold is no number, the window is empty or no weight counts.
    pub fn check(&self) -> Result<(), ShotsError> {
        let refuse =
            |field, found: String, expected| Err(ShotsError::Setting { field, found, expected });
        let Weights { hue, saturation, value } = self.weights;
        let total = hue.abs() + saturation.abs() + value.abs();
        if !total.is_finite() || total == 0.0 {
            return refuse("weights", format!("{:?}", [hue, saturation, value]), "one that counts");
        }
        match self.method {
            Method::Content { threshold, .. } if !threshold.is_finite() => {
                refuse("threshold", threshold.to_string(), "a number")
            }
            Method::Adaptive { ratio, .. } if !ratio.is_finite() => {
                refuse("ratio", ratio.to_string(), "a number")
            }
            Method::Adaptive { min_score, .. } if !min_score.is_finite() => {
                refuse("min_score", min_score.to_string(), "a number")
            }
            Method::Adaptive { window, .. } if !(1..=1000).contains(&window) => {
                refuse("window", window.to_string(), "1 to 1000 frames")
            }
            _ => Ok(()),
        }
    }

    /// Width and height that frames of this size are compared at.
    pub(crate) fn compared_size(&self, width: usize, height: usize) -> (usize, usize) {
        /// Pixels that are enough.
        const ENOUGH: usize = 256;
        let side = if self.release == Release::V0_6_3 { width } else { width.max(height) };
        if !self.downscale || side < ENOUGH {
            return (width, height);
        }
        let factor = match self.release {
            Release::V0_6_3 => (side / ENOUGH) as f64,
            _ => side as f64 / ENOUGH as f64,
        };
        let smaller = |side: usize| ((side as f64 / factor).round_ties_even() as usize).max(1);
        (smaller(width), smaller(height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_compared_at_the_releases_size() {
        let old = Settings { release: Release::V0_6_3, ..Settings::default() };
        let new = Settings::default();
        for (size, before, today) in [
            ((640, 360), (320, 180), (256, 144)),
            ((1280, 720), (256, 144), (256, 144)),
            ((1920, 1080), (274, 154), (256, 144)),
            ((854, 480), (285, 160), (256, 144)),
            ((720, 1280), (360, 640), (144, 256)),
            // Narrower than 256: only today's releases look at the height.
            ((240, 426), (240, 426), (144, 256)),
            ((200, 120), (200, 120), (200, 120)),
            // 515 / 2 and 387 / 2: halves become even.
            ((515, 387), (258, 194), (256, 192)),
            ((20_000, 20), (256, 1), (256, 1)),
        ] {
            assert_eq!(old.compared_size(size.0, size.1), before, "{size:?}");
            assert_eq!(new.compared_size(size.0, size.1), today, "{size:?}");
        }
        let whole = Settings { downscale: false, ..new };
        assert_eq!(whole.compared_size(1920, 1080), (1920, 1080));
    }

    #[test]
    fn releases_are_named() {
        for release in [Release::V0_6_3, Release::V0_6_7, Release::V0_7] {
            assert_eq!(release.to_string().parse::<Release>().ok(), Some(release));
        }
        let error = "0.5".parse::<Release>().unwrap_err().to_string();
        assert!(error.starts_with("compat = 0.5: expected a release"), "{error}");
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let default = Settings::default();
        assert!(default.check().is_ok());
        let content = |threshold| Method::Content { threshold, flashes: Flashes::Merge };
        let adaptive = |window| Method::Adaptive { ratio: 3.0, window, min_score: 15.0 };
        let none = Weights { hue: 0.0, saturation: 0.0, value: 0.0 };
        for (settings, field) in [
            (Settings { method: content(f64::NAN), ..default }, "threshold"),
            (Settings { method: adaptive(0), ..default }, "window"),
            (Settings { weights: none, ..default }, "weights"),
        ] {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
