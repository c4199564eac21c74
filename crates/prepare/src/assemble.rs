//! Keys of rows, tables built from the outcomes of rows, and the names of a step's files.
//!
//! A step that writes `clips.csv` has its journal in `clips.csv.journal.jsonl` and lists the rows that
//! it cannot use in `clips.failed.csv`, with the reason. A shard puts its number into all three names,
//! so that shards never overwrite each other's files. Without an ending, the number of a shard is the end of
//! the table's name (`clips.0-of-4`), and the other names add to it (`clips.0-of-4.failed.csv`).

use crate::{
    PrepareError, RowError,
    open::identity,
    ranges,
    step::{Outcome, Shard},
};
use opensora_files::{check_file_path, folder_of, remove_if_present, remove_leftovers};
use opensora_manifest::{Table, table::PATH};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::Duration,
};

/// The column with the reason why a row cannot be used.
pub const REASON: &str = "reason";

/// Returns the path of the journal of a step that writes `out`.
pub fn journal_path(out: &Path) -> PathBuf {
    appended(out, ".journal.jsonl")
}

/// Returns a path with a suffix appended.
pub(crate) fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Returns the path of the list of rows that a step which writes `out` cannot use.
pub fn failed_path(out: &Path) -> PathBuf {
    beside(out, "failed.csv")
}

/// Returns the path of the list of rows that a filter which writes `out` dropped.
pub fn dropped_path(out: &Path) -> PathBuf {
    beside(out, "dropped.csv")
}

/// Returns the path of a file that belongs to the table `out`, with another ending. The number of a shard is not an
/// ending: it stays, so that the files of shards differ.
pub(crate) fn beside(out: &Path, ending: &str) -> PathBuf {
    match ends_in_part(out) {
        true => appended(out, &format!(".{ending}")),
        false => out.with_extension(ending),
    }
}

/// Returns true for the path of a shard's table without ending, such as `clips.0-of-4`.
pub(crate) fn ends_in_part(out: &Path) -> bool {
    out.extension().and_then(OsStr::to_str).is_some_and(|ending| part_number(ending).is_some())
}

/// Returns index and count of a shard, as [`shard_path`] writes them: `0-of-4`.
pub(crate) fn part_number(text: &str) -> Option<(usize, usize)> {
    let (index, count) = text.split_once("-of-")?;
    Some((index.parse().ok()?, count.parse().ok()?))
}

/// Checks that a step does not overwrite the table that it reads: the next run would read it without the rows that
/// failed, and remove their list.
///
/// # Errors
/// Returns an error if `out`, or a list of failed or dropped rows beside it, is the file `data`, also by a link.
pub(crate) fn check_out(data: &Path, out: &Path) -> Result<(), PrepareError> {
    check_written(data, [out.into(), failed_path(out), dropped_path(out)])
}

/// Checks that none of the files that are written is the file `data`, also by a link.
pub(crate) fn check_written(
    data: &Path,
    written: impl IntoIterator<Item = PathBuf>,
) -> Result<(), PrepareError> {
    let data = identity(data);
    match written.into_iter().find(|path| identity(path) == data) {
        Some(path) => Err(PrepareError::SameFile { path }),
        None => Ok(()),
    }
}

/// Returns the path of a shard's table ([`shard_path`]) of a step that reads the table `data`.
///
/// # Errors
/// Returns an error if `data` is this path, or `out`, to which the tables of shards are merged, or a list beside one of
/// them: it would be replaced by a table without the failed rows.
pub fn output_path(data: &Path, out: &Path, shard: Shard) -> Result<PathBuf, PrepareError> {
    check_out(data, out)?;
    let part = shard_path(out, shard);
    check_out(data, &part)?;
    check_file_path(&part).map_err(PrepareError::io(&part))?;
    Ok(part)
}

/// Returns the path of a shard's table: `out` for the whole table, else, for example,
/// `clips.0-of-4.csv`.
pub fn shard_path(out: &Path, shard: Shard) -> PathBuf {
    if shard == Shard::WHOLE {
        return out.into();
    }
    let part = shard.to_string().replace('/', "-of-");
    let ending = out.extension().map(|ending| ending.to_string_lossy().into_owned());
    out.with_extension(ending.map_or(part.clone(), |ending| format!("{part}.{ending}")))
}

/// Minimum age of temporary files that [`make_folder`] removes; a running process finishes its files in less time.
pub(crate) const LEFTOVER: Duration = Duration::from_secs(24 * 3600);

/// Creates the folder of a step's files, and removes temporary files of killed runs from it.
///
/// # Errors
/// Returns an error if the folder cannot be created, or `out` is a folder or device.
pub fn make_folder(out: &Path) -> Result<(), PrepareError> {
    check_file_path(out).map_err(PrepareError::io(out))?;
    let folder = folder_of(out);
    std::fs::create_dir_all(folder).map_err(PrepareError::io(folder))?;
    // They only take up space.
    let _ = remove_leftovers(folder, LEFTOVER);
    Ok(())
}

/// The keys that identify the rows of a table from run to run: the values of one column.
///
/// Paths below the folder of the step's output are relative to it, so that a journal stays valid after
/// the folder is moved. The key of a row with a clip range ([`CLIP_START`], [`CLIP_END`]) also names the
/// range, so that several ranges of one file have different keys. [`Keys::check`] rejects a row that has no value
/// or repeats the file and range, or the address, of an earlier row. A rejected row has a separate key, under which
/// the step records the failure.
///
/// [`CLIP_START`]: opensora_manifest::table::CLIP_START
/// [`CLIP_END`]: opensora_manifest::table::CLIP_END
#[derive(Debug, Clone)]
pub struct Keys {
    keys: Vec<String>,
    rejected: HashMap<usize, Rejected>,
}

/// Reason why a row is not processed.
#[derive(Debug, Clone)]
enum Rejected {
    NoValue { column: String },
    Repeated { what: String, first: usize },
}

impl Keys {
    /// Returns the keys of the rows of `table` by `column`, for a step that writes `out`.
    pub fn of(table: &Table, column: &str, out: &Path) -> Self {
        let folder = std::path::absolute(out).ok();
        let folder = folder.as_deref().and_then(Path::parent);
        let (mut keys, mut rejected) = (Vec::with_capacity(table.len()), HashMap::new());
        let mut first = HashMap::<(PathBuf, String), usize>::new();
        for row in 0..table.len() {
            let field = table.get(row, column).unwrap_or_default();
            let mut key = match folder {
                Some(folder) if column == PATH => below(field, folder),
                _ => field.into(),
            };
            let one = match column {
                PATH => (identity(Path::new(field)), ranges::key(table, row)),
                _ => (field.into(), String::new()),
            };
            if !key.is_empty() {
                key.push_str(&one.1);
            }
            if key.is_empty() {
                rejected.insert(row, Rejected::NoValue { column: column.into() });
            } else if let Some(&first) = first.get(&one) {
                let is_same = table.get(first, column) == Some(field);
                let what = if is_same { column } else { "file" };
                let what = match one.1.is_empty() {
                    true => what.to_string(),
                    false => format!("range of the {what}"),
                };
                rejected.insert(row, Rejected::Repeated { what, first });
            } else {
                first.insert(one, row);
            }
            if rejected.contains_key(&row) {
                // No path and no address has a line break.
                key = format!("{key}\nrow {}", row + 1);
            }
            keys.push(key);
        }
        Self { keys, rejected }
    }

    /// Returns the keys, one for each row. All are different.
    pub fn all(&self) -> &[String] {
        &self.keys
    }

    /// Checks that a row can be processed.
    ///
    /// # Errors
    /// Returns an error if the row has no value, or repeats the file and range, or the address, of an earlier row.
    pub fn check(&self, row: usize) -> Result<(), RowError> {
        match self.rejected.get(&row).cloned() {
            None => Ok(()),
            Some(Rejected::NoValue { column }) => Err(RowError::NoValue(column)),
            Some(Rejected::Repeated { what, first }) => Err(RowError::Repeated { what, first }),
        }
    }
}

/// Returns a path relative to `folder` if it is below it, else the absolute path.
fn below(path: &str, folder: &Path) -> String {
    if path.is_empty() {
        return String::new();
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    absolute.strip_prefix(folder).unwrap_or(&absolute).to_string_lossy().into_owned()
}

/// Fields of an output row. Columns that are not listed have the values of the input row.
pub type Fields = Vec<(&'static str, String)>;

/// The tables that a step writes: rows for the next step, and failed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Rows for the next step.
    pub output: Table,
    /// Rows that cannot be used, with the column [`REASON`].
    pub failed: Table,
}

/// Writes a list of rows, or removes the list of an earlier run if there are no rows.
///
/// # Errors
/// Returns an error if the list cannot be written or removed.
pub(crate) fn write_list(list: &Table, path: &Path) -> Result<(), PrepareError> {
    if !list.is_empty() {
        return Ok(list.write(path)?);
    }
    remove_if_present(path).map_err(PrepareError::io(path))
}

/// Row counts of a step: read, written and failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Rows of the input that belong to the shard.
    pub input: usize,
    /// Rows that were written.
    pub output: usize,
    /// Rows that cannot be used.
    pub failed: usize,
}

impl Tables {
    /// Builds the tables from the outcomes of a step, in the order of the rows of `input`. `rows`
    /// returns any number of output rows for a row's record, or why it has none. `added` are the columns
    /// that the step adds; a table without rows has them as well.
    pub fn assemble<T>(
        input: &Table,
        added: &[&str],
        outcomes: Vec<Option<Outcome<T>>>,
        mut rows: impl FnMut(usize, T) -> Result<Vec<Fields>, RowError>,
    ) -> Self {
        // A list of failures that is processed again has the old reasons.
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
                Some(Outcome::Done(record)) => {
                    rows(row, record).map_err(|error| error.reason(None))
                }
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

    /// Writes both tables. The output is written last, so that the list is complete if the output
    /// exists. Without failures there is no list.
    ///
    /// # Errors
    /// Returns an error if a table cannot be written.
    pub fn write(&self, out: &Path) -> Result<(), PrepareError> {
        write_list(&self.failed, &failed_path(out))?;
        Ok(self.output.write(out)?)
    }

    /// Returns the row counts; `input` is the number of input rows of the shard.
    pub fn summary(&self, input: usize) -> Summary {
        Summary { input, output: self.output.len(), failed: self.failed.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_manifest::table::{CLIP_END, CLIP_START, TEXT};

    #[test]
    fn a_folder_is_no_table() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("in.csv");
        for refused in
            [output_path(&data, folder.path(), Shard::WHOLE).map(drop), make_folder(folder.path())]
        {
            let error = opensora_files::error_line(&refused.unwrap_err());
            assert!(error.contains("it is a folder"), "{error}");
        }
    }

    #[test]
    fn file_names_derive_from_the_output() {
        let out = Path::new("set/clips.v1.csv");
        assert_eq!(journal_path(out), Path::new("set/clips.v1.csv.journal.jsonl"));
        assert_eq!(failed_path(out), Path::new("set/clips.v1.failed.csv"));
        assert_eq!(shard_path(out, Shard::WHOLE), out);
        let part = shard_path(out, Shard::new(3, 8).unwrap());
        assert_eq!(part, Path::new("set/clips.v1.3-of-8.csv"));
        assert_eq!(failed_path(&part), Path::new("set/clips.v1.3-of-8.failed.csv"));
    }

    #[test]
    fn shards_without_an_ending_share_no_files() {
        let part = |index| shard_path(Path::new("set/kept"), Shard::new(index, 2).unwrap());
        assert_eq!(part(0), Path::new("set/kept.0-of-2"));
        assert_eq!(failed_path(&part(0)), Path::new("set/kept.0-of-2.failed.csv"));
        assert_eq!(dropped_path(&part(1)), Path::new("set/kept.1-of-2.dropped.csv"));
        assert_eq!(beside(&part(1), "header.csv"), Path::new("set/kept.1-of-2.header.csv"));
        // Other names have no number.
        for (name, failed) in [
            ("kept", "kept.failed.csv"),
            ("best-of-80s", "best-of-80s.failed.csv"),
            ("a.best-of-80s", "a.failed.csv"),
        ] {
            assert_eq!(failed_path(Path::new(name)), Path::new(failed));
        }
    }

    #[test]
    fn the_table_that_is_read_is_no_output() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let part = Shard::new(0, 2).unwrap();
        let of = |data: &str, out: &str, shard| output_path(&path(data), &path(out), shard);
        for name in ["clips.csv", "clips.0-of-2.csv"] {
            std::fs::write(path(name), "path\n").unwrap();
        }
        assert_eq!(of("clips.csv", "kept.csv", part).unwrap(), path("kept.0-of-2.csv"));
        for (data, shard) in
            [("clips.csv", Shard::WHOLE), ("clips.csv", part), ("clips.0-of-2.csv", part)]
        {
            let same = of(data, "./clips.csv", shard).unwrap_err().to_string();
            let words = ": it is the table that is read, expected another file";
            assert!(same.ends_with(words), "{same}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("clips.csv", path("link.csv")).unwrap();
            assert!(of("link.csv", "clips.csv", Shard::WHOLE).is_err());
        }
        // Nor is a list beside the table.
        for list in ["kept.failed.csv", "kept.dropped.csv", "kept.0-of-2.failed.csv"] {
            std::fs::write(path(list), "path,reason\n").unwrap();
            assert!(of(list, "kept.csv", part).is_err(), "{list}");
            assert!(of(list, "again.csv", part).is_ok(), "{list}");
        }
    }

    #[test]
    fn a_row_has_zero_one_or_several_output_rows() {
        let mut input = Table::new([PATH, REASON, TEXT]);
        for (path, text) in [("/a", "fog"), ("/b", ""), ("/c", "sea"), ("/d", ""), ("/e", "")] {
            input.push([(PATH, path.into()), (TEXT, text.into()), (REASON, "old reason".into())]);
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
                9 => Err(RowError::from("too many")),
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
        // After a successful retry, the list of failures is removed.
        Tables { failed: Table::new([PATH, REASON]), ..tables }.write(&out).unwrap();
        assert!(!failed_path(&out).exists());
    }

    #[test]
    fn keys_survive_a_move_and_duplicate_rows_are_rejected() {
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
        let reasons: Vec<_> =
            (0..5).map(|row| here.check(row).map_err(|error| error.to_string())).collect();
        let (twin, none) = ("its path is that of row 1 as well", "it has no path");
        let refused = |reason: &str| Err(reason.to_string());
        assert_eq!(reasons, [Ok(()), Ok(()), refused(none), refused(twin), refused(none)]);
        let mut distinct = here.all().to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 5);
    }

    #[test]
    fn ranges_of_one_file_have_different_keys() {
        let mut table = Table::new([PATH, CLIP_START, CLIP_END]);
        for (start, end) in [
            ("", ""),
            ("1", "2.5"),
            ("1.0", "2.50"),
            ("", "2.5"),
            ("3", "NaN"),
            ("x", ""),
            ("x", ""),
        ] {
            let fields = [(PATH, "/here/a.mp4"), (CLIP_START, start), (CLIP_END, end)];
            table.push(fields.map(|(column, field)| (column, field.to_string())));
        }
        let keys = Keys::of(&table, PATH, Path::new("/here/clips.csv"));
        let expected = [
            "a.mp4",
            "a.mp4\nclip 1 2.5",
            "a.mp4\nclip 1 2.5\nrow 3",
            "a.mp4\nclip 0 2.5",
            "a.mp4\nclip 3 inf",
            "a.mp4\nclip \"x\" \"\"",
            "a.mp4\nclip \"x\" \"\"\nrow 7",
        ];
        assert_eq!(keys.all(), expected);
        let reasons: Vec<_> =
            (0..7).filter_map(|row| keys.check(row).err()).map(|error| error.to_string()).collect();
        let repeated =
            [2, 6].map(|row| format!("its range of the path is that of row {row} as well"));
        assert_eq!(reasons, repeated);

        // Ranges are of files: keys by other columns are unchanged.
        table.set(1, "url", "https://a");
        let keys = Keys::of(&table.select([1]), "url", Path::new("/here/clips.csv"));
        assert_eq!(keys.all(), ["https://a"]);
    }
}
