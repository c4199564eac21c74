//! Compares the two decoders, and reads broken files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_files::error_line;
use opensora_video::{
    Decoder, Frames, VideoError, VideoReader, VideoSpec, Writer, ffmpeg::Programs,
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A video with B-frames, whose decoding order is not the display order.
fn b_frames() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shots/shots_high.mp4")
}

/// Returns true if the programs `ffmpeg` and `ffprobe` are installed.
fn is_there() -> bool {
    let Programs { ffmpeg, ffprobe } = Programs::default();
    let runs = |program| Command::new(program).arg("-version").output();
    [ffmpeg, ffprobe].into_iter().all(|program| runs(program).is_ok_and(|out| out.status.success()))
}

fn nowhere() -> Programs {
    Programs { ffmpeg: "/nowhere/ffmpeg".into(), ffprobe: "/nowhere/ffprobe".into() }
}

/// Writes a clip of six frames with a colour ramp.
fn clip(folder: &Path, name: &str) -> PathBuf {
    let data = (0..6 * 32 * 48).flat_map(|at| [(at % 251) as u8, 90, (at / 900) as u8]).collect();
    let frames = Frames::from_rgb(data, [6, 32, 48]).unwrap();
    let spec = VideoSpec { frames: 6, width: 48, height: 32, fps: 8.0 };
    Writer::open(&folder.join(name), &spec).unwrap().write(&frames, &Value::Null).unwrap()
}

#[test]
fn frames_come_in_the_order_in_which_they_are_shown() {
    let reader = VideoReader::open(&b_frames(), Decoder::InProcess).unwrap();
    let info = reader.info().clone();
    assert_eq!((info.height, info.width, info.fps), (360, 640, 30.0));
    assert_eq!((info.num_frames, info.codec.as_str()), (Some(440), "h264"));
    let mut count = 0;
    for frame in reader {
        let frame = frame.unwrap();
        assert!((frame.time - f64::from(count) / 30.0).abs() < 1e-4, "{count}: {}", frame.time);
        assert_eq!(frame.rgb.len(), 3 * 360 * 640);
        count += 1;
    }
    assert_eq!(count, 440);
}

#[test]
fn both_decoders_give_the_same_frames() {
    if !is_there() {
        eprintln!("not compared: ffmpeg is not installed");
        return;
    }
    let open = |decoder| VideoReader::open(&b_frames(), decoder).unwrap();
    let (inside, outside) = (open(Decoder::InProcess), open(Decoder::Ffmpeg));
    assert_eq!(inside.info().num_frames, outside.info().num_frames);
    let (_, planes) = VideoReader::open_planar(&b_frames(), Decoder::Ffmpeg, |_, _| None).unwrap();
    let (_, own_planes) =
        VideoReader::open_planar(&b_frames(), Decoder::InProcess, |_, _| None).unwrap();
    let frames = inside.zip(outside).zip(planes.zip(own_planes)).enumerate();
    for (index, ((a, b), (c, d))) in frames {
        let (a, b, c, d) = (a.unwrap(), b.unwrap(), c.unwrap(), d.unwrap());
        assert!(a.rgb == b.rgb, "frame {index}");
        assert!(c.planes == d.planes && c.to_rgb == d.to_rgb, "planes of frame {index}");
        assert!((a.time - b.time).abs() < 1e-4 && (c.time - d.time).abs() < 1e-4, "{index}");
        let [y, u, v] = [c.planes[0], c.planes[640 * 360], c.planes[640 * 360 * 5 / 4]];
        assert_eq!(c.to_rgb.pixel(y, u, v), a.rgb[..3]);
    }
}

#[test]
fn other_kinds_need_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("-clip.mkv");
    // The first bytes of a Matroska file.
    std::fs::write(&path, b"\x1aE\xdf\xa3 and so on").unwrap();
    let error = VideoReader::open_with(&path, Decoder::Auto, &nowhere()).err().unwrap();
    assert!(matches!(error, VideoError::NeedsFfmpeg { .. }), "{error:?}");
    let text = error_line(&error);
    assert!(text.contains("/nowhere/ffprobe") && !text.contains('\n'), "{text}");
    if is_there() {
        let made = Command::new(Programs::default().ffmpeg)
            .args(["-nostdin", "-v", "error", "-y", "-i"])
            .arg(clip(folder.path(), "clip.mp4"))
            .args(["-c:v", "ffv1", "-f", "matroska"])
            .arg(format!("file:{}", path.display()))
            .status()
            .unwrap();
        assert!(made.success());
        let reader = VideoReader::open(&path, Decoder::Auto).unwrap();
        assert_eq!((reader.info().codec.as_str(), reader.info().fps), ("ffv1", 8.0));
        let times: Vec<f64> = reader.map(|frame| frame.unwrap().time).collect();
        assert_eq!(times, [0.0, 0.125, 0.25, 0.375, 0.5, 0.625]);
    }
}

#[test]
fn what_is_broken_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let whole = std::fs::read(clip(folder.path(), "whole.mp4")).unwrap();
    for path in [
        file("empty.mp4", b""),
        file("text.mp4", b"no video at all\n"),
        file("cut.mp4", &whole[..whole.len() / 3]),
        file("picture.mp4", b"\x89PNG\r\n\x1a\n"),
        file("cut.gif", b"GIF89a"),
        folder.path().join("missing.mp4"),
        folder.path().to_path_buf(),
    ] {
        for decoder in [Decoder::Auto, Decoder::InProcess, Decoder::Ffmpeg] {
            let text = match VideoReader::open(&path, decoder) {
                Err(error) => error_line(&error),
                // A streaming decoder may fail only at the first frame.
                Ok(mut reader) => error_line(&reader.next().unwrap().unwrap_err()),
            };
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }
}

#[test]
fn playlists_open_no_other_file() {
    if !is_there() {
        eprintln!("not tested: ffmpeg is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "secret.mp4");
    for (name, list) in [
        ("list.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("list.ts", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, list).unwrap();
        let error = error_line(&VideoReader::open(&path, Decoder::Ffmpeg).err().unwrap());
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
