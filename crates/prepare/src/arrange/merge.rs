//! Merges tables, and brings their rows into the order of another table.

use super::{SOURCE, START, key};
use crate::{
    PrepareError, Summary,
    assemble::{REASON, ends_in_part, failed_path, part_number, write_list},
    open::identity,
    ranges::MARK,
};
use opensora_manifest::{Table, value};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

/// Row choice and row order of a merge. By default, several rows of one file are an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// The row that is kept of several rows of one file; `None`: several rows are an error.
    pub keep: Option<Keep>,
    /// The table from which the merged tables were made with shards: rows are brought into its order
    /// ([`in_order_of`]). `None`: one table after the other.
    pub order_of: Option<Table>,
}

/// Merges tables, writes the merged table to `out`, and lists the dropped rows beside it
/// (`.failed.csv`). The first part of each pair is the table's name in messages.
///
/// # Errors
/// Returns an error if [`merge`] would, or a table cannot be written.
pub fn run(job: &Job, tables: &[(String, Table)], out: &Path) -> Result<Summary, PrepareError> {
    let mut merged = merge(tables, job.keep)?;
    if let Some(origin) = &job.order_of {
        merged.output = in_order_of(&merged.output, origin);
    }
    merged.write(out)?;
    let (output, failed) = (merged.output.len(), merged.dropped.len());
    Ok(Summary { input: tables.iter().map(|(_, table)| table.len()).sum(), output, failed })
}

/// The row that is kept of several rows of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The first.
    First,
    /// The last, at its own position.
    Last,
}

/// The merged table, and the rows that were dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The rows in order, with the columns of all tables; fields of columns that a table does not have
    /// are empty.
    pub output: Table,
    /// Further rows of the same files, with a column `reason`.
    pub dropped: Table,
}

impl Merged {
    /// Writes the table and the list of dropped rows beside it (`.failed.csv`). The list is written
    /// first, so that it is complete if the table exists.
    ///
    /// # Errors
    /// Returns an error if a table cannot be written.
    pub fn write(&self, out: &Path) -> Result<(), PrepareError> {
        write_list(&self.dropped, &failed_path(out))?;
        Ok(self.output.write(out)?)
    }
}

/// Concatenates tables by the names of their columns. The first part of each pair is the table's name in
/// messages. Rows are of one file if their paths lead to the same file, also by links, and their clip ranges
/// are equal, or if they have no paths and equal addresses. Rows without path and address are all kept.
///
/// # Errors
/// Returns an error if a table is a list of failures ([`PrepareError::FailureList`]), or if there are
/// several rows of one file and `keep` is `None`.
pub fn merge(tables: &[(String, Table)], keep: Option<Keep>) -> Result<Merged, PrepareError> {
    let rows = || {
        let each = |(table, (_, rows)): (usize, &(String, Table))| {
            (0..rows.len()).map(move |row| (table, row))
        };
        tables.iter().enumerate().flat_map(each)
    };
    if let Some((name, _)) = tables.iter().find(|(name, table)| is_failure_list(name, table)) {
        return Err(PrepareError::FailureList { name: name.clone() });
    }
    let place = |(table, row): (usize, usize)| format!("row {} of {}", row + 1, tables[table].0);
    let mut staying = HashMap::<String, (usize, usize)>::new();
    let (mut again, mut first_again) = (0, None);
    for at in rows() {
        let Some(key) = key(&tables[at.0].1, at.1) else { continue };
        if let Some(&before) = staying.get(&key) {
            again += 1;
            first_again.get_or_insert((key.clone(), before, at));
            if keep != Some(Keep::Last) {
                continue;
            }
        }
        staying.insert(key, at);
    }
    if let (None, Some((key, first, second))) = (keep, first_again) {
        let (first, second) = (place(first), place(second));
        // The error is one line.
        let key = key.replace('\n', " ");
        return Err(PrepareError::Duplicates { key, first, second, count: again });
    }

    let names: Vec<&str> =
        tables.iter().flat_map(|(_, table)| table.columns()).map(String::as_str).collect();
    let mut output = Table::new(names.iter().copied());
    let mut dropped = Table::new(names.iter().copied().chain([REASON]));
    for (table, row) in rows() {
        let from = &tables[table].1;
        let fields = from.columns().iter().map(String::as_str);
        let fields = fields.zip(from.row(row).into_iter().flatten().cloned());
        let stays = key(from, row).and_then(|key| staying.get(&key)).copied();
        match stays.filter(|&stays| stays != (table, row)) {
            None => output.push(fields),
            Some(other) => {
                let reason = format!("{} is of the same file", place(other));
                dropped.push(fields.filter(|(name, _)| *name != REASON).chain([(REASON, reason)]));
            }
        }
    }
    Ok(Merged { output, dropped })
}

/// Returns the rows of a merged table in the order of the table from which its shards were made. Rows are
/// matched by their files and clip ranges, clips of a video by their `source`: the video, or the source that the
/// video's row names. Clips of one source are ordered by their `start`; without it they keep their order. Rows
/// without match come last.
///
/// With this order, the first of several duplicates is the same with and without shards.
pub fn in_order_of(merged: &Table, origin: &Table) -> Table {
    let (mut places, mut sources) = (HashMap::new(), HashMap::new());
    for row in 0..origin.len() {
        // Clips of a downloaded video keep the address that its row names.
        if let Some(source) = origin.get(row, SOURCE).and_then(value::present) {
            sources.entry(source).or_insert(row);
        }
        let Some(key) = key(origin, row) else { continue };
        // The source of a range's clips is the file.
        if let Some((file, _)) = key.split_once(MARK) {
            places.entry(file.to_string()).or_insert(row);
        }
        places.entry(key).or_insert(row);
    }
    let of_source = |row: usize| {
        let source = merged.get(row, SOURCE).and_then(value::present)?;
        let by_file = identity(Path::new(source)).to_string_lossy().into_owned();
        places.get(&by_file).or_else(|| places.get(source)).or_else(|| sources.get(source))
    };
    // Rows that are rows of the origin, or have no match, keep their order.
    let first = f64::NEG_INFINITY;
    let place = |row: usize| {
        if let Some(&own) = key(merged, row).and_then(|key| places.get(&key)) {
            return (own, first, row);
        }
        let start = || merged.get(row, START).and_then(value::number).unwrap_or(first);
        of_source(row).map_or((usize::MAX, first, row), |&place| (place, start(), row))
    };
    let mut rows: Vec<(usize, f64, usize)> = (0..merged.len()).map(place).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    merged.select(rows.into_iter().map(|(_, _, row)| row))
}

/// Returns the shards that are missing among these files, as `i-of-n`: `clips.0-of-4.csv` implies three
/// more. Empty unless all files are shards of one table: in one folder, with equal names before `i-of-n`.
pub fn missing_parts(files: &[PathBuf]) -> Vec<String> {
    // The table of a shard (folder, name and number of shards), and the index of the shard.
    let part = |file: &PathBuf| {
        let folder = std::path::absolute(file).ok()?.parent()?.to_path_buf();
        // The number of a shard can be the end of the name.
        let stem = if ends_in_part(file) { file.file_name()? } else { file.file_stem()? };
        let stem = stem.to_string_lossy();
        let (name, part) = stem.rsplit_once('.').unwrap_or(("", &stem));
        let (index, count) = part_number(part)?;
        Some(((folder, name.to_string(), count), index))
    };
    let Some(parts) = files.iter().map(part).collect::<Option<Vec<_>>>() else { return vec![] };
    let Some((array, _)) = parts.first() else { return vec![] };
    let &(_, _, count) = array;
    // A larger number is part of a name, not a number of shards.
    if count > 100_000 || parts.iter().any(|(other, _)| other != array) {
        return vec![];
    }
    let there: HashSet<usize> = parts.into_iter().map(|(_, index)| index).collect();
    (0..count)
        .filter(|index| !there.contains(index))
        .map(|index| format!("{index}-of-{count}"))
        .collect()
}

/// Returns true for a list of failed or dropped rows: a table with the column `reason` whose name says
/// so or in which every row has a reason.
fn is_failure_list(name: &str, table: &Table) -> bool {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let is_named = [".failed", ".dropped"].iter().any(|ending| stem.ends_with(ending));
    let has_reason =
        |row: usize| table.get(row, REASON).is_some_and(|reason| !value::is_missing(reason));
    table.column(REASON).is_some() && (is_named || (0..table.len()).all(has_reason))
}
