//! Tests of scans, splits and pipelines on generated videos.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_files::{Journal, error_line, hex};
use opensora_manifest::{
    Table,
    table::{CLIP_END, CLIP_START, PATH, TEXT},
};
use opensora_prepare::{
    Advanced, Observer, PrepareError, RunOptions, Shard, Summary,
    assemble::{REASON, failed_path, journal_path, shard_path},
    pipeline,
    scan::{self, Found, Walk},
    shots,
    split::{self, Job, Rate, Settings},
};
use opensora_video::{Frames, VideoSpec, Writer, mp4, reader::Decoder};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Writes a video of flat scenes, with their greys and numbers of frames, at 80x60 pixels.
fn video(path: &Path, fps: f64, scenes: &[(u8, usize)]) {
    let (height, width) = (60, 80);
    let mut rgb = Vec::new();
    for &(grey, frames) in scenes {
        rgb.extend(vec![grey; frames * height * width * 3]);
    }
    let frames = scenes.iter().map(|(_, frames)| frames).sum();
    let clip = Frames::from_rgb(rgb, [frames, height, width]).unwrap();
    let writer = Writer::open(path, &VideoSpec { frames, width, height, fps }).unwrap();
    writer.write(&clip, &serde_json::Value::Null).unwrap();
}

/// Settings of small clips at 10 frames per second.
fn settings() -> Settings {
    let shots = shots::Settings { min_scene_len: 1, ..shots::Settings::default() };
    Settings { fps: Rate::Fixed(10.0), shorter_side: 30, shots, ..Settings::default() }
}

fn job(settings: Settings) -> Job {
    let options = RunOptions { workers: 2, ..RunOptions::default() };
    Job { settings, decoder: Decoder::InProcess, options, ..Job::default() }
}

/// Writes two videos of the same name and a third one; returns their table.
fn videos(folder: &Path) -> Table {
    let raw = folder.join("raw");
    video(&raw.join("a/sea.mp4"), 10.0, &[(20, 16), (220, 4), (20, 16), (220, 80)]);
    video(&raw.join("b/sea.mp4"), 5.0, &[(250, 20)]);
    video(&raw.join("fog.mp4"), 10.0, &[(60, 9)]);
    let mut table = Table::new([PATH, "licence", "url"]);
    for (name, licence) in [("a/sea.mp4", "CC0"), ("b/sea.mp4", "CC-BY"), ("fog.mp4", "")] {
        let path = raw.join(name).to_str().unwrap().to_string();
        table.push([(PATH, path), ("licence", licence.into()), ("url", format!("u/{name}"))]);
    }
    table
}

/// Returns the files in a folder and their bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().into(), std::fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn scenes_become_clips_with_their_origin() {
    let folder = tempfile::tempdir().unwrap();
    let input = videos(folder.path());
    let out = folder.path().join("clips.csv");
    let summary = split::run(&job(settings()), &input, &out, &mut ()).unwrap();
    assert_eq!((summary.input, summary.output, summary.failed), (3, 4, 1));

    let table = Table::read(&out).unwrap();
    let columns = ["licence", "start", "end", "fps", "width", "height", "num_frames", "duration"];
    let expected = [
        ["CC0", "0.000", "1.600", "10", "40", "30", "16", "1.600"],
        // The second scene is too short, but counted.
        ["CC0", "2.000", "3.600", "10", "40", "30", "16", "1.600"],
        // The fourth scene is longer than 5 s.
        ["CC0", "3.600", "8.600", "10", "40", "30", "50", "5.000"],
        // Five frames per second are doubled.
        ["CC-BY", "0.000", "4.000", "10", "40", "30", "40", "4.000"],
    ];
    for (row, expected) in expected.iter().enumerate() {
        let found = columns.map(|column| table.get(row, column).unwrap());
        assert_eq!(found, *expected, "row {row}");
    }
    for (row, (ending, grey)) in
        [("_scene-0.mp4", 20), ("_scene-2.mp4", 20), ("_scene-3.mp4", 220), ("_scene-0.mp4", 250)]
            .into_iter()
            .enumerate()
    {
        let path = Path::new(table.get(row, PATH).unwrap());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("sea-") && name.ends_with(ending), "{name}");
        assert_eq!(path.parent().unwrap(), folder.path().join("clips"));
        let (frames, fps) = mp4::read(path).unwrap();
        let frames_of = table.get(row, "num_frames").unwrap();
        assert_eq!((frames.len().to_string().as_str(), fps), (frames_of, 10.0));
        assert_eq!((frames.height(), frames.width()), (30, 40));
        let nearest = |byte: &u8| byte.abs_diff(grey) <= 2;
        assert!(frames.data().iter().all(nearest), "row {row}: a frame of another scene");
    }
    assert_eq!(table.get(3, "source"), input.get(1, PATH));
    assert_eq!(contents(&folder.path().join("clips")).len(), 4);
    let failed = Table::read(&failed_path(&out)).unwrap();
    let reason = failed.get(0, REASON).unwrap();
    assert!(reason.contains("0.90 s"), "{reason}");
}

#[test]
fn long_scenes_can_be_kept_and_times_count_from_the_first_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sea.mp4");
    video(&path, 10.0, &[(220, 83)]);
    let mut input = Table::new([PATH]);
    input.push([(PATH, path.to_str().unwrap().into()), ("source", "https://sea".into())]);
    input.set(0, "start", "100.5");
    let out = folder.path().join("clips.csv");
    let settings = Settings { keep_long: true, fps: Rate::Source, ..settings() };
    split::run(&job(settings), &input, &out, &mut ()).unwrap();
    let table = Table::read(&out).unwrap();
    let row = |row| ["source", "start", "end"].map(|column| table.get(row, column).unwrap());
    assert_eq!(table.len(), 2);
    assert_eq!(row(0), ["https://sea", "100.500", "105.500"]);
    assert_eq!(row(1), ["https://sea", "105.500", "108.800"]);
    assert!(table.get(1, PATH).unwrap().ends_with("sea_scene-0_part-1.mp4"));
}

/// Writes a video of three shots, of 2, 3 and 2 s. Returns a table with a row for each range: caption, start and end.
fn ranges(folder: &Path, rows: &[[&str; 3]]) -> Table {
    let path = folder.join("sea.mp4");
    if !path.exists() {
        video(&path, 10.0, &[(20, 20), (120, 30), (220, 20)]);
    }
    let mut table = Table::new([PATH, "source", TEXT, CLIP_START, CLIP_END]);
    for &[text, start, end] in rows {
        let path = path.to_str().unwrap();
        let fields = [(PATH, path), ("source", "https://sea"), (TEXT, text)];
        let fields = fields.into_iter().chain([(CLIP_START, start), (CLIP_END, end)]);
        table.push(fields.map(|(column, field)| (column, field.to_string())));
    }
    table
}

#[test]
fn ranges_of_a_video_become_clips_with_their_own_captions() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        ["dark", "0.5", "2"],
        ["grey", "2.0", "4.5"],
        // Beyond the end of the video.
        ["bright", "5.000", "9"],
        ["two", "1", "4"],
        ["rest", "4", ""],
        ["all", "", ""],
    ];
    let input = ranges(folder.path(), &rows);
    let out = folder.path().join("clips.csv");
    let summary = split::run(&job(settings()), &input, &out, &mut ()).unwrap();
    assert_eq!((summary.input, summary.output, summary.failed), (6, 10, 0));

    let table = Table::read(&out).unwrap();
    assert_eq!((table.column(CLIP_START), table.column(CLIP_END)), (None, None));
    let expected = [
        (["dark", "0.500", "2.000", "15"], 20),
        (["grey", "2.000", "4.500", "25"], 120),
        (["bright", "5.000", "7.000", "20"], 220),
        (["two", "1.000", "2.000", "10"], 20),
        (["two", "2.000", "4.000", "20"], 120),
        (["rest", "4.000", "5.000", "10"], 120),
        (["rest", "5.000", "7.000", "20"], 220),
        (["all", "0.000", "2.000", "20"], 20),
        (["all", "2.000", "5.000", "30"], 120),
        (["all", "5.000", "7.000", "20"], 220),
    ];
    for (row, (fields, grey)) in expected.into_iter().enumerate() {
        let found = [TEXT, "start", "end", "num_frames"].map(|name| table.get(row, name).unwrap());
        assert_eq!(found, fields, "row {row}");
        assert_eq!(table.get(row, "source"), Some("https://sea"));
        let (frames, _) = mp4::read(Path::new(table.get(row, PATH).unwrap())).unwrap();
        assert_eq!(frames.len().to_string(), fields[3], "row {row}");
        let nearest = |byte: &u8| byte.abs_diff(grey) <= 2;
        assert!(frames.data().iter().all(nearest), "row {row}: a frame of another scene");
    }
    let clips = contents(&folder.path().join("clips"));
    assert_eq!(clips.len(), 10);
    // The clips of the whole video have the names that they have without ranges.
    assert!((0..3).all(|scene| clips.contains_key(&format!("sea_scene-{scene}.mp4"))));

    // Names do not depend on the order and number of the rows.
    let reverse = input.select([5, 3, 1]);
    let other = folder.path().join("other.csv");
    split::run(&job(settings()), &reverse, &other, &mut ()).unwrap();
    let others = contents(&folder.path().join("other"));
    assert_eq!(others.len(), 6);
    for (name, bytes) in &others {
        assert!(clips.get(name) == Some(bytes), "{name}");
    }
    // The second run has records of all rows.
    std::fs::remove_file(folder.path().join("sea.mp4")).unwrap();
    assert_eq!(split::run(&job(settings()), &input, &out, &mut ()).unwrap(), summary);
    assert_eq!(Table::read(&out).unwrap(), table);
}

#[test]
fn unusable_ranges_are_listed_with_their_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        (["a", "-1", "2"], "its clip range is -1 to 2, expected seconds from 0"),
        (["b", "3", "2"], "its clip range is 3 to 2, expected"),
        (["c", "inf", ""], "its clip range is inf to the end, expected"),
        (["d", "0:01", "2"], "its clip range is 0:01 to 2, expected"),
        (["e", "9", ""], "its clip range has no frames: the video ends at 7.00 s"),
        (["f", "1.5", "2.25"], "the longest of 2 has 0.50 s, expected at least 1 s"),
        (["g", "0.5", "2"], ""),
        (["h", "0.50", "2.0"], "its range of the path is that of row 7 as well"),
    ];
    let input = ranges(folder.path(), &rows.map(|(row, _)| row));
    let out = folder.path().join("clips.csv");
    let summary = split::run(&job(settings()), &input, &out, &mut ()).unwrap();
    assert_eq!((summary.input, summary.output, summary.failed), (8, 1, 7));
    let failed = Table::read(&failed_path(&out)).unwrap();
    for (row, ([text, start, end], words)) in
        rows.into_iter().filter(|(_, words)| !words.is_empty()).enumerate()
    {
        let found = [TEXT, CLIP_START, CLIP_END].map(|column| failed.get(row, column).unwrap());
        assert_eq!(found, [text, start, end]);
        let reason = failed.get(row, REASON).unwrap();
        assert!(reason.contains(words), "{text}: {reason}");
    }
}

/// Stops after this many videos.
struct StopAt(usize);

impl Observer for StopAt {
    fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
        if event.done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn stopped_and_sharded_runs_give_the_same_clips() {
    let folder = tempfile::tempdir().unwrap();
    let input = videos(folder.path());
    let whole = folder.path().join("whole/clips.csv");
    split::run(&job(settings()), &input, &whole, &mut ()).unwrap();
    let expected = contents(&folder.path().join("whole/clips"));

    let stopped = folder.path().join("stopped/clips.csv");
    let one = Job { options: RunOptions::default(), ..job(settings()) };
    let error = split::run(&one, &input, &stopped, &mut StopAt(1)).unwrap_err();
    assert!(matches!(error, PrepareError::Stopped { .. }), "{error}");
    assert!(!stopped.exists());
    // As after a kill: the last record is incomplete.
    let journal = std::fs::read(journal_path(&stopped)).unwrap();
    std::fs::write(journal_path(&stopped), &journal[..journal.len() - 9]).unwrap();
    split::run(&one, &input, &stopped, &mut ()).unwrap();
    assert_eq!(contents(&folder.path().join("stopped/clips")), expected);
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(text(&stopped), text(&whole));

    let mut rows = 0;
    for index in 0..2 {
        let shard = Shard::new(index, 2).unwrap();
        let all = folder.path().join("shards/clips.csv");
        let out = shard_path(&all, shard);
        let mut part = Job { clips: Some(split::clips_folder(&all)), ..job(settings()) };
        part.options.shard = shard;
        rows += split::run(&part, &input, &out, &mut ()).unwrap().output;
    }
    assert_eq!(rows, 4);
    assert_eq!(contents(&folder.path().join("shards/clips")), expected);

    let other = Settings { max_seconds: 4.0, ..settings() };
    let refused = error_line(&split::run(&job(other), &input, &whole, &mut ()).unwrap_err());
    assert!(refused.contains("other settings"), "{refused}");
}

#[test]
fn a_pipeline_from_folder_to_clips() {
    let folder = tempfile::tempdir().unwrap();
    videos(folder.path());
    std::fs::write(folder.path().join("raw/torn.mp4"), "torn").unwrap();
    let scan = scan::Job::default();
    let cut = Job { settings: settings(), ..Job::default() };
    let job = pipeline::Job {
        input: folder.path().join("raw"),
        work: folder.path().join("work"),
        out: folder.path().join("set.csv"),
        options: RunOptions::default(),
    };
    let numbers = pipeline::run(&job, &[&scan, &cut], &mut ()).unwrap();
    assert_eq!(numbers[0].1, Summary { input: 4, output: 3, failed: 1 });
    assert_eq!(numbers[1].1, Summary { input: 3, output: 4, failed: 1 });
    let table = Table::read(&job.out).unwrap();
    assert!((0..4).all(|row| Path::new(table.get(row, PATH).unwrap()).is_file()));
    let failed = Table::read(&failed_path(&job.out)).unwrap();
    let stages = [0, 1].map(|row| failed.get(row, pipeline::STAGE).unwrap().to_string());
    assert_eq!(stages, ["scan", "split"]);
}

#[test]
fn a_pipeline_that_works_in_its_input_is_run_again_with_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    videos(folder.path());
    let (scan, cut) = (scan::Job::default(), Job { settings: settings(), ..Job::default() });
    for work in ["work", "."] {
        let job = pipeline::Job {
            input: folder.path().into(),
            work: folder.path().join(work),
            out: folder.path().join("set.csv"),
            options: RunOptions::default(),
        };
        let run = || {
            let numbers = pipeline::run(&job, &[&scan, &cut], &mut ()).unwrap();
            (numbers, std::fs::read_to_string(&job.out).unwrap())
        };
        let first = run();
        assert_eq!(first.0[0].1, Summary { input: 3, output: 3, failed: 0 });
        assert_eq!(run(), first, "{work}");
    }
}

#[test]
fn files_that_appear_between_the_shards_of_a_pipeline_double_and_lose_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    video(&raw.join("0.mp4"), 10.0, &[(90, 12)]);
    for name in ["1.mp4", "2.mp4", "3.mp4", "4.mp4", "5.mp4"] {
        std::fs::copy(raw.join("0.mp4"), raw.join(name)).unwrap();
    }
    std::fs::write(raw.join("torn.mp4"), "torn").unwrap();
    let (scan, cut) = (scan::Job::default(), Job { settings: settings(), ..Job::default() });
    let stages: [&dyn pipeline::Stage; 2] = [&scan, &cut];
    // The pipeline has a stage after the scan, or none.
    for (name, column, count) in [("cut", "source", 2), ("scanned", PATH, 1)] {
        let (mut rows, mut failed) = (Vec::<String>::new(), 0);
        for index in 0..2 {
            let job = pipeline::Job {
                input: raw.clone(),
                work: folder.path().join(name),
                out: folder.path().join(name).join("set.csv"),
                options: RunOptions {
                    shard: Shard::new(index, 2).unwrap(),
                    ..RunOptions::default()
                },
            };
            pipeline::run(&job, &stages[..count], &mut ()).unwrap();
            let out = shard_path(&job.out, job.options.shard);
            let table = Table::read(&out).unwrap();
            rows.extend((0..table.len()).map(|row| table.get(row, column).unwrap().to_string()));
            let list = failed_path(&out);
            failed += if list.exists() { Table::read(&list).unwrap().len() } else { 0 };
            // It is sorted before all others.
            std::fs::copy(raw.join("0.mp4"), raw.join("!.mp4")).unwrap();
        }
        std::fs::remove_file(raw.join("!.mp4")).unwrap();
        rows.retain(|path| !path.ends_with("!.mp4"));
        rows.sort();
        let expected = (0..6).map(|video| raw.join(format!("{video}.mp4")).display().to_string());
        assert_eq!(rows, expected.collect::<Vec<_>>(), "{name}");
        assert_eq!(failed, 1, "{name}");
    }
}

#[test]
fn invalid_settings_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |settings: Settings| {
        let out = folder.path().join("clips.csv");
        split::run(&job(settings), &Table::new([PATH]), &out, &mut ()).unwrap_err().to_string()
    };
    let field = |settings, field: &str| assert!(refused(settings).starts_with(field), "{field}");
    field(Settings { min_seconds: -1.0, ..settings() }, "min_seconds");
    field(Settings { max_seconds: 0.5, ..settings() }, "max_seconds");
    field(Settings { max_seconds: f64::NAN, ..settings() }, "max_seconds");
    field(Settings { fps: Rate::Fixed(0.0), ..settings() }, "fps");
    field(Settings { shorter_side: 255, ..settings() }, "shorter_side");
    assert!("fast".parse::<Rate>().unwrap_err().to_string().contains("fast"));
    assert_eq!("source".parse::<Rate>().unwrap(), Rate::Source);

    let from = |json: &str| serde_json::from_str::<Settings>(json).map_err(|e| e.to_string());
    let mixed = Settings { fps: Rate::Fixed(24.0), keep_long: true, ..Settings::default() };
    assert_eq!(from(r#"{"fps": 24, "keep_long": true}"#).unwrap(), mixed);
    assert_eq!(from(r#"{"fps": "source"}"#).unwrap().fps, Rate::Source);
    assert_eq!(from(&serde_json::to_string(&mixed).unwrap()).unwrap(), mixed);
    assert!(from(r#"{"fps": 0}"#).unwrap_err().contains("0.01"));
    assert!(from(r#"{"frames": 3}"#).unwrap_err().contains("frames"));
}

/// Returns a table of one video.
fn one(path: &Path) -> Table {
    let mut input = Table::new([PATH]);
    input.push([(PATH, path.to_str().unwrap().into())]);
    input
}

fn names(folder: &Path) -> Vec<String> {
    contents(folder).into_keys().collect()
}

#[test]
fn a_journal_is_checked_against_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sea.mp4");
    let (out, clips) = (folder.path().join("clips.csv"), folder.path().join("clips"));
    video(&path, 10.0, &[(220, 20), (30, 25), (120, 12)]);
    let run = || split::run(&job(settings()), &one(&path), &out, &mut ()).unwrap();
    assert_eq!(run().output, 3);
    let whole = contents(&clips);

    // A missing clip, and a changed one.
    std::fs::remove_file(clips.join("sea_scene-1.mp4")).unwrap();
    run();
    assert_eq!(contents(&clips), whole);
    std::fs::write(clips.join("sea_scene-0.mp4"), "torn").unwrap();
    run();
    assert_eq!(contents(&clips), whole);

    // Another video of the same name: fewer clips, and the old ones are removed.
    video(&path, 10.0, &[(40, 22), (200, 31)]);
    assert_eq!(run().output, 2);
    assert_eq!(names(&clips), ["sea_scene-0.mp4", "sea_scene-1.mp4"]);
    assert_eq!(Table::read(&out).unwrap().get(1, "num_frames"), Some("31"));

    // A failure is retried when the file changes, and its old clips stay until then.
    let before = contents(&clips);
    std::fs::write(&path, "torn").unwrap();
    assert_eq!(run().failed, 1);
    assert_eq!(contents(&clips), before);
    video(&path, 10.0, &[(40, 22), (200, 31)]);
    assert_eq!(run().output, 2);

    // Deleted videos keep their records.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(run().output, 2);

    // If one clip of a deleted video is missing, the others stay: they cannot be made again.
    let one = "sea_scene-1.mp4";
    let kept = std::fs::read(clips.join(one)).unwrap();
    std::fs::remove_file(clips.join("sea_scene-0.mp4")).unwrap();
    assert_eq!(run().failed, 1);
    let reason = Table::read(&failed_path(&out)).unwrap().get(0, REASON).unwrap().to_string();
    assert!(reason.contains("No such file"), "{reason}");
    assert_eq!(contents(&clips), BTreeMap::from([(one.to_string(), kept)]));
    video(&path, 10.0, &[(40, 22), (200, 31)]);
    assert_eq!(run().output, 2);
    assert_eq!(contents(&clips), before);
}

#[test]
fn clips_have_no_measurements_of_their_video() {
    let folder = tempfile::tempdir().unwrap();
    let mut input = videos(folder.path());
    for row in 0..3 {
        input.set(row, "hash", ["0123456789abcdef"; 5].join("-"));
        input.set(row, "motion", "0.5");
    }
    let out = folder.path().join("clips.csv");
    split::run(&job(settings()), &input, &out, &mut ()).unwrap();
    let table = Table::read(&out).unwrap();
    assert!(["hash", "motion"].iter().all(|name| table.column(name).is_none()));
    assert_eq!(table.get(0, "licence"), Some("CC0"));
}

#[test]
fn videos_of_equal_names_keep_their_own_clips() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    video(&at("a/sea.mp4"), 10.0, &[(220, 20)]);
    video(&at("b/sea.mp4"), 10.0, &[(40, 31)]);
    let table = |videos: &[&str]| {
        let mut table = Table::new([PATH]);
        videos.iter().for_each(|video| table.push([(PATH, at(video).display().to_string())]));
        table
    };
    let out = at("clips.csv");
    let run = |videos: &[&str]| split::run(&job(settings()), &table(videos), &out, &mut ());
    // The second video takes the name of the first one, which then gets another one.
    for videos in [&["a/sea.mp4"][..], &["b/sea.mp4"], &["a/sea.mp4", "b/sea.mp4"]] {
        run(videos).unwrap();
        let clips = Table::read(&out).unwrap();
        assert_eq!(clips.len(), videos.len());
        for (row, video) in videos.iter().enumerate() {
            let frames = if video.starts_with('a') { 20 } else { 31 };
            let (clip, _) = mp4::read(Path::new(clips.get(row, PATH).unwrap())).unwrap();
            assert_eq!(clip.len(), frames, "{video}");
        }
    }

    // Two tables with one folder of clips.
    for (day, frames) in [("1", 15), ("2", 25)] {
        let day = at(day);
        video(&day.join("cam/0001.mp4"), 10.0, &[(90, frames)]);
        let job = Job { clips: Some(at("shared")), shared: true, ..job(settings()) };
        let input = one(&day.join("cam/0001.mp4"));
        split::run(&job, &input, &day.join("clips.csv"), &mut ()).unwrap();
    }
    // A third table with other settings.
    let rate = Settings { fps: Rate::Fixed(20.0), ..settings() };
    let job = Job { clips: Some(at("shared")), shared: true, ..job(rate) };
    split::run(&job, &one(&at("1/cam/0001.mp4")), &at("1/fast.csv"), &mut ()).unwrap();
    for (table, frames) in [("1/clips.csv", 15), ("2/clips.csv", 25), ("1/fast.csv", 30)] {
        let clips = Table::read(&at(table)).unwrap();
        let (clip, _) = mp4::read(Path::new(clips.get(0, PATH).unwrap())).unwrap();
        assert_eq!(clip.len(), frames, "{table}");
    }
}

#[test]
fn a_video_that_another_process_cuts_is_cut_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sea.mp4");
    video(&path, 10.0, &[(220, 20)]);
    let out = folder.path().join("clips.csv");
    let clips = split::clips_folder(&out);
    std::fs::create_dir(&clips).unwrap();
    let digest = hex(&Sha256::digest("sea")[..8]);
    let progress = clips.join(format!(".opensora-{digest}.progress.jsonl"));
    let other = Journal::open(&progress).unwrap();
    let run = || split::run(&job(settings()), &one(&path), &out, &mut ()).unwrap();
    assert_eq!(run().failed, 1);
    let reason = Table::read(&failed_path(&out)).unwrap().get(0, REASON).unwrap().to_string();
    assert_eq!(reason, "its progress: another process is writing to this journal");
    drop(other);
    assert_eq!((run().output, failed_path(&out).exists()), (1, false));
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/field").join(name)
}

/// Width, height, start and end of a clip.
type ClipOf = (usize, usize, String, String);

/// Scans and splits a file; returns its row, and sizes and times of its clips.
fn field(name: &str) -> (Vec<String>, Vec<ClipOf>) {
    let folder = tempfile::tempdir().unwrap();
    let (out, clips) = (folder.path().join("videos.csv"), folder.path().join("clips.csv"));
    let decoder = Decoder::InProcess;
    let job = scan::Job { decoder, ..scan::Job::default() };
    let found = Found::walk(&[fixture(name)], Walk::default()).unwrap();
    scan::run(&job, &found, &out, &mut ()).unwrap();
    let videos = Table::read(&out).unwrap();
    let row = ["width", "height", "num_frames", "duration"];
    let row = row.map(|column| videos.get(0, column).unwrap().to_string()).to_vec();
    let settings = Settings { min_seconds: 0.5, ..Settings::default() };
    let job = Job { settings, decoder, ..Job::default() };
    split::run(&job, &videos, &clips, &mut ()).unwrap();
    let table = Table::read(&clips).unwrap();
    let clip = |row: usize| {
        let field = |column| table.get(row, column).unwrap().to_string();
        let (frames, fps) = mp4::read(Path::new(&field(PATH))).unwrap();
        assert_eq!((frames.len().to_string(), fps), (field("num_frames"), 30.0));
        (frames.width(), frames.height(), field("start"), field("end"))
    };
    (row, (0..table.len()).map(clip).collect())
}

#[test]
fn clips_of_real_files_are_the_displayed_frames() {
    let thirds = |width, height| {
        [("0.000", "2.000"), ("2.000", "4.000"), ("4.000", "6.000")]
            .map(|(start, end)| (width, height, start.to_string(), end.to_string()))
            .to_vec()
    };
    // Times of frames at a variable rate.
    let (row, clips) = field("vfr_three_shots.mp4");
    assert_eq!((row, clips), (words(["320", "180", "132", "6.000"]), thirds(320, 180)));
    // Rotated video, upright.
    let (row, clips) = field("rotated_90.mp4");
    assert_eq!((row, clips), (words(["180", "320", "180", "6.000"]), thirds(180, 320)));
    // Square pixels and even sides.
    let (row, clips) = field("sar_4_3.mp4");
    assert_eq!((row, clips), (words(["427", "180", "180", "6.000"]), thirds(426, 180)));
    // An edit list hides frames.
    let (row, clips) = field("editlist_stream_copy.mp4");
    assert_eq!(row, words(["320", "180", "90", "3.000"]));
    let times: Vec<_> = clips.iter().map(|clip| (clip.2.as_str(), clip.3.as_str())).collect();
    assert_eq!(times, [("0.000", "1.000"), ("1.000", "3.000")]);
}

fn words(words: [&str; 4]) -> Vec<String> {
    words.map(String::from).to_vec()
}
