//! Comparison with PySceneDetect (`tests/fixtures/shots/README.md`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_shots::{
    Detector, Flashes, Method, Release, Rgb, Score, Settings, Shots, Source, Weights, Yuv420,
    detect,
};
use opensora_video::yuv::{Colour, ToRgb};
use serde_json::Value;
use std::{
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shots").join(name)
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("shots_expected.json")).unwrap()).unwrap()
}

/// A frame in OpenCV's order: blue, green, red.
struct Bgr(Vec<u8>);

const WIDTH: usize = 640;
const HEIGHT: usize = 360;

impl Source for Bgr {
    fn size(&self) -> (usize, usize) {
        (WIDTH, HEIGHT)
    }

    fn gather(&self, row: usize, columns: &[usize], [red, green, blue]: [&mut [u8]; 3]) {
        for (i, column) in columns.iter().enumerate() {
            let at = 3 * (row * WIDTH + column);
            [blue[i], green[i], red[i]] = [self.0[at], self.0[at + 1], self.0[at + 2]];
        }
    }
}

/// One part of a score.
type Part = fn(&Score) -> f64;

/// The reference's settings by their names in the fixture.
fn settings(name: &str, release: Release) -> Settings {
    let default = Settings { release, ..Settings::default() };
    let content = |threshold, flashes| Method::Content { threshold, flashes };
    match name {
        "content_default" => default,
        "content_nodownscale" => Settings { downscale: false, ..default },
        "content_suppress" => Settings { method: content(27.0, Flashes::Suppress), ..default },
        "content_min_scene_len_0" => Settings { min_scene_len: 0, ..default },
        "content_min_scene_len_5" => Settings { min_scene_len: 5, ..default },
        "content_threshold_15" => Settings { method: content(15.0, Flashes::Merge), ..default },
        "content_luma_only" => Settings { weights: Weights::VALUE, ..default },
        "adaptive_default" => Settings { method: Method::ADAPTIVE, ..default },
        other => panic!("{other} is not known"),
    }
}

/// Runs the given settings of the fixture in one pass over the frames, and compares cuts and, for the
/// defaults, scores.
fn compare<S: Source>(frames: impl Iterator<Item = S>, chosen: impl Fn(&str) -> bool) {
    let expected = expected();
    let mut runs = Vec::new();
    for (release, cuts) in expected["cuts"].as_object().unwrap() {
        for (name, cuts) in cuts.as_object().unwrap() {
            // Full-size frames are slow: one release is enough.
            if !chosen(name) || (name == "content_nodownscale" && release != "0.7") {
                continue;
            }
            let settings = settings(name, release.parse().unwrap());
            let cuts: Vec<usize> = serde_json::from_value(cuts.clone()).unwrap();
            let detector = Detector::new(&settings).unwrap();
            runs.push((format!("{release} {name}"), cuts, detector, Vec::new(), Vec::new()));
        }
    }
    assert!(runs.len() >= 3);
    let mut count = 0;
    for frame in frames {
        count += 1;
        for (_, _, detector, found, scores) in &mut runs {
            let (score, cut) = detector.push(&frame).unwrap();
            found.extend(cut);
            scores.push(score);
        }
    }
    assert_eq!(count, 440);
    for (name, cuts, _, found, scores) in &runs {
        assert_eq!(found, cuts, "{name}");
        let (release, setting) = name.split_once(' ').unwrap();
        let by_part = &expected["scores"][release];
        if setting != "content_default" || by_part.is_null() {
            continue;
        }
        let parts: [(&str, Part); 4] = [
            ("content_val", |score| score.content),
            ("delta_hue", |score| score.hue),
            ("delta_sat", |score| score.saturation),
            ("delta_lum", |score| score.value),
        ];
        for (part, value) in parts {
            let wanted: Vec<f64> = serde_json::from_value(by_part[part].clone()).unwrap();
            assert_eq!(value(&scores[0]), 0.0);
            assert_eq!(wanted.len(), scores.len() - 1);
            let worst = scores[1..]
                .iter()
                .zip(&wanted)
                .map(|(score, wanted)| (value(score) - wanted).abs())
                .fold(0.0, f64::max);
            println!("{release} {part}: largest difference {worst:.6}");
            assert!(worst < 1e-5, "{release} {part}: {worst}");
        }
    }
}

#[test]
fn the_built_in_decoder_gives_the_references_cuts_and_scores() {
    let (frames, _) = opensora_video::mp4::read(&fixture("shots_high.mp4")).unwrap();
    compare(frames.iter().map(|rgb| Rgb::new(rgb, WIDTH, HEIGHT).unwrap()), |_| true);
}

/// Decodes with the `ffmpeg` program, whose frames equal OpenCV's; `None` if it is not installed.
fn ffmpeg(format: &str, bytes: usize) -> Option<impl Iterator<Item = Vec<u8>>> {
    let child = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(fixture("shots_high.mp4"))
        .args(["-f", "rawvideo", "-pix_fmt", format, "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: no ffmpeg program on the path");
        return None;
    };
    Some(std::iter::from_fn(move || {
        let mut frame = vec![0; bytes];
        let read = child.stdout.as_mut().unwrap().read_exact(&mut frame);
        if read.is_err() {
            child.wait().unwrap();
        }
        read.ok().map(|()| frame)
    }))
}

#[test]
fn the_same_frames_have_the_same_scores() {
    if let Some(frames) = ffmpeg("bgr24", 3 * WIDTH * HEIGHT) {
        compare(frames.map(Bgr), |name| name == "content_default");
    }
}

#[test]
fn planes_have_the_scores_of_their_frames() {
    let bt709 = ToRgb::stated(Colour { matrix: 1, full_range: false }).unwrap();
    if let Some(frames) = ffmpeg("yuv420p", WIDTH * HEIGHT * 3 / 2) {
        let frames = frames.map(|data| Yuv420::new(data, WIDTH, HEIGHT, bt709).unwrap());
        compare(frames, |name| name == "content_default");
    }
}

#[test]
fn frames_of_another_size_are_rejected() {
    let (small, large) = ([0; 12], [0; 48]);
    let frames = [Rgb::new(&small[..], 2, 2).unwrap(), Rgb::new(&large[..], 4, 4).unwrap()];
    let error = detect(frames, &Settings::default()).unwrap_err().to_string();
    assert_eq!(error, "frame 1 has 4x4 pixels, expected 2x2 as the first one, at least 1x1");
    let empty = [Rgb::new([], 0, 2).unwrap()];
    assert!(detect(empty, &Settings::default()).is_err());
}

#[test]
fn a_video_without_cuts_is_one_shot() {
    let grey = [128; 12];
    let frames = || Rgb::new(&grey, 2, 2).unwrap();
    let shots = detect((0..30).map(|_| frames()), &Settings::default()).unwrap();
    assert_eq!((shots.scenes.len(), shots.scenes[0].clone()), (1, 0..30));
    assert_eq!(shots.scores.len(), 30);
    let none = detect(std::iter::empty::<Rgb<&[u8]>>(), &Settings::default()).unwrap();
    assert_eq!(none, Shots::default());
}
