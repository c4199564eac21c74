//! Long videos across kills of the process: they are resumed at their scene, and the clips are those of an
//! undisturbed run, without other files.
//!
//! A separate test binary: while a process is started, it briefly holds the locks of journals that other
//! tests of the same process have open.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_manifest::{Table, table::PATH};
use opensora_prepare::{
    shots,
    split::{self, Job, Rate, Settings},
};
use opensora_video::{Frames, VideoSpec, Writer, reader::Decoder};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

/// Environment variables with the worker's video, table of clips, and shortest clip.
const WORKER: [&str; 3] = ["SPLIT_TEST_VIDEO", "SPLIT_TEST_OUT", "SPLIT_TEST_SECONDS"];
const SCENES: usize = 14;

/// Not a test: the process that the tests below start and kill.
#[test]
fn worker_process() {
    let Ok(values) = WORKER.iter().map(std::env::var).collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let [video, out, seconds] = values.try_into().unwrap();
    let mut input = Table::new([PATH]);
    input.push([(PATH, video)]);
    let shots = shots::Settings { min_scene_len: 1, ..shots::Settings::default() };
    let min_seconds = seconds.parse().unwrap();
    let settings = Settings { min_seconds, fps: Rate::Fixed(10.0), shots, ..Settings::default() };
    let job = Job { settings, decoder: Decoder::InProcess, ..Job::default() };
    split::run(&job, &input, Path::new(&out), &mut ()).unwrap();
}

fn start(video: &Path, out: &Path, seconds: &str) -> Child {
    let values = [video.to_str().unwrap(), out.to_str().unwrap(), seconds];
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker_process"])
        .envs(WORKER.into_iter().zip(values))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Writes a video of scenes of 2.5 s.
fn video(folder: &Path) -> PathBuf {
    let (frames, height, width) = (25 * SCENES, 120, 160);
    let pixel = |frame: usize, at: usize| (200 * (frame / 25 % 2) + (frame + at) % 40) as u8;
    let rgb = (0..frames).flat_map(|frame| (0..3 * height * width).map(move |at| pixel(frame, at)));
    let clip = Frames::from_rgb(rgb.collect(), [frames, height, width]).unwrap();
    let path = folder.join("sea.mp4");
    let writer = Writer::open(&path, &VideoSpec { frames, width, height, fps: 10.0 }).unwrap();
    writer.write(&clip, &serde_json::Value::Null).unwrap();
    path
}

/// Returns names, bytes and times of the entries of a folder, also hidden ones.
fn contents(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        let time = entry.metadata().ok()?.modified().ok()?;
        Some((entry.file_name().into_string().ok()?, (bytes, time)))
    };
    entries.filter_map(read).collect()
}

fn clips(folder: &Path) -> usize {
    contents(folder).keys().filter(|name| name.ends_with(".mp4")).count()
}

/// Starts the worker and kills it at this number of clips. Returns true if it was still running.
fn killed_at(count: usize, video: &Path, out: &Path) -> bool {
    let mut child = start(video, out, "1");
    while child.try_wait().unwrap().is_none() && clips(&out.with_extension("")) < count {
        std::thread::sleep(Duration::from_millis(1));
    }
    let is_running = child.try_wait().unwrap().is_none();
    // It can have ended since.
    let _ = child.kill();
    child.wait().unwrap();
    is_running && !out.exists()
}

#[test]
fn a_killed_process_resumes_at_its_scene() {
    let folder = tempfile::tempdir().unwrap();
    let path = video(folder.path());
    let whole = folder.path().join("whole.csv");
    assert!(start(&path, &whole, "1").wait().unwrap().success());
    let expected = contents(&folder.path().join("whole"));
    assert_eq!(expected.len(), SCENES, "{:?}", expected.keys());

    let (out, made) = (folder.path().join("killed.csv"), folder.path().join("killed"));
    let mut kills = 0;
    let mut before: BTreeMap<String, (Vec<u8>, SystemTime)> = BTreeMap::new();
    for count in [1, 3, 6, 9, 12] {
        if killed_at(count, &path, &out) {
            kills += 1;
            let now = contents(&made);
            // Clips complete at the previous kill are unchanged, except the last one if it was not recorded.
            let again =
                |(name, clip): &(&String, &(Vec<u8>, SystemTime))| now.get(*name) != Some(clip);
            let changed = before.iter().filter(|(name, _)| name.ends_with(".mp4"));
            assert!(changed.filter(again).count() <= 1, "{:?}", now.keys());
            before = now;
        }
    }
    assert!(kills >= 2, "{kills} kills");
    assert!(start(&path, &out, "1").wait().unwrap().success());
    let bytes = |clips: BTreeMap<String, (Vec<u8>, SystemTime)>| -> BTreeMap<String, Vec<u8>> {
        clips.into_iter().map(|(name, (bytes, _))| (name, bytes)).collect()
    };
    assert!(bytes(contents(&made)) == bytes(expected), "{:?}", contents(&made).keys());
    let table = |path: &Path| std::fs::read_to_string(path).unwrap().replace("whole/", "killed/");
    assert_eq!(table(&whole), table(&out));
}

#[test]
fn clips_of_a_killed_process_are_removed_with_other_settings() {
    let folder = tempfile::tempdir().unwrap();
    let path = video(folder.path());
    let (out, made) = (folder.path().join("killed.csv"), folder.path().join("killed"));
    assert!(killed_at(5, &path, &out), "it was done before it was killed");
    assert!(clips(&made) >= 5);
    std::fs::write(made.join("mine.mp4"), "mine").unwrap();
    // The journal has only the settings.
    std::fs::remove_file(folder.path().join("killed.csv.journal.jsonl")).unwrap();
    assert!(start(&path, &out, "3").wait().unwrap().success());
    let left: Vec<String> = contents(&made).into_keys().collect();
    // A complete clip that was not recorded can remain.
    assert!(left.len() <= 2 && left.contains(&"mine.mp4".to_string()), "{left:?}");
    assert_eq!(Table::read(&out).unwrap().len(), 0);
}
