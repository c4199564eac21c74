//! Counts of correct verdicts, and means of the stability, over many clips.

use crate::{Colour, Judgement, Labels, Motion, Shape};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// A property of clips that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribute {
    /// Frames that show the prompt's shape.
    Frames,
    /// Clips that show the prompt's shape in every frame.
    Shape,
    /// Clips that show the prompt's shape in more than half of their frames.
    Majority,
    /// Clips that show the object's colour in every frame.
    Colour,
    /// Clips with the prompt's motion.
    Motion,
    /// Clips that show the background's colour in every frame.
    Background,
    /// Clips with the motion that show shape, colour and background in every frame.
    All,
}

impl Attribute {
    /// All attributes, in the order of reports.
    pub const EACH: [Self; 7] = [
        Self::Frames,
        Self::Shape,
        Self::Majority,
        Self::Colour,
        Self::Motion,
        Self::Background,
        Self::All,
    ];

    /// Returns the name of the attribute.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Shape => "shape",
            Self::Majority => "majority",
            Self::Colour => "colour",
            Self::Motion => "motion",
            Self::Background => "background",
            Self::All => "all",
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Attribute {
    type Err = AttributeError;

    fn from_str(text: &str) -> Result<Self, AttributeError> {
        // Both spellings are common.
        let name = if text == "color" { "colour" } else { text };
        Self::EACH
            .into_iter()
            .find(|attribute| attribute.name() == name)
            .ok_or_else(|| AttributeError(text.into()))
    }
}

/// Error for an unknown attribute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown attribute '{0}': expected one of frames, shape, majority, colour, motion, background, all"
)]
pub struct AttributeError(String);

/// Number of correct verdicts on frames or clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Correct verdicts.
    pub right: usize,
    /// All verdicts.
    pub total: usize,
    /// Clips that the verdicts are of.
    pub clips: usize,
}

impl Tally {
    /// Adds `right` of `total` verdicts on one clip.
    fn add(&mut self, right: usize, total: usize) {
        self.right += right;
        self.total += total;
        self.clips += 1;
    }

    /// Returns the share of correct verdicts, or 0 without verdicts.
    pub fn accuracy(self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }

    /// Returns Wilson's 95 % confidence interval of the accuracy. Frames of a clip resemble each other, so a clip
    /// counts as one observation: the interval of a share of frames is too wide rather than too narrow.
    ///
    /// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    /// inference", 1927.
    pub fn wilson(self) -> [f64; 2] {
        if self.clips == 0 {
            return [0.0, 1.0];
        }
        const Z: f64 = 1.959_963_984_540_054;
        let (n, p) = (self.clips as f64, self.accuracy());
        let middle = p + Z * Z / (2.0 * n);
        let reach = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        [((middle - reach) / scale).max(0.0), ((middle + reach) / scale).min(1.0)]
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tally = serializer.serialize_struct("Tally", 4)?;
        tally.serialize_field("right", &self.right)?;
        tally.serialize_field("total", &self.total)?;
        tally.serialize_field("accuracy", &self.accuracy())?;
        tally.serialize_field("interval_95", &self.wilson())?;
        tally.end()
    }
}

/// One tally per attribute.
pub type Tallies = BTreeMap<Attribute, Tally>;

/// Mean of a measure over clips.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mean {
    sum: f64,
    squares: f64,
    clips: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.squares += value * value;
        self.clips += 1;
    }

    /// Returns the number of clips.
    pub fn clips(self) -> usize {
        self.clips
    }

    /// Returns the mean, or `None` without clips.
    pub fn mean(self) -> Option<f64> {
        (self.clips > 0).then(|| self.sum / self.clips as f64)
    }

    /// Returns half the width of the 95 % confidence interval of the mean, by the normal approximation; `None` for
    /// fewer than two clips.
    pub fn reach(self) -> Option<f64> {
        let (n, mean) = (self.clips as f64, self.mean()?);
        let variance = ((self.squares - n * mean * mean) / (n - 1.0)).max(0.0);
        (self.clips > 1).then(|| 1.96 * (variance / n).sqrt())
    }
}

impl Serialize for Mean {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut mean = serializer.serialize_struct("Mean", 3)?;
        mean.serialize_field("mean", &self.mean())?;
        mean.serialize_field("plus_minus_95", &self.reach())?;
        mean.serialize_field("clips", &self.clips)?;
        mean.end()
    }
}

/// Means of [`Stability`](crate::judge::Stability) over clips that show an object in every frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Steadiness {
    /// Variation of the area, of clips whose prompts ask for a translation.
    pub area_variation: Mean,
    /// Overlap of neighbouring frames, of clips whose prompts ask for a translation.
    pub overlap: Mean,
    /// Flicker of the object's colour, of all clips.
    pub colour_flicker: Mean,
    /// Flicker of the background's colour, of all clips.
    pub background_flicker: Mean,
}

/// Counts of the verdicts of many clips.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Scores {
    /// All clips.
    pub overall: Tallies,
    /// Clips by the shape of their prompts.
    pub by_shape: BTreeMap<Shape, Tallies>,
    /// Clips by the object's colour in their prompts.
    pub by_colour: BTreeMap<Colour, Tallies>,
    /// Clips by the motion of their prompts.
    pub by_motion: BTreeMap<Motion, Tallies>,
    /// Clips by templates that training captions use (`known`) or not (`unseen`).
    pub by_phrasing: BTreeMap<&'static str, Tallies>,
    /// Steadiness of all clips.
    pub steadiness: Steadiness,
}

impl Scores {
    /// Adds the judgement of a clip with the given labels. Labels without a motion match a verdict without one.
    pub fn add(&mut self, labels: &Labels, is_new_sentence: bool, judgement: &Judgement) {
        let phrasing = if is_new_sentence { "unseen" } else { "known" };
        let marks = marks(labels, judgement);
        let groups = [
            Some(&mut self.overall),
            Some(self.by_shape.entry(labels.shape).or_default()),
            Some(self.by_colour.entry(labels.colour).or_default()),
            labels.motion.map(|motion| self.by_motion.entry(motion).or_default()),
            Some(self.by_phrasing.entry(phrasing).or_default()),
        ];
        for tallies in groups.into_iter().flatten() {
            for (attribute, [right, total]) in marks {
                tallies.entry(attribute).or_default().add(right, total);
            }
        }
        let Some(stability) = judgement.stability else { return };
        let steadiness = &mut self.steadiness;
        if labels.motion.is_some_and(|motion| motion.direction().is_some()) {
            steadiness.area_variation.add(stability.area_variation);
            steadiness.overlap.add(stability.overlap);
        }
        steadiness.colour_flicker.add(stability.colour_flicker);
        steadiness.background_flicker.add(stability.background_flicker);
    }

    /// Returns the tally of an attribute over all clips.
    pub fn of(&self, attribute: Attribute) -> Tally {
        self.overall.get(&attribute).copied().unwrap_or_default()
    }
}

/// Returns how many verdicts of a clip match the labels, `[right, total]`: of its frames for
/// [`Attribute::Frames`], else of the one clip.
pub fn marks(labels: &Labels, judgement: &Judgement) -> [(Attribute, [usize; 2]); 7] {
    let Judgement { verdict, frames, .. } = judgement;
    let right = frames.iter().filter(|frame| frame.shape == Some(labels.shape)).count();
    let shape = right == frames.len();
    let colour = frames.iter().all(|frame| frame.colour == Some(labels.colour));
    let background = frames.iter().all(|frame| frame.background == Some(labels.background));
    let motion = verdict.motion == labels.motion;
    let clip = |right: bool| [usize::from(right), 1];
    [
        (Attribute::Frames, [right, frames.len()]),
        (Attribute::Shape, clip(shape)),
        (Attribute::Majority, clip(verdict.shape == Some(labels.shape))),
        (Attribute::Colour, clip(colour)),
        (Attribute::Motion, clip(motion)),
        (Attribute::Background, clip(background)),
        (Attribute::All, clip(shape && colour && background && motion)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Background, FrameVerdict, Verdict, judge::Stability};

    #[test]
    fn wilsons_interval_has_its_textbook_values() {
        let close = |[right, total]: [usize; 2], expected: [f64; 2]| {
            let tally = Tally { right, total, clips: total };
            let found = tally.wilson();
            assert!((0..2).all(|i| (found[i] - expected[i]).abs() < 5e-4), "{tally:?}: {found:?}");
        };
        // R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I,
        // method 3.
        close([81, 263], [0.2553, 0.3662]);
        close([15, 148], [0.0624, 0.1605]);
        close([0, 20], [0.0, 0.1611]);
        close([1, 29], [0.0061, 0.1718]);
        assert_eq!(Tally::default().wilson(), [0.0, 1.0]);
        // Eight frames of a clip are one observation.
        let clips = Tally { right: 81, total: 263, clips: 263 };
        let frames = Tally { right: 8 * 81, total: 8 * 263, clips: 263 };
        assert_eq!(frames.wilson(), clips.wilson());
    }

    #[test]
    fn means_have_their_textbook_values() {
        let mut mean = Mean::default();
        assert_eq!((mean.mean(), mean.reach(), mean.clips()), (None, None, 0));
        for value in [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0] {
            mean.add(value);
        }
        assert_eq!(mean.mean(), Some(5.0));
        // Sample variance 32 / 7.
        let expected = 1.96 * (32.0f64 / 7.0 / 8.0).sqrt();
        assert!((mean.reach().unwrap() - expected).abs() < 1e-12);
    }

    /// Labels of a moving square, and the judgement of a clip of two frames that shows it.
    fn square() -> (Labels, Judgement) {
        let (shape, colour, background) = (Shape::Square, Colour::Cyan, Background::Gray);
        let labels = Labels { shape, colour, background, motion: Some(Motion::Up) };
        let frame =
            FrameVerdict { shape: Some(shape), colour: Some(colour), background: Some(background) };
        let verdict = Verdict {
            shape: Some(shape),
            colour: Some(colour),
            background: Some(background),
            motion: Some(Motion::Up),
        };
        let stability = Stability {
            area_variation: 0.1,
            overlap: 0.9,
            colour_flicker: 2.0,
            background_flicker: 1.0,
        };
        (labels, Judgement { verdict, frames: vec![frame; 2], stability: Some(stability) })
    }

    #[test]
    fn verdicts_are_counted_where_they_belong() {
        let (labels, right) = square();
        let mut scores = Scores::default();
        scores.add(&labels, true, &right);
        let mut wrong = right.clone();
        wrong.verdict.motion = None;
        wrong.frames[1].shape = Some(Shape::Circle);
        scores.add(&labels, false, &wrong);
        let tally = |right, total| Tally { right, total, clips: 2 };
        assert_eq!(
            Attribute::EACH.map(|attribute| scores.of(attribute)),
            [(3, 4), (1, 2), (2, 2), (2, 2), (1, 2), (2, 2), (1, 2)]
                .map(|(right, total)| tally(right, total))
        );
        assert_eq!(scores.by_motion[&Motion::Up][&Attribute::Motion], tally(1, 2));
        assert_eq!(scores.by_shape[&Shape::Square][&Attribute::All], tally(1, 2));
        assert_eq!(scores.by_colour[&Colour::Cyan][&Attribute::Frames], tally(3, 4));
        let unseen = scores.by_phrasing["unseen"][&Attribute::All];
        assert_eq!(unseen, Tally { right: 1, total: 1, clips: 1 });
        let json = serde_json::to_value(&scores).unwrap();
        assert_eq!(json["overall"]["motion"]["accuracy"], 0.5);
        assert_eq!(json["by_motion"]["up"]["majority"]["right"], 2);
        assert_eq!(json["steadiness"]["overlap"]["mean"], 0.9);
    }

    #[test]
    fn areas_of_growing_shapes_may_change() {
        let (labels, judgement) = square();
        let mut scores = Scores::default();
        scores.add(&labels, true, &judgement);
        scores.add(&Labels { motion: Some(Motion::Growing), ..labels }, true, &judgement);
        scores.add(&labels, true, &Judgement { stability: None, ..judgement });
        let Steadiness { area_variation, overlap, colour_flicker, background_flicker } =
            scores.steadiness;
        assert_eq!([area_variation, overlap].map(Mean::clips), [1, 1]);
        assert_eq!([colour_flicker, background_flicker].map(Mean::clips), [2, 2]);
    }

    #[test]
    fn attributes_are_found_by_name() {
        for attribute in Attribute::EACH {
            assert_eq!(attribute.name().parse(), Ok(attribute));
        }
        assert_eq!("color".parse(), Ok(Attribute::Colour));
        assert!("size".parse::<Attribute>().is_err());
    }
}
