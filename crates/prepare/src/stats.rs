//! What a manifest holds, in numbers.
//!
//! A column is one of numbers where all its fields that have a value are numbers; `path`, `text`
//! and `url` are always texts. Lengths of captions, seconds and aspect ratios are derived where the
//! columns for them are there; [`fill`] opens the files to find out what is missing.
//!
//! | module | thought |
//! |---|---|
//! | [`column`](mod@column) | one column: its numbers or its texts |
//! | `report` | the same as a text to read |

pub mod column;
mod report;

pub use crate::look::Unreadable;
pub use column::{Column, Content, Frequent, Numbers, Texts};

use crate::{look, source::Header};
use column::frequent;
use opensora_chart::{ChartError, Histogram, Labels, histogram};
use opensora_manifest::{
    Table,
    table::{NUM_FRAMES, PATH, TEXT, URL},
    value,
};
use serde::Serialize;
use std::path::Path;

/// Columns that files tell about themselves, in the order in which they are added.
const PROBED: [&str; 5] = ["width", "height", "fps", NUM_FRAMES, "duration"];

/// What a manifest holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Number of rows.
    pub rows: usize,
    /// The manifest's columns in their order.
    pub columns: Vec<Column>,
    /// What follows from them: `caption_words`, `aspect_ratio` (width by height) and, where it is
    /// no column, `duration` in seconds.
    pub derived: Vec<Column>,
    /// Hours that all rows with a known duration last together.
    pub hours: Option<f64>,
    /// Rows with a known duration.
    pub rows_with_duration: usize,
    /// The most frequent sizes, as `width x height` in pixels.
    pub resolutions: Vec<Frequent>,
    /// The most frequent frame rates, to a hundredth of a frame per second.
    pub frame_rates: Vec<Frequent>,
    /// Files that were opened and could not be read.
    pub unreadable: Vec<Unreadable>,
}

impl Stats {
    /// Counts what is in a table; no file is opened.
    pub fn of(table: &Table) -> Self {
        let rows = table.len();
        let fields = |name: &str| -> Option<Vec<&str>> {
            let at = table.column(name)?;
            Some((0..rows).filter_map(|row| table.row(row)).map(|row| row[at].as_str()).collect())
        };
        let numbers = |name: &str| -> Vec<Option<f64>> {
            fields(name)
                .map_or(vec![None; rows], |fields| fields.into_iter().map(value::number).collect())
        };
        let (width, height, fps) = (numbers("width"), numbers("height"), numbers("fps"));
        let columns: Vec<Column> = table
            .columns()
            .iter()
            .map(|name| {
                let fields = fields(name).unwrap_or_default();
                Column::of(name, &fields, [PATH, TEXT, URL].contains(&name.as_str()))
            })
            .collect();

        let mut derived = Vec::new();
        if let Some(captions) = fields(TEXT) {
            let words = captions.iter().map(|caption| match caption.split_whitespace().count() {
                0 => None,
                words => Some(words as f64),
            });
            derived.push(Column::of_numbers("caption_words", words));
        }
        let sizes: Vec<Option<(f64, f64)>> = width
            .iter()
            .zip(&height)
            .map(|(width, height)| (*width).zip(*height).filter(|(w, h)| *w > 0.0 && *h > 0.0))
            .collect();
        if sizes.iter().any(Option::is_some) {
            let ratios = sizes.iter().map(|size| size.map(|(width, height)| width / height));
            derived.push(Column::of_numbers("aspect_ratio", ratios));
        }
        let durations = durations(
            &numbers("duration"),
            (&numbers(NUM_FRAMES), &fps),
            (&numbers("start"), &numbers("end")),
        );
        if table.column("duration").is_none() && durations.iter().any(Option::is_some) {
            derived.push(Column::of_numbers("duration", durations.iter().copied()));
        }
        let known: Vec<f64> = durations.into_iter().flatten().collect();
        Self {
            rows,
            columns,
            derived,
            hours: (!known.is_empty()).then(|| known.iter().sum::<f64>() / 3600.0),
            rows_with_duration: known.len(),
            resolutions: frequent(sizes.iter().flatten().map(|(w, h)| format!("{w}x{h}")), 1).1,
            frame_rates: frequent(fps.iter().flatten().map(|&fps| hundredths(fps)), 1).1,
            unreadable: vec![],
        }
    }

    /// A histogram of each column of numbers, the derived ones last.
    pub fn histograms(&self) -> Vec<Histogram> {
        let columns = self.columns.iter().chain(&self.derived);
        columns
            .filter_map(|column| match &column.content {
                Content::Numbers(numbers) => {
                    let labels = Labels { title: &column.name, x_label: unit(&column.name) };
                    Histogram::of(labels, &numbers.values).ok()
                }
                _ => None,
            })
            .collect()
    }

    /// Draws the [`histograms`](Self::histograms) on one sheet, SVG or PNG by the path's ending.
    ///
    /// # Errors
    /// Where no column holds numbers, or the file cannot be written.
    pub fn save_histograms(&self, path: &Path) -> Result<(), ChartError> {
        histogram::save(&self.histograms(), path)
    }
}

/// Seconds that rows last: as they say, or by their frames, or from start to end.
fn durations(
    stated: &[Option<f64>],
    (num_frames, fps): (&[Option<f64>], &[Option<f64>]),
    (start, end): (&[Option<f64>], &[Option<f64>]),
) -> Vec<Option<f64>> {
    let positive = |seconds: &f64| *seconds >= 0.0 && seconds.is_finite();
    (0..stated.len())
        .map(|row| {
            let by_frames = || num_frames[row].zip(fps[row]).map(|(frames, fps)| frames / fps);
            let by_ends = || start[row].zip(end[row]).map(|(start, end)| end - start);
            let seconds = stated[row].filter(positive).or_else(|| by_frames().filter(positive));
            seconds.or_else(|| by_ends().filter(positive))
        })
        .collect()
}

/// A number with at most two digits behind the point.
fn hundredths(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

/// What a column of a known name is measured in.
fn unit(column: &str) -> &'static str {
    match column {
        "duration" | "start" | "end" => "seconds",
        "width" | "height" => "pixels",
        "fps" => "frames per second",
        NUM_FRAMES => "frames",
        "caption_words" => "words",
        "aspect_ratio" => "width by height",
        _ => "",
    }
}

/// Opens the files of rows that do not tell their size, frame rate, length or duration, and fills
/// in what they lack; what is there stays. Returns the files that could not be read.
pub fn fill(table: &mut Table, advanced: &mut dyn FnMut(usize, usize)) -> Vec<Unreadable> {
    let lacks = |row: usize, column| table.get(row, column).is_none_or(value::is_missing);
    let path_of = |row: usize| table.get(row, PATH).unwrap_or_default().to_string();
    let open: Vec<(usize, String)> = (0..table.len())
        .filter(|&row| !lacks(row, PATH) && PROBED.iter().any(|column| lacks(row, column)))
        .map(|row| (row, path_of(row)))
        .collect();
    let found = look::each(open.len(), |index| look::header(Path::new(&open[index].1)), advanced);
    let mut unreadable = Vec::new();
    for ((row, path), header) in open.into_iter().zip(found) {
        match header {
            Ok(header) => note(table, row, &header),
            Err(reason) => unreadable.push(Unreadable { row: row + 1, path, reason }),
        }
    }
    unreadable
}

/// Fills in what a row lacks.
fn note(table: &mut Table, row: usize, header: &Header) {
    let values = [
        Some(header.width.to_string()),
        Some(header.height.to_string()),
        header.fps.map(|fps| fps.to_string()),
        header.num_frames.map(|frames| frames.to_string()),
        header.duration.map(|seconds| seconds.to_string()),
    ];
    for (column, value) in PROBED.into_iter().zip(values) {
        if let Some(value) = value
            && table.get(row, column).is_none_or(value::is_missing)
        {
            table.set(row, column, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&str], rows: &[&[&str]]) -> Table {
        let mut table = Table::new(columns.iter().copied());
        for row in rows {
            table.push(columns.iter().copied().zip(row.iter().map(|field| field.to_string())));
        }
        table
    }

    #[test]
    fn captions_durations_and_sizes_are_derived() {
        let stats = Stats::of(&table(
            &[PATH, TEXT, NUM_FRAMES, "fps", "width", "height", "start", "end"],
            &[
                &["/a.mp4", "a  red\nfox", "48", "23.976", "640", "360", "", ""],
                &["/b.mp4", "fog", "50", "25", "640", "360", "", ""],
                &["/c.mp4", " ", "None", "NULL", "1080", "1920", "3.5", "5.0"],
                &["/d.mp4", "", "10", "0", "", "", "9", "1"],
            ],
        ));
        assert_eq!((stats.rows, stats.rows_with_duration), (4, 3));
        let seconds = 48.0 / 23.976 + 2.0 + 1.5;
        assert!((stats.hours.unwrap() * 3600.0 - seconds).abs() < 1e-9);
        let names: Vec<&str> = stats.derived.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["caption_words", "aspect_ratio", "duration"]);
        let Content::Numbers(words) = &stats.derived[0].content else { panic!("{stats:?}") };
        assert_eq!((words.min, words.max, stats.derived[0].missing), (1.0, 3.0, 2));
        let Content::Numbers(ratio) = &stats.derived[1].content else { panic!("{stats:?}") };
        assert_eq!((ratio.min, ratio.max), (0.5625, 640.0 / 360.0));
        let of = |list: &[Frequent]| -> Vec<(String, usize)> {
            list.iter().map(|item| (item.value.clone(), item.count)).collect()
        };
        assert_eq!(of(&stats.resolutions), [("640x360".into(), 2), ("1080x1920".into(), 1)]);
        assert_eq!(of(&stats.frame_rates)[0], ("0".into(), 1));
        assert_eq!(of(&stats.frame_rates)[1], ("23.98".into(), 1));
        // frames, rate, width, height, start, end; words, ratio, duration.
        assert_eq!(stats.histograms().len(), 9);
        assert_eq!(stats.histograms()[8].x_label, "seconds");
    }

    #[test]
    fn odd_tables_are_counted_too() {
        for table in [
            Table::default(),
            table(&[PATH, TEXT], &[]),
            table(&["url"], &[&["https://a"]]),
            table(&[PATH, "fps", "width", "height"], &[&["", "nan", "-1", "inf"]]),
        ] {
            let stats = Stats::of(&table);
            assert_eq!((stats.rows, stats.hours), (table.len(), None));
            assert!(!stats.to_string().is_empty());
            serde_json::to_string(&stats).unwrap();
        }
        let none = Stats::of(&Table::default()).save_histograms(Path::new("a.png")).unwrap_err();
        assert!(none.to_string().contains("0 histograms"), "{none}");
    }

    #[test]
    fn files_fill_in_what_rows_lack() {
        let folder = tempfile::tempdir().unwrap();
        let path = crate::look::tests::video(folder.path(), "a.mp4");
        let path = path.to_str().unwrap();
        let bad = folder.path().join("none.mp4");
        let mut table = table(
            &[PATH, "fps", "width"],
            &[&[path, "nan", "99"], &[bad.to_str().unwrap(), "", ""], &["", "", ""]],
        );
        let mut heard = 0;
        let unreadable = fill(&mut table, &mut |_, total| heard = total);
        assert_eq!(heard, 2);
        let row = ["fps", "width", "height", NUM_FRAMES, "duration"].map(|name| table.get(0, name));
        assert_eq!(row, ["8", "99", "48", "10", "1.25"].map(Some));
        assert_eq!(table.get(1, "height"), Some(""));
        assert_eq!((unreadable.len(), unreadable[0].row), (1, 2));
        // The next time only what cannot be read is opened.
        fill(&mut table, &mut |_, total| heard = total);
        assert_eq!(heard, 1);
    }

    #[test]
    fn the_object_has_every_figure() {
        let mut stats =
            Stats::of(&table(&[PATH, TEXT, "aes"], &[&["/a", "fog", "5"], &["/b", "fog", ""]]));
        stats.unreadable.push(Unreadable { row: 2, path: "/b".into(), reason: "torn".into() });
        let object = serde_json::to_value(&stats).unwrap();
        assert_eq!(object["rows"], 2);
        let aes = &object["columns"][2];
        assert_eq!(
            (&aes["name"], &aes["count"], &aes["missing"]),
            (&"aes".into(), &1.into(), &1.into())
        );
        assert_eq!((&aes["kind"], &aes["median"]), (&"numbers".into(), &5.0.into()));
        let text = &object["columns"][1];
        assert_eq!((&text["kind"], &text["distinct"]), (&"texts".into(), &1.into()));
        assert_eq!(text["most_frequent"][0], serde_json::json!({"value": "fog", "count": 2}));
        assert_eq!(object["unreadable"][0]["reason"], "torn");
        assert!(object["hours"].is_null());
    }
}
