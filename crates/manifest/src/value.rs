//! Interpretation of fields: missing values, numbers and counts.
//!
//! A field is missing if it is blank or one of the words that pandas, R and databases write for
//! missing values, in any case: `nan`, `-nan`, `none`, `null`, `na`, `n/a`, `<na>`, `nat`, `#na`,
//! `#n/a`, `#n/a n/a`, `1.#ind`, `-1.#ind`, `1.#qnan`, `-1.#qnan`, `\N`. These are the missing values of
//! `pandas.read_csv`, plus `NaT` of pandas' times and `\N` of SQL exports.
//!
//! Source: pandas 2.3, `pandas/_libs/parsers.pyx`, `STR_NA_VALUES`.

/// Words for missing values; compared without case.
const MISSING: [&str; 16] = [
    "nan", "-nan", "none", "null", "na", "n/a", "<na>", "nat", "#na", "#n/a", "#n/a n/a", "1.#ind",
    "-1.#ind", "1.#qnan", "-1.#qnan", r"\N",
];

/// Returns true if a field is missing.
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

/// Returns a field without surrounding blanks, or `None` if it is missing.
pub fn present(field: &str) -> Option<&str> {
    Some(field.trim()).filter(|field| !is_missing(field))
}

/// Parses a field as a number; `None` if the field is missing, text or not finite.
pub fn number(field: &str) -> Option<f64> {
    present(field)?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Parses a field as a non-negative integer; `None` if the field is missing or anything else. A fraction of
/// zeros is accepted: pandas writes integer columns with missing values as floats, such as `51.0`.
///
/// ```
/// use opensora_manifest::value::count;
///
/// assert_eq!([count("51"), count("51.0"), count("5.5"), count("nan")], [Some(51), Some(51), None, None]);
/// ```
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
