//! Videos as they occur in practice: both decoders against the frames of OpenCV.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "field/patch.rs"]
mod patch;

use opensora_files::error_line;
use opensora_video::{
    Decoder, PixelAspect, VideoError, VideoFrame, VideoInfo, VideoReader, ffmpeg::Programs,
    media::Media, picks::Picks,
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/field").join(name)
}

fn ffmpeg_is_there() -> bool {
    let Programs { ffmpeg, ffprobe } = Programs::default();
    let runs = |program| Command::new(program).arg("-version").output();
    let there = [ffmpeg, ffprobe]
        .into_iter()
        .all(|program| runs(program).is_ok_and(|out| out.status.success()));
    if !there {
        eprintln!("not compared: ffmpeg is not installed");
    }
    there
}

fn decoders() -> Vec<Decoder> {
    let mut decoders = vec![Decoder::InProcess];
    decoders.extend(ffmpeg_is_there().then_some(Decoder::Ffmpeg));
    decoders
}

/// All frames of a file.
fn all(path: &Path, decoder: Decoder) -> Result<(VideoInfo, Vec<VideoFrame>), VideoError> {
    let reader = VideoReader::open(path, decoder)?;
    let info = reader.info().clone();
    Ok((info, reader.collect::<Result<_, _>>()?))
}

/// Writes a temporary file.
fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

fn opencv() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(fixture("opencv.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap().as_object().unwrap().clone()
}

/// Hue (0 to 180), saturation and value (0 to 255) as OpenCV defines them.
fn hsv(rgb: &[u8]) -> [f64; 3] {
    let [r, g, b] = [0, 1, 2].map(|at| f64::from(rgb[at]));
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let range = most - least;
    let hue = match range {
        0.0 => 0.0,
        _ if most == r => 60.0 * (g - b) / range,
        _ if most == g => 120.0 + 60.0 * (b - r) / range,
        _ => 240.0 + 60.0 * (r - g) / range,
    };
    let saturation = if most == 0.0 { 0.0 } else { 255.0 * range / most };
    // Rounded before the modulo, so that reds are 0 and not 180.
    [(hue / 2.0).round().rem_euclid(180.0), saturation.round(), most]
}

fn score(a: &[u8], b: &[u8]) -> f64 {
    let pixels = a.chunks_exact(3).zip(b.chunks_exact(3));
    let sum: f64 = pixels
        .map(|(a, b)| hsv(a).iter().zip(hsv(b)).map(|(a, b)| (a - b).abs()).sum::<f64>())
        .sum();
    sum / a.len() as f64
}

#[test]
fn frames_are_those_of_opencv() {
    for (name, expected) in opencv() {
        for decoder in decoders() {
            let (info, frames) = match all(&fixture(&name), decoder) {
                Ok(found) => found,
                Err(error) => {
                    // A file that the in-process decoder does not support has its own error.
                    assert_eq!(decoder, Decoder::InProcess, "{error}");
                    assert!(matches!(error, VideoError::NeedsFfmpeg { .. }), "{error}");
                    let others = ["422", "444", "420_10", "packed"];
                    assert!(others.iter().any(|word| name.contains(word)), "{error}");
                    continue;
                }
            };
            let size = expected["size"].as_array().unwrap();
            assert_eq!(Some(info.height as u64), size[0].as_u64(), "{name} {decoder:?}");
            assert_eq!(Some(info.width as u64), size[1].as_u64(), "{name} {decoder:?}");
            assert_eq!(Some(frames.len() as u64), expected["frames"].as_u64(), "{name}");
            assert_eq!(info.num_frames, Some(frames.len()), "{name} {decoder:?}");
            assert_eq!(Some(info.fps), expected["fps"].as_f64(), "{name} {decoder:?}");
            let (first, last) = (&frames[0].rgb, &frames[frames.len() - 1].rgb);
            if !name.contains("_10") {
                assert_eq!(hash(first), expected["first"], "{name} {decoder:?}");
                assert_eq!(hash(last), expected["last"], "{name} {decoder:?}");
            }
            for (pair, score_of_opencv) in
                frames.windows(2).zip(expected["scores"].as_array().unwrap())
            {
                let score = score(&pair[0].rgb, &pair[1].rgb);
                let off = (score - score_of_opencv.as_f64().unwrap()).abs();
                assert!(off < 0.5, "{name} {decoder:?}: {score} {score_of_opencv}");
            }
        }
    }
}

/// Frames in planes, as red, green and blue; at most [`MOST`].
fn planar(path: &Path, decoder: Decoder) -> Vec<VideoFrame> {
    let (info, frames) = VideoReader::open_planar(path, decoder, |_, _| None).unwrap();
    let are_whole = frames.picks().is_some();
    let (width, height) = (info.width, info.height);
    let rgb = |planes: &[u8], to_rgb: opensora_video::yuv::ToRgb| {
        let (luma, differences) = planes.split_at(width * height);
        let (blue, red) = differences.split_at(differences.len() / 2);
        let pixel = |at: usize| {
            let (x, y) = (at % width, at / width);
            let at_chroma = if are_whole { at } else { y / 2 * (width / 2) + x / 2 };
            to_rgb.pixel(luma[at], blue[at_chroma], red[at_chroma])
        };
        (0..width * height).flat_map(pixel).collect()
    };
    frames
        .take(MOST)
        .map(|frame| frame.unwrap())
        .map(|frame| VideoFrame { time: frame.time, rgb: rgb(&frame.planes, frame.to_rgb) })
        .collect()
}

/// Maximum number of frames per file that are compared as planes: more than a GOP with B-frames.
const MOST: usize = 50;

#[test]
fn both_decoders_show_the_same_in_all_forms() {
    let others = [
        "interlaced.mp4",
        "av1.mp4",
        "cover_first.mp4",
        "two_tracks.mp4",
        "open_gop_cut.mp4",
        "negative_offsets.mp4",
        "slices.mp4",
        "jitter.mp4",
        "no_key.mp4",
        "../seeds/animated.gif",
    ];
    for name in opencv().keys().map(String::as_str).chain(others) {
        let path = fixture(name);
        let mut first: Option<(VideoInfo, Vec<VideoFrame>)> = None;
        for decoder in decoders() {
            let Ok(reader) = VideoReader::open(&path, decoder) else { continue };
            let info = reader.info().clone();
            let frames: Vec<_> = reader.take(MOST).map(|frame| frame.unwrap()).collect();
            let planes = planar(&path, decoder);
            let (first_info, first) = first.get_or_insert_with(|| (info.clone(), frames.clone()));
            assert_eq!((frames.len(), planes.len()), (first.len(), first.len()), "{name}");
            for (index, ((a, b), c)) in first.iter().zip(&frames).zip(&planes).enumerate() {
                assert!(a.rgb == b.rgb, "{name} {decoder:?} {index}");
                assert!(b.rgb == c.rgb, "planes of {name} {decoder:?} {index}");
                assert!((a.time - b.time).abs() < 1e-9, "{name} {index}: {} {}", a.time, b.time);
                assert!((b.time - c.time).abs() < 1e-9, "{name} {index}: {} {}", b.time, c.time);
            }
            assert!((info.duration.unwrap() - first_info.duration.unwrap()).abs() < 1e-6, "{name}");
            let size = |info: &VideoInfo| (info.width, info.height, info.num_frames);
            assert_eq!(size(&info), size(first_info), "{name}");
            assert_eq!(info.pixel_aspect, first_info.pixel_aspect, "{name}");
            // ffprobe rounds to the nearest common frame rate; for GIF it averages over a few frames.
            let near = if name.ends_with(".gif") { 0.05 } else { 1e-6 };
            let ratio = info.fps / first_info.fps;
            assert!((ratio - 1.0).abs() < near, "{name} {}", info.fps);
        }
    }
}

#[test]
fn hidden_frames_are_neither_counted_nor_shown() {
    let bytes = std::fs::read(fixture("editlist_stream_copy.mp4")).unwrap();
    let whole = patch::with_edits(&bytes, &[]);
    let (_folder, whole) = written("whole.mp4", &whole);
    let (_, stored) = all(&whole, Decoder::InProcess).unwrap();
    assert_eq!(stored.len(), 180);
    // Durations are in ticks of the movie (1000 per second), times in ticks of the track (15360 per
    // second). The first frame is shown at 1024; each frame takes 512.
    let frame = |index: i32| 1024 + 512 * index;
    for (edits, shown) in [
        (vec![(3000, frame(90))], 90..180),
        // Starts in the middle of a GOP, and between two frames.
        (vec![(1000, frame(37))], 37..67),
        (vec![(1000, frame(37) - 5)], 37..67),
        (vec![(1000, frame(36) + 5)], 37..67),
        // One and two empty edits (delays) before the media.
        (vec![(500, -1), (250, -1), (1000, frame(100))], 100..130),
        (vec![(500, -1), (6000, frame(0))], 0..180),
        // An edit longer than the track.
        (vec![(60_000, frame(170))], 170..180),
    ] {
        let (_folder, path) = written("cut.mp4", &patch::with_edits(&bytes, &edits));
        for decoder in decoders() {
            let (info, frames) = all(&path, decoder).unwrap();
            let expected = &stored[shown.clone()];
            assert_eq!(info.num_frames, Some(shown.len()), "{edits:?} {decoder:?}");
            assert_eq!(frames.len(), shown.len(), "{edits:?} {decoder:?}");
            for (index, (a, b)) in frames.iter().zip(expected).enumerate() {
                assert!(a.rgb == b.rgb, "{edits:?} {decoder:?} {index}");
                assert!((a.time - index as f64 / 30.0).abs() < 1e-9, "{edits:?} {}", a.time);
            }
        }
    }
    // Edit lists that the in-process decoder does not support need ffmpeg.
    for edits in [vec![(1000, frame(0)), (1000, frame(90))], vec![(0, frame(0))]] {
        let (_folder, path) = written("parts.mp4", &patch::with_edits(&bytes, &edits));
        let error = all(&path, Decoder::InProcess).unwrap_err();
        assert!(matches!(error, VideoError::NeedsFfmpeg { .. }), "{edits:?}: {error}");
    }
}

#[test]
fn two_programs_show_the_same_as_one() {
    if !ffmpeg_is_there() {
        return;
    }
    let path = fixture("../shots/shots_high.mp4");
    // The edit starts at frame 100.
    let edits = [(11_333, 1024 + 512 * 100)];
    let bytes = patch::with_edits(&std::fs::read(path).unwrap(), &edits);
    let (_folder, path) = written("cut.mp4", &bytes);
    let (info, whole) = VideoReader::open_planar(&path, Decoder::Ffmpeg, |_, _| None).unwrap();
    let whole: Vec<_> = whole.map(|frame| frame.unwrap()).collect();
    assert_eq!((info.num_frames, whole.len()), (Some(340), 340));
    let halves = VideoReader::open_planar_halves(&path, |_, _| None).unwrap();
    for (frames, from) in [(halves.first, 0), (halves.second, halves.place)] {
        let mut count = from;
        for (frame, expected) in frames.zip(&whole[from..]) {
            let frame = frame.unwrap();
            assert!(frame.planes == expected.planes, "{count}");
            assert!((frame.time - expected.time).abs() < 1e-9, "{count}: {}", frame.time);
            count += 1;
        }
        assert_eq!(count, 340);
    }
}

#[test]
fn all_eight_orientations_are_shown_upright() {
    const ONE: i32 = 65536;
    let bytes = std::fs::read(fixture("h264_420_8.mp4")).unwrap();
    let (_, stored) = all(&fixture("h264_420_8.mp4"), Decoder::InProcess).unwrap();
    let (width, height) = (96, 64);
    let stored_pixel = |x: usize, y: usize| &stored[0].rgb[3 * (y * width + x)..][..3];
    for [a, b, c, d] in [
        [1, 0, 0, 1],
        [-1, 0, 0, 1],
        [1, 0, 0, -1],
        [-1, 0, 0, -1],
        [0, 1, 1, 0],
        [0, 1, -1, 0],
        [0, -1, 1, 0],
        [0, -1, -1, 0],
    ] {
        let matrix = [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30];
        let (_folder, path) = written("turned.mp4", &patch::with_matrix(&bytes, matrix));
        for decoder in decoders() {
            let (info, frames) = all(&path, decoder).unwrap();
            let shown = if a == 0 { (height, width) } else { (width, height) };
            assert_eq!((info.width, info.height), shown, "{matrix:?} {decoder:?}");
            // The position of a stored pixel according to the matrix.
            for y in 0..height {
                for x in 0..width {
                    let (p, q) = (x as i32, y as i32);
                    // Negative coordinates count from the other end.
                    let place = |n: i32, factor: i32, side: usize| match factor < 0 {
                        true => side - 1 - n.unsigned_abs() as usize,
                        false => n as usize,
                    };
                    let u = place(a * p + c * q, a + c, shown.0);
                    let v = place(b * p + d * q, b + d, shown.1);
                    let pixel = &frames[0].rgb[3 * (v * shown.0 + u)..][..3];
                    assert_eq!(pixel, stored_pixel(x, y), "{matrix:?} {decoder:?} {x} {y}");
                }
            }
            let planes = planar(&path, decoder);
            assert!(planes[0].rgb == frames[0].rgb, "planes, {matrix:?} {decoder:?}");
        }
    }
}

#[test]
fn times_are_those_of_the_container() {
    for decoder in decoders() {
        let (info, frames) = all(&fixture("vfr_three_shots.mp4"), decoder).unwrap();
        assert_eq!((info.fps, info.duration), (22.0, Some(6.0)), "{decoder:?}");
        // Two seconds each of 30, 6 and 30 frames a second.
        let expected = (0..60)
            .map(|frame| f64::from(frame) / 30.0)
            .chain((0..12).map(|frame| 2.0 + f64::from(frame) / 6.0))
            .chain((0..60).map(|frame| 4.0 + f64::from(frame) / 30.0));
        assert_eq!(frames.len(), 132);
        for (frame, expected) in frames.iter().zip(expected) {
            assert!((frame.time - expected).abs() < 1e-9, "{decoder:?} {} {expected}", frame.time);
        }
    }
}

#[test]
fn pixels_can_be_made_square() {
    for decoder in decoders() {
        let reader = VideoReader::open(&fixture("sar_4_3.mp4"), decoder).unwrap();
        let info = reader.info();
        assert_eq!((info.width, info.height), (320, 180));
        assert_eq!(info.pixel_aspect, PixelAspect { width: 4, height: 3 });
        assert_eq!(info.square_size(), [180, 427]);
        let mut reader = reader.with_square_pixels().unwrap();
        assert_eq!((reader.info().width, reader.info().square_size()), (427, [180, 427]));
        assert_eq!(reader.next().unwrap().unwrap().rgb.len(), 3 * 427 * 180);

        let (_, stored) = all(&fixture("h264_420_8.mp4"), decoder).unwrap();
        let reader = VideoReader::open(&fixture("h264_420_8.mp4"), decoder).unwrap();
        let first = reader.with_square_pixels().unwrap().next().unwrap().unwrap();
        assert_eq!(first, stored[0]);
    }
}

#[test]
fn turned_pixels_are_as_wide_as_they_were_high() {
    let bytes = std::fs::read(fixture("sar_4_3.mp4")).unwrap();
    let turned = patch::with_matrix(&bytes, [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]);
    let (_folder, path) = written("turned.mp4", &turned);
    for decoder in decoders() {
        let reader = VideoReader::open(&path, decoder).unwrap();
        assert_eq!(reader.info().pixel_aspect, PixelAspect { width: 3, height: 4 });
        assert_eq!(reader.info().square_size(), [320, 135]);
    }
}

#[test]
fn other_kinds_need_the_program_and_are_not_damaged() {
    let nowhere = Programs { ffmpeg: "/nowhere/ffmpeg".into(), ffprobe: "/nowhere/ffprobe".into() };
    for (name, found) in [
        ("h264_422_8.mp4", "4:2:2"),
        ("h264_444_8.mp4", "4:4:4"),
        ("h264_420_10.mp4", "10 bits"),
        ("interlaced.mp4", "interlace"),
        ("av1.mp4", "av01"),
        ("refresh_cut.mp4", "IDR"),
        ("packed_b_frames.avi", "no MP4"),
    ] {
        let path = fixture(name);
        for error in [
            VideoReader::open(&path, Decoder::InProcess).err().unwrap(),
            VideoReader::open_with(&path, Decoder::Auto, &nowhere).err().unwrap(),
        ] {
            assert!(matches!(error, VideoError::NeedsFfmpeg { .. }), "{error:?}");
            let text = error_line(&error);
            assert!(text.contains(found) && text.contains("needs the ffmpeg program"), "{text}");
            assert!(!text.contains("damaged") && !text.contains('\n'), "{text}");
        }
        if ffmpeg_is_there() {
            let (info, frames) = all(&path, Decoder::Auto).unwrap();
            // One frame cannot be decoded, which the header does not show.
            let lost = usize::from(name == "refresh_cut.mp4");
            assert_eq!(info.num_frames, Some(frames.len() + lost), "{name}");
        }
    }
    for decoder in [Decoder::InProcess, Decoder::Ffmpeg, Decoder::Auto] {
        let error = VideoReader::open(&fixture("sound_only.mp4"), decoder).err().unwrap();
        let text = error_line(&error);
        let absent = matches!(error, VideoError::Program { .. });
        assert!(absent || text.contains("no video track"), "{text}");
    }
}

#[test]
fn a_damaged_picture_stops_neither_the_file_nor_the_process() {
    let good = std::fs::read(fixture("vfr_three_shots.mp4")).unwrap();
    let (_, expected) = all(&fixture("vfr_three_shots.mp4"), Decoder::InProcess).unwrap();
    let mdat = patch::position(&good, b"mdat");
    let middle = mdat + (patch::position(&good, b"moov") - mdat) / 2;
    for (length, byte) in [(40, 0xff), (400, 0), (4000, 0x55)] {
        let mut bad = good.clone();
        bad[middle..middle + length].fill(byte);
        let (_folder, path) = written("damaged.mp4", &bad);
        let mut given = 0;
        for frame in VideoReader::open(&path, Decoder::InProcess).unwrap() {
            match frame {
                Ok(frame) => given += usize::from(frame.rgb.len() == 3 * 320 * 180),
                Err(error) => assert!(!error_line(&error).contains('\n'), "{error}"),
            }
        }
        assert!(given > 30, "{given}");
        if ffmpeg_is_there() {
            let (_, frames) = all(&path, Decoder::Auto).unwrap();
            // Frames without any remaining data are not returned.
            assert!(if length < 4000 { frames.len() == 132 } else { frames.len() > 115 });
            // Both decoders give each frame its time.
            let times: Vec<f64> = expected.iter().map(|frame| frame.time).collect();
            for frame in &frames {
                assert!(
                    times.iter().any(|time| (time - frame.time).abs() < 1e-9),
                    "{}",
                    frame.time
                );
            }
            assert!(frames.is_sorted_by(|a, b| a.time < b.time));
            assert!((frames[frames.len() - 1].time - times[131]).abs() < 1e-9);
            assert!(frames[..30].iter().zip(&expected).all(|(a, b)| a.rgb == b.rgb));
        }
    }
}

#[test]
fn a_file_is_what_it_holds_whatever_its_name() {
    for (name, other) in [("uneven.gif", "film.mp4"), ("slices.mp4", "film.gif")] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let (_folder, path) = written(other, &bytes);
        for decoder in decoders() {
            let (info, frames) = all(&fixture(name), decoder).unwrap();
            let (info_again, again) = all(&path, decoder).unwrap();
            assert!(info == info_again && frames == again, "{name} {decoder:?}");
        }
        let read = Media::read(&path).unwrap();
        assert_eq!(read.frames().len(), all(&path, Decoder::InProcess).unwrap().1.len());
    }
}

#[test]
fn frames_of_gif_have_their_own_times() {
    let path = fixture("uneven.gif");
    let mut first = None;
    for decoder in decoders() {
        let (info, frames) = all(&path, decoder).unwrap();
        let planes = planar(&path, decoder);
        let first = first.get_or_insert_with(|| frames.clone());
        assert_eq!((info.num_frames, frames.len(), planes.len()), (Some(6), 6, 6));
        for (((frame, plane), first), time) in
            frames.iter().zip(&planes).zip(first).zip([0.0, 0.1, 0.2, 0.9, 1.1, 1.5])
        {
            assert!(frame.rgb == first.rgb && plane.rgb == first.rgb, "{decoder:?} {time}");
            assert!((frame.time - time).abs() < 1e-9, "{decoder:?} {}", frame.time);
            assert!((plane.time - time).abs() < 1e-9, "{decoder:?} {}", plane.time);
        }
    }
    // Only selected pixels of a frame.
    let picks = |_, _| Some(Picks { columns: vec![1, 3, 39], rows: vec![0, 29] });
    let (_, mut frames) = VideoReader::open_planar(&path, Decoder::InProcess, picks).unwrap();
    let planes = frames.next().unwrap().unwrap().planes;
    let rgb = &first.unwrap()[0].rgb;
    let at = |row: usize, column: usize, channel: usize| rgb[3 * (40 * row + column) + channel];
    let expected = [0, 1, 2].map(|channel| {
        [(0, 1), (0, 3), (0, 39), (29, 1), (29, 3), (29, 39)].map(|(y, x)| at(y, x, channel))
    });
    assert_eq!(planes, expected.concat());
}

#[test]
fn a_size_that_changes_is_a_reason() {
    for decoder in decoders() {
        let text = error_line(&all(&fixture("size_change.mp4"), decoder).unwrap_err());
        assert!(text.contains("size changes from 48x64 to 64x48"), "{decoder:?}: {text}");
    }
}

#[test]
fn what_holds_no_video_is_named_alike_by_all() {
    for (bytes, what) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], "Git LFS pointer"),
        (b"<!doctype html><title>Not found</title>", "a web page"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "sound (WAV)"),
        (&[0; 5000], "a file of zeros"),
    ] {
        let (_folder, path) = written("film.mp4", bytes);
        for decoder in [Decoder::InProcess, Decoder::Ffmpeg, Decoder::Auto] {
            let error = VideoReader::open(&path, decoder).err().unwrap();
            assert!(matches!(error, VideoError::Decode { .. }), "{decoder:?}: {error}");
            assert!(error_line(&error).contains(what), "{error}");
            let planar = VideoReader::open_planar(&path, decoder, |_, _| None).err().unwrap();
            assert_eq!(error_line(&planar), error_line(&error));
        }
    }
    if ffmpeg_is_there() {
        // The message occurs once, though both decoders failed.
        let text = error_line(&all(&fixture("sound_only.mp4"), Decoder::Auto).unwrap_err());
        assert_eq!(text.matches("no video track").count(), 1, "{text}");
    }
}

#[test]
fn cut_files_tell_where_they_end() {
    let bytes = std::fs::read(fixture("h264_420_8.mp4")).unwrap();
    // The file's header is at its end.
    let (_folder, path) = written("cut.mp4", &bytes[..bytes.len() - 40]);
    let text = error_line(&VideoReader::open(&path, Decoder::InProcess).err().unwrap());
    assert!(text.contains("truncated"), "{text}");
}
