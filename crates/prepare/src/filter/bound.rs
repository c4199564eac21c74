//! Bounds of a column's values.

use super::FilterError;
use serde::Serialize;

/// The allowed values of a column, from `min` to `max` inclusive.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bound {
    column: String,
    min: Option<f64>,
    max: Option<f64>,
}

/// The position of a value relative to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Within,
    Below,
    Above,
    /// No value.
    Missing,
}

impl Bound {
    /// Returns a bound of `column` from `min` to `max`; `None` is unlimited.
    ///
    /// # Errors
    /// Returns an error if a limit is NaN, or `min` is above `max`.
    pub fn new(
        column: impl Into<String>,
        min: Option<f64>,
        max: Option<f64>,
    ) -> Result<Self, FilterError> {
        let column = column.into();
        let ordered = match (min, max) {
            (Some(min), Some(max)) => min <= max,
            (limit, other) => !limit.or(other).is_some_and(f64::is_nan),
        };
        if ordered {
            return Ok(Self { column, min, max });
        }
        let [min, max] = [min, max].map(|limit| limit.map_or("open".into(), |x| x.to_string()));
        Err(FilterError::Bound { column, min, max })
    }

    /// Returns the column.
    pub fn column(&self) -> &str {
        &self.column
    }

    /// Compares a value; NaN is no value.
    pub(crate) fn judge(&self, value: Option<f64>) -> Verdict {
        match value.filter(|value| !value.is_nan()) {
            None => Verdict::Missing,
            Some(value) if self.min.is_some_and(|min| value < min) => Verdict::Below,
            Some(value) if self.max.is_some_and(|max| value > max) => Verdict::Above,
            Some(_) => Verdict::Within,
        }
    }

    /// Returns the limit that a value violates; `None` for other verdicts.
    pub(crate) fn limit(&self, verdict: Verdict) -> Option<f64> {
        match verdict {
            Verdict::Below => self.min,
            Verdict::Above => self.max,
            Verdict::Within | Verdict::Missing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let bound = Bound::new("motion", Some(0.1), Some(0.5)).unwrap();
        for (value, verdict) in [
            (0.1, Verdict::Within),
            (0.5, Verdict::Within),
            (0.1 - 1e-9, Verdict::Below),
            (0.5 + 1e-9, Verdict::Above),
            (f64::NEG_INFINITY, Verdict::Below),
            (f64::INFINITY, Verdict::Above),
            (f64::NAN, Verdict::Missing),
        ] {
            assert_eq!(bound.judge(Some(value)), verdict, "{value}");
        }
        assert_eq!(bound.judge(None), Verdict::Missing);
        assert_eq!(Bound::new("a", None, None).unwrap().judge(Some(9.0)), Verdict::Within);
    }

    #[test]
    fn empty_bounds_are_rejected() {
        let nan = f64::NAN;
        for (min, max) in [(Some(2.0), Some(1.0)), (Some(nan), None), (None, Some(nan))] {
            let refused = Bound::new("motion", min, max).unwrap_err().to_string();
            assert!(refused.starts_with("motion: "), "{refused}");
        }
    }
}
