//! Tests of filters on generated clips.

use super::*;
use crate::{Advanced, arrange, assemble::shard_path, pipeline};
use opensora_video::{Frames, VideoSpec, Writer};
use std::{
    ops::ControlFlow,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A soft image with many frequencies, as in real images, in [0, 1].
fn scenery(seed: f64, x: f64, y: f64) -> f64 {
    let waves = (1..12).map(|k| {
        let (k, turn) = (f64::from(k), seed * 7.3 + f64::from(k) * f64::from(k) * seed);
        let (sin, cos) = turn.sin_cos();
        (k * 3.0 * (cos * x + sin * y) + turn).sin() / k
    });
    0.5 + waves.sum::<f64>() / 6.0
}

/// Writes a clip of `frames` frames with luma `luma(frame, x, y)`, x and y as fractions of the height.
fn clip(path: &Path, [frames, height, width]: [usize; 3], luma: impl Fn(usize, f64, f64) -> f64) {
    let mut data = Vec::new();
    for t in 0..frames {
        for y in 0..height {
            for x in 0..width {
                let at = [x, y].map(|at| (at as f64 + 0.5) / height as f64);
                data.extend([(luma(t, at[0], at[1]) * 255.0).clamp(0.0, 255.0) as u8; 3]);
            }
        }
    }
    let clip = Frames::from_rgb(data, [frames, height, width]).unwrap();
    let spec = VideoSpec { frames, width, height, fps: 8.0 };
    Writer::open(path, &spec).unwrap().write(&clip, &json!({})).unwrap();
}

/// Returns a table of these files in the folder.
fn manifest(folder: &Path, files: &[&str]) -> Table {
    let mut table = Table::new([PATH, TEXT]);
    for file in files {
        let path = folder.join(file).display().to_string();
        table.push([(PATH, path), (TEXT, format!("A clip named {file}."))]);
    }
    table
}

fn bound(column: &str, min: Option<f64>, max: Option<f64>) -> Bound {
    Bound::new(column, min, max).unwrap()
}

/// Options of a shard.
fn part(shard: Shard) -> RunOptions {
    RunOptions { shard, ..RunOptions::default() }
}

/// Returns the file names in a written table.
fn names(path: &Path) -> Vec<String> {
    let table = Table::read(path).unwrap();
    let name = |row| Path::new(table.get(row, PATH).unwrap()).file_name().unwrap();
    (0..table.len()).map(|row| name(row).to_string_lossy().into_owned()).collect()
}

fn value(table: &Table, row: usize, column: &str) -> f64 {
    number(table, row, column).unwrap_or_else(|| panic!("row {row} has no {column}"))
}

/// A model that counts its calls and fails on dark clips.
struct Counting {
    scored: AtomicUsize,
    sizes: Mutex<Vec<usize>>,
}

impl Score for Counting {
    fn column(&self) -> &str {
        "red"
    }

    fn settings(&self) -> Value {
        json!("counting")
    }

    fn frame_size(&self) -> [usize; 2] {
        [4, 6]
    }

    fn score(&self, frames: &[&[u8]]) -> Result<f64, Box<dyn Error + Send + Sync>> {
        self.scored.fetch_add(1, Ordering::Relaxed);
        self.sizes.lock().unwrap().extend(frames.iter().map(|rgb| rgb.len()));
        let red = frames.iter().map(|rgb| f64::from(rgb[0])).sum::<f64>() / frames.len() as f64;
        if red < 1.0 { Err("too dark to say".into()) } else { Ok(red) }
    }
}

#[test]
fn measurements_match_the_clips() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shape = [9, 64, 96];
    clip(&at("black.mp4"), shape, |_, _, _| 0.0);
    clip(&at("white.mp4"), shape, |_, _, _| 1.0);
    clip(&at("still.mp4"), shape, |_, x, y| scenery(1.0, x, y));
    // Moves to the left by two pixels of 64 per frame.
    clip(&at("pan.mp4"), shape, |t, x, y| scenery(1.0, x + t as f64 / 32.0, y));
    // A square of a quarter of the height that moves by one or two pixels of 64 per frame.
    let square = |speed: f64| {
        move |t: usize, x: f64, y: f64| {
            let left = 0.2 + t as f64 * speed / 64.0;
            let inside = (left..left + 0.25).contains(&x) && (0.3..0.55).contains(&y);
            if inside { 0.9 } else { 0.2 }
        }
    };
    clip(&at("slow.mp4"), shape, square(1.0));
    clip(&at("fast.mp4"), shape, square(2.0));
    clip(&at("picture.png"), [1, 64, 96], |_, x, y| scenery(2.0, x, y));
    let files =
        ["black.mp4", "white.mp4", "still.mp4", "pan.mp4", "slow.mp4", "fast.mp4", "picture.png"];
    let options = RunOptions { workers: 2, ..RunOptions::default() };
    let job = Job { score_only: true, options, ..Job::default() };
    let report = run(&job, &manifest(folder.path(), &files), &at("scores.csv"), &mut ()).unwrap();
    assert_eq!((report.rows, report.kept, report.measured, report.failed), (7, 7, 7, 0));
    let table = Table::read(&at("scores.csv")).unwrap();
    let of = |name: &str, column: &str| {
        value(&table, files.iter().position(|file| *file == name).unwrap(), column)
    };

    for (column, expected) in [
        ("num_frames", 9.0),
        ("fps", 8.0),
        ("duration", 1.125),
        ("width", 96.0),
        ("height", 64.0),
        ("short_side", 64.0),
        ("pixels", 6144.0),
        ("aspect_ratio", 1.5),
        ("text_words", 4.0),
        ("text_characters", 22.0),
    ] {
        assert_eq!(of("slow.mp4", column), expected, "{column}");
    }
    for (name, brightness, dark, bright) in
        [("black.mp4", 0.0, 1.0, 0.0), ("white.mp4", 1.0, 0.0, 1.0), ("slow.mp4", 0.23, 0.0, 0.0)]
    {
        assert!((of(name, "brightness") - brightness).abs() < 0.02, "{name}");
        assert_eq!((of(name, "dark_share"), of(name, "bright_share")), (dark, bright), "{name}");
    }
    for still in ["black.mp4", "white.mp4", "still.mp4", "picture.png"] {
        let (motion, flow) = (of(still, "motion"), of(still, "flow"));
        assert!(motion < 0.002 && flow < 0.001, "{still}: {motion} {flow}");
    }
    let pan = of("pan.mp4", "flow") * 64.0;
    assert!((pan - 2.0).abs() < 0.3, "{pan} pixels a frame");
    // Two edges of 16 rows, each one pixel wide, with a change of 0.7, of 6144 pixels.
    let motion = of("slow.mp4", "motion");
    assert!((motion / (2.0 * 16.0 * 0.7 / 6144.0) - 1.0).abs() < 0.25, "{motion}");
    let ratio = |column| of("fast.mp4", column) / of("slow.mp4", column);
    assert!((1.7..2.3).contains(&ratio("motion")), "{}", ratio("motion"));
    assert!((1.5..2.5).contains(&ratio("flow")), "{}", ratio("flow"));
    assert_eq!(of("picture.png", "num_frames"), 1.0);
    assert_eq!((table.get(6, "fps"), table.get(6, "duration")), (Some(""), Some("")));
}

#[test]
fn rows_are_dropped_at_the_first_bound_they_fail() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let mut table = Table::new([PATH, TEXT, "num_frames", "score"]);
    for (name, frames, score) in [
        ("a", "16", "0.5"),
        ("b", "15", "0.9"),
        ("c", "17", "0.4999"),
        ("d", "16", ""),
        ("e", "16", "NaN"),
        ("f", "16", "none"),
        ("g", "16", "inf"),
        ("h", "99", "0.7"),
    ] {
        let path = folder.path().join(name).display().to_string();
        let fields = [(PATH, path), (TEXT, "fog".into())];
        let more = [("num_frames", frames.to_string()), ("score", score.into())];
        table.push(fields.into_iter().chain(more));
    }
    let bounds = vec![
        bound("num_frames", Some(16.0), Some(98.0)),
        bound("score", Some(0.5), None),
        bound("text_words", Some(1.0), Some(1.0)),
    ];
    let job = Job { bounds, ..Job::default() };
    let report = run(&job, &table, &out, &mut ()).unwrap();
    let counts = |filter: &FilterReport| {
        (filter.filter.clone(), [filter.rows, filter.below, filter.above, filter.unreadable])
    };
    let expected = [
        ("num_frames".to_string(), [8, 1, 1, 0]),
        ("score".into(), [6, 1, 0, 4]),
        ("text_words".into(), [1, 0, 0, 0]),
    ];
    assert_eq!(report.filters.iter().map(counts).collect::<Vec<_>>(), expected);
    assert_eq!([report.kept, report.dropped, report.failed, report.measured], [1, 3, 4, 0]);
    assert_eq!(names(&out), ["a"]);
    assert_eq!(Table::read(&out).unwrap().get(0, "text_words"), Some("1"));
    let dropped = Table::read(&out.with_extension("dropped.csv")).unwrap();
    assert_eq!(names(&out.with_extension("dropped.csv")), ["b", "c", "h"]);
    assert_eq!(dropped.get(0, "reason"), Some("num_frames 15 is below 16"));
    assert_eq!(dropped.get(1, "reason"), Some("score 0.4999 is below 0.5"));
    assert_eq!(dropped.get(2, "filter"), Some("num_frames"));
    let failed = Table::read(&out.with_extension("failed.csv")).unwrap();
    let reason = |row| failed.get(row, "reason").unwrap();
    assert_eq!([0, 1, 2].map(reason), ["it has no score"; 3]);
    assert_eq!(reason(3), "its score is 'inf', expected a number");
    assert_eq!(failed.len(), 4);

    // Without failures, the list of an earlier run is removed.
    let job = Job { bounds: vec![bound("num_frames", Some(16.0), None)], ..job };
    let report = run(&job, &table, &out, &mut ()).unwrap();
    assert_eq!([report.kept, report.dropped, report.failed], [7, 1, 0]);
    assert!(!out.with_extension("failed.csv").exists());
}

#[test]
fn a_list_of_dropped_rows_is_filtered_again_without_its_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut table = Table::new([PATH, "num_frames"]);
    for (name, frames) in [("a", "8"), ("b", "16")] {
        let path = at(name).display().to_string();
        table.push([(PATH, path), ("num_frames", frames.into())]);
    }
    let least = |frames| vec![bound("num_frames", Some(frames), None)];
    let job = |frames| Job { bounds: least(frames), ..Job::default() };
    run(&job(16.0), &table, &at("strict.csv"), &mut ()).unwrap();
    let dropped = Table::read(&at("strict.dropped.csv")).unwrap();
    assert!(dropped.column(REASON).is_some() && dropped.column(FILTER).is_some());
    run(&job(8.0), &dropped, &at("loose.csv"), &mut ()).unwrap();
    let loose = Table::read(&at("loose.csv")).unwrap();
    assert_eq!(loose.columns(), [PATH, "num_frames"]);
    let tables =
        ["strict.csv", "loose.csv"].map(|name| (name.to_string(), Table::read(&at(name)).unwrap()));
    assert_eq!(arrange::merge(&tables, None).unwrap().output.len(), 2);

    // A column of this name that no step wrote is the user's.
    table.set(0, FILTER, "mine");
    run(&job(8.0), &table, &at("own.csv"), &mut ()).unwrap();
    assert_eq!(Table::read(&at("own.csv")).unwrap().get(0, FILTER), Some("mine"));
}

#[test]
fn shards_without_an_ending_measure_and_list_separately() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let files = ["a.mp4", "b.mp4"];
    for file in files {
        clip(&at(file), [3, 16, 16], |_, x, y| scenery(1.0, x, y));
    }
    let table = manifest(folder.path(), &files);
    for index in 0..2 {
        let shard = Shard::new(index, 2).unwrap();
        let bounds = vec![bound("fps", Some(100.0), None)];
        let job = Job { bounds, options: part(shard), ..Job::default() };
        let report = run(&job, &table, &shard_path(&at("kept"), shard), &mut ()).unwrap();
        assert_eq!((report.measured, report.dropped), (1, 1));
    }
    for (index, file) in files.into_iter().enumerate() {
        let list = at(&format!("kept.{index}-of-2.dropped.csv"));
        assert_eq!(names(&list), [file]);
        assert!(at(&format!("kept.{index}-of-2.header.csv.journal.jsonl")).is_file());
    }
}

#[test]
fn a_broken_file_is_listed_and_the_others_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    clip(&at("good.mp4"), [3, 16, 16], |t, x, y| scenery(t as f64, x, y));
    clip(&at("cut.mp4"), [3, 16, 16], |t, x, y| scenery(t as f64, x, y));
    let bytes = std::fs::read(at("cut.mp4")).unwrap();
    // Too short for any decoder.
    std::fs::write(at("cut.mp4"), &bytes[..40]).unwrap();
    std::fs::write(at("text.mp4"), "no video").unwrap();
    let mut table = manifest(folder.path(), &["cut.mp4", "good.mp4", "absent.mp4", "text.mp4"]);
    table.push([(PATH, String::new())]);
    let out = at("out.csv");
    let job = Job { bounds: vec![bound("motion", Some(0.0), None)], ..Job::default() };
    let report = run(&job, &table, &out, &mut ()).unwrap();
    assert_eq!([report.kept, report.failed], [1, 4]);
    assert_eq!((report.filters[0].filter.as_str(), report.filters[0].unreadable), ("file", 4));
    assert_eq!(names(&out), ["good.mp4"]);
    let failed = Table::read(&out.with_extension("failed.csv")).unwrap();
    assert!((0..4).all(|row| !failed.get(row, "reason").unwrap().contains('\n')));
    assert_eq!(failed.get(3, "reason"), Some("it has no path"));
    assert_eq!(failed.get(0, TEXT), Some("A clip named cut.mp4."));
    // A failure is final until its file changes.
    assert_eq!(run(&job, &table, &out, &mut ()).unwrap().failed, 4);
    std::fs::write(at("cut.mp4"), &bytes).unwrap();
    assert_eq!(run(&job, &table, &out, &mut ()).unwrap().failed, 3);
    std::fs::write(at("absent.mp4"), &bytes).unwrap();
    assert_eq!(run(&job, &table, &out, &mut ()).unwrap().failed, 2);
    let options = RunOptions { retry_failed: true, ..RunOptions::default() };
    let retry = Job { options, ..job };
    assert_eq!(run(&retry, &table, &out, &mut ()).unwrap().failed, 2);
}

#[test]
fn files_that_changed_are_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let of_size =
        |name: &str, frames| clip(&at(name), [frames, 16, 16], |_, x, y| scenery(1.0, x, y));
    for name in ["a.mp4", "b.mp4", "c.mp4"] {
        of_size(name, 3);
    }
    let table = manifest(folder.path(), &["a.mp4", "b.mp4", "c.mp4"]);
    for (name, bound) in
        [("pixels", bound("motion", Some(0.0), None)), ("header", bound("fps", Some(0.0), None))]
    {
        let out = at(&format!("{name}.csv"));
        let job = Job { score_only: name == "pixels", bounds: vec![bound], ..Job::default() };
        run(&job, &table, &out, &mut ()).unwrap();
        of_size("b.mp4", 5);
        // Measurements stay valid after the file is deleted.
        let away = std::fs::read(at("c.mp4")).unwrap();
        std::fs::remove_file(at("c.mp4")).unwrap();
        let report = run(&job, &table, &out, &mut ()).unwrap();
        assert_eq!((report.kept, report.failed), (3, 0), "{name}");
        let journal =
            journal(&job, if name == "pixels" { Depth::Pixels } else { Depth::Header }, &out);
        // The settings, three files, and one of them again.
        assert_eq!(std::fs::read_to_string(journal).unwrap().lines().count(), 5, "{name}");
        std::fs::write(at("c.mp4"), away).unwrap();
        if name == "pixels" {
            let counts = Table::read(&out).unwrap();
            let frames = [0, 1, 2].map(|row| counts.get(row, "num_frames"));
            assert_eq!(frames, [Some("3"), Some("5"), Some("3")]);
        }
        of_size("b.mp4", 4);
    }
}

#[test]
fn other_spellings_of_a_path_are_measured_once() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a.mp4", "b.mp4"];
    for file in files {
        clip(&folder.path().join(file), [3, 16, 16], |_, x, y| scenery(1.0, x, y));
    }
    let out = folder.path().join("out.csv");
    let job = Job { bounds: vec![bound("motion", Some(0.0), None)], ..Job::default() };
    let spelled = |between: &str, file: &str| format!("{}{between}{file}", folder.path().display());
    let lines_after = |between: &str| {
        let mut table = Table::new([PATH]);
        for file in files {
            table.push([(PATH, spelled(between, file))]);
        }
        let report = run(&job, &table, &out, &mut ()).unwrap();
        assert_eq!((report.kept, report.failed), (2, 0), "{between}");
        std::fs::read_to_string(journal_path(&out)).unwrap().lines().count()
    };
    // The settings and two files.
    assert_eq!(["/", "/./", "//"].map(lines_after), [3; 3]);

    // Earlier versions recorded the path as the table spelled it.
    let mut text = std::fs::read_to_string(journal_path(&out)).unwrap();
    for file in files {
        let key = |path: &str| format!("\"key\":{}", json!(path));
        assert!(text.contains(&key(file)), "{text}");
        text = text.replace(&key(file), &key(&spelled("/", file)));
    }
    std::fs::write(journal_path(&out), text).unwrap();
    assert_eq!(["/", "/", "/./", "/"].map(lines_after), [3, 3, 5, 5]);
}

#[test]
fn copies_in_other_sizes_and_codings_are_duplicates() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let moving = |t: f64, x: f64, y: f64| scenery(1.0, x + t / 200.0, y);
    clip(&at("small.mp4"), [8, 48, 72], |t, x, y| moving(t as f64, x, y));
    clip(&at("large.mp4"), [8, 96, 144], |t, x, y| moving(t as f64, x, y));
    clip(&at("other.mp4"), [8, 96, 144], |t, x, y| scenery(2.0, x + t as f64 / 200.0, y));
    clip(&at("other.gif"), [8, 96, 144], |t, x, y| scenery(2.0, x + t as f64 / 200.0, y));
    clip(&at("third.mp4"), [8, 96, 144], |t, x, y| scenery(3.0, x + t as f64 / 200.0, y));
    let files = ["small.mp4", "large.mp4", "other.mp4", "other.gif", "third.mp4"];
    let table = manifest(folder.path(), &files);
    let out = at("out.csv");
    let job = || Job { duplicates: Some(Duplicates::default()), ..Job::default() };
    let report = run(&job(), &table, &out, &mut ()).unwrap();
    assert_eq!(names(&out), ["large.mp4", "other.mp4", "third.mp4"]);
    assert_eq!(report.filters.last().unwrap().duplicates, 2);
    let dropped = Table::read(&out.with_extension("dropped.csv")).unwrap();
    assert_eq!(dropped.get(0, DUPLICATE_OF), at("large.mp4").to_str());
    assert_eq!(dropped.get(1, DUPLICATE_OF), at("other.mp4").to_str());
    assert!(dropped.get(0, "reason").unwrap().starts_with("near-duplicate of "));

    let first = Duplicates { keep: Keep::First, ..Duplicates::default() };
    run(&Job { duplicates: Some(first), ..job() }, &table, &out, &mut ()).unwrap();
    assert_eq!(names(&out), ["small.mp4", "other.mp4", "third.mp4"]);
    // A clip that a bound drops is not duplicated by another one.
    let bounds = vec![bound("short_side", None, Some(50.0))];
    run(&Job { bounds, ..job() }, &table, &out, &mut ()).unwrap();
    assert_eq!(names(&out), ["small.mp4"]);
}

#[test]
fn shards_are_scored_merged_and_filtered_without_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let files = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"];
    for (index, file) in files.iter().enumerate() {
        clip(&at(file), [4, 32, 48], |_, x, y| scenery(1.0 + (index % 3) as f64, x, y));
    }
    let mut table = manifest(folder.path(), &files);
    // One file with two captions is measured once.
    table.push([(PATH, at("b.mp4").display().to_string()), (TEXT, "again".into())]);
    let mut merged = Table::default();
    for index in 0..2 {
        let shard = Shard::new(index, 2).unwrap();
        let out = at(&format!("{index}.csv"));
        let job = Job { score_only: true, options: part(shard), ..Job::default() };
        let report = run(&job, &table, &out, &mut ()).unwrap();
        assert_eq!((report.rows, report.measured), (2 + index, 2));
        merged.append(&Table::read(&out).unwrap());
    }
    for file in files {
        std::fs::remove_file(at(file)).unwrap();
    }
    let bounds = vec![bound("brightness", Some(0.1), Some(0.9)), bound("fps", Some(8.0), None)];
    let duplicates = Some(Duplicates { keep: Keep::First, ..Duplicates::default() });
    let job = Job { bounds, duplicates, ..Job::default() };
    let report = run(&job, &merged, &at("out.csv"), &mut ()).unwrap();
    assert_eq!((report.rows, report.measured, report.failed), (5, 0, 0));
    assert_eq!(names(&at("out.csv")), ["a.mp4", "c.mp4", "b.mp4"]);

    let shard = Shard::new(0, 2).unwrap();
    let refused = run(&Job { options: part(shard), ..job }, &merged, &at("out.csv"), &mut ())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("shard = 0/2"), "{refused}");
}

#[test]
fn duplicates_are_dropped_across_the_shards_of_a_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let files = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"];
    for (index, file) in files.iter().enumerate() {
        // Each clip has its copy in the other shard.
        clip(&at(file), [4, 32, 48], |_, x, y| scenery(1.0 + (index / 2) as f64, x, y));
    }
    manifest(folder.path(), &files).write(&at("clips.csv")).unwrap();
    let duplicates = Duplicates { keep: Keep::First, ..Duplicates::default() };
    let bounds = vec![bound("fps", Some(1.0), None)];
    let stage = Job { bounds, duplicates: Some(duplicates), ..Job::default() };
    let run_part = |name: &str, shard| {
        let (input, work, out) = (at("clips.csv"), at("work"), at(name));
        let job = pipeline::Job { input, work, out, options: part(shard) };
        pipeline::run(&job, &[&stage], &mut ()).unwrap();
        shard_path(&job.out, shard)
    };
    let whole = run_part("whole.csv", Shard::WHOLE);
    assert_eq!(names(&whole), ["a.mp4", "c.mp4"]);

    let parts = [0, 1].map(|index| run_part("set.csv", Shard::new(index, 2).unwrap()));
    assert_eq!(parts.each_ref().map(|part| names(part).len()), [2, 2]);
    let tables = parts.map(|part| (part.display().to_string(), Table::read(&part).unwrap()));
    let merged = arrange::merge(&tables, None).unwrap().output;
    let merged = arrange::in_order_of(&merged, &Table::read(&at("clips.csv")).unwrap());
    let job = Job { duplicates: Some(duplicates), ..Job::default() };
    let report = run(&job, &merged, &at("set.csv"), &mut ()).unwrap();
    assert_eq!((report.rows, report.measured, report.kept), (4, 0, 2));
    assert_eq!(names(&at("set.csv")), names(&whole));
}

#[test]
fn the_same_duplicate_is_kept_with_and_without_shards() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let scene = |name: &str, shape, of: f64| clip(&at(name), shape, |_, x, y| scenery(of, x, y));
    // In shards of two, g and b would come after the later f and c.
    scene("f.mp4", [4, 32, 48], 1.0);
    scene("g.mp4", [4, 32, 48], 2.0);
    scene("c.mp4", [4, 32, 48], 2.0);
    scene("b.mp4", [4, 32, 48], 3.0);
    scene("a.mp4", [4, 32, 48], 3.0);
    scene("e.mp4", [4, 64, 96], 1.0);
    let table = manifest(folder.path(), &["f.mp4", "g.mp4", "c.mp4", "b.mp4", "a.mp4", "e.mp4"]);
    for keep in [Keep::First, Keep::Longest] {
        let duplicates = Some(Duplicates { keep, ..Duplicates::default() });
        let out = at("whole.csv");
        run(&Job { duplicates, ..Job::default() }, &table, &out, &mut ()).unwrap();
        let first = if keep == Keep::First { "f.mp4" } else { "e.mp4" };
        let whole = names(&out);
        assert!(whole.len() == 3 && whole.contains(&first.into()), "{whole:?}");

        let mut parts = Vec::new();
        for index in 0..3 {
            let shard = Shard::new(index, 3).unwrap();
            let out = at(&format!("{index}.csv"));
            let job = Job { hashes: true, options: part(shard), ..Job::default() };
            run(&job, &table, &out, &mut ()).unwrap();
            parts.push((out.display().to_string(), Table::read(&out).unwrap()));
        }
        let merged = arrange::merge(&parts, None).unwrap().output;
        let ordered = arrange::in_order_of(&merged, &table);
        let job = Job { duplicates, ..Job::default() };
        assert_eq!(run(&job, &ordered, &at("parts.csv"), &mut ()).unwrap().measured, 0);
        for list in ["csv", "dropped.csv"] {
            let [whole, parts] = [&out, &at("parts.csv")].map(|of| of.with_extension(list));
            let rows = |path: &Path| {
                let table = Table::read(path).unwrap();
                let fields = |row| {
                    [PATH, DUPLICATE_OF].map(|name| table.get(row, name).unwrap().to_string())
                };
                (0..table.len()).map(fields).collect::<Vec<_>>()
            };
            assert_eq!(rows(&whole), rows(&parts), "{keep:?} {list}");
        }
    }
}

/// Stops after one row.
struct Stop;

impl Observer for Stop {
    fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
        if event.done >= 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn nothing_is_measured_twice_and_models_plug_in() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let files = ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "dark.mp4"];
    for (index, file) in files.iter().enumerate() {
        let light = if *file == "dark.mp4" { 0.0 } else { (index + 1) as f64 * 0.2 };
        clip(&at(file), [20, 32, 48], |_, _, _| light);
    }
    let table = manifest(folder.path(), &files);
    let counting = std::sync::Arc::new(Counting { scored: 0.into(), sizes: vec![].into() });
    let job = |least: f64| Job {
        models: vec![counting.clone()],
        bounds: vec![bound("red", Some(least), None)],
        journal: Some(at("measures.jsonl")),
        ..Job::default()
    };
    let stopped = run(&job(100.0), &table, &at("out.csv"), &mut Stop).unwrap_err();
    assert!(matches!(stopped, PrepareError::Stopped { .. }), "{stopped}");
    assert!(!at("out.csv").exists());
    let report = run(&job(100.0), &table, &at("out.csv"), &mut ()).unwrap();
    assert_eq!(names(&at("out.csv")), ["b.mp4", "c.mp4", "d.mp4"]);
    assert_eq!([report.dropped, report.failed], [1, 1]);
    let failed = Table::read(&at("out.failed.csv")).unwrap();
    assert_eq!(failed.get(0, "reason"), Some("red: too dark to say"));
    // Another bound, another output, the same journal.
    run(&job(150.0), &table, &at("strict.csv"), &mut ()).unwrap();
    assert_eq!(names(&at("strict.csv")), ["c.mp4", "d.mp4"]);
    assert_eq!(counting.scored.load(Ordering::Relaxed), files.len());
    // Four frames per clip, in the model's size.
    assert_eq!(*counting.sizes.lock().unwrap(), vec![4 * 6 * 3; 4 * files.len()]);

    // Nothing is measured for the written table, everything with `measure_again`.
    let scored = Table::read(&at("strict.csv")).unwrap();
    let again = run(&job(180.0), &scored, &at("last.csv"), &mut ()).unwrap();
    assert_eq!((again.measured, again.kept), (0, 1));
    let again = Job { measure_again: true, journal: None, ..job(180.0) };
    assert_eq!(run(&again, &scored, &at("last.csv"), &mut ()).unwrap().measured, 2);
}

#[test]
fn invalid_jobs_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.csv");
    let table = manifest(folder.path(), &["a.mp4"]);
    let job = Job { bounds: vec![bound("beauty", Some(1.0), None)], ..Job::default() };
    let refused = run(&job, &table, &out, &mut ()).unwrap_err().to_string();
    assert_eq!(
        refused,
        "beauty: neither a column of the table nor a measured one; the table has path, text"
    );
    let addresses = Table::new(["url"]);
    let job = Job { bounds: vec![bound("fps", Some(1.0), None)], ..Job::default() };
    let refused = run(&job, &addresses, &out, &mut ()).unwrap_err().to_string();
    assert!(refused.starts_with("path: neither a column"), "{refused}");
    assert!(!out.exists());
}
