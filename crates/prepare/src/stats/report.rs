//! Statistics as text for people.

use super::{Column, Content, Frequent, Stats};
use opensora_chart::text::plain;
use std::fmt;

/// Maximum length of a shown text in characters; captions are long.
const SHOWN: usize = 32;
/// Maximum number of shown texts of a column.
const TEXTS: usize = 3;
/// Maximum number of listed unreadable files.
const FILES: usize = 10;

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.rows)?;
        if let Some(hours) = self.hours {
            write!(f, ", {} hours", short(hours))?;
            if self.rows_with_duration < self.rows {
                write!(f, " in {} of them", self.rows_with_duration)?;
            }
        }
        writeln!(f)?;
        let columns = || self.columns.iter().chain(&self.derived);
        aligned(f, &numbers(columns()))?;
        aligned(f, &texts(columns()))?;
        let mut lists = vec![];
        for (name, list) in [("resolutions", &self.resolutions), ("frame rates", &self.frame_rates)]
        {
            if !list.is_empty() {
                lists.push(vec![name.to_string(), listed(list, list.len())]);
            }
        }
        aligned(f, &lists)?;
        if !self.unreadable.is_empty() {
            writeln!(f, "\n{} files cannot be read", self.unreadable.len())?;
            for bad in self.unreadable.iter().take(FILES) {
                let (path, reason) = (plain(&bad.path, 200), plain(&bad.reason, 200));
                writeln!(f, "  row {}: {path}: {reason}", bad.row)?;
            }
            if self.unreadable.len() > FILES {
                writeln!(f, "  and {} more", self.unreadable.len() - FILES)?;
            }
        }
        Ok(())
    }
}

/// Returns rows of cells, with a header unless there are none.
fn numbers<'a>(columns: impl Iterator<Item = &'a Column>) -> Vec<Vec<String>> {
    let head = ["numbers", "count", "missing", "min", "5 %", "median", "mean", "95 %", "max"];
    let rows = columns.filter_map(|column| {
        let Content::Numbers(it) = &column.content else { return None };
        let mut cells = named(column);
        let figures =
            [it.min, it.percentile_5, it.median, it.mean, it.percentile_95, it.max].map(short);
        cells.extend(figures);
        Some(cells)
    });
    headed(&head, rows.collect())
}

fn texts<'a>(columns: impl Iterator<Item = &'a Column>) -> Vec<Vec<String>> {
    let head = ["texts", "count", "missing", "distinct", "most frequent"];
    let rows = columns.filter_map(|column| {
        let (distinct, most) = match &column.content {
            Content::Texts(it) => (it.distinct, listed(&it.most_frequent, TEXTS)),
            Content::Empty => (0, String::new()),
            Content::Numbers(_) => return None,
        };
        let mut cells = named(column);
        cells.extend([distinct.to_string(), most]);
        Some(cells)
    });
    headed(&head, rows.collect())
}

/// Returns the first cells of every row.
fn named(column: &Column) -> Vec<String> {
    vec![plain(&column.name, SHOWN), column.count.to_string(), column.missing.to_string()]
}

fn headed(head: &[&str], rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    if rows.is_empty() {
        return rows;
    }
    let head = head.iter().map(|cell| cell.to_string()).collect();
    std::iter::once(head).chain(rows).collect()
}

/// Returns values and their counts on one line. Control characters of untrusted texts are removed.
fn listed(list: &[Frequent], most: usize) -> String {
    let items = list.iter().take(most);
    let items = items.map(|item| format!("{} ({})", plain(&item.value, SHOWN), item.count));
    items.collect::<Vec<_>>().join(", ")
}

/// Writes an empty line and aligned cells: the first column and a last column of words to the left, others
/// to the right.
fn aligned(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let Some(first) = rows.first() else { return Ok(()) };
    writeln!(f)?;
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..first.len()).map(width).collect();
    let words =
        matches!(first.last().map(String::as_str), Some("most frequent")) || first.len() == 2;
    for row in rows {
        let mut line = format!("{:<1$}", row[0], widths[0]);
        for (at, cell) in row.iter().enumerate().skip(1) {
            match words && at + 1 == row.len() {
                true => line.push_str(&format!("  {cell}")),
                false => line.push_str(&format!("  {cell:>0$}", widths[at])),
            }
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Formats a number with about four digits; whole numbers are shown whole.
fn short(value: f64) -> String {
    match value.abs() {
        size if size < 1e9 && value.fract() == 0.0 => format!("{value}"),
        size if (1e-4..1e9).contains(&size) => {
            let digits = (3.0 - size.log10().floor()).clamp(0.0, 7.0) as usize;
            format!("{value:.digits$}")
        }
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::Unreadable;
    use opensora_manifest::Table;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (48.0, "48"),
            (-1.0 / 3.0, "-0.3333"),
            (12.3456, "12.35"),
            (123456.7, "123457"),
            (0.00012345, "0.0001234"),
            (1.5e-9, "1.500e-9"),
            (2.5e12, "2.500e12"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn the_table_is_aligned_and_shows_no_control_characters() {
        let mut table = Table::new(["path", "text", "fps", "note"]);
        for (path, text, fps) in [("/a", "fog\u{1b}[31m", "24"), ("/b", "fog\u{1b}[31m", "29.97")] {
            let fields = [("path", path), ("text", text), ("fps", fps), ("note", "")];
            table.push(fields.map(|(name, value)| (name, value.to_string())));
        }
        let mut stats = Stats::of(&table);
        let reason = "torn".to_string();
        stats.unreadable = vec![Unreadable { row: 2, path: "/b".into(), reason }; 12];
        assert_eq!(
            stats.to_string(),
            "\
2 rows

numbers        count  missing  min    5 %  median   mean   95 %    max
fps                2        0   24  24.30   26.98  26.98  29.67  29.97
caption_words      2        0    1      1       1      1      1      1

texts  count  missing  distinct  most frequent
path       2        0         2
text       2        0         1  fog [31m (2)
note       0        2         0

frame rates  24 (1), 29.97 (1)

12 files cannot be read
"
            .to_string()
                + &"  row 2: /b: torn\n".repeat(10)
                + "  and 2 more\n"
        );
    }
}
