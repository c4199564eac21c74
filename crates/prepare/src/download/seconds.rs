//! Parses times such as `0:01:02.5`.

/// Parses `12.5`, `1:02.5` or `0:01:02.500` to seconds, rounded to microseconds; `None` for anything else.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let parts: Vec<&str> = text.trim().split(':').collect();
    let (last, wholes) = parts.split_last()?;
    let is_plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    if wholes.len() > 2 || !is_plain(last) {
        return None;
    }
    let mut seconds = last.parse::<f64>().ok()?;
    for (whole, unit) in wholes.iter().rev().zip([60.0, 3600.0]) {
        if whole.is_empty() || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        seconds += whole.parse::<f64>().ok()? * unit;
    }
    seconds.is_finite().then(|| micro(seconds))
}

/// Rounds to microseconds, so that sums of times print without rounding errors.
pub(crate) fn micro(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_exactly() {
        for (text, seconds) in [
            ("0:01:20.880", "80.88"),
            ("00:03:31.151", "211.151"),
            ("12:34:56.789", "45296.789"),
            ("1:02.5", "62.5"),
            (" 17 ", "17"),
        ] {
            assert_eq!(parse(text).map(|seconds| seconds.to_string()).as_deref(), Some(seconds));
        }
        for wrong in ["", ":", "1:", "a", "-1", "inf", "1e3", "1:2:3:4", "1.5:00", "1.2.3", "."] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
