//! From outcomes back to tables, and how the files of a step are named.
//!
//! A step that writes `clips.csv` keeps its journal in `clips.csv.journal.jsonl` and lists the rows
//! that it could not use, with the reason, in `clips.failed.csv`; a part of a job array puts its
//! number into all three names, so that parts never write over each other.

use crate::{
    PrepareError,
    open::identity,
    step::{Outcome, Shard},
};
use opensora_files::{folder_of, remove_leftovers};
use opensora_manifest::{Table, table::PATH};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

/// The column that says why a row could not be used.
pub const REASON: &str = "reason";

/// Where the step that writes `out` keeps its journal.
pub fn journal_path(out: &Path) -> PathBuf {
    let mut name: OsString = out.as_os_str().into();
    name.push(".journal.jsonl");
    name.into()
}

/// Where the step that writes `out` lists the rows that it could not use.
pub fn failed_path(out: &Path) -> PathBuf {
    out.with_extension("failed.csv")
}

/// Where a part of the rows is written: `out` itself where the part is all of them, else, say,
/// `clips.0-of-4.csv`.
pub fn shard_path(out: &Path, shard: Shard) -> PathBuf {
    if shard == Shard::WHOLE {
        return out.into();
    }
    let part = shard.to_string().replace('/', "-of-");
    let ending = out.extension().map(|ending| ending.to_string_lossy().into_owned());
    out.with_extension(ending.map_or(part.clone(), |ending| format!("{part}.{ending}")))
}

/// How old something half-written is when its writer is gone: nothing here takes that long.
pub(crate) const LEFTOVER: Duration = Duration::from_secs(24 * 3600);

/// Makes the folder of a step's files, and removes half-written ones of killed runs from it.
///
/// # Errors
/// Where the operating system refuses.
pub fn make_folder(out: &Path) -> Result<(), PrepareError> {
    let folder = folder_of(out);
    let io = |source| PrepareError::Io { path: folder.into(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    // Of killed runs. They take room and nothing else.
    let _ = remove_leftovers(folder, LEFTOVER);
    Ok(())
}

/// What the rows of a table are known by from run to run: the fields of one column.
///
/// Paths below the folder of the step's output are taken relative to it, so that a journal is
/// still good where the folder was moved. A row whose field is empty or was there before, or whose path
/// leads to the file of an earlier row, cannot be worked on; it gets a key of its own, under which the step
/// records that failure.
#[derive(Debug, Clone)]
pub struct Keys {
    keys: Vec<String>,
    refused: HashMap<usize, String>,
}

impl Keys {
    /// Keys of the rows of `table` by `column`, for a step that writes `out`.
    pub fn of(table: &Table, column: &str, out: &Path) -> Self {
        let folder = std::path::absolute(out).ok();
        let folder = folder.as_deref().and_then(Path::parent);
        let (mut keys, mut refused) = (Vec::with_capacity(table.len()), HashMap::new());
        let mut first = HashMap::<PathBuf, usize>::new();
        for row in 0..table.len() {
            let field = table.get(row, column).unwrap_or_default();
            let mut key = match folder {
                Some(folder) if column == PATH => below(field, folder),
                _ => field.into(),
            };
            let one = if column == PATH { identity(Path::new(field)) } else { field.into() };
            if key.is_empty() {
                refused.insert(row, format!("it has no {column}"));
            } else if let Some(&first) = first.get(&one) {
                let is_same = table.get(first, column) == Some(field);
                let what = if is_same { column } else { "file" };
                refused.insert(row, format!("its {what} is that of row {} as well", first + 1));
            } else {
                first.insert(one, row);
            }
            if refused.contains_key(&row) {
                // A line break is in no path and in no address.
                key = format!("{key}\nrow {}", row + 1);
            }
            keys.push(key);
        }
        Self { keys, refused }
    }

    /// All of them, one for each row, each once.
    pub fn all(&self) -> &[String] {
        &self.keys
    }

    /// Fails with the reason why a row cannot be worked on.
    ///
    /// # Errors
    /// One line.
    pub fn check(&self, row: usize) -> Result<(), String> {
        self.refused.get(&row).map_or(Ok(()), |reason| Err(reason.clone()))
    }
}

/// A path from `folder` where it lies below that.
fn below(path: &str, folder: &Path) -> String {
    if path.is_empty() {
        return String::new();
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    absolute.strip_prefix(folder).unwrap_or(&absolute).to_string_lossy().into_owned()
}

/// Fields of an output row; those that are not named are the input row's.
pub type Fields = Vec<(&'static str, String)>;

/// What a step writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Rows for the next step.
    pub output: Table,
    /// Rows that could not be used, and [`REASON`].
    pub failed: Table,
}

/// Writes the list of rows that the step which writes `out` could not use. Without such rows there
/// is none.
pub(crate) fn write_list(failed: &Table, out: &Path) -> Result<(), PrepareError> {
    let path = failed_path(out);
    if !failed.is_empty() {
        failed.write(&path)?;
    } else if path.exists() {
        let io = |source| PrepareError::Io { path: path.clone(), source };
        std::fs::remove_file(&path).map_err(io)?;
    }
    Ok(())
}

/// A step in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Rows that it was given, of its shard.
    pub input: usize,
    /// Rows that it wrote.
    pub output: usize,
    /// Rows that it could not use.
    pub failed: usize,
}

impl Tables {
    /// From the outcomes of a step over `input`, in the order of its rows. `rows` turns a row's
    /// record into any number of output rows, or into a reason why there is none; `added` names the
    /// columns that the step adds, so that they are there without rows as well.
    pub fn assemble<T>(
        input: &Table,
        added: &[&str],
        outcomes: Vec<Option<Outcome<T>>>,
        mut rows: impl FnMut(usize, T) -> Result<Vec<Fields>, String>,
    ) -> Self {
        // A list of failures that is tried again brings its old reasons along.
        let kept: Vec<&str> =
            input.columns().iter().map(String::as_str).filter(|column| *column != REASON).collect();
        let copy = |row: usize| {
            kept.iter().map(move |column| (*column, input.get(row, column).unwrap_or("").into()))
        };
        let mut output = Table::new(kept.iter().chain(added).copied());
        let mut failed = Table::new(kept.iter().copied().chain([REASON]));
        for (row, outcome) in outcomes.into_iter().enumerate() {
            let made = match outcome {
                None => continue,
                Some(Outcome::Done(record)) => rows(row, record),
                Some(Outcome::Failed(reason)) => Err(reason),
            };
            match made {
                Ok(made) => {
                    for fields in made {
                        output.push(copy(row).chain(fields));
                    }
                }
                Err(reason) => failed.push(copy(row).chain([(REASON, reason)])),
            }
        }
        Self { output, failed }
    }

    /// Writes both tables, the output last: where it is, all is. Without failures there is no list
    /// of them.
    ///
    /// # Errors
    /// Where one cannot be written.
    pub fn write(&self, out: &Path) -> Result<(), PrepareError> {
        write_list(&self.failed, out)?;
        Ok(self.output.write(out)?)
    }

    /// The step in numbers; `input` is the number of rows that it was given.
    pub fn summary(&self, input: usize) -> Summary {
        Summary { input, output: self.output.len(), failed: self.failed.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_manifest::table::TEXT;

    #[test]
    fn files_are_named_after_the_output() {
        let out = Path::new("set/clips.v1.csv");
        assert_eq!(journal_path(out), Path::new("set/clips.v1.csv.journal.jsonl"));
        assert_eq!(failed_path(out), Path::new("set/clips.v1.failed.csv"));
        assert_eq!(shard_path(out, Shard::WHOLE), out);
        let part = shard_path(out, Shard::new(3, 8).unwrap());
        assert_eq!(part, Path::new("set/clips.v1.3-of-8.csv"));
        assert_eq!(failed_path(&part), Path::new("set/clips.v1.3-of-8.failed.csv"));
    }

    #[test]
    fn a_row_gives_none_one_or_several() {
        let mut input = Table::new([PATH, REASON, TEXT]);
        for (path, text) in [("/a", "fog"), ("/b", ""), ("/c", "sea"), ("/d", ""), ("/e", "")] {
            input.push([(PATH, path.into()), (TEXT, text.into()), (REASON, "of old".into())]);
        }
        let outcomes = vec![
            Some(Outcome::Done(2)),
            Some(Outcome::Failed("torn".into())),
            Some(Outcome::Done(0)),
            None,
            Some(Outcome::Done(9)),
        ];
        let tables =
            Tables::assemble(&input, &["part"], outcomes, |row, parts: usize| match parts {
                9 => Err("too many".into()),
                _ => {
                    let name = input.get(row, PATH).unwrap();
                    let fields = |part: usize| {
                        vec![(PATH, format!("{name}-{part}")), ("part", part.to_string())]
                    };
                    Ok((0..parts).map(fields).collect())
                }
            });
        assert_eq!(tables.output.columns(), [PATH, TEXT, "part"]);
        assert_eq!(tables.output.len(), 2);
        assert_eq!(tables.output.row(1).unwrap(), ["/a-1", "fog", "1"]);
        assert_eq!(tables.failed.columns(), [PATH, TEXT, REASON]);
        assert_eq!(tables.failed.row(0).unwrap(), ["/b", "", "torn"]);
        assert_eq!(tables.failed.row(1).unwrap(), ["/e", "", "too many"]);
        assert_eq!(tables.summary(4), Summary { input: 4, output: 2, failed: 2 });

        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.csv");
        tables.write(&out).unwrap();
        assert_eq!(Table::read(&out).unwrap(), tables.output);
        assert_eq!(Table::read(&failed_path(&out)).unwrap(), tables.failed);
        // Tried again with success: the list of failures goes.
        Tables { failed: Table::new([PATH, REASON]), ..tables }.write(&out).unwrap();
        assert!(!failed_path(&out).exists());
    }

    #[test]
    fn keys_survive_a_move_and_twins_do_not_stop_a_step() {
        let keys = |folder: &str| {
            let mut table = Table::new([PATH]);
            for path in [format!("{folder}/raw/a.mp4"), "/else/b.mp4".into(), String::new()] {
                table.push([(PATH, path)]);
            }
            table.push([(PATH, format!("{folder}/raw/a.mp4"))]);
            table.push([]);
            Keys::of(&table, PATH, &Path::new(folder).join("clips.csv"))
        };
        let here = keys("/here");
        assert_eq!(here.all(), keys("/there").all());
        assert_eq!(here.all()[..2], ["raw/a.mp4", "/else/b.mp4"]);
        let reasons: Vec<_> = (0..5).map(|row| here.check(row)).collect();
        let (twin, none) = ("its path is that of row 1 as well", "it has no path");
        let refused = |reason: &str| Err(reason.to_string());
        assert_eq!(reasons, [Ok(()), Ok(()), refused(none), refused(twin), refused(none)]);
        let mut distinct = here.all().to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 5);
    }
}
