//! A long video is decoded by two programs at once: what they find together is what one finds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_prepare::shots::{self, Settings, Yuv420};
use opensora_video::{Decoder, VideoReader};
use std::{path::Path, process::Command};

/// Name, size, rate, encoder's options, and whether two programs can share it where that is known.
type Video<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], Option<bool>);

/// Makes a video of several scenes; whether the `ffmpeg` program is there and has the encoder.
fn make(path: &Path, size: &str, rate: &str, options: &[&str]) -> bool {
    let scenes = ["testsrc2", "mandelbrot", "testsrc", "smptebars", "testsrc2", "rgbtestsrc"];
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-y"]);
    for (scene, seconds) in scenes.iter().zip([2.2, 3.1, 1.5, 0.9, 2.7, 1.9]) {
        let source = format!("{scene}=size={size}:rate={rate}");
        command.args(["-f", "lavfi", "-t", &format!("{seconds}"), "-i", &source]);
    }
    command.args(["-filter_complex", &format!("concat=n={}", scenes.len()), "-pix_fmt", "yuv420p"]);
    command.args(options).arg(path).status().is_ok_and(|status| status.success())
}

#[test]
fn two_halves_find_what_one_pass_finds() {
    let folder = tempfile::tempdir().unwrap();
    let h264 = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-g", "40"];
    let open = [
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-x264-params",
        "open-gop=1:bframes=3:keyint=40",
    ];
    let one_key = ["-c:v", "libx264", "-preset", "veryfast", "-g", "9999", "-sc_threshold", "0"];
    let videos: [Video; 6] = [
        ("b-frames.mp4", "322x242", "25", &h264, Some(true)),
        ("odd-rate.mp4", "256x144", "30000/1001", &h264, Some(true)),
        ("open.mp4", "160x120", "25", &open, None),
        ("b-frames.mkv", "160x120", "25", &h264, None),
        ("one-key-frame.mp4", "160x120", "25", &one_key, Some(false)),
        ("mpeg4.avi", "160x120", "25", &["-c:v", "mpeg4", "-g", "40"], None),
    ];
    for (name, size, rate, options, shared) in videos {
        let path = folder.path().join(name);
        if !make(&path, size, rate, options) {
            eprintln!("skipped: {name} cannot be made here");
            continue;
        }
        if let Some(shared) = shared {
            assert_eq!(
                VideoReader::open_planar_halves(&path, |_, _| None).is_some(),
                shared,
                "{name}"
            );
        }
        let (info, frames) = VideoReader::open_planar(&path, Decoder::Ffmpeg, |_, _| None).unwrap();
        let mut times = Vec::new();
        let frames = frames.map(|frame| {
            let frame = frame.unwrap();
            times.push(frame.time);
            Yuv420::new(frame.planes, info.width, info.height, frame.to_rgb).unwrap()
        });
        let one_pass = shots::detect(frames, &Settings::default()).unwrap();
        assert!(one_pass.scenes.len() >= 4, "{name}: {:?}", one_pass.scenes);

        let found = shots::of_video(&path, Decoder::Ffmpeg, &Settings::default()).unwrap();
        assert_eq!(found.shots, one_pass, "{name}");
        assert_eq!((found.times, found.decoder), (times, Decoder::Ffmpeg), "{name}");
    }
}

/// An index that lies about its key frames must not change what is found.
#[test]
fn a_damaged_second_half_is_no_silent_difference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.mp4");
    let options = ["-c:v", "libx264", "-preset", "veryfast", "-g", "40", "-movflags", "faststart"];
    if !make(&path, "160x120", "25", &options) {
        eprintln!("skipped: no video can be made here");
        return;
    }
    let whole = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut.mp4");
    std::fs::write(&cut, &whole[..whole.len() * 2 / 3]).unwrap();
    let one_pass = |path: &Path| {
        let (info, frames) = VideoReader::open_planar(path, Decoder::Ffmpeg, |_, _| None).unwrap();
        let frames: Result<Vec<_>, _> = frames.collect();
        frames.map(|frames| (info, frames.len()))
    };
    match (one_pass(&cut), shots::of_video(&cut, Decoder::Ffmpeg, &Settings::default())) {
        (Ok((_, frames)), Ok(found)) => assert_eq!(found.times.len(), frames),
        (Err(_), Err(_)) => {}
        (one_pass, found) => panic!("{one_pass:?} {found:?}"),
    }
}
