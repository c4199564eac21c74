//! Statistics of one column of numbers or texts.

use opensora_manifest::value;
use serde::Serialize;
use std::collections::HashMap;

/// Maximum number of listed texts.
const FREQUENT: usize = 10;

/// Statistics of a column: counts of values, and their summary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Column {
    /// Name of the column.
    pub name: String,
    /// Rows with a value.
    pub count: usize,
    /// Rows without value ([`value`]) or, in columns of numbers, with a value that is not finite.
    pub missing: usize,
    /// Summary of the values.
    #[serde(flatten)]
    pub content: Content,
}

/// The summary of a column's values, by their kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// No values.
    Empty,
    /// Only numbers.
    Numbers(Numbers),
    /// Anything else.
    Texts(Texts),
}

/// Summary of numbers: minimum, maximum, mean and percentiles.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Numbers {
    /// Minimum.
    pub min: f64,
    /// 5th percentile.
    pub percentile_5: f64,
    /// Median.
    pub median: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// 95th percentile.
    pub percentile_95: f64,
    /// Maximum.
    pub max: f64,
    /// The numbers, sorted.
    #[serde(skip)]
    pub values: Vec<f64>,
}

/// Summary of texts: the number of different texts, and the most frequent ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Texts {
    /// Number of different texts.
    pub distinct: usize,
    /// The most frequent texts, at most ten; texts that occur once are not listed.
    pub most_frequent: Vec<Frequent>,
}

/// A value and its number of occurrences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Frequent {
    /// The value.
    pub value: String,
    /// Number of occurrences.
    pub count: usize,
}

impl Column {
    /// Summarises a column of these fields. `is_text`: treat every field as text, also numeric ones.
    pub(super) fn of(name: &str, fields: &[&str], is_text: bool) -> Self {
        let filled = || fields.iter().copied().filter_map(value::present);
        let numeric = !is_text && filled().all(|field| field.parse::<f64>().is_ok());
        if numeric {
            return Self::of_numbers(name, fields.iter().map(|field| value::number(field)));
        }
        let count = filled().count();
        let (distinct, most_frequent) = frequent(filled().map(str::to_string), 2);
        let content = match count {
            0 => Content::Empty,
            _ => Content::Texts(Texts { distinct, most_frequent }),
        };
        Self { name: name.into(), count, missing: fields.len() - count, content }
    }

    /// Summarises a column of numbers, some of them missing.
    pub(super) fn of_numbers(name: &str, values: impl Iterator<Item = Option<f64>>) -> Self {
        let (mut known, mut rows) = (Vec::new(), 0);
        for value in values {
            known.extend(value);
            rows += 1;
        }
        let (count, missing) = (known.len(), rows - known.len());
        let content = Numbers::of(known).map_or(Content::Empty, Content::Numbers);
        Self { name: name.into(), count, missing, content }
    }
}

impl Numbers {
    /// Summarises numbers; `None` if there are none.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len() as f64;
        Some(Self {
            min,
            percentile_5: quantile(&values, 0.05),
            median: quantile(&values, 0.5),
            // Divided first: the sum of large numbers can overflow.
            mean: values.iter().map(|value| value / count).sum(),
            percentile_95: quantile(&values, 0.95),
            max,
            values,
        })
    }
}

/// Returns the quantile of sorted values, with linear interpolation as numpy's default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    let fraction = place.fract();
    // Not low + fraction * (high - low): the difference can overflow.
    (1.0 - fraction) * low + fraction * high
}

/// Returns the number of different values, and the most frequent ones that occur at least `least` times.
pub(super) fn frequent(
    values: impl Iterator<Item = String>,
    least: usize,
) -> (usize, Vec<Frequent>) {
    let mut counts = HashMap::<String, usize>::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let distinct = counts.len();
    let mut list: Vec<Frequent> = counts
        .into_iter()
        .filter(|(_, count)| *count >= least)
        .map(|(value, count)| Frequent { value, count })
        .collect();
    // Equally frequent ones by name, so that the list is always the same.
    list.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
    list.truncate(FREQUENT);
    (distinct, list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([1, 2, 4, 8, 16], [0, 0.05, 0.5, 0.95, 1])
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (share, value) in [(0.0, 1.0), (0.05, 1.2), (0.5, 4.0), (0.95, 14.4), (1.0, 16.0)] {
            assert!((quantile(&sorted, share) - value).abs() < 1e-12, "{share}");
        }
        assert_eq!(quantile(&[3.0], 0.95), 3.0);
        assert_eq!(quantile(&[-f64::MAX, f64::MAX], 0.5), 0.0);
    }

    #[test]
    fn columns_are_numbers_only_where_all_fields_are() {
        let column = Column::of("aes", &["1", " 2.5e0", "", "nan", "NULL", "-4", "inf"], false);
        assert_eq!((column.count, column.missing), (3, 4));
        let Content::Numbers(numbers) = column.content else { panic!("{column:?}") };
        assert_eq!((numbers.min, numbers.median, numbers.max), (-4.0, 1.0, 2.5));
        assert!((numbers.mean + 0.5 / 3.0).abs() < 1e-12);
        assert_eq!(numbers.values, [-4.0, 1.0, 2.5]);

        let texts = |fields: &[&str], is_text| match Column::of("a", fields, is_text).content {
            Content::Texts(texts) => texts,
            other => panic!("{other:?}"),
        };
        let mixed = texts(&["b", "1", "b", "a", "None", "a", "", "N/A", "c", "None"], false);
        let list: Vec<_> = mixed.most_frequent.iter().map(|it| (&*it.value, it.count)).collect();
        assert_eq!((mixed.distinct, list), (4, vec![("a", 2), ("b", 2)]));
        assert_eq!(texts(&["1", "2"], true).distinct, 2);
        for (fields, is_text) in [(&["", " "][..], true), (&["", "inf"], false), (&[], false)] {
            let column = Column::of("a", fields, is_text);
            assert_eq!((column.count, &column.content), (0, &Content::Empty));
            assert_eq!(column.missing, fields.len());
        }
    }
}
