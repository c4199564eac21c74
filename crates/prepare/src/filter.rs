//! Filters: which clips a model shall learn from.
//!
//! Each filter has a column. What is not yet in the manifest is measured, every file in one pass
//! over its frames, and written to its column; then rows whose values are out of bounds are
//! dropped. Measures are journalled and do not depend on the bounds: with the same journal, or from
//! a table that already has the columns, other bounds cost no second look at the files. A file whose size
//! or time has changed since it was journalled is measured again.
//!
//! | column | value |
//! |---|---|
//! | `num_frames` | frames |
//! | `fps` | frames a second; none for pictures |
//! | `duration` | seconds; none for pictures |
//! | `width`, `height` | pixels |
//! | `short_side` | pixels of the shorter side |
//! | `pixels` | width times height |
//! | `aspect_ratio` | width by height |
//! | `text_characters`, `text_words` | length of the caption |
//! | `motion` | mean absolute difference of luma between neighbouring frames, in [0, 1] |
//! | `flow` | mean length of the optical flow between neighbouring frames, as a part of the shorter side: 0.01 is one pixel of 100 a frame |
//! | `brightness` | mean luma, in [0, 1] |
//! | `dark_share`, `bright_share` | part of the frames with a mean luma of at most 0.1, at least 0.9 |
//! | `hash` | perceptual hashes of five moments, for near-duplicates |
//!
//! Motion and brightness are those of frames shrunk to 128 pixels on the shorter side; flow is that
//! of at most 32 pairs of them. Pictures have no motion: 0. A bound may name any other column of
//! numbers as well, such as one that a model writes ([`Score`]) or that came with the data.
//!
//! A row is judged by the filters in the order of the bounds and goes at the first that it does not
//! pass; near-duplicates are looked for among those that pass all. Beside the output lie
//! `<stem>.dropped.csv` (with `filter` and `reason`) and `<stem>.failed.csv`, the rows whose file
//! cannot be read or that have no value where a bound wants one (with `reason`).
//!
//! Shards: measuring is done row by row and can be shared out, near-duplicates need all rows. So
//! the shards are measured with [`Job::score_only`] or [`Job::hashes`], their tables merged and brought into
//! the first table's order ([`arrange::in_order_of`](crate::arrange::in_order_of)), and the merged table is
//! filtered: with all columns there, hashes included, no file is opened again, and what stays is what would
//! have stayed without shards.

mod bound;
pub mod duplicates;
mod flow;
mod grey;
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
    PrepareError,
    step::{self, Fault, Outcome, Run, Shard, Watch},
};
use bound::Verdict;
use duplicates::{Candidate, ClipHash};
use measure::{Depth, HASH, HEADER, Measured, PIXELS, measure, rounded};
use opensora_manifest::{
    ManifestError, Table,
    table::{PATH, TEXT},
    value,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Columns that are made of others.
const DERIVED: [&str; 5] =
    ["short_side", "pixels", "aspect_ratio", "text_characters", "text_words"];
/// The column that says which clip a near-duplicate repeats.
const DUPLICATE_OF: &str = "duplicate_of";

/// Why a manifest could not be filtered; one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// The measuring.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A table that cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Limits that no value is within.
    #[error("{column}: from {min} to {max} lies no number")]
    Bound {
        /// The column.
        column: String,
        /// Its least value.
        min: String,
        /// Its greatest.
        max: String,
    },
    /// A bound of a column that is neither there nor measured.
    #[error("{column}: no such column, and nothing that is measured; the manifest has {columns}")]
    Column {
        /// The column.
        column: String,
        /// What there is.
        columns: String,
    },
    /// A model that cannot be used.
    #[error("{}: {reason}", path.display())]
    Model {
        /// The model.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What is filtered by, and where the result goes.
pub struct Job {
    /// The table of the rows that stay.
    pub out: PathBuf,
    /// Where measures are kept; `None`: beside the output, `<stem>.journal.jsonl`.
    pub journal: Option<PathBuf>,
    /// What rows are judged by, in this order.
    pub bounds: Vec<Bound>,
    /// Whether and how near-duplicates go.
    pub duplicates: Option<Duplicates>,
    /// Whether hashes are measured without looking for near-duplicates, for a table that will be merged
    /// with others.
    pub hashes: bool,
    /// Models that give clips scores, each of another column.
    pub models: Vec<Box<dyn Score>>,
    /// All columns are measured and no row is dropped; the report says what would have been.
    pub score_only: bool,
    /// Columns that are there count for nothing: everything is measured.
    pub measure_again: bool,
    /// Files measured at once.
    pub workers: usize,
    /// Which files; rows of others are no part of the output.
    pub shard: Shard,
    /// Whether files that could not be read in an earlier run are tried again.
    pub retry_failed: bool,
}

impl Job {
    /// Filters by nothing, in one thread.
    pub fn new(out: &Path) -> Self {
        Self {
            out: out.into(),
            journal: None,
            bounds: vec![],
            duplicates: None,
            hashes: false,
            models: vec![],
            score_only: false,
            measure_again: false,
            workers: 1,
            shard: Shard::WHOLE,
            retry_failed: false,
        }
    }

    /// The columns that rows need.
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

    /// Of the columns that rows need, those that a file gives.
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

    /// Fails where the job cannot be done on the table.
    fn check(&self, table: &Table) -> Result<(), FilterError> {
        if self.duplicates.is_some() && self.shard != Shard::WHOLE {
            return Err(PrepareError::Spec {
                field: "shard",
                found: self.shard.to_string(),
                expected: "0/1, as near-duplicates need all rows: measure hashes in the shards, \
                           merge their tables in the order of this one, then look for them",
            }
            .into());
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
            }
            .into());
        }
        let measurable = |column: &str| {
            known(column) && ![PATH, TEXT, HASH].contains(&column) || models.contains(&column)
        };
        let unknown =
            |bound: &&Bound| !measurable(bound.column()) && table.column(bound.column()).is_none();
        if let Some(bound) = self.bounds.iter().find(unknown) {
            return Err(FilterError::Column {
                column: bound.column().into(),
                columns: table.columns().join(", "),
            });
        }
        if table.column(PATH).is_none() && !self.measured().is_empty() {
            return Err(FilterError::Column {
                column: PATH.into(),
                columns: table.columns().join(", "),
            });
        }
        Ok(())
    }
}

/// Measures what is missing, judges the rows and writes what stays, what was dropped and what could
/// not be judged.
///
/// # Errors
/// Where the job cannot be done on this table, the journal is another job's, a file cannot be
/// written, or the watcher stops it. What is wrong with single rows is none.
pub fn run(table: &Table, job: &Job, watch: &mut dyn Watch) -> Result<Report, FilterError> {
    job.check(table)?;
    let files = Files::of(table, job.shard);
    let (outcomes, measured) = measured(table, &files, job, watch)?;

    let mut table = table.clone();
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
    judged.write(&table, job)?;
    Ok(judged.report)
}

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Kept,
    Dropped { filter: String, verdict: Option<Verdict>, reason: String },
    Failed(String),
}

/// Rows, and what was decided about them so far.
struct Judged {
    report: Report,
    rows: Vec<(usize, Fate)>,
}

impl Judged {
    /// Judges the rows that are left.
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
    fn write(&mut self, table: &Table, job: &Job) -> Result<(), FilterError> {
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
                            dropped.set(dropped.len() - 1, "filter", filter.as_str());
                            dropped.set(dropped.len() - 1, "reason", reason.as_str());
                        }
                    }
                }
                Fate::Failed(reason) => {
                    failed.push(fields(*row));
                    failed.set(failed.len() - 1, "reason", reason.as_str());
                }
            }
        }
        (self.report.kept, self.report.failed) = (kept.len(), failed.len());
        // The output last: where it is, the others are.
        write_or_remove(&dropped, &job.out.with_extension("dropped.csv"))?;
        write_or_remove(&failed, &job.out.with_extension("failed.csv"))?;
        Ok(table.select(kept).write(&job.out)?)
    }
}

/// Writes a list, or takes that of an earlier run away where there is nothing to list.
fn write_or_remove(list: &Table, path: &Path) -> Result<(), FilterError> {
    if !list.is_empty() {
        return Ok(list.write(path)?);
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PrepareError::Io { path: path.into(), source }.into())
        }
        _ => Ok(()),
    }
}

/// The files that rows name, each once.
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
            // By files, so that rows of one file are measured once.
            if shard.holds(file) {
                rows.push((row, file));
            }
        }
        Self { paths, rows }
    }
}

/// Measures the files of rows that lack a column; outcomes by file, and how many there are.
fn measured(
    table: &Table,
    files: &Files,
    job: &Job,
    watch: &mut dyn Watch,
) -> Result<(HashMap<usize, Outcome<Measured>>, usize), FilterError> {
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
    let keys: Vec<String> = open.iter().map(|&file| files.paths[file].clone()).collect();
    let run = Run {
        journal: journal(job, depth),
        settings: settings(job, depth),
        workers: job.workers,
        // The rows are the shard's already.
        shard: Shard::WHOLE,
        retry_failed: job.retry_failed,
    };
    let work = |index: usize| match keys[index].as_str() {
        "" => Err(Fault::Row("it has no path".into())),
        path => measure(Path::new(path), depth, &job.models).map_err(Fault::Row),
    };
    let path = |index: usize| Path::new(&keys[index]);
    let outcomes = step::run_on_files(&run, &keys, path, work, watch)?;
    let outcomes = open.iter().copied().zip(outcomes);
    let outcomes = outcomes.filter_map(|(file, outcome)| Some((file, outcome?))).collect();
    Ok((outcomes, keys.len()))
}

/// Where measures are kept. Headers have a journal of their own: what they say is no part of a
/// record of all frames.
fn journal(job: &Job, depth: Depth) -> PathBuf {
    match (&job.journal, depth) {
        (Some(journal), Depth::Pixels) => journal.clone(),
        (Some(journal), Depth::Header) => journal.with_extension("header.jsonl"),
        (None, Depth::Pixels) => job.out.with_extension("journal.jsonl"),
        (None, Depth::Header) => job.out.with_extension("header.journal.jsonl"),
    }
}

/// All that measures depend on.
fn settings(job: &Job, depth: Depth) -> Value {
    let models: Vec<Value> = match depth {
        Depth::Header => vec![],
        Depth::Pixels => job.models.iter().map(|model| model.settings()).collect(),
    };
    let depth = if depth == Depth::Header { "header" } else { "pixels" };
    // The version grows where a measure changes.
    json!({"step": "filter", "version": 1, "depth": depth, "models": models})
}

/// A column's number; what is no finite number is none.
fn number(table: &Table, row: usize, column: &str) -> Option<f64> {
    value::number(table.get(row, column)?)
}

/// Writes what was measured: it is true whatever was stated before.
fn write_measures(table: &mut Table, row: usize, measured: &Measured, job: &Job) {
    let models = job.models.iter().map(|model| model.column());
    for column in HEADER.into_iter().chain(PIXELS).chain(models) {
        if let Some(value) = measured.numbers.get(column) {
            table.set(row, column, value.to_string());
        } else if !HEADER.contains(&column) && table.column(column).is_some() && deep(measured) {
            // A value of an earlier model or file is not this one's.
            table.set(row, column, "");
        }
    }
    if let Some(hash) = &measured.hash {
        table.set(row, HASH, hash.as_str());
    }
}

/// Whether all of a clip's frames were seen.
fn deep(measured: &Measured) -> bool {
    measured.hash.is_some()
}

/// Writes the wanted columns that are made of others.
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

/// What a bound makes of a row.
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

/// Looks for near-duplicates among the rows that are left.
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
