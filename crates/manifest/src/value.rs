//! The meaning of a field: missing, a number, a count.
//!
//! A field is missing if it is blank or one of the words that pandas, R and databases write for
//! missing values, in any case: `nan`, `-nan`, `none`, `null`, `na`, `n/a`, `<na>`, `nat`, `#na`,
//! `#n/a`, `#n/a n/a`, `1.#ind`, `-1.#ind`, `1.#qnan`, `-1.#qnan`, `\N`. These are the words that
//! `pandas.read_csv` takes for missing, and `NaT` and `\N` of pandas' times and of SQL exports.
//!
//! Source: pandas 2.3, `pandas/_libs/parsers.pyx`, `STR_NA_VALUES`.

/// Words for missing values, besides blanks; compared without regard to case.
const MISSING: [&str; 16] = [
    "nan", "-nan", "none", "null", "na", "n/a", "<na>", "nat", "#na", "#n/a", "#n/a n/a", "1.#ind",
    "-1.#ind", "1.#qnan", "-1.#qnan", r"\N",
];

/// Returns true if a field holds no value.
///
/// ```
/// use opensora_manifest::value::is_missing;
///
/// assert!(["", "  ", "nan", "NaN", "None", "NULL", "N/A"].into_iter().all(is_missing));
/// assert!(!is_missing("a nan is a flatbread"));
/// ```
pub fn is_missing(field: &str) -> bool {
    let field = field.trim();
    field.is_empty() || MISSING.iter().any(|word| field.eq_ignore_ascii_case(word))
}

/// Returns a field without blanks around it, or `None` if it is missing.
pub fn present(field: &str) -> Option<&str> {
    Some(field.trim()).filter(|field| !is_missing(field))
}

/// Returns the number that a field holds, or `None` if it is missing, text or not finite.
pub fn number(field: &str) -> Option<f64> {
    present(field)?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Returns the count that a field holds, or `None` if it is missing or anything but a whole number
/// that is not negative. Fractions of zero are accepted: a column of pandas that has gaps is a
/// column of floats, whose counts are written as `51.0`.
pub fn count(field: &str) -> Option<usize> {
    let field = present(field)?;
    let whole = field.split_once('.').map_or(field, |(whole, rest)| {
        if rest.bytes().all(|digit| digit == b'0') { whole } else { field }
    });
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_tools_are_missing_values() {
        // pandas 2.3: sorted(pandas._libs.parsers.STR_NA_VALUES)
        let pandas = [
            "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND",
            "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
        ];
        for word in pandas.into_iter().chain(["\u{a0}", " \t", "\r", "NONE", "NaT", r"\N", " nan "])
        {
            assert!(is_missing(word) && present(word).is_none(), "{word:?}");
            assert_eq!((number(word), count(word)), (None, None), "{word:?}");
        }
        for word in ["nano", "a none", "nullify", "-", "0", "inf", "n\\a", "?"] {
            assert!(!is_missing(word), "{word:?}");
        }
    }

    #[test]
    fn numbers_are_finite_and_counts_whole() {
        assert_eq!([" 1.5", "-2e3", "7"].map(number), [Some(1.5), Some(-2000.0), Some(7.0)]);
        assert_eq!(["inf", "-Infinity", "1e999", "1,5", "a"].map(number), [None; 5]);
        assert_eq!(
            ["51", " 51.0 ", "51.", "0"].map(count),
            [Some(51), Some(51), Some(51), Some(0)]
        );
        assert_eq!(["-1", "3.5", "1e3", ".", "99999999999999999999"].map(count), [None; 5]);
    }
}
