//! Splits a table into parts: of equal size, or random shares.

use super::Shares;
use crate::{PrepareError, assemble::check_written};
use opensora_manifest::{
    Table,
    table::{PATH, URL},
    value,
};
use std::path::{Path, PathBuf};

/// Splits a table that was read from `file` and writes the parts beside `out` ([`part_path`]). Returns
/// the parts and their files.
///
/// # Errors
/// Returns an error if [`split`] would, a part is the file that was read ([`PrepareError::SameFile`]), or a part cannot
/// be written.
pub fn run(
    parts: &Parts,
    table: &Table,
    file: &Path,
    out: &Path,
) -> Result<Vec<(Part, PathBuf)>, PrepareError> {
    let parts = split(table, file, parts)?;
    // Another run would read the part in place of the whole table.
    check_written(file, parts.iter().map(|part| part_path(out, &part.name)))?;
    let written = write_parts(table, out, &parts)?;
    Ok(parts.into_iter().zip(written).collect())
}

/// The way in which a table is split.
#[derive(Debug, Clone, PartialEq)]
pub enum Parts {
    /// Parts of this many rows; the last one has the remaining rows.
    Rows(usize),
    /// This many parts, whose sizes differ by at most one row.
    Count(usize),
    /// Named random parts.
    Shares {
        /// Names and shares of the parts.
        shares: Shares,
        /// Seed of the random choice.
        seed: u64,
        /// Column whose equal values stay in one part: `path`, or `source` for clips of a video. For a
        /// row without a value, its path or address is used.
        by: String,
    },
}

/// A part of a table: its name and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name of the share, or number of the part, from 0.
    pub name: String,
    /// Rows of the table, in order.
    pub rows: Vec<usize>,
}

/// Splits the rows of a table that was read from `file`. Paths below that file's folder are taken relative
/// to it, so that a data set that was moved is split in the same way.
///
/// # Errors
/// Returns an error if a part would have no rows, there are more parts than rows, or the table has no
/// column `by`.
pub fn split(table: &Table, file: &Path, parts: &Parts) -> Result<Vec<Part>, PrepareError> {
    match parts {
        Parts::Rows(0) => {
            Err(PrepareError::Spec { field: "rows", found: "0".into(), expected: "at least 1" })
        }
        Parts::Rows(rows) => {
            let firsts = (0..table.len()).step_by(*rows);
            Ok(numbered(firsts.map(|first| first..table.len().min(first.saturating_add(*rows)))))
        }
        Parts::Count(count) if !(1..=table.len()).contains(count) => Err(PrepareError::Spec {
            field: "parts",
            found: count.to_string(),
            expected: "from 1 to the number of rows",
        }),
        Parts::Count(count) => {
            let (small, larger) = (table.len() / count, table.len() % count);
            let first = |part: usize| part * small + part.min(larger);
            Ok(numbered((0..*count).map(|part| first(part)..first(part + 1))))
        }
        Parts::Shares { shares, seed, by } => {
            if table.column(by).is_none() {
                return Err(PrepareError::Spec {
                    field: "by",
                    found: by.clone(),
                    expected: "a column of the table",
                });
            }
            let mut parts: Vec<Part> =
                shares.names().map(|name| Part { name: name.into(), rows: Vec::new() }).collect();
            for row in 0..table.len() {
                parts[shares.of(*seed, &name(table, row, by, file)?)].rows.push(row);
            }
            Ok(parts)
        }
    }
}

/// Returns the text by which a row is assigned to a share.
fn name(table: &Table, row: usize, by: &str, file: &Path) -> Result<String, PrepareError> {
    let field = |name| table.get(row, name).filter(|field: &&str| !value::is_missing(field));
    let named = [by, PATH, URL].into_iter().find_map(|name| Some((name, field(name)?)));
    Ok(match named {
        Some((PATH, path)) => Table::name_in(file, Path::new(path))?.to_string_lossy().into_owned(),
        Some((_, field)) => field.into(),
        None => String::new(),
    })
}

/// Returns parts that are numbered with equal numbers of digits.
fn numbered(parts: impl ExactSizeIterator<Item = std::ops::Range<usize>>) -> Vec<Part> {
    let digits = parts.len().saturating_sub(1).to_string().len();
    parts
        .enumerate()
        .map(|(part, rows)| Part { name: format!("{part:0digits$}"), rows: rows.collect() })
        .collect()
}

/// Returns the path of a part of `out`: `all.train.csv` for the part `train` of `all.csv`.
pub fn part_path(out: &Path, name: &str) -> PathBuf {
    let ending = out.extension().map(|ending| ending.to_string_lossy());
    out.with_extension(ending.map_or(name.into(), |ending| format!("{name}.{ending}")))
}

/// Writes the parts of a table and returns their paths ([`part_path`]). Parts of an earlier split with
/// other names are not removed.
///
/// # Errors
/// Returns an error if a part cannot be written.
pub fn write_parts(
    table: &Table,
    out: &Path,
    parts: &[Part],
) -> Result<Vec<PathBuf>, PrepareError> {
    let write = |part: &Part| {
        let path = part_path(out, &part.name);
        table.select(part.rows.iter().copied()).write(&path)?;
        Ok(path)
    };
    parts.iter().map(write).collect()
}
