//! Cleans captions and paths, drops unusable rows, and counts frames.
//!
//! Every change is counted. Unusable rows are listed beside the output with the reason.
//!
//! Source: hpcaitech/Open-Sora, `tools/datasets/csvutil.py` as it became after 1.0.0 (`--remove-caption-prefix`,
//! `--remove-empty-caption`, `--relength`, `--ext`, `--relpath`, `--abspath`).

pub mod caption;
mod frames;

pub use caption::Openings;

use crate::{
    Observer, PrepareError, RowError, RunOptions, Shard, Summary,
    assemble::{REASON, failed_path, write_list},
};
use opensora_files::{folder_of, one_line};
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH, TEXT},
    value,
};
use serde::Serialize;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

/// Treatment of unusable rows: dropped or kept. They are listed with the reason in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// Drops them.
    #[default]
    Drop,
    /// Keeps them; the list marks them with "(kept)".
    List,
}

/// The form of paths in the output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// Relative to the output's folder for files below it, so that the folder can be moved.
    #[default]
    Movable,
    /// Absolute.
    Absolute,
    /// Relative to this folder for files below it. Readers of the output need the folder as well.
    From(PathBuf),
}

/// Treatment of captions, paths and unusable rows by the step `clean`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// Openings that are removed from captions.
    pub openings: Openings,
    /// Treatment of rows without caption. Ignored for tables without a column of captions.
    pub empty: Treatment,
    /// Treatment of rows whose file is missing or, with `relength`, cannot be read. Ignored for tables
    /// without a column of paths.
    pub unusable: Treatment,
    /// Counts the frames of each file again.
    pub relength: bool,
    /// Form of paths in the output.
    pub naming: Naming,
    /// Workers, shard of the rows, and retries of files that could not be read.
    pub options: RunOptions,
}

/// Row counts of a cleaning, by change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Rows of the input.
    pub rows: usize,
    /// Rows of the output.
    pub written: usize,
    /// Unusable rows, dropped or kept.
    pub listed: usize,
    /// Captions whose opening was removed.
    pub openings: usize,
    /// Captions whose spaces were normalized.
    pub spaces: usize,
    /// Captions that are empty, also after removing an opening.
    pub empty: usize,
    /// Missing files.
    pub missing: usize,
    /// Existing files whose frames cannot be counted.
    pub unreadable: usize,
    /// Numbers of frames that were wrong or missing.
    pub recounted: usize,
    /// Files with absolute paths because they are outside the folder of relative paths.
    pub elsewhere: usize,
}

impl Report {
    /// Returns the row counts; all listed rows count as failed.
    pub fn summary(&self) -> Summary {
        Summary { input: self.rows, output: self.written, failed: self.listed }
    }
}

/// Cleans a table and writes it to `out`, with the list of unusable rows beside it. The list is
/// written first, so that it is complete if the table exists; without such rows there is none.
///
/// # Errors
/// Returns an error if a file of the step cannot be read or written, or the observer stops the count
/// of frames.
pub fn run(
    job: &Job,
    input: &Table,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Report, PrepareError> {
    let shard = job.options.shard;
    if shard != Shard::WHOLE && job.naming != Naming::Movable {
        return Err(PrepareError::Spec {
            field: "shard",
            found: shard.to_string(),
            expected: "0/1 with absolute or relative paths: name the files in the merged table",
        });
    }
    let input: Cow<'_, Table> = match shard == Shard::WHOLE {
        true => Cow::Borrowed(input),
        false => Cow::Owned(input.select((0..input.len()).filter(|&row| shard.holds(row)))),
    };
    let input = &*input;
    let missing = missing(input);
    let frames = if job.relength && input.column(PATH).is_some() {
        let skip: Vec<bool> = missing.iter().map(Option::is_some).collect();
        frames::count(job, input, &skip, out, observer)?
    } else {
        (0..input.len()).map(|_| None).collect()
    };

    let mut output = input.clone();
    if job.relength {
        output.ensure(NUM_FRAMES);
    }
    // A list that is cleaned again has the old reasons.
    output.remove(REASON);
    let mut cleaned = Cleaned {
        job,
        input,
        output,
        report: Report { rows: input.len(), ..Report::default() },
        reasons: vec![Vec::new(); input.len()],
        kept: Vec::with_capacity(input.len()),
    };
    for (row, (missing, frames)) in missing.into_iter().zip(frames).enumerate() {
        cleaned.row(row, missing, frames);
    }
    cleaned.write(out)
}

/// The rows of a table as they are cleaned.
struct Cleaned<'a> {
    job: &'a Job,
    input: &'a Table,
    output: Table,
    report: Report,
    /// Problems by row.
    reasons: Vec<Vec<String>>,
    /// Rows of the output.
    kept: Vec<usize>,
}

impl Cleaned<'_> {
    /// Cleans a row. `missing` is why its file does not exist, `frames` the count of its frames.
    fn row(
        &mut self,
        row: usize,
        missing: Option<RowError>,
        frames: Option<Result<usize, String>>,
    ) {
        let Self { job, input, output, report, reasons, kept } = self;
        let mut keep = true;
        let mut note = |treatment: Treatment, reason: String| {
            keep &= treatment == Treatment::List;
            reasons[row].push(reason);
        };
        if let Some(text) = input.get(row, TEXT) {
            let cleaned = caption::clean(text, &job.openings);
            report.spaces += usize::from(cleaned.spaces);
            report.openings += usize::from(cleaned.openings);
            if value::is_missing(&cleaned.text) {
                report.empty += 1;
                note(
                    job.empty,
                    match cleaned.openings {
                        true => format!("its caption is only an opening: {}", text.trim()),
                        false => "its caption is empty".into(),
                    },
                );
            }
            output.set(row, TEXT, cleaned.text);
        }
        if let Some(error) = missing {
            report.missing += 1;
            note(job.unusable, error.reason(None));
        }
        match frames {
            None => {}
            Some(Ok(frames)) => {
                let frames = frames.to_string();
                report.recounted += usize::from(input.get(row, NUM_FRAMES) != Some(&frames));
                output.set(row, NUM_FRAMES, frames);
            }
            Some(Err(reason)) => {
                report.unreadable += 1;
                note(job.unusable, format!("its frames cannot be counted: {reason}"));
            }
        }
        if keep {
            kept.push(row);
        }
    }

    /// Writes the list of unusable rows and the table.
    fn write(mut self, out: &Path) -> Result<Report, PrepareError> {
        let failed = list(self.input, &self.reasons, &self.kept);
        (self.report.written, self.report.listed) = (self.kept.len(), failed.len());
        let output = self.output.select(self.kept);
        let root = match &self.job.naming {
            Naming::Movable => Some(folder_of(out)),
            Naming::Absolute => None,
            Naming::From(root) => Some(root.as_path()),
        };
        self.report.elsewhere = root.map_or(Ok(0), |root| elsewhere(&output, root))?;
        write_list(&failed, &failed_path(out))?;
        output.write_with_root(out, root)?;
        Ok(self.report)
    }
}

/// Returns why the file of each row does not exist; `None` if it does.
fn missing(input: &Table) -> Vec<Option<RowError>> {
    let error = |row: usize| match input.get(row, PATH)? {
        "" => Some(RowError::NoValue(PATH.into())),
        path => std::fs::metadata(path).err().map(RowError::from),
    };
    (0..input.len()).map(error).collect()
}

/// Returns the unusable rows, unchanged, with their reasons.
fn list(input: &Table, reasons: &[Vec<String>], kept: &[usize]) -> Table {
    let rows: Vec<usize> = (0..input.len()).filter(|&row| !reasons[row].is_empty()).collect();
    let mut list = input.select(rows.iter().copied());
    list.ensure(REASON);
    for (at, &row) in rows.iter().enumerate() {
        let suffix = if kept.binary_search(&row).is_ok() { " (kept)" } else { "" };
        let reason = one_line(reasons[row].join("; "));
        list.set(at, REASON, format!("{reason}{suffix}"));
    }
    list
}

/// Returns the number of files outside `root`.
fn elsewhere(table: &Table, root: &Path) -> Result<usize, PrepareError> {
    // Paths are computed as for a table in that folder.
    let place = root.join("table");
    let paths = (0..table.len()).filter_map(|row| table.get(row, PATH));
    paths.filter(|path| !path.is_empty()).try_fold(0, |count, path| {
        Ok(count + usize::from(Table::name_in(&place, Path::new(path))?.is_absolute()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::failed_path;
    use opensora_video::{Frames, png};

    /// Writes a folder of this many frames.
    fn film(path: &Path, frames: usize) {
        std::fs::create_dir(path).unwrap();
        let still = Frames::from_rgb(vec![7; 16 * 16 * 3], [1, 16, 16]).unwrap();
        for frame in 0..frames {
            png::write(&path.join(format!("frame_{frame:05}.png")), &still).unwrap();
        }
    }

    /// A folder with some files, and their table.
    fn world() -> (tempfile::TempDir, Table) {
        let folder = tempfile::tempdir().unwrap();
        film(&folder.path().join("film"), 3);
        std::fs::write(folder.path().join("still.png"), "").unwrap();
        std::fs::write(folder.path().join("torn.mp4"), "torn").unwrap();
        let path = folder.path().join("all.csv");
        std::fs::write(
            &path,
            "path,text,num_frames,aes\n\
             film,The video shows  a fox,5,1\n\
             still.png,In this image,,2\n\
             still.png,A sea,1,3\n\
             torn.mp4,A tree,9,4\n\
             gone.mp4,,9,5\n\
             film,\"In this video, fog\",3,6\n",
        )
        .unwrap();
        (folder, Table::read(&path).unwrap())
    }

    fn column(table: &Table, name: &str) -> Vec<String> {
        (0..table.len()).map(|row| table.get(row, name).unwrap().into()).collect()
    }

    #[test]
    fn changes_are_counted_and_dropped_rows_listed() {
        let (folder, table) = world();
        let out = folder.path().join("clean.csv");
        let options = RunOptions { workers: 2, ..RunOptions::default() };
        let job = Job { relength: true, options, ..Job::default() };
        let counts = run(&job, &table, &out, &mut ()).unwrap();
        let expected = Report {
            rows: 6,
            written: 4,
            listed: 2,
            openings: 2,
            spaces: 1,
            empty: 1,
            missing: 1,
            unreadable: 1,
            recounted: 2,
            elsewhere: 0,
        };
        assert_eq!(counts, expected);
        let written = Table::read(&out).unwrap();
        assert_eq!(column(&written, TEXT), ["A fox", "In this image", "A sea", "Fog"]);
        assert_eq!(column(&written, NUM_FRAMES), ["3", "1", "1", "3"]);
        assert_eq!(column(&written, "aes"), ["1", "2", "3", "6"]);
        let list = Table::read(&failed_path(&out)).unwrap();
        assert_eq!(column(&list, TEXT), ["A tree", ""]);
        let reasons = column(&list, REASON);
        assert!(reasons[0].starts_with("its frames cannot be counted: "), "{reasons:?}");
        assert!(reasons[1].starts_with("its caption is empty; No such file"), "{reasons:?}");

        // A second cleaning changes nothing; a changed file is counted again.
        std::fs::remove_dir_all(folder.path().join("film")).unwrap();
        film(&folder.path().join("film"), 2);
        let counts = run(&job, &written, &out, &mut ()).unwrap();
        let expected = Report { rows: 4, written: 4, recounted: 2, ..Report::default() };
        assert_eq!(counts, expected);
        assert!(!failed_path(&out).exists());
    }

    #[test]
    fn rows_can_be_listed_and_kept() {
        let (folder, table) = world();
        let out = folder.path().join("clean.csv");
        let job = Job {
            empty: Treatment::List,
            unusable: Treatment::List,
            openings: Openings::parse("in this image"),
            ..Job::default()
        };
        let counts = run(&job, &table, &out, &mut ()).unwrap();
        assert_eq!((counts.rows, counts.written, counts.listed), (6, 6, 2));
        let list = Table::read(&failed_path(&out)).unwrap();
        let reasons = column(&list, REASON);
        assert_eq!(reasons[0], "its caption is only an opening: In this image (kept)");
        assert!(reasons[1].ends_with("(kept)"));
        // A journal is written only if frames are counted.
        assert!(!folder.path().join("clean.csv.journal.jsonl").exists());
    }

    #[test]
    fn paths_have_the_requested_form() {
        let (folder, table) = world();
        let out = folder.path().join("other/clean.csv");
        std::fs::create_dir(folder.path().join("other")).unwrap();
        let first = |naming: Naming| {
            let job = Job { naming, ..Job::default() };
            let counts = run(&job, &table, &out, &mut ()).unwrap();
            let text = std::fs::read_to_string(&out).unwrap();
            let line = text.lines().nth(1).unwrap().split(',').next().unwrap().to_string();
            (line, counts.elsewhere)
        };
        let absolute = folder.path().join("film").to_str().unwrap().to_string();
        assert_eq!(first(Naming::Movable), (absolute.clone(), 5));
        assert_eq!(first(Naming::Absolute), (absolute, 0));
        assert_eq!(first(Naming::From(folder.path().into())), ("film".into(), 0));
    }
}
