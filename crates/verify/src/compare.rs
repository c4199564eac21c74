//! Compares outputs with those of the reference.

use super::Failure;
use burn::tensor::{Tensor, TensorData};
use opensora::nn::read::read;
use serde_json::Value;

/// Comparison of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Name of the tensor in the case.
    pub name: String,
    /// Largest absolute error over all elements.
    pub max_abs_error: f64,
    /// Tolerance of the element with the largest excess over its tolerance (or the smallest margin).
    pub bound: f64,
    /// True if every element is within its tolerance.
    pub passed: bool,
    /// Further information, such as different shapes.
    pub note: Option<String>,
}

impl Check {
    pub(super) fn failed(name: &str, note: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            max_abs_error: f64::INFINITY,
            bound: 0.0,
            passed: false,
            note: Some(note.into()),
        }
    }

    /// Returns the check of an exact comparison of texts or keys: `different` of `total` differ.
    pub(super) fn exact(different: usize, total: usize, first: Option<String>) -> Self {
        Self {
            name: String::new(),
            max_abs_error: different as f64,
            bound: 0.0,
            passed: different == 0 && total > 0,
            note: Some(match first {
                Some(first) => format!("{different} of {total} differ, first {first}"),
                None => format!("{total} equal"),
            }),
        }
    }
}

/// Output of a runner.
#[derive(Debug, Clone)]
pub enum Output {
    /// Numbers; f64 represents every type of the format exactly.
    Values {
        /// The numbers in row-major order.
        values: Vec<f64>,
        /// The shape.
        shape: Vec<usize>,
    },
    /// A comparison by the runner.
    Check(Check),
}

impl Output {
    /// Converts values of a file or a device.
    pub(super) fn from_data(data: TensorData) -> Result<Self, Failure> {
        let shape = data.shape().to_vec();
        let values = data.try_cast_as::<f64>()?.try_into_vec::<f64>()?;
        Ok(Self::Values { values, shape })
    }

    /// Reads a tensor.
    pub(super) fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Result<Self, Failure> {
        Self::from_data(read(tensor)?)
    }

    /// Converts host values, `[N]`.
    pub(super) fn from_values(values: Vec<f64>) -> Self {
        let shape = vec![values.len()];
        Self::Values { values, shape }
    }
}

/// Tolerance of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tolerance {
    /// `|got - want| <= atol + rtol * |want|`.
    Close { atol: f64, rtol: f64 },
    /// All elements are equal.
    Exact,
    /// `Close`, except for a few elements with a larger tolerance.
    Outliers { atol: f64, rtol: f64, max_outliers: usize, outlier_atol: f64 },
    /// Bytes of images: a largest difference, and a largest share of different bytes.
    Bytes { max_abs_diff: f64, max_fraction_different: f64 },
}

impl Tolerance {
    /// Returns the tolerance of `name`, or else that of the case.
    pub(super) fn of(case: &Value, name: &str) -> Result<Self, String> {
        let own = &case["tolerances"][name];
        let number = |value: &Value, field: &str| value[field].as_f64();
        if own["exact"].as_bool() == Some(true) {
            return Ok(Self::Exact);
        }
        if let (Some(max_abs_diff), Some(max_fraction_different)) =
            (number(own, "max_abs_diff"), number(own, "max_fraction_different"))
        {
            return Ok(Self::Bytes { max_abs_diff, max_fraction_different });
        }
        let source = if own.is_object() { own } else { case };
        let outliers = own["max_outliers"].as_u64().zip(number(own, "outlier_atol"));
        match (number(source, "atol"), number(source, "rtol")) {
            (Some(atol), Some(rtol)) => Ok(match outliers {
                None => Self::Close { atol, rtol },
                Some((count, outlier_atol)) => {
                    let max_outliers = count as usize;
                    Self::Outliers { atol, rtol, max_outliers, outlier_atol }
                }
            }),
            _ => Err(format!("case.json gives no tolerance for '{name}'")),
        }
    }

    pub(super) fn check(self, name: &str, got: &Output, want: &Output) -> Check {
        let (
            Output::Values { values: got, shape: got_shape },
            Output::Values { values: want, shape: want_shape },
        ) = (got, want)
        else {
            return Check::failed(name, "not a tensor");
        };
        if got_shape != want_shape {
            return Check::failed(name, format!("shape {got_shape:?}, expected {want_shape:?}"));
        }
        let bound = |want: f64| match self {
            Self::Close { atol, rtol } => atol + rtol * want.abs(),
            Self::Outliers { outlier_atol, .. } => outlier_atol,
            Self::Exact => 0.0,
            Self::Bytes { max_abs_diff, .. } => max_abs_diff,
        };
        let mut check = Check {
            name: name.into(),
            max_abs_error: 0.0,
            bound: want.first().map_or(0.0, |&want| bound(want)),
            passed: true,
            note: None,
        };
        let mut worst_excess = f64::NEG_INFINITY;
        let (mut different, mut outliers, mut not_finite) = (0usize, 0usize, 0usize);
        for (&got, &want) in got.iter().zip(want) {
            // NaN and infinity are infinite errors unless the reference has the same value.
            let error = if got == want || (got.is_nan() && want.is_nan()) {
                0.0
            } else if got.is_finite() && want.is_finite() {
                (got - want).abs()
            } else {
                f64::INFINITY
            };
            different += usize::from(error > 0.0);
            not_finite += usize::from(error == f64::INFINITY);
            if let Self::Outliers { atol, rtol, .. } = self {
                outliers += usize::from(error > atol + rtol * want.abs());
            }
            check.max_abs_error = check.max_abs_error.max(error);
            check.passed &= error <= bound(want);
            if error - bound(want) > worst_excess {
                worst_excess = error - bound(want);
                check.bound = bound(want);
            }
        }
        if let Self::Outliers { max_outliers, .. } = self {
            check.passed &= outliers <= max_outliers;
            check.note = Some(format!("{outliers} outliers, at most {max_outliers}"));
        }
        if let Self::Bytes { max_fraction_different, .. } = self {
            let fraction = different as f64 / want.len().max(1) as f64;
            check.passed &= fraction <= max_fraction_different;
            check.note = Some(format!(
                "{fraction:.5} of the bytes differ, at most {max_fraction_different}"
            ));
        }
        if not_finite > 0 {
            let found = format!("{not_finite} of {} values not finite", want.len());
            let note = check.note.take().map(|note| format!("; {note}")).unwrap_or_default();
            check.note = Some(found + &note);
        }
        check
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(tolerance: Tolerance, got: &[f64], want: &[f64]) -> Check {
        tolerance.check(
            "x",
            &Output::from_values(got.to_vec()),
            &Output::from_values(want.to_vec()),
        )
    }

    #[test]
    fn every_element_has_its_own_tolerance() {
        let close = Tolerance::Close { atol: 0.1, rtol: 0.01 };
        assert!(check(close, &[0.05, 101.0], &[0.0, 100.0]).passed);
        let failed = check(close, &[0.2, 100.5], &[0.0, 100.0]);
        assert!(!failed.passed && failed.max_abs_error == 0.5 && failed.bound == 0.1);
    }

    #[test]
    fn nan_and_infinity_fail() {
        let close = Tolerance::Close { atol: 1e9, rtol: 0.0 };
        let failed = check(close, &[f64::NAN], &[0.0]);
        assert!(!failed.passed);
        assert_eq!(failed.note.as_deref(), Some("1 of 1 values not finite"));
        assert!(!check(close, &[f64::INFINITY], &[0.0]).passed);
        assert!(!check(close, &[0.0], &[f64::NAN]).passed);
    }

    #[test]
    fn a_few_outliers_within_their_tolerance_pass() {
        let (atol, rtol, max_outliers) = (0.01, 0.0, 1);
        let few = Tolerance::Outliers { atol, rtol, max_outliers, outlier_atol: 0.1 };
        assert!(check(few, &[0.05, 1.0], &[0.0, 1.0]).passed);
        assert!(!check(few, &[0.05, 1.05], &[0.0, 1.0]).passed);
        assert!(!check(few, &[0.2, 1.0], &[0.0, 1.0]).passed);
    }

    #[test]
    fn shapes_must_be_equal() {
        let flat = Output::from_values(vec![1.0; 4]);
        let square = Output::Values { values: vec![1.0; 4], shape: vec![2, 2] };
        assert!(!Tolerance::Exact.check("x", &flat, &square).passed);
    }

    #[test]
    fn few_bytes_with_small_differences_pass() {
        let bytes = Tolerance::Bytes { max_abs_diff: 1.0, max_fraction_different: 0.5 };
        assert!(check(bytes, &[1.0, 2.0], &[1.0, 3.0]).passed);
        assert!(!check(bytes, &[0.0, 2.0], &[1.0, 3.0]).passed);
        assert!(!check(bytes, &[1.0, 2.0], &[1.0, 4.0]).passed);
    }

    #[test]
    fn a_tensors_own_tolerance_comes_first() {
        let case = json!({
            "atol": 1.0, "rtol": 0.0,
            "tolerances": {"a": {"atol": 0.5, "rtol": 0.1}, "b": {"exact": true}},
        });
        assert_eq!(Tolerance::of(&case, "a"), Ok(Tolerance::Close { atol: 0.5, rtol: 0.1 }));
        assert_eq!(Tolerance::of(&case, "b"), Ok(Tolerance::Exact));
        assert_eq!(Tolerance::of(&case, "c"), Ok(Tolerance::Close { atol: 1.0, rtol: 0.0 }));
        assert!(Tolerance::of(&json!({}), "c").is_err());
    }
}
