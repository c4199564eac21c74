//! Merges and splits tables. Rows keep their order.
//!
//! Source: hpcaitech/Open-Sora, `tools/datasets/csvutil.py` as it became after 1.0.0 (several inputs, `--shard`).
//! Deviations: duplicate files are found, and random shares depend on hashes of names.
//!
//! | module | contents |
//! |---|---|
//! | [`merge`](mod@merge) | several tables into one |
//! | [`parts`] | one table into several |

pub mod merge;
pub mod parts;
mod shares;

pub use merge::{Keep, Merged, in_order_of, merge, missing_parts};
pub use parts::{Part, Parts, part_path, split, write_parts};
pub use shares::Shares;

use crate::{open::identity, ranges};
use opensora_manifest::{
    Table,
    table::{PATH, URL},
    value,
};
use std::path::Path;

/// Column that names a clip's source video.
const SOURCE: &str = "source";
/// Column with a clip's start in seconds of its source.
const START: &str = "start";

/// Returns the file and clip range of a row, or its address if it has no path.
fn key(table: &Table, row: usize) -> Option<String> {
    let field = |name| table.get(row, name).filter(|field: &&str| !value::is_missing(field));
    let Some(path) = field(PATH) else { return field(URL).map(String::from) };
    let file = identity(Path::new(path)).to_string_lossy().into_owned();
    Some(file + &ranges::key(table, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PrepareError, assemble::REASON};
    use opensora_manifest::table::{CLIP_END, CLIP_START};
    use std::path::PathBuf;

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
    fn tables_are_merged_by_column_names_and_duplicates_only_on_request() {
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
        let expected = "duplicate /a in row 1 of one.csv and row 3 of two.csv (2 duplicate rows in \
                        total)";
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

        // A part may not replace the table that is split.
        let read = &written[1];
        let refused = parts::run(&Parts::Count(1), &one.output, read, &out.with_extension("1.csv"));
        assert!(refused.is_ok(), "all.1.0.csv");
        let refused = parts::run(&Parts::Count(2), &one.output, read, &out).unwrap_err();
        assert!(matches!(&refused, PrepareError::SameFile { path } if path == read), "{refused}");
        assert_eq!(paths(&Table::read(read).unwrap()), ["/b"]);
    }

    #[test]
    fn ranges_of_one_file_are_different_rows() {
        let ranges = |rows: &[(&str, &str)]| {
            let mut table = Table::new([PATH, CLIP_START, CLIP_END]);
            for &(start, end) in rows {
                let fields = [(PATH, "/a"), (CLIP_START, start), (CLIP_END, end)];
                table.push(fields.map(|(column, field)| (column, field.to_string())));
            }
            table
        };
        let one = ("one.csv".to_string(), ranges(&[("", ""), ("3", ""), ("1", "2")]));
        let two = ("two.csv".to_string(), ranges(&[("2", "3"), ("1.0", "2.0")]));
        let merged =
            merge(&[one.clone(), ("two.csv".to_string(), two.1.select([0]))], None).unwrap();
        assert_eq!((merged.output.len(), merged.dropped.len()), (4, 0));
        let refused = merge(&[one.clone(), two], None).unwrap_err().to_string();
        let expected = "duplicate /a clip 1 2 in row 3 of one.csv and row 2 of two.csv";
        assert!(refused.starts_with(expected), "{refused}");

        let ordered = in_order_of(&merged.output.select([2, 3, 0, 1]), &one.1);
        let starts = [0, 1, 2, 3].map(|row| ordered.get(row, CLIP_START).unwrap());
        // The last row is no row of the origin.
        assert_eq!(starts, ["", "3", "1", "2"]);
        // Clips of a range come in the place of the first row of its video.
        let ordered = in_order_of(&table(&[("/b", ""), ("/clips/a-0", "/a")]), &one.1);
        assert_eq!(paths(&ordered), ["/clips/a-0", "/b"]);
    }

    #[test]
    fn merged_rows_get_the_order_of_their_origin() {
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
    fn clips_of_downloaded_videos_get_the_order_of_their_sources() {
        let mut origin = Table::new([PATH, "source", CLIP_START]);
        for (path, source, start) in
            [("/v/2", "https://b", "9"), ("/v/2", "https://b", "1"), ("/v/1", "https://a", "")]
        {
            let fields = [(PATH, path), ("source", source), (CLIP_START, start)];
            origin.push(fields.map(|(column, field)| (column, field.to_string())));
        }
        let mut clips = table(&[
            ("/clips/a-0", "https://a"),
            ("/clips/x-1", "https://x"),
            ("/clips/b-9", "https://b"),
            ("/clips/a-2", "https://a"),
            ("/clips/x-0", "https://x"),
            ("/clips/b-1", "https://b"),
            ("/v/1", "https://a"),
        ]);
        let starts = ["10.500", "4", "9.000", "2.000", "3", "1.000", ""];
        for (row, start) in starts.into_iter().enumerate() {
            clips.set(row, "start", start);
        }
        let ordered = in_order_of(&clips, &origin);
        let expected = [
            "/clips/b-1",
            "/clips/b-9",
            "/v/1",
            "/clips/a-2",
            "/clips/a-0",
            "/clips/x-1",
            "/clips/x-0",
        ];
        assert_eq!(paths(&ordered), expected);
    }

    #[test]
    fn missing_shards_follow_from_the_names_of_the_others() {
        let missing =
            |names: &[&str]| missing_parts(&names.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(missing(&["set/a.0-of-3.csv", "set/a.2-of-3.csv"]), ["1-of-3"]);
        assert_eq!(missing(&["./set/a.0-of-2.csv", "set//a.0-of-2.parquet"]), ["1-of-2"]);
        assert_eq!(missing(&["0-of-2.csv"]), ["1-of-2"]);
        // Names that have no ending.
        assert_eq!(missing(&["set/a.0-of-3", "set/a.2-of-3"]), ["1-of-3"]);
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
        // A `reason` column with empty fields is the user's, unless the file has the name of a list.
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
    fn links_to_one_file_are_duplicates() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("a.mp4"), "x").unwrap();
        std::os::unix::fs::symlink("a.mp4", path("b.mp4")).unwrap();
        let tables = [("a.mp4", "one.csv"), ("b.mp4", "two.csv")]
            .map(|(file, name)| (name.to_string(), table(&[(&path(file), "")])));
        assert!(matches!(merge(&tables, None), Err(PrepareError::Duplicates { .. })));
        assert_eq!(merge(&tables, Some(Keep::First)).unwrap().output.len(), 1);
    }

    #[test]
    fn parts_have_a_number_of_rows_or_are_a_number_of_parts() {
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
    fn rows_keep_their_share_when_rows_are_added_or_the_set_moves() {
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
