//! Statistics of a table: numbers and texts by column, durations, resolutions.
//!
//! A column has numbers if all of its values are numbers; `path`, `text` and `url` are always texts. Caption
//! lengths, durations and aspect ratios are derived from other columns. [`fill`] opens the files for missing
//! values.
//!
//! | module | contents |
//! |---|---|
//! | [`column`](mod@column) | statistics of one column |
//! | `report` | statistics as text for people |

pub mod column;
mod report;

pub use crate::look::Unreadable;
pub use column::{Column, Content, Frequent, Numbers, Texts};

use crate::{Observer, PrepareError, Summary, look, source::Header};
use column::frequent;
use opensora_chart::{ChartError, Histogram, Labels, check_path, histogram};
use opensora_manifest::{
    Table,
    table::{CLIP_END, CLIP_START, NUM_FRAMES, PATH, TEXT, URL},
    value,
};
use serde::Serialize;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

/// Columns from the headers of files, in the order in which they are added.
const PROBED: [&str; 5] = ["width", "height", "fps", NUM_FRAMES, "duration"];

/// Statistics of a table: rows, columns, durations and sizes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Number of rows.
    pub rows: usize,
    /// The columns of the table in order.
    pub columns: Vec<Column>,
    /// Derived columns: `caption_words`, `aspect_ratio` (width divided by height) and, unless the table
    /// has it, `duration` in seconds.
    pub derived: Vec<Column>,
    /// Total duration in hours of the rows with a known duration.
    pub hours: Option<f64>,
    /// Rows with a known duration.
    pub rows_with_duration: usize,
    /// The most frequent sizes, as `width x height` in pixels.
    pub resolutions: Vec<Frequent>,
    /// The most frequent frame rates, to a hundredth of a frame per second.
    pub frame_rates: Vec<Frequent>,
    /// Files that were opened and cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// Options of the statistics: whether files are opened, and the file of histograms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// Opens the files of rows that lack size, frame rate, length or duration.
    pub probe: bool,
    /// Writes histograms of all columns of numbers to this file, SVG or PNG by its extension.
    pub histograms: Option<PathBuf>,
}

/// Computes the statistics of a table.
///
/// # Errors
/// Returns an error if the histograms cannot be drawn or written, or the observer stops the work.
pub fn run(job: &Job, table: &Table, observer: &mut dyn Observer) -> Result<Stats, PrepareError> {
    // Before all files are opened.
    if let Some(path) = &job.histograms {
        check_path(path)?;
    }
    // Tables of gigabytes are copied only if probing adds to them.
    let mut table = Cow::Borrowed(table);
    let unreadable = if job.probe { fill(table.to_mut(), observer)? } else { vec![] };
    let stats = Stats { unreadable, ..Stats::of(&table) };
    if let Some(path) = &job.histograms {
        stats.save_histograms(path)?;
    }
    Ok(stats)
}

impl Stats {
    /// Returns the row counts; files that cannot be read count as failed.
    pub fn summary(&self) -> Summary {
        Summary { input: self.rows, output: self.rows, failed: self.unreadable.len() }
    }

    /// Computes the statistics of a table. Opens no files.
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
            (&numbers(CLIP_START), &numbers(CLIP_END)),
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

    /// Returns a histogram of each column of numbers, derived columns last.
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
    /// Returns an error if no column has numbers, or the file cannot be written.
    pub fn save_histograms(&self, path: &Path) -> Result<(), ChartError> {
        histogram::save(&self.histograms(), path)
    }
}

/// Returns the duration of each row in seconds: of its clip range, else stated, else from its frames, else
/// from start to end.
fn durations(
    stated: &[Option<f64>],
    (num_frames, fps): (&[Option<f64>], &[Option<f64>]),
    (start, end): (&[Option<f64>], &[Option<f64>]),
    (clip_start, clip_end): (&[Option<f64>], &[Option<f64>]),
) -> Vec<Option<f64>> {
    let positive = |seconds: &f64| *seconds >= 0.0 && seconds.is_finite();
    (0..stated.len())
        .map(|row| {
            let by_frames = || num_frames[row].zip(fps[row]).map(|(frames, fps)| frames / fps);
            let by_ends = || start[row].zip(end[row]).map(|(start, end)| end - start);
            // The other columns of a range are of its whole file.
            let of_range = clip_end[row].map(|end| end - clip_start[row].unwrap_or(0.0));
            let whole = stated[row].filter(positive).or_else(|| by_frames().filter(positive));
            // A range without end ends with its file.
            let rest = whole.map(|seconds| seconds - clip_start[row].unwrap_or(0.0));
            let seconds = of_range.filter(positive).or(rest.filter(positive));
            seconds.or_else(|| by_ends().filter(positive))
        })
        .collect()
}

/// Formats a number with at most two decimals.
fn hundredths(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

/// Returns the unit of a known column.
fn unit(column: &str) -> &'static str {
    match column {
        "duration" | "start" | "end" | CLIP_START | CLIP_END => "seconds",
        "width" | "height" => "pixels",
        "fps" => "frames per second",
        NUM_FRAMES => "frames",
        "caption_words" => "words",
        "aspect_ratio" => "width by height",
        _ => "",
    }
}

/// Opens the files of rows that lack size, frame rate, length or duration, and fills in the missing
/// values. Returns the files that cannot be read.
///
/// # Errors
/// Returns an error if the observer stops the work.
pub fn fill(
    table: &mut Table,
    observer: &mut dyn Observer,
) -> Result<Vec<Unreadable>, PrepareError> {
    let lacks = |row: usize, column| table.get(row, column).is_none_or(value::is_missing);
    let path_of = |row: usize| table.get(row, PATH).unwrap_or_default().to_string();
    let open: Vec<(usize, String)> = (0..table.len())
        .filter(|&row| !lacks(row, PATH) && PROBED.iter().any(|column| lacks(row, column)))
        .map(|row| (row, path_of(row)))
        .collect();
    let found = look::each(open.len(), |at| look::header(Path::new(&open[at].1)), observer)?;
    let mut unreadable = Vec::new();
    for ((row, path), header) in open.into_iter().zip(found) {
        match header {
            Ok(header) => note(table, row, &header),
            Err(error) => {
                let reason = error.reason(Some(Path::new(&path)));
                unreadable.push(Unreadable { row: row + 1, path, reason });
            }
        }
    }
    Ok(unreadable)
}

/// Fills in the missing values of a row from the header of its file.
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
    use crate::Advanced;
    use std::ops::ControlFlow;

    /// Records the total of the last event.
    struct Total(usize);

    impl Observer for Total {
        fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
            self.0 = event.total;
            ControlFlow::Continue(())
        }
    }

    fn table(columns: &[&str], rows: &[&[&str]]) -> Table {
        let mut table = Table::new(columns.iter().copied());
        for row in rows {
            table.push(columns.iter().copied().zip(row.iter().map(|field| field.to_string())));
        }
        table
    }

    #[test]
    fn a_file_that_cannot_be_written_is_found_before_the_work() {
        struct Never;
        impl Observer for Never {
            fn advanced(&mut self, _: &Advanced) -> ControlFlow<()> {
                unreachable!("a file was opened")
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let table = table(&[PATH], &[&["/a.mp4"]]);
        for name in ["none/a.png", "a.txt", "a"] {
            let job = Job { probe: true, histograms: Some(folder.path().join(name)) };
            let error = opensora_files::error_line(&run(&job, &table, &mut Never).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
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
    fn a_clip_range_is_the_duration_of_its_row() {
        let stats = Stats::of(&table(
            &[PATH, CLIP_START, CLIP_END, NUM_FRAMES, "fps"],
            &[
                &["/a.mp4", "10.5", "12", "100", "10"],
                &["/a.mp4", "", "3", "100", "10"],
                &["/b.mp4", "", "", "100", "10"],
                &["/b.mp4", "8", "", "100", "10"],
            ],
        ));
        assert!((stats.hours.unwrap() * 3600.0 - (1.5 + 3.0 + 10.0 + 2.0)).abs() < 1e-9);
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
        let mut total = Total(0);
        let unreadable = fill(&mut table, &mut total).unwrap();
        assert_eq!(total.0, 2);
        let row = ["fps", "width", "height", NUM_FRAMES, "duration"].map(|name| table.get(0, name));
        assert_eq!(row, ["8", "99", "48", "10", "1.25"].map(Some));
        assert_eq!(table.get(1, "height"), Some(""));
        assert_eq!((unreadable.len(), unreadable[0].row), (1, 2));
        // The second time, only unreadable files are opened.
        fill(&mut table, &mut total).unwrap();
        assert_eq!(total.0, 1);
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
