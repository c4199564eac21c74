//! Counts of correct verdicts.

use crate::{Labels, Motion, Shape, Verdict};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// An attribute of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribute {
    /// The object's shape.
    Shape,
    /// The object's colour.
    Colour,
    /// The motion of the object.
    Motion,
    /// The background's colour.
    Background,
    /// All four attributes.
    All,
}

impl Attribute {
    /// All attributes, in the order of reports.
    pub const EACH: [Self; 5] =
        [Self::Shape, Self::Colour, Self::Motion, Self::Background, Self::All];

    /// Returns the name of the attribute.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shape => "shape",
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
#[error("unknown attribute '{0}': expected one of shape, colour, motion, background, all")]
pub struct AttributeError(String);

/// Number of correct verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Correct verdicts.
    pub right: usize,
    /// All verdicts.
    pub total: usize,
}

impl Tally {
    fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.total += 1;
    }

    /// Returns the share of correct verdicts, or 0 without verdicts.
    pub fn accuracy(self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }

    /// Returns Wilson's 95 % confidence interval of the accuracy.
    ///
    /// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    /// inference", 1927.
    pub fn wilson(self) -> [f64; 2] {
        if self.total == 0 {
            return [0.0, 1.0];
        }
        const Z: f64 = 1.959_963_984_540_054;
        let (n, p) = (self.total as f64, self.accuracy());
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

/// Counts of the verdicts of many clips.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Scores {
    /// All clips.
    pub overall: Tallies,
    /// Clips by the motion of their prompts.
    pub by_motion: BTreeMap<Motion, Tallies>,
    /// Clips by the shape of their prompts.
    pub by_shape: BTreeMap<Shape, Tallies>,
    /// Clips by templates that training used (`known`) or not (`new`).
    pub by_sentence: BTreeMap<&'static str, Tallies>,
}

impl Scores {
    /// Adds the verdict of a clip with the given labels. Labels without a motion match a verdict without one.
    pub fn add(&mut self, labels: &Labels, is_new_sentence: bool, verdict: &Verdict) {
        let sentence = if is_new_sentence { "new" } else { "known" };
        let marks = marks(labels, verdict);
        let groups = [
            Some(&mut self.overall),
            labels.motion.map(|motion| self.by_motion.entry(motion).or_default()),
            Some(self.by_shape.entry(labels.shape).or_default()),
            Some(self.by_sentence.entry(sentence).or_default()),
        ];
        for tallies in groups.into_iter().flatten() {
            for (attribute, right) in marks {
                tallies.entry(attribute).or_default().add(right);
            }
        }
    }

    /// Returns the tally of an attribute over all clips.
    pub fn of(&self, attribute: Attribute) -> Tally {
        self.overall.get(&attribute).copied().unwrap_or_default()
    }
}

/// Returns which attributes of a verdict match the labels.
pub fn marks(labels: &Labels, verdict: &Verdict) -> [(Attribute, bool); 5] {
    let shape = verdict.shape == Some(labels.shape);
    let colour = verdict.colour == Some(labels.colour);
    let motion = verdict.motion == labels.motion;
    let background = verdict.background == Some(labels.background);
    [
        (Attribute::Shape, shape),
        (Attribute::Colour, colour),
        (Attribute::Motion, motion),
        (Attribute::Background, background),
        (Attribute::All, shape && colour && motion && background),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Background, Colour};

    #[test]
    fn wilsons_interval_has_its_textbook_values() {
        let close = |tally: Tally, expected: [f64; 2]| {
            let found = tally.wilson();
            assert!((0..2).all(|i| (found[i] - expected[i]).abs() < 5e-4), "{tally:?}: {found:?}");
        };
        // R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I,
        // method 3.
        close(Tally { right: 81, total: 263 }, [0.2553, 0.3662]);
        close(Tally { right: 15, total: 148 }, [0.0624, 0.1605]);
        close(Tally { right: 0, total: 20 }, [0.0, 0.1611]);
        close(Tally { right: 1, total: 29 }, [0.0061, 0.1718]);
        assert_eq!(Tally::default().wilson(), [0.0, 1.0]);
    }

    #[test]
    fn verdicts_are_counted_where_they_belong() {
        let labels = Labels {
            shape: Shape::Square,
            colour: Colour::Cyan,
            background: Background::Gray,
            motion: Some(Motion::Up),
        };
        let right = Verdict {
            shape: Some(Shape::Square),
            colour: Some(Colour::Cyan),
            background: Some(Background::Gray),
            motion: Some(Motion::Up),
        };
        let mut scores = Scores::default();
        scores.add(&labels, true, &right);
        scores.add(&labels, false, &Verdict { motion: None, ..right });
        let tally = |right| Tally { right, total: 2 };
        assert_eq!(
            Attribute::EACH.map(|attribute| scores.of(attribute)),
            [tally(2), tally(2), tally(1), tally(2), tally(1)]
        );
        assert_eq!(scores.by_motion[&Motion::Up][&Attribute::Motion], tally(1));
        assert_eq!(scores.by_shape[&Shape::Square][&Attribute::All], tally(1));
        assert_eq!(scores.by_sentence["new"][&Attribute::All], Tally { right: 1, total: 1 });
        let json = serde_json::to_value(&scores).unwrap();
        assert_eq!(json["overall"]["motion"]["accuracy"], 0.5);
        assert_eq!(json["by_motion"]["up"]["shape"]["right"], 2);
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
