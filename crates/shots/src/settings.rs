//! Settings of shot detection.

use crate::ShotsError;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The release of PySceneDetect whose cuts are reproduced. Releases in between find the same cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Release {
    /// 0.6.3, which Open-Sora 1.0 used. Frames are scaled down by integer factors of their width; cuts too
    /// close to the previous one are dropped ([`Flashes::Suppress`]).
    #[serde(rename = "0.6.3")]
    V0_6_3,
    /// 0.6.5 to 0.6.7. The longer side is scaled to 256 pixels; [`Flashes`] can be chosen; the adaptive detector
    /// measures the shortest scene up to the end of its window.
    #[serde(rename = "0.6.7")]
    V0_6_7,
    /// 0.7 to 0.7.2. The adaptive detector measures the shortest scene up to the cut.
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

/// Treatment of cuts that are closer than the shortest scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flashes {
    /// Merges them into one cut, at the position of the last.
    #[default]
    Merge,
    /// Keeps only the first.
    Suppress,
}

/// The method of finding cuts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A cut is where a score reaches a threshold (`ContentDetector`).
    Content {
        /// Smallest score of a cut, 27 in the reference.
        threshold: f64,
        /// Treatment of cuts that are too close; 0.6.3 always uses [`Flashes::Suppress`].
        flashes: Flashes,
    },
    /// A cut is where a score is a multiple of the scores around it (`AdaptiveDetector`).
    Adaptive {
        /// Smallest ratio of a cut's score to the mean of its neighbours' scores, 3 in the reference.
        ratio: f64,
        /// Number of neighbours on either side, 2 in the reference; at least 1.
        window: usize,
        /// Smallest score of a cut, 15 in the reference.
        min_score: f64,
    },
}

impl Method {
    /// `ContentDetector` with the reference's defaults.
    pub const CONTENT: Self = Self::Content { threshold: 27.0, flashes: Flashes::Merge };
    /// `AdaptiveDetector` with the reference's defaults.
    pub const ADAPTIVE: Self = Self::Adaptive { ratio: 3.0, window: 2, min_score: 15.0 };
}

/// The weights of the differences in a score.
///
/// The reference supports a weight of edges as well, which is 0 by default and not supported here.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Weight of the difference of hues, in steps of two degrees.
    pub hue: f64,
    /// Weight of the difference of saturations.
    pub saturation: f64,
    /// Weight of the difference of values (HSV), which the reference calls luma.
    pub value: f64,
}

impl Weights {
    /// Equal weights.
    pub const EQUAL: Self = Self { hue: 1.0, saturation: 1.0, value: 1.0 };
    /// Only the value: `luma_only` of the reference.
    pub const VALUE: Self = Self { hue: 0.0, saturation: 0.0, value: 1.0 };

    /// Returns the weighted mean of a score's parts.
    pub(crate) fn mean(&self, hue: f64, saturation: f64, value: f64) -> f64 {
        let sum = hue * self.hue + saturation * self.saturation + value * self.value;
        sum / (self.hue.abs() + self.saturation.abs() + self.value.abs())
    }
}

/// The settings of shot detection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The method of finding cuts.
    pub method: Method,
    /// Shortest scene in frames; the last scene can be shorter.
    pub min_scene_len: usize,
    /// Weights of a score.
    pub weights: Weights,
    /// Compares frames at about 256 pixels instead of their full size.
    pub downscale: bool,
    /// Release whose cuts are reproduced.
    pub release: Release,
}

impl Default for Settings {
    /// Returns the settings of Open-Sora 1.0 with release 0.7: threshold 27, scenes of at least 15
    /// frames.
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
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a threshold is not finite, the window is empty, or all weights are 0.
    pub fn validate(&self) -> Result<(), ShotsError> {
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

    /// Returns the width and height at which frames of this size are compared.
    pub(crate) fn compared_size(&self, width: usize, height: usize) -> (usize, usize) {
        /// Target size in pixels.
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
            // Narrower than 256: only later releases consider the height.
            ((240, 426), (240, 426), (144, 256)),
            ((200, 120), (200, 120), (200, 120)),
            // 515 / 2 and 387 / 2: ties to even.
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
    fn releases_round_trip_through_text() {
        for release in [Release::V0_6_3, Release::V0_6_7, Release::V0_7] {
            assert_eq!(release.to_string().parse::<Release>().ok(), Some(release));
        }
        let error = "0.5".parse::<Release>().unwrap_err().to_string();
        assert!(error.starts_with("compat = 0.5: expected a release"), "{error}");
    }

    #[test]
    fn means_are_weighted() {
        let weights = Weights { hue: 1.0, saturation: 2.0, value: -4.0 };
        // 10 + 40 - 120, divided by 1 + 2 + 4.
        assert_eq!(weights.mean(10.0, 20.0, 30.0), -10.0);
        let weights = Weights { hue: -2.0, saturation: -3.0, value: 5.0 };
        assert_eq!(weights.mean(10.0, 20.0, 30.0), 7.0);
        assert_eq!(Weights::VALUE.mean(10.0, 20.0, 30.0), 30.0);
    }

    #[test]
    fn some_weights_count() {
        let valid = |hue, saturation, value| {
            let weights = Weights { hue, saturation, value };
            Settings { weights, ..Settings::default() }.validate().is_ok()
        };
        assert!(valid(1.0, 0.0, 0.0) && valid(0.0, 1.0, 0.0) && valid(0.0, 0.0, -1.0));
        assert!(valid(1.0, 1.0, 0.0) && valid(1.0, 0.0, 1.0) && valid(0.0, 1.0, 1.0));
        assert!(valid(1.0, 2.0, 3.0) && valid(3.0, 2.0, 5.0));
        for number in [f64::INFINITY, f64::NAN] {
            assert!(
                !valid(number, 1.0, 1.0) && !valid(1.0, number, 1.0) && !valid(1.0, 1.0, number)
            );
        }
    }

    #[test]
    fn adaptive_settings_are_numbers_and_a_window() {
        let check = |ratio, window, min_score| {
            let method = Method::Adaptive { ratio, window, min_score };
            let checked = Settings { method, ..Settings::default() }.validate();
            checked.err().map(|error| error.to_string())
        };
        assert_eq!(check(3.0, 1, 15.0), None);
        assert_eq!(check(3.0, 1000, 15.0), None);
        for (error, field) in [
            (check(f64::NAN, 2, 15.0), "ratio"),
            (check(3.0, 2, f64::INFINITY), "min_score"),
            (check(3.0, 0, 15.0), "window"),
            (check(3.0, 1001, 15.0), "window"),
        ] {
            assert!(error.as_ref().is_some_and(|error| error.starts_with(field)), "{error:?}");
        }
    }

    #[test]
    fn invalid_settings_are_rejected() {
        let default = Settings::default();
        assert!(default.validate().is_ok());
        let content = |threshold| Method::Content { threshold, flashes: Flashes::Merge };
        let adaptive = |window| Method::Adaptive { ratio: 3.0, window, min_score: 15.0 };
        let none = Weights { hue: 0.0, saturation: 0.0, value: 0.0 };
        for (settings, field) in [
            (Settings { method: content(f64::NAN), ..default }, "threshold"),
            (Settings { method: adaptive(0), ..default }, "window"),
            (Settings { weights: none, ..default }, "weights"),
        ] {
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
