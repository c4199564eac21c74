//! Selects clips by measurements, bounds and near-duplicates.
//!
//! Each filter has a column. Values that the table lacks are measured, in one pass over the frames of each
//! file, and written to their columns; then rows with values out of bounds are dropped. Measurements are
//! journalled and do not depend on the bounds: with the same journal, or with a table that has the columns,
//! other bounds need no second pass over the files. A file whose size or time has changed is measured again.
//!
//! | column | value |
//! |---|---|
//! | `num_frames` | frames |
//! | `fps` | frames per second; empty for images |
//! | `duration` | seconds; empty for images |
//! | `width`, `height` | pixels |
//! | `short_side` | pixels of the shorter side |
//! | `pixels` | width times height |
//! | `aspect_ratio` | width divided by height |
//! | `text_characters`, `text_words` | length of the caption |
//! | `motion` | mean absolute difference of luma between neighbouring frames, in [0, 1] |
//! | `flow` | mean length of the optical flow between neighbouring frames, as a fraction of the shorter side: 0.01 is one pixel of 100 per frame |
//! | `brightness` | mean luma, in [0, 1] |
//! | `dark_share`, `bright_share` | fraction of the frames with a mean luma of at most 0.1, at least 0.9 |
//! | `hash` | perceptual hashes of five moments, for near-duplicates |
//!
//! Motion and brightness are measured on frames scaled down to 128 pixels on the shorter side, flow on at
//! most 32 pairs of these frames. The motion of images is 0. Bounds can also apply to any other column of
//! numbers, such as a model's scores ([`Score`]).
//!
//! Bounds are checked in order, and a row is dropped at the first bound that it fails. Near-duplicates are
//! searched among the rows within all bounds. Beside the output, `<stem>.dropped.csv` lists dropped
//! rows (with `filter` and `reason`), and `<stem>.failed.csv` lists rows whose file cannot be read or that
//! have no value for a bound (with `reason`).
//!
//! Shards can measure their rows separately, but near-duplicates need all rows. So measure the shards with
//! [`Job::score_only`] or [`Job::hashes`], merge their tables in the order of the original table
//! ([`arrange::in_order_of`](crate::arrange::in_order_of)), and filter the merged table: it has all columns,
//! so no file is opened again, and the result is that of a run without shards.

mod bound;
pub mod duplicates;
mod flow;
mod grey;
mod keys;
mod measure;
#[cfg(feature = "onnx")]
mod onnx;
mod report;
pub mod score;
mod thinned;

pub use bound::Bound;
pub use duplicates::{Duplicates, Keep};
pub use report::{FilterReport, Report};
pub use score::{OnnxSpec, Score};

use crate::{
    Observer, PrepareError, RowError, RunOptions,
    assemble::{REASON, beside, dropped_path, failed_path, journal_path, write_list},
    step::{self, Fault, Outcome, Run, Shard},
};
use bound::Verdict;
use duplicates::{Candidate, ClipHash};
use measure::{Depth, HASH, HEADER, Measured, PIXELS, measure, rounded};
use opensora_manifest::{
    Table,
    table::{PATH, TEXT},
    value,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Columns that are derived from others.
const DERIVED: [&str; 5] =
    ["short_side", "pixels", "aspect_ratio", "text_characters", "text_words"];
/// The column of the list of dropped rows with the filter that dropped the row.
pub(crate) const FILTER: &str = "filter";
/// The column with the clip that a near-duplicate repeats.
const DUPLICATE_OF: &str = "duplicate_of";

/// Returns the columns that describe the frames of one file. They do not hold for files that are made from it.
pub(crate) fn of_frames() -> impl Iterator<Item = &'static str> {
    let sizes = ["short_side", "pixels", "aspect_ratio"];
    PIXELS.into_iter().chain([HASH, DUPLICATE_OF]).chain(sizes)
}

/// Error for an invalid filter, or for one that does not fit the table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// No value is within the limits of a bound.
    #[error("{column}: no number is from {min} to {max}")]
    Bound {
        /// The column.
        column: String,
        /// The smallest value.
        min: String,
        /// The largest value.
        max: String,
    },
    /// A column is neither in the table nor measured.
    #[error("{column}: neither a column of the table nor a measured one; the table has {columns}")]
    Column {
        /// The column.
        column: String,
        /// The columns of the table.
        columns: String,
    },
    /// A scoring model has invalid preprocessing or cannot be loaded.
    #[error("{}", path.display())]
    Model {
        /// The model's file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Bounds, models and run options of a filter. The default drops nothing.
#[derive(Clone, Default)]
pub struct Job {
    /// The journal of the measurements. `None`: `<out>.journal.jsonl`, or `<stem>.journal.jsonl` if an
    /// earlier version has written it.
    pub journal: Option<PathBuf>,
    /// The bounds, in the order in which rows are checked.
    pub bounds: Vec<Bound>,
    /// Drops near-duplicates.
    pub duplicates: Option<Duplicates>,
    /// Measures hashes without dropping near-duplicates, for a table that will be merged with others.
    pub hashes: bool,
    /// Models that score clips, each for another column.
    pub models: Vec<Arc<dyn Score>>,
    /// Measures all columns and drops no row; the report counts what would have been dropped.
    pub score_only: bool,
    /// Measures everything, also columns that the table has.
    pub measure_again: bool,
    /// Workers, shard of the files, and retries of files that could not be read. Rows of other shards
    /// are left out of the output.
    pub options: RunOptions,
}

impl Job {
    /// Returns the columns that rows need.
    fn wanted(&self) -> Vec<&str> {
        let mut wanted: Vec<&str> = self.bounds.iter().map(Bound::column).collect();
        if self.score_only {
            wanted.extend(HEADER.into_iter().chain(DERIVED).chain(PIXELS).chain([HASH]));
        }
        if self.duplicates.is_some() || self.hashes {
            wanted.push(HASH);
        }
        wanted.extend(self.models.iter().map(|model| model.column()));
        if wanted.iter().any(|column| ["short_side", "pixels", "aspect_ratio"].contains(column)) {
            wanted.extend(["width", "height"]);
        }
        wanted
    }

    /// Returns the columns that rows need and that are measured in files.
    fn measured(&self) -> Vec<&str> {
        let mut measured = self.wanted();
        let models: Vec<&str> = self.models.iter().map(|model| model.column()).collect();
        measured.retain(|column| {
            HEADER.contains(column)
                || PIXELS.contains(column)
                || *column == HASH
                || models.contains(column)
        });
        measured
    }

    /// Returns an error if the options are invalid for the table.
    fn validate(&self, table: &Table) -> Result<(), PrepareError> {
        if self.duplicates.is_some() && self.options.shard != Shard::WHOLE {
            return Err(PrepareError::Spec {
                field: "shard",
                found: self.options.shard.to_string(),
                expected: "0/1, as near-duplicates need all rows: measure hashes in the shards, \
                           merge their tables in the order of this one, then look for them",
            });
        }
        let mut models: Vec<&str> = self.models.iter().map(|model| model.column()).collect();
        models.sort_unstable();
        let known = |column: &str| {
            HEADER.contains(&column)
                || PIXELS.contains(&column)
                || DERIVED.contains(&column)
                || [PATH, TEXT, HASH].contains(&column)
        };
        let twice = models.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        if let Some(column) = twice.or(models.iter().copied().find(|column| known(column))) {
            return Err(PrepareError::Spec {
                field: "column of a model's scores",
                found: column.into(),
                expected: "a name that no other column has",
            });
        }
        let measurable = |column: &str| {
            known(column) && ![PATH, TEXT, HASH].contains(&column) || models.contains(&column)
        };
        let unknown =
            |bound: &&Bound| !measurable(bound.column()) && table.column(bound.column()).is_none();
        if let Some(bound) = self.bounds.iter().find(unknown) {
            return Err(no_column(bound.column(), table));
        }
        if table.column(PATH).is_none() && !self.measured().is_empty() {
            return Err(no_column(PATH, table));
        }
        Ok(())
    }
}

fn no_column(column: &str, table: &Table) -> PrepareError {
    FilterError::Column { column: column.into(), columns: table.columns().join(", ") }.into()
}

/// Measures missing columns, judges the rows, and writes the tables of kept, dropped and failed rows. The reasons of a
/// list of dropped or failed rows (the columns `filter` and `reason`) are left out.
///
/// # Errors
/// Returns an error if the options are invalid for this table, the journal was written with other
/// settings, a file cannot be written, or the observer stops the step.
pub fn run(
    job: &Job,
    table: &Table,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Report, PrepareError> {
    let mut table = table.clone();
    // A list of dropped or failed rows that is filtered again has the old reasons.
    if table.remove(REASON) {
        table.remove(FILTER);
    }
    job.validate(&table)?;
    let files = Files::of(&table, job.options.shard);
    let (outcomes, measured) = measured(job, &table, &files, out, observer)?;

    let mut judged = Judged { report: Report { measured, ..Report::default() }, rows: vec![] };
    let mut failures = HashMap::new();
    for &(row, file) in &files.rows {
        match outcomes.get(&file) {
            Some(Outcome::Done(measured)) => write_measures(&mut table, row, measured, job),
            Some(Outcome::Failed(reason)) => {
                failures.insert(row, reason.as_str());
            }
            None => {}
        }
        derive(&mut table, row, &job.wanted());
    }
    judged.rows = files.rows.iter().map(|&(row, _)| (row, Fate::Kept)).collect();
    judged.report.rows = judged.rows.len();
    if !failures.is_empty() || measured > 0 {
        judged.apply("file", |row| match failures.get(&row) {
            Some(reason) => Fate::Failed((*reason).into()),
            None => Fate::Kept,
        });
    }
    for bound in &job.bounds {
        judged.apply(bound.column(), |row| judge(&table, row, bound));
    }
    if let Some(spec) = job.duplicates {
        drop_duplicates(&mut table, &mut judged, spec);
    }
    judged.write(&table, job, out)?;
    Ok(judged.report)
}

/// The decision about a row: kept, dropped or failed.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Kept,
    Dropped { filter: String, verdict: Option<Verdict>, reason: String },
    Failed(String),
}

/// Rows and the decisions about them so far.
struct Judged {
    report: Report,
    rows: Vec<(usize, Fate)>,
}

impl Judged {
    /// Decides about the remaining rows by `fate`, and counts the decisions under `filter`.
    fn apply(&mut self, filter: &str, fate: impl Fn(usize) -> Fate) {
        let mut counts = FilterReport { filter: filter.into(), ..FilterReport::default() };
        for (row, decided) in self.rows.iter_mut().filter(|(_, fate)| *fate == Fate::Kept) {
            counts.rows += 1;
            *decided = fate(*row);
            match decided {
                Fate::Kept => {}
                Fate::Failed(_) => counts.unreadable += 1,
                Fate::Dropped { verdict: Some(Verdict::Below), .. } => counts.below += 1,
                Fate::Dropped { verdict: Some(_), .. } => counts.above += 1,
                Fate::Dropped { verdict: None, .. } => counts.duplicates += 1,
            }
        }
        self.report.filters.push(counts);
    }

    /// Writes the three tables and counts their rows.
    fn write(&mut self, table: &Table, job: &Job, out: &Path) -> Result<(), PrepareError> {
        let mut dropped = table.select([]);
        let mut failed = table.select([]);
        let mut kept = Vec::new();
        for (row, fate) in &self.rows {
            let fields = |row: usize| {
                let fields = table.row(row).unwrap_or_default().iter().cloned();
                table.columns().iter().map(String::as_str).zip(fields)
            };
            match fate {
                Fate::Kept => kept.push(*row),
                Fate::Dropped { filter, reason, .. } => {
                    self.report.dropped += 1;
                    match job.score_only {
                        true => kept.push(*row),
                        false => {
                            dropped.push(fields(*row));
                            dropped.set(dropped.len() - 1, FILTER, filter.as_str());
                            dropped.set(dropped.len() - 1, REASON, reason.as_str());
                        }
                    }
                }
                Fate::Failed(reason) => {
                    failed.push(fields(*row));
                    failed.set(failed.len() - 1, REASON, reason.as_str());
                }
            }
        }
        (self.report.kept, self.report.failed) = (kept.len(), failed.len());
        // The output last: if it exists, the lists are complete.
        write_list(&dropped, &dropped_path(out))?;
        write_list(&failed, &failed_path(out))?;
        Ok(table.select(kept).write(out)?)
    }
}

/// The files of the rows, each once.
struct Files {
    paths: Vec<String>,
    /// Rows of the shard and their files.
    rows: Vec<(usize, usize)>,
}

impl Files {
    fn of(table: &Table, shard: Shard) -> Self {
        let (mut paths, mut places, mut rows) = (Vec::new(), HashMap::new(), Vec::new());
        for row in 0..table.len() {
            let path = table.get(row, PATH).unwrap_or_default();
            let file = *places.entry(path).or_insert_with(|| {
                paths.push(path.to_string());
                paths.len() - 1
            });
            // Shards of files, not rows, so that a file with several rows is measured once.
            if shard.holds(file) {
                rows.push((row, file));
            }
        }
        Self { paths, rows }
    }
}

/// Measures the files of rows that lack a column. Returns outcomes by file, and their number.
fn measured(
    job: &Job,
    table: &Table,
    files: &Files,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<(HashMap<usize, Outcome<Measured>>, usize), PrepareError> {
    let wanted = job.measured();
    let lacks = |row: usize, column: &str| {
        job.measure_again
            || match column {
                HASH => table.get(row, HASH).and_then(ClipHash::from_text).is_none(),
                _ => number(table, row, column).is_none(),
            }
    };
    let (mut open, mut depth) = (Vec::new(), Depth::Header);
    for &(row, file) in &files.rows {
        let lacking: Vec<&&str> = wanted.iter().filter(|column| lacks(row, column)).collect();
        if lacking.iter().any(|column| !HEADER.contains(*column)) {
            depth = Depth::Pixels;
        }
        if !lacking.is_empty() {
            open.push(file);
        }
    }
    open.sort_unstable();
    open.dedup();
    if open.is_empty() {
        return Ok((HashMap::new(), 0));
    }
    let journal = journal(job, depth, out);
    // The keys are those of all files, because the key of a file can depend on the others.
    let all = keys::of(&files.paths, &journal);
    let keys: Vec<String> = open.iter().map(|&file| all[file].clone()).collect();
    let run = Run {
        journal,
        settings: settings(job, depth),
        // The keys are those of the shard.
        options: RunOptions { shard: Shard::WHOLE, ..job.options },
    };
    let work = |index: usize| -> Result<Measured, Fault> {
        match files.paths[open[index]].as_str() {
            "" => Err(RowError::NoValue(PATH.into()).into()),
            path => Ok(measure(Path::new(path), depth, &job.models)?),
        }
    };
    let path = |index: usize| Path::new(&files.paths[open[index]]);
    let outcomes = step::run_on_files(&run, &keys, path, work, observer)?;
    let outcomes = open.iter().copied().zip(outcomes);
    let outcomes = outcomes.filter_map(|(file, outcome)| Some((file, outcome?))).collect();
    Ok((outcomes, keys.len()))
}

/// Returns the journal of the measurements. Headers have a separate journal: a record of a header is not
/// one of all frames.
fn journal(job: &Job, depth: Depth, out: &Path) -> PathBuf {
    match (&job.journal, depth) {
        (Some(journal), Depth::Pixels) => journal.clone(),
        (Some(journal), Depth::Header) => journal.with_extension("header.jsonl"),
        (None, Depth::Pixels) => journal_or(journal_path(out), out, "journal.jsonl"),
        (None, Depth::Header) => {
            let header = journal_path(&beside(out, "header.csv"));
            journal_or(header, out, "header.journal.jsonl")
        }
    }
}

/// Returns the journal of an earlier version beside `out` if there is one, else `journal`.
fn journal_or(journal: PathBuf, out: &Path, earlier: &str) -> PathBuf {
    let earlier = beside(out, earlier);
    if earlier.exists() && !journal.exists() { earlier } else { journal }
}

/// Returns what measurements depend on.
fn settings(job: &Job, depth: Depth) -> Value {
    let models: Vec<Value> = match depth {
        Depth::Header => vec![],
        Depth::Pixels => job.models.iter().map(|model| model.settings()).collect(),
    };
    let depth = if depth == Depth::Header { "header" } else { "pixels" };
    // The version increases when a measurement changes.
    json!({"step": "filter", "version": 1, "depth": depth, "models": models})
}

/// Returns a column's number, if it is finite.
fn number(table: &Table, row: usize, column: &str) -> Option<f64> {
    value::number(table.get(row, column)?)
}

/// Writes measurements, also over stated values.
fn write_measures(table: &mut Table, row: usize, measured: &Measured, job: &Job) {
    let models = job.models.iter().map(|model| model.column());
    for column in HEADER.into_iter().chain(PIXELS).chain(models) {
        if let Some(value) = measured.numbers.get(column) {
            table.set(row, column, value.to_string());
        } else if !HEADER.contains(&column) && table.column(column).is_some() && deep(measured) {
            // The value is of an earlier model or file.
            table.set(row, column, "");
        }
    }
    if let Some(hash) = &measured.hash {
        table.set(row, HASH, hash.as_str());
    }
}

/// Returns true if all frames of the clip were measured.
fn deep(measured: &Measured) -> bool {
    measured.hash.is_some()
}

/// Writes the wanted derived columns.
fn derive(table: &mut Table, row: usize, wanted: &[&str]) {
    let sides = number(table, row, "width").zip(number(table, row, "height"));
    let sides = sides.filter(|(width, height)| *width > 0.0 && *height > 0.0);
    let text = table.get(row, TEXT).unwrap_or_default().trim();
    let (characters, words) = (text.chars().count(), text.split_whitespace().count());
    for column in DERIVED.into_iter().filter(|column| wanted.contains(column)) {
        let value = match column {
            "text_characters" => Some(characters as f64),
            "text_words" => Some(words as f64),
            "short_side" => sides.map(|(width, height)| width.min(height)),
            "pixels" => sides.map(|(width, height)| width * height),
            _ => sides.map(|(width, height)| width / height),
        };
        table.set(row, column, value.map(|value| rounded(value).to_string()).unwrap_or_default());
    }
}

/// Checks a bound of a row.
fn judge(table: &Table, row: usize, bound: &Bound) -> Fate {
    let value = number(table, row, bound.column());
    let verdict = bound.judge(value);
    let column = bound.column();
    match (verdict, value, bound.limit(verdict)) {
        (Verdict::Within, ..) => Fate::Kept,
        (_, Some(value), Some(limit)) => {
            let side = if verdict == Verdict::Below { "below" } else { "above" };
            let reason = format!("{column} {value} is {side} {limit}");
            Fate::Dropped { filter: column.into(), verdict: Some(verdict), reason }
        }
        _ => Fate::Failed(match table.get(row, column).and_then(value::present) {
            None => format!("it has no {column}"),
            Some(text) => format!("its {column} is '{text}', expected a number"),
        }),
    }
}

/// Drops near-duplicates among the remaining rows.
fn drop_duplicates(table: &mut Table, judged: &mut Judged, spec: Duplicates) {
    let (mut rows, mut clips) = (Vec::new(), Vec::new());
    for (row, _) in judged.rows.iter().filter(|(_, fate)| *fate == Fate::Kept) {
        let Some(hash) = table.get(*row, HASH).and_then(ClipHash::from_text) else { continue };
        let side = |column| number(table, *row, column).unwrap_or(0.0);
        let (duration, pixels) = (side("duration"), side("width") * side("height"));
        rows.push(*row);
        clips.push(Candidate { hash, duration, pixels });
    }
    let found = duplicates::find(&clips, spec);
    let found: HashMap<usize, _> = rows.iter().copied().zip(found).collect();
    table.ensure(DUPLICATE_OF);
    let mut fates = HashMap::new();
    for (row, duplicate) in found {
        let (of, fate) = match duplicate {
            None => (String::new(), Fate::Kept),
            Some(duplicate) => {
                let of = table.get(rows[duplicate.of], PATH).unwrap_or_default().to_string();
                let distance = duplicate.distance;
                let reason = format!("near-duplicate of {of}: {distance} of 64 bits differ");
                let filter = "duplicates".to_string();
                (of, Fate::Dropped { filter, verdict: None, reason })
            }
        };
        table.set(row, DUPLICATE_OF, of);
        fates.insert(row, fate);
    }
    judged.apply("duplicates", |row| match fates.get(&row) {
        Some(fate) => fate.clone(),
        None => Fate::Failed(format!("it has no {HASH}")),
    });
}

#[cfg(test)]
mod tests;
