//! Row counts of a filter, by bound.

use crate::Summary;
use serde::Serialize;
use std::fmt;

/// Row counts of one filter: checked, and dropped by reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FilterReport {
    /// Name of the filter: the column of its bound, `file` for reading the file, or `duplicates` for
    /// near-duplicates.
    pub filter: String,
    /// Rows that were checked.
    pub rows: usize,
    /// Rows below the smallest value.
    pub below: usize,
    /// Rows above the largest value.
    pub above: usize,
    /// Near-duplicates of kept rows.
    pub duplicates: usize,
    /// Rows without value.
    pub unreadable: usize,
}

/// Row counts of the step `filter`, and of each filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Rows of the shard.
    pub rows: usize,
    /// Files that were measured, now or in an earlier run.
    pub measured: usize,
    /// Rows of the output.
    pub kept: usize,
    /// Dropped rows; with [`Job::score_only`](super::Job::score_only), rows that would have been dropped.
    pub dropped: usize,
    /// Rows whose file cannot be read, or without value for a bound.
    pub failed: usize,
    /// The filters, in the order in which rows were checked.
    pub filters: Vec<FilterReport>,
}

impl Report {
    /// Returns the row counts. Dropped rows are neither output nor failed.
    pub fn summary(&self) -> Summary {
        Summary { input: self.rows, output: self.kept, failed: self.failed }
    }
}

impl fmt::Display for Report {
    /// Writes a table of the filters, and a line with the totals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.filters.iter().map(|filter| filter.filter.chars().count());
        let wide = names.max().unwrap_or(0).max("filter".len());
        if !self.filters.is_empty() {
            writeln!(
                f,
                "{:wide$} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "filter", "rows", "below", "above", "duplicates", "unreadable"
            )?;
        }
        for filter in &self.filters {
            let FilterReport { filter, rows, below, above, duplicates, unreadable } = filter;
            writeln!(
                f,
                "{filter:wide$} {rows:>10} {below:>10} {above:>10} {duplicates:>10} \
                 {unreadable:>10}"
            )?;
        }
        let Self { rows, kept, dropped, failed, .. } = self;
        write!(f, "{rows} rows: {kept} kept, {dropped} dropped, {failed} unreadable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table() {
        let filter = FilterReport {
            filter: "aspect_ratio".into(),
            rows: 12,
            below: 3,
            ..FilterReport::default()
        };
        let report =
            Report { rows: 12, kept: 9, dropped: 3, filters: vec![filter], ..Report::default() };
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[1].starts_with("aspect_ratio         12          3          0"), "{text}");
        assert_eq!(lines[2], "12 rows: 9 kept, 3 dropped, 0 unreadable");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["filters"][0]["below"], 3);
    }
}
