//! Linear and logarithmic axes with round ticks.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

/// An axis over finite values; a logarithmic axis has positive values only.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) log: bool,
}

impl Axis {
    /// Creates an axis over `low` to `high`, extended at both ends by `margin` times its length. The limits may
    /// be equal.
    pub(crate) fn over(low: f64, high: f64, margin: f64, log: bool) -> Self {
        let axis = Self { low, high, log };
        let (start, end) = (axis.unit(low), axis.unit(high));
        let size = start.abs().max(end.abs());
        let more = match end - start {
            length if length > 1e-9 * size && length > 1e-100 => margin * length,
            _ if log => 0.3,
            _ if size > 1e-100 => 0.1 * size,
            _ => 0.5,
        };
        Self { low: axis.value(start - more), high: axis.value(end + more), log }
    }

    /// Returns `log10(value)` on a logarithmic axis, else `value`.
    fn unit(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    fn value(&self, unit: f64) -> f64 {
        if self.log { 10f64.powf(unit) } else { unit }
    }

    pub(crate) fn clamp(&self, value: f64) -> f64 {
        value.clamp(self.low, self.high)
    }

    /// Returns at most `most` round values.
    pub(crate) fn ticks(&self, most: usize) -> Vec<f64> {
        let most = most.clamp(2, 100);
        if self.log
            && let Some(ticks) = self.log_ticks(most)
        {
            return ticks;
        }
        let length = self.high - self.low;
        for step in round_steps(length / most as f64) {
            let (first, last) = ((self.low / step).ceil(), (self.high / step).floor());
            if last - first < most as f64 {
                // Multiples of the step, so that errors do not accumulate.
                return (0..=(last - first).max(0.0) as usize)
                    .map(|i| (first + i as f64) * step)
                    .collect();
            }
        }
        vec![self.low, self.high]
    }

    /// Returns powers of ten, with their multiples (by 2 and 5, or by all digits) if there is space. `None` for
    /// a range so short that linear ticks are better.
    fn log_ticks(&self, most: usize) -> Option<Vec<f64>> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let sets: [&[f64]; 3] =
            [&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], &[1.0, 2.0, 5.0], &[1.0]];
        for set in sets {
            let ticks: Vec<f64> = (first..=last)
                .flat_map(|power| set.iter().map(move |factor| format!("{factor}e{power}")))
                // Parsed, because computed powers such as 10^-3 are not exact.
                .filter_map(|text| text.parse().ok())
                .filter(|tick| (self.low..=self.high).contains(tick))
                .collect();
            if ticks.len() < 2 {
                return None;
            }
            if ticks.len() <= most {
                return Some(ticks);
            }
        }
        let every = (last - first).unsigned_abs() as usize / most + 1;
        let powers = (first..=last).step_by(every).filter_map(|p| format!("1e{p}").parse().ok());
        Some(powers.filter(|tick| (self.low..=self.high).contains(tick)).collect())
    }

    /// Returns the label of one of the [`ticks`](Self::ticks).
    pub(crate) fn label(&self, value: f64, ticks: &[f64]) -> String {
        match ticks {
            [first, second, ..] if !self.log => label(value, second - first),
            _ => label(value, value),
        }
    }
}

/// Returns ascending round numbers, of which the first is at most `least`.
pub(crate) fn round_steps(least: f64) -> [f64; 5] {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0, 20.0].map(|factor| factor * power)
}

/// Returns a short text of a value, exact to a tenth of `step`.
fn label(value: f64, step: f64) -> String {
    let power = |number: f64| number.abs().log10().floor().clamp(-300.0, 300.0) as i32;
    if value.abs() < 1e-6 * step.abs() || value == 0.0 {
        return "0".into();
    }
    if (1e-4..1e6).contains(&value.abs()) {
        let digits = (1 - power(step)).clamp(0, 15) as usize;
        return trim(format!("{value:.digits$}"));
    }
    let digits = (1 + power(value) - power(step)).clamp(1, 15) as usize;
    trim(format!("{value:.digits$e}"))
}

/// Removes trailing zeros of the fraction.
fn trim(text: String) -> String {
    let (number, exponent) = match text.split_once('e') {
        Some((number, exponent)) => (number, format!("e{exponent}")),
        None => (text.as_str(), String::new()),
    };
    match number.contains('.') {
        true => format!("{}{exponent}", number.trim_end_matches('0').trim_end_matches('.')),
        false => format!("{number}{exponent}"),
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let (low, high) = (self.unit(self.low), self.unit(self.high));
        let place = (self.unit(*value) - low) / (high - low);
        start + (f64::from(end - start) * place).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        self.ticks(hint.max_num_points())
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        label(*value, *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |low, high, log| Axis { low, high, log };
        assert_eq!(axis(0.0, 500.0, false).ticks(6), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]);
        assert_eq!(axis(-0.3, 1.1, false).ticks(4), [0.0, 0.5, 1.0]);
        assert_eq!(axis(0.008, 1.2, true).ticks(4), [0.01, 0.1, 1.0]);
        assert_eq!(axis(0.09, 1.2, true).ticks(8), [0.1, 0.2, 0.5, 1.0]);
        // Less than a decade.
        assert_eq!(axis(0.31, 0.39, true).ticks(5), [0.32, 0.34, 0.36, 0.38]);
        for (low, high, log) in [(1e-100, 1e100, true), (-1e100, 1e100, false), (3.0, 3.1, false)] {
            let ticks = axis(low, high, log).ticks(10);
            assert!((2..=10).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks.iter().all(|tick| (low..=high).contains(tick)), "{ticks:?}");
        }
    }

    #[test]
    fn labels_are_short() {
        for (value, step, text) in [
            (0.0, 0.5, "0"),
            (-1e-17, 0.5, "0"),
            (0.1 + 0.2, 0.1, "0.3"),
            (100.0, 50.0, "100"),
            (80_000.0, 20_000.0, "80000"),
            (1e6, 1e6, "1e6"),
            (1_200_050.0, 50.0, "1.20005e6"),
            (2e-5, 1e-5, "2e-5"),
            (1.5e7, 5e6, "1.5e7"),
            (-0.25, 0.25, "-0.25"),
            (12.0345, 0.0005, "12.0345"),
        ] {
            assert_eq!(label(value, step), text);
        }
        let axis = Axis { low: 0.09, high: 1.2, log: true };
        let ticks = axis.ticks(8);
        let labels: Vec<String> = ticks.iter().map(|&tick| axis.label(tick, &ticks)).collect();
        assert_eq!(labels, ["0.1", "0.2", "0.5", "1"]);
    }

    #[test]
    fn any_range_becomes_an_axis() {
        for log in [false, true] {
            for (low, high) in [(1.0, 1.0), (1e-100, 1e100), (2.0, 2.0 + 1e-15), (1e-99, 2e-99)] {
                let axis = Axis::over(low, high, 0.05, log);
                assert!(axis.low < low && high < axis.high, "{axis:?}");
                let (start, end) = (axis.map(&axis.low, (0, 100)), axis.map(&axis.high, (0, 100)));
                assert_eq!((start, end), (0, 100), "{axis:?}");
            }
        }
    }
}
