//! Clip ranges: rows that are a part of their file.

use crate::RowError;
use opensora_files::one_line;
use opensora_manifest::{
    Table,
    table::{CLIP_END, CLIP_START},
    value,
};

/// Text between path and clip range in a row's key.
pub(crate) const MARK: &str = "\nclip ";

/// A range of a file in seconds from its first frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ClipRange {
    /// Start, at least 0.
    pub(crate) start: f64,
    /// End, after the start; infinite for the end of the file.
    pub(crate) end: f64,
}

impl ClipRange {
    /// Returns the clip range of a row; `None` for a row of a whole file.
    ///
    /// # Errors
    /// Returns an error if a bound is not a finite number, the start is negative, or the range is empty.
    pub(crate) fn of(table: &Table, row: usize) -> Result<Option<Self>, RowError> {
        let [start, end] = fields(table, row);
        if start.is_none() && end.is_none() {
            return Ok(None);
        }
        let number = |field: Option<&str>, missing| field.map_or(Some(missing), value::number);
        match (number(start, 0.0), number(end, f64::INFINITY)) {
            (Some(start), Some(end)) if (0.0..end).contains(&start) => {
                Ok(Some(Self { start, end }))
            }
            _ => {
                let (start, end) = (start.unwrap_or("the start"), end.unwrap_or("the end"));
                Err(RowError::ClipRange(format!("{} to {}", one_line(start), one_line(end))))
            }
        }
    }
}

/// Returns the part of a row's key that names its clip range; empty for a row of a whole file. Equal ranges have
/// equal texts: `1` and `1.0` are one number.
pub(crate) fn key(table: &Table, row: usize) -> String {
    match ClipRange::of(table, row) {
        Ok(None) => String::new(),
        Ok(Some(ClipRange { start, end })) => format!("{MARK}{start} {end}"),
        Err(_) => {
            let [start, end] = fields(table, row).map(Option::unwrap_or_default);
            format!("{MARK}{start:?} {end:?}")
        }
    }
}

fn fields(table: &Table, row: usize) -> [Option<&str>; 2] {
    [CLIP_START, CLIP_END].map(|column| table.get(row, column).and_then(value::present))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_manifest::table::PATH;

    fn table(start: &str, end: &str) -> Table {
        let mut table = Table::new([PATH, CLIP_START, CLIP_END]);
        table.push([(CLIP_START, start.into()), (CLIP_END, end.into())]);
        table
    }

    #[test]
    fn ranges_are_bounds_in_seconds() {
        for (start, end, expected) in [
            ("1.5", "3", Some((1.5, 3.0))),
            (" 1e1 ", "None", Some((10.0, f64::INFINITY))),
            ("", "0.25", Some((0.0, 0.25))),
            ("", "NaN", None),
        ] {
            let found = ClipRange::of(&table(start, end), 0).unwrap();
            let expected = expected.map(|(start, end)| ClipRange { start, end });
            assert_eq!(found, expected, "{start} to {end}");
        }
        let mut none = Table::new([PATH]);
        none.push([(PATH, "/a".into())]);
        assert_eq!(ClipRange::of(&none, 0).unwrap(), None);
    }

    #[test]
    fn other_ranges_are_errors() {
        for (start, end, found) in [
            ("-1", "2", "-1 to 2"),
            ("3", "3", "3 to 3"),
            ("3", "2", "3 to 2"),
            ("inf", "", "inf to the end"),
            ("", "inf", "the start to inf"),
            ("soon", "2", "soon to 2"),
            ("", "0", "the start to 0"),
        ] {
            let error = ClipRange::of(&table(start, end), 0).unwrap_err();
            assert!(matches!(&error, RowError::ClipRange(range) if range == found), "{error}");
        }
    }

    #[test]
    fn keys_name_the_numbers_of_a_range() {
        let key = |start, end| key(&table(start, end), 0);
        assert_eq!(key("", "nan"), "");
        assert_eq!(key("1", "2.50"), "\nclip 1 2.5");
        assert_eq!(key("1.0", "2.5"), key("1", "2.50"));
        assert_eq!(key("", "2"), key("0", "2"));
        assert_eq!(key("x\ny", ""), "\nclip \"x\\ny\" \"\"");
    }
}
