//! Manifests merged and split. Rows keep their order, and nothing is lost without a word.
//!
//! Source: hpcaitech/Open-Sora, `tools/datasets/csvutil.py` as it became after 1.0.0 (several inputs, `--shard`).
//! Deviations: files that come twice are found, and shares go by hashes of names.

mod shares;

pub use shares::Shares;

use crate::{
    PrepareError,
    assemble::{REASON, write_list},
    open::identity,
};
use opensora_manifest::{
    Table,
    table::{PATH, URL},
    value,
};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

/// The column of the video that a clip was cut from.
const SOURCE: &str = "source";

/// Which of the rows of one file stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The one that comes first.
    First,
    /// The one that comes last, where it stands.
    Last,
}

/// What came of tables that were merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The rows in order, with the columns of all tables; fields that a table does not have are
    /// empty.
    pub output: Table,
    /// Rows of files that came again, with a column `reason`.
    pub dropped: Table,
}

impl Merged {
    /// Writes the table and, beside it, the list of rows that were dropped (`.failed.csv`); the list
    /// first, so that where the table is, all is.
    ///
    /// # Errors
    /// Where one cannot be written.
    pub fn write(&self, out: &Path) -> Result<(), PrepareError> {
        write_list(&self.dropped, out)?;
        Ok(self.output.write(out)?)
    }
}

/// Puts tables behind one another by the names of their columns; with each comes what messages call
/// it. Rows are of one file where their paths lead to the same one, also by links, or, without paths,
/// where their addresses are equal; rows with neither are all kept.
///
/// # Errors
/// Returns an error if a table is a list of failures ([`PrepareError::FailureList`]), or if a file comes
/// again and `keep` does not say which of its rows stays.
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
        return Err(PrepareError::Again { key, first, second, count: again });
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

/// Brings the rows of a merged table into the order of the table that the parts were made of. Its rows are
/// found by their files, and clips of a video by their `source`; those of one video stay in their order, and
/// rows that are in neither come last.
///
/// With this, the first of several rows is the same whether a table was worked on in parts or not.
pub fn in_order_of(merged: &Table, origin: &Table) -> Table {
    let mut places = HashMap::new();
    for row in 0..origin.len() {
        if let Some(key) = key(origin, row) {
            places.entry(key).or_insert(row);
        }
    }
    let of_source = |row: usize| {
        let source = merged.get(row, SOURCE).and_then(value::present)?;
        let by_file = identity(Path::new(source)).to_string_lossy().into_owned();
        places.get(&by_file).or_else(|| places.get(source))
    };
    let place = |&row: &usize| {
        let own = key(merged, row).and_then(|key| places.get(&key));
        own.or_else(|| of_source(row)).copied().unwrap_or(usize::MAX)
    };
    let mut rows: Vec<usize> = (0..merged.len()).collect();
    rows.sort_by_cached_key(place);
    merged.select(rows)
}

/// The parts of a job array that are not among these files, as `i-of-n`: `clips.0-of-4.csv` says that there
/// are three more. Empty unless the files are all parts of one array: of one folder, with names that are
/// equal before `i-of-n`.
pub fn missing_parts(files: &[PathBuf]) -> Vec<String> {
    // The array that a file is a part of (folder, name and number of parts), and which part it is.
    let part = |file: &PathBuf| {
        let folder = std::path::absolute(file).ok()?.parent()?.to_path_buf();
        let stem = file.file_stem()?.to_string_lossy().into_owned();
        let (name, part) = stem.rsplit_once('.').unwrap_or(("", &stem));
        let (index, count) = part.split_once("-of-")?;
        let (index, count) = (index.parse::<usize>().ok()?, count.parse::<usize>().ok()?);
        Some(((folder, name.to_string(), count), index))
    };
    let Some(parts) = files.iter().map(part).collect::<Option<Vec<_>>>() else { return vec![] };
    let Some((array, _)) = parts.first() else { return vec![] };
    let &(_, _, count) = array;
    // Nobody runs more, and a name may hold any number.
    if count > 100_000 || parts.iter().any(|(other, _)| other != array) {
        return vec![];
    }
    let there: HashSet<usize> = parts.into_iter().map(|(_, index)| index).collect();
    (0..count)
        .filter(|index| !there.contains(index))
        .map(|index| format!("{index}-of-{count}"))
        .collect()
}

/// What a row is of.
fn key(table: &Table, row: usize) -> Option<String> {
    let field = |name| table.get(row, name).filter(|field: &&str| !value::is_missing(field));
    let Some(path) = field(PATH) else { return field(URL).map(String::from) };
    Some(identity(Path::new(path)).to_string_lossy().into_owned())
}

/// Returns true for a list of rows that a step could not use or left out, by its name or by a reason in
/// each row.
fn is_failure_list(name: &str, table: &Table) -> bool {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let is_named = [".failed", ".dropped"].iter().any(|ending| stem.ends_with(ending));
    let has_reason =
        |row: usize| table.get(row, REASON).is_some_and(|reason| !value::is_missing(reason));
    table.column(REASON).is_some() && (is_named || (0..table.len()).all(has_reason))
}

/// How a table is split.
#[derive(Debug, Clone, PartialEq)]
pub enum Parts {
    /// Parts of so many rows, the last one of what is left.
    Rows(usize),
    /// So many parts of as many rows, give or take one.
    Count(usize),
    /// Named parts by chance.
    Shares {
        /// The parts.
        shares: Shares,
        /// Other seeds, other parts.
        seed: u64,
        /// Rows with the same field here stay together: `path`, or `source` for clips of a video.
        /// Where the field is empty, the row's path or address counts.
        by: String,
    },
}

/// A part of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name: that of a share, or its number from 0.
    pub name: String,
    /// Its rows, in order.
    pub rows: Vec<usize>,
}

/// Splits the rows of a table that was read from `file`. Paths below that file's folder count by
/// their names in it, so that a set that was moved is split as before.
///
/// # Errors
/// Where there would be no rows in a part, more parts than rows, or no column of the name.
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

/// What a row is shared out by.
fn name(table: &Table, row: usize, by: &str, file: &Path) -> Result<String, PrepareError> {
    let field = |name| table.get(row, name).filter(|field: &&str| !value::is_missing(field));
    let named = [by, PATH, URL].into_iter().find_map(|name| Some((name, field(name)?)));
    Ok(match named {
        Some((PATH, path)) => Table::name_in(file, Path::new(path))?.to_string_lossy().into_owned(),
        Some((_, field)) => field.into(),
        None => String::new(),
    })
}

/// Parts with numbers of as many digits as the last one's.
fn numbered(parts: impl ExactSizeIterator<Item = std::ops::Range<usize>>) -> Vec<Part> {
    let digits = parts.len().saturating_sub(1).to_string().len();
    parts
        .enumerate()
        .map(|(part, rows)| Part { name: format!("{part:0digits$}"), rows: rows.collect() })
        .collect()
}

/// Where a part of what would be `out` is written: `all.train.csv` for `all.csv`.
pub fn part_path(out: &Path, name: &str) -> PathBuf {
    let ending = out.extension().map(|ending| ending.to_string_lossy());
    out.with_extension(ending.map_or(name.into(), |ending| format!("{name}.{ending}")))
}

/// Writes the parts of a table, and gives back where: see [`part_path`]. Parts of an earlier split
/// that have other names stay.
///
/// # Errors
/// Where one cannot be written.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, &str)]) -> Table {
        let mut table = Table::new([PATH, "source"]);
        for (path, source) in rows {
            table.push([(PATH, (*path).into()), ("source", (*source).into())]);
        }
        table
    }

    fn paths(table: &Table) -> Vec<&str> {
        (0..table.len()).map(|row| table.get(row, PATH).unwrap()).collect()
    }

    #[test]
    fn tables_are_merged_by_name_and_twins_only_as_asked() {
        let mut other = Table::new(["aes", PATH]);
        for (aes, path) in
            [("1", "/c"), ("2", "/x/../b"), ("3", "/a"), ("4", "/./c"), ("5", ""), ("6", "")]
        {
            other.push([("aes", aes.into()), (PATH, path.into())]);
        }
        let tables = [
            ("one.csv".to_string(), table(&[("/a", "s"), ("/b", "t")])),
            ("two.csv".to_string(), other),
        ];
        let refused = merge(&tables, None).unwrap_err().to_string();
        let expected = "/a: row 1 of one.csv and row 3 of two.csv are both of it, and 2 rows in all \
                        come again";
        assert_eq!(refused, expected);

        let first = merge(&tables, Some(Keep::First)).unwrap();
        assert_eq!(first.output.columns(), [PATH, "source", "aes"]);
        assert_eq!(paths(&first.output), ["/a", "/b", "/c", "/x/../b", "", ""]);
        assert_eq!(first.output.row(2).unwrap(), ["/c", "", "1"]);
        assert_eq!(paths(&first.dropped), ["/a", "/./c"]);
        let reason = first.dropped.get(0, REASON);
        assert_eq!(reason, Some("row 1 of one.csv is of the same file"));

        let last = merge(&tables, Some(Keep::Last)).unwrap();
        assert_eq!(paths(&last.output), ["/b", "/x/../b", "/a", "/./c", "", ""]);
        assert_eq!(last.output.row(2).unwrap(), ["/a", "", "3"]);

        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("all.csv");
        last.write(&out).unwrap();
        assert_eq!(Table::read(&folder.path().join("all.failed.csv")).unwrap().len(), 2);
        let one = merge(&tables[..1], None).unwrap();
        one.write(&out).unwrap();
        assert_eq!(Table::read(&out).unwrap(), tables[0].1);
        assert!(!folder.path().join("all.failed.csv").exists());

        let halves = split(&one.output, &out, &Parts::Count(2)).unwrap();
        let written = write_parts(&one.output, &out, &halves).unwrap();
        assert_eq!(written, ["all.0.csv", "all.1.csv"].map(|name| folder.path().join(name)));
        assert_eq!(paths(&Table::read(&written[1]).unwrap()), ["/b"]);
    }

    #[test]
    fn merged_rows_come_into_the_order_of_what_they_were_made_of() {
        let origin = table(&[("/b", ""), ("/a", ""), ("/c", "")]);
        let clips = table(&[
            ("/clips/c-0", "/c"),
            ("/clips/c-1", "/c"),
            ("/clips/x-0", "/x"),
            ("/clips/b-1", "/x/../b"),
            ("/clips/b-0", "/b"),
            ("/a", ""),
        ]);
        let ordered = in_order_of(&clips, &origin);
        let expected = ["/clips/b-0", "/a", "/clips/c-0", "/clips/c-1", "/clips/x-0", "/clips/b-1"];
        assert_eq!(paths(&ordered), expected);
    }

    #[test]
    fn parts_that_are_not_merged_are_known_by_the_names_of_the_others() {
        let missing =
            |names: &[&str]| missing_parts(&names.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(missing(&["set/a.0-of-3.csv", "set/a.2-of-3.csv"]), ["1-of-3"]);
        assert_eq!(missing(&["./set/a.0-of-2.csv", "set//a.0-of-2.parquet"]), ["1-of-2"]);
        assert_eq!(missing(&["0-of-2.csv"]), ["1-of-2"]);
        for whole in [
            &["a.1-of-2.csv", "a.0-of-2.parquet"][..],
            &["a.0-of-3.csv", "b.csv"],
            &["a.0-of-3.csv", "a.0-of-2.csv"],
            &["a.0-of-3.csv", "b.1-of-3.csv"],
            &["a.v1.0-of-3.csv", "a.v2.1-of-3.csv"],
            &["one/a.0-of-3.csv", "two/a.1-of-3.csv"],
            &["a.0-of-3.csv", "1-of-3.csv"],
            &["best-of-80s.csv"],
            &["a.0-of-99999999999.csv"],
            &[],
        ] {
            assert!(missing(whole).is_empty(), "{whole:?}");
        }
    }

    #[test]
    fn lists_of_failures_are_rejected() {
        let good = ("one.csv".to_string(), table(&[("/a", "s")]));
        let mut list = table(&[("/b", "s"), ("/c", "s")]);
        list.ensure(REASON);
        list.set(0, REASON, "torn");
        // A column of that name with gaps is somebody's own, unless the file is named as a list.
        let tables = |name: &str, list: &Table| [good.clone(), (name.to_string(), list.clone())];
        assert_eq!(merge(&tables("two.csv", &list), None).unwrap().output.len(), 3);
        let refused = |name: &str, list: &Table| {
            let error = merge(&tables(name, list), None).unwrap_err();
            assert!(matches!(error, PrepareError::FailureList { .. }), "{error}");
            error.to_string()
        };
        refused("set/clips.failed.csv", &list);
        refused("set/clips.dropped.csv", &list);
        list.set(1, REASON, "empty");
        let text = refused("two.csv", &list);
        assert!(text.starts_with("two.csv: ") && text.contains("failures"), "{text}");
        refused("two.csv", &list.select([]));
    }

    #[test]
    #[cfg(unix)]
    fn links_to_one_file_are_twins() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("a.mp4"), "x").unwrap();
        std::os::unix::fs::symlink("a.mp4", path("b.mp4")).unwrap();
        let tables = [("a.mp4", "one.csv"), ("b.mp4", "two.csv")]
            .map(|(file, name)| (name.to_string(), table(&[(&path(file), "")])));
        assert!(matches!(merge(&tables, None), Err(PrepareError::Again { .. })));
        assert_eq!(merge(&tables, Some(Keep::First)).unwrap().output.len(), 1);
    }

    #[test]
    fn parts_are_of_so_many_rows_or_so_many() {
        let names: Vec<String> = (0..23).map(|row| format!("/{row}")).collect();
        let rows: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        let table = table(&rows);
        let split = |parts| split(&table, Path::new("all.csv"), &parts);
        for (parts, names, sizes) in [
            (Parts::Rows(10), vec!["0", "1", "2"], vec![10, 10, 3]),
            (Parts::Rows(usize::MAX), vec!["0"], vec![23]),
            (Parts::Count(4), vec!["0", "1", "2", "3"], vec![6, 6, 6, 5]),
        ] {
            let parts = split(parts).unwrap();
            assert_eq!(parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), names);
            assert_eq!(parts.iter().map(|part| part.rows.len()).collect::<Vec<_>>(), sizes);
            let rows = parts.into_iter().flat_map(|part| part.rows);
            assert!(rows.eq(0..23));
        }
        assert_eq!(split(Parts::Count(23)).unwrap()[3].name, "03");
        for wrong in [Parts::Rows(0), Parts::Count(0), Parts::Count(24)] {
            assert!(matches!(split(wrong), Err(PrepareError::Spec { .. })));
        }
        assert_eq!(part_path(Path::new("set/all.v1.csv"), "val"), Path::new("set/all.v1.val.csv"));
        assert_eq!(part_path(Path::new("set/all"), "0"), Path::new("set/all.0"));
    }

    #[test]
    fn shares_stay_where_they_were_when_rows_come_or_the_set_moves() {
        let part_of = |folder: &str, count: usize, by: &str| {
            let names: Vec<_> = (0..count)
                .map(|row| (format!("{folder}/{row}.mp4"), format!("film {}", row / 10)))
                .collect();
            let rows: Vec<_> = names.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let parts = Parts::Shares {
                shares: "train=0.8,val=0.1,test=0.1".parse().unwrap(),
                seed: 1,
                by: by.into(),
            };
            let file = Path::new(folder).join("all.csv");
            let parts = split(&table(&rows), &file, &parts).unwrap();
            let mut part_of = vec![9; count];
            for (part, rows) in parts.iter().enumerate() {
                assert!(rows.rows.is_sorted());
                rows.rows.iter().for_each(|&row| part_of[row] = part);
            }
            part_of
        };
        let (few, many) = (part_of("/here", 1000, PATH), part_of("/there", 3000, PATH));
        assert_eq!(few, many[..1000]);
        let sizes = [0, 1, 2].map(|part| many.iter().filter(|&&of| of == part).count());
        // Three standard deviations of a binomial share of 3000 rows are 66 and 50.
        assert!(sizes[0].abs_diff(2400) < 66 && sizes[1].abs_diff(300) < 50, "{sizes:?}");
        let films = part_of("/here", 1000, "source");
        assert!(films.chunks(10).all(|film| film.iter().all(|part| *part == film[0])));
        assert!(films.contains(&1));
        let wrong = Parts::Shares { shares: "a=1".parse().unwrap(), seed: 0, by: "film".into() };
        assert!(split(&table(&[]), Path::new("a.csv"), &wrong).is_err());
    }
}
