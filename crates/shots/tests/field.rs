//! Shots of files from other programs (`tests/fixtures/field/README.md`), with and without the `ffmpeg` program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_shots::{Flashes, Method, Release, Settings, ShotsError, VideoShots, of_video};
use opensora_video::{Decoder, Frames, VideoError, VideoSpec, Writer};
use serde_json::Value;
use std::{path::PathBuf, process::Command};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/field").join(name)
}

/// Returns the available decoders.
fn decoders() -> Vec<Decoder> {
    let has_program = Command::new("ffmpeg").arg("-version").output().is_ok();
    if !has_program {
        eprintln!("not compared: the ffmpeg program is not installed");
    }
    [Decoder::InProcess].into_iter().chain(has_program.then_some(Decoder::Ffmpeg)).collect()
}

/// Returns the shots by each decoder that supports the file.
fn found(name: &str, settings: &Settings) -> Vec<VideoShots> {
    let found = decoders().into_iter().filter_map(|decoder| {
        match of_video(&fixture(name), decoder, settings) {
            Ok(shots) => Some(shots),
            Err(ShotsError::Video(VideoError::NeedsFfmpeg { .. })) => None,
            Err(error) => panic!("{error}"),
        }
    });
    found.collect()
}

/// Returns the start of each scene and the end of the last one in seconds, to the millisecond.
fn seconds(found: &VideoShots) -> Vec<f64> {
    let starts = found.shots.scenes.iter().map(|scene| found.time(scene.start));
    starts.chain([found.end]).map(|time| (time * 1e3).round() / 1e3).collect()
}

#[test]
fn gifs_have_the_same_shots_with_and_without_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.gif");
    let grey = |t: u8| if t < 20 { 30 } else { 220 };
    let rgb = (0..40).flat_map(|t| vec![grey(t); 3 * 48 * 64]).collect();
    let clip = Frames::from_rgb(rgb, [40, 48, 64]).unwrap();
    let spec = VideoSpec { frames: 40, width: 64, height: 48, fps: 10.0 };
    Writer::open(&path, &spec).unwrap().write(&clip, &Value::Null).unwrap();
    for decoder in decoders() {
        let found = of_video(&path, decoder, &Settings::default()).unwrap();
        assert_eq!(found.shots.scenes, [0..20, 20..40], "{decoder:?}");
        assert_eq!(seconds(&found), [0.0, 2.0, 4.0]);
        assert_eq!(found.decoder, decoder);
    }
}

#[test]
fn cuts_match_pyscenedetect() {
    // Source: PySceneDetect 0.7.2 with OpenCV 5.0.0, both detectors.
    for (name, expected, frames) in [
        ("vfr_three_shots.mp4", vec![0.0, 2.0, 4.0, 6.0], 132),
        ("editlist_stream_copy.mp4", vec![0.0, 1.0, 3.0], 90),
        ("rotated_90.mp4", vec![0.0, 2.0, 4.0, 6.0], 180),
        ("sar_4_3.mp4", vec![0.0, 2.0, 4.0, 6.0], 180),
    ] {
        for method in [Method::CONTENT, Method::ADAPTIVE] {
            let settings = Settings { method, ..Settings::default() };
            let found = found(name, &settings);
            assert!(!found.is_empty());
            for found in found {
                assert_eq!(seconds(&found), expected, "{name} {method:?} {:?}", found.decoder);
                assert_eq!(found.times.len(), frames, "{name}");
            }
        }
    }
}

#[test]
fn releases_before_0_7_count_frames() {
    // The second of the three shots has 12 frames; the shortest scene has 15.
    let suppress = Method::Content { threshold: 27.0, flashes: Flashes::Suppress };
    for (release, method) in [
        (Release::V0_6_3, suppress),
        (Release::V0_6_7, Method::CONTENT),
        (Release::V0_6_7, Method::ADAPTIVE),
    ] {
        let settings = Settings { release, method, ..Settings::default() };
        for found in found("vfr_three_shots.mp4", &settings) {
            assert_eq!(found.shots.scenes, [0..60, 60..132], "{release} {method:?}");
        }
    }
}

#[test]
fn scores_match_opencv() {
    let expected = std::fs::read_to_string(fixture("opencv.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&expected).unwrap();
    let mut compared = 0;
    for (name, expected) in &expected {
        let scores: Vec<f64> = serde_json::from_value(expected["scores"].clone()).unwrap();
        for found in found(name, &Settings::default()) {
            assert_eq!(found.times.len() as u64, expected["frames"].as_u64().unwrap(), "{name}");
            for (found, expected) in found.shots.scores.iter().skip(1).zip(&scores) {
                // Light 10-bit greys have a hue in OpenCV, but not in this crate.
                let most = if name.contains("_10.") { 0.5 } else { 0.1 };
                let difference = (found.content - expected).abs();
                assert!(difference < most, "{name}: {} {expected}", found.content);
                compared += 1;
            }
        }
    }
    assert!(compared >= 3, "{compared}");
}

#[test]
fn both_decoders_give_the_same_shots() {
    let folder = fixture("");
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let has_shots = name.ends_with(".mp4") || name.ends_with(".gif");
        if !has_shots || ["sound_only.mp4", "size_change.mp4"].contains(&&*name) {
            continue;
        }
        if let [inside, outside] = &found(&name, &Settings::default())[..] {
            assert_eq!(inside.shots, outside.shots, "{name}");
            assert_eq!(inside.times.len(), outside.times.len(), "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 5 || decoders().len() < 2, "{compared}");
}

#[test]
fn files_without_frames_give_the_reason() {
    let error = of_video(&fixture("sound_only.mp4"), Decoder::Auto, &Settings::default());
    let error = error.unwrap_err();
    assert!(error.to_string().contains("sound_only.mp4"), "{error}");
    let cause = std::error::Error::source(&error).expect("the reason").to_string();
    assert!(cause.contains("no video track"), "{cause}");
    let one = found("one_frame.mp4", &Settings::default());
    assert!(
        one.iter()
            .all(|one| one.times.len() == 1 && one.shots.scenes.len() == 1 && one.end.is_finite())
    );
}
