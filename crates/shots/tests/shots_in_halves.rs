//! Two processes that share a long video, and decoders that skip pixels, give the same shots as one process
//! with all pixels.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_shots::{Release, Rgb, Settings, detect, of_video};
use opensora_video::{Decoder, VideoReader, picks::Picks};
use std::{path::Path, process::Command};

/// Name, size, rate, encoder options, and whether two processes can share the video, if that is known.
type Video<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], Option<bool>);

/// Makes a video of several scenes; returns false if the `ffmpeg` program or its encoder is missing.
fn make(path: &Path, size: &str, rate: &str, options: &[&str]) -> bool {
    let scenes = ["testsrc2", "mandelbrot", "testsrc", "smptebars", "testsrc2", "rgbtestsrc"];
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-y"]);
    // Some test sources need even sides.
    let (width, height) = size.split_once('x').unwrap();
    let even = |side: &str| side.parse::<usize>().unwrap().next_multiple_of(2);
    for (scene, seconds) in scenes.iter().zip([2.2, 3.1, 1.5, 0.9, 2.7, 1.9]) {
        let source = format!("{scene}=size={}x{}:rate={rate}", even(width), even(height));
        command.args(["-f", "lavfi", "-t", &format!("{seconds}"), "-i", &source]);
    }
    let crop = format!("format=yuv420p,crop={width}:{height}:0:0:exact=1");
    let filter = format!("concat=n={},{crop}", scenes.len());
    command.args(["-filter_complex", &filter, "-pix_fmt", "yuv420p"]);
    command.args(options).arg(path).status().is_ok_and(|status| status.success())
}

#[test]
fn two_halves_give_the_same_as_one_pass() {
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
        same_as_of_all_pixels(&path, name);
    }
}

/// Videos of few pixels, as the test above takes minutes without optimizations.
#[test]
fn small_videos_are_shared_by_two_processes_unless_the_program_is_excluded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.mp4");
    let options = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "40"];
    if !make(&path, "32x32", "25", &options) {
        eprintln!("skipped: no video can be made here");
        return;
    }
    assert!(VideoReader::open_planar_halves(&path, |_, _| None).is_some());
    same_as_of_all_pixels(&path, "small.mp4");
    let found = |decoder| of_video(&path, decoder, &Settings::default()).unwrap();
    let (inside, outside) = (found(Decoder::InProcess), found(Decoder::Auto));
    assert_eq!((inside.decoder, outside.decoder), (Decoder::InProcess, Decoder::Ffmpeg));
    assert_eq!(inside.shots, outside.shots);
}

/// Compares the result with that of all pixels in one pass.
fn same_as_of_all_pixels(path: &Path, name: &str) {
    let releases = [Release::V0_7, Release::V0_6_3];
    for settings in releases.map(|release| Settings { release, ..Settings::default() }) {
        let reader = VideoReader::open(path, Decoder::Ffmpeg).unwrap();
        let (width, height) = (reader.info().width, reader.info().height);
        let mut times = Vec::new();
        let frames = reader.map(|frame| {
            let frame = frame.unwrap();
            times.push(frame.time);
            Rgb::new(frame.rgb, width, height).unwrap()
        });
        let one_pass = detect(frames, &settings).unwrap();
        assert!(one_pass.scenes.len() >= 4, "{name}: {:?}", one_pass.scenes);

        let found = of_video(path, Decoder::Ffmpeg, &settings).unwrap();
        assert_eq!(found.shots, one_pass, "{name}");
        assert_eq!((found.times, found.decoder), (times, Decoder::Ffmpeg), "{name}");
    }
}

#[test]
fn skipped_pixels_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let h264 = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "40"];
    let with = |options: &[&'static str]| [&h264[..], options].concat();
    let corner = with(&["-chroma_sample_location", "topleft"]);
    let full = with(&["-color_range", "pc", "-pix_fmt", "yuvj420p"]);
    let deep = with(&["-pix_fmt", "yuv420p10le"]);
    let vp9 = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"];
    // Name, size, rate (25: two processes share the video), options, and whether the centre columns of three
    // or five are picked, if that does not depend on the build of the program: for odd sides it does.
    let videos: [Video<'_>; 10] = [
        ("three.mp4", "768x432", "25", &h264, Some(true)),
        ("five.mp4", "1280x720", "10", &h264, Some(true)),
        ("portrait.mp4", "432x768", "10", &h264, Some(true)),
        ("columns.mp4", "768x434", "25", &h264, Some(true)),
        ("columns-portrait.mkv", "430x768", "10", &h264, Some(true)),
        ("corner.mp4", "768x432", "10", &corner, Some(true)),
        ("full-range.mp4", "768x432", "10", &full, Some(false)),
        ("deep.mp4", "768x432", "10", &deep, Some(false)),
        ("vp9-odd.webm", "771x435", "10", &vp9, None),
        ("even.mp4", "1024x576", "10", &h264, Some(true)),
    ];
    for (name, size, rate, options, picked) in videos {
        let path = folder.path().join(name);
        if !make(&path, size, rate, options) {
            eprintln!("skipped: {name} cannot be made here");
            continue;
        }
        let every = |side: usize| {
            let factor = [5, 3].into_iter().find(|factor| side.is_multiple_of(*factor));
            factor.map_or_else(
                || (0..side).collect(),
                |factor| (factor / 2..side).step_by(factor).collect::<Vec<_>>(),
            )
        };
        let wanted = |width, height| Some(Picks { columns: every(width), rows: every(height) });
        let (info, frames) = VideoReader::open_planar(&path, Decoder::Ffmpeg, wanted).unwrap();
        if let Some(picked) = picked {
            // Other depths and ranges are transferred as RGB of all pixels.
            let (width, height) = (info.width, info.height);
            let left_out = frames
                .picks()
                .is_some_and(|picks| (picks.columns.len(), picks.rows.len()) != (width, height));
            assert_eq!(left_out, picked, "{name}");
        }
        drop(frames);
        same_as_of_all_pixels(&path, name);
        if name == "portrait.mp4" {
            let found = |decoder| of_video(&path, decoder, &Settings::default()).unwrap().shots;
            assert_eq!(found(Decoder::InProcess), found(Decoder::Auto));
        }
    }
}

/// A wrong index of key frames must not change the shots.
#[test]
fn a_damaged_second_half_changes_nothing_silently() {
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
    match (one_pass(&cut), of_video(&cut, Decoder::Ffmpeg, &Settings::default())) {
        (Ok((_, frames)), Ok(found)) => assert_eq!(found.times.len(), frames),
        (Err(_), Err(_)) => {}
        (one_pass, found) => panic!("{one_pass:?} {found:?}"),
    }
}
