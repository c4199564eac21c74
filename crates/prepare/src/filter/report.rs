//! How many rows went, and why.

use serde::Serialize;
use std::fmt;

/// What a filter did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FilterReport {
    /// Its name: the column it looks at; `file` for reading the file itself, `duplicates` for
    /// near-duplicates.
    pub filter: String,
    /// Rows that came to it.
    pub rows: usize,
    /// Rows below its least value.
    pub below: usize,
    /// Rows above its greatest value.
    pub above: usize,
    /// Rows that duplicate a kept one.
    pub duplicates: usize,
    /// Rows that have no value for it.
    pub unreadable: usize,
}

/// What became of a manifest's rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Rows that came: those of the shard.
    pub rows: usize,
    /// Files that were measured, now or in a run before that was interrupted.
    pub measured: usize,
    /// Rows of the output.
    pub kept: usize,
    /// Rows that a filter dropped; where nothing is dropped, rows that would have been.
    pub dropped: usize,
    /// Rows that could not be judged.
    pub failed: usize,
    /// By filter, in the order in which rows went through them.
    pub filters: Vec<FilterReport>,
}

impl fmt::Display for Report {
    /// A table, and a line for all.
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
