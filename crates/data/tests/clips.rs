//! Tests of reading files as clips.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::data::dataset::Dataset;
use opensora_data::{
    ClipDataset, ClipSpec, DataError, Draw, DrawKey, Manifest, Row, Source, window,
};
use opensora_video::{Frames, VideoSpec, Writer};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

const SPEC: ClipSpec = ClipSpec {
    num_frames: 4,
    frame_interval: 2,
    image_size: [16, 16],
    horizontal_flip: true,
    variants: None,
};

/// Frame `t` is grey of `10 t`, and darker by 5 in its left half.
fn ramp(frames: usize, height: usize, width: usize) -> Frames {
    let pixel = |at: usize| 10 * (at / (height * width)) - 5 * usize::from(at % width < width / 2);
    let grey = (0..frames * height * width).map(|at| (pixel(at + height * width)) as u8);
    Frames::from_rgb(grey.flat_map(|grey| [grey; 3]).collect(), [frames, height, width]).unwrap()
}

fn write(path: &Path, clip: &Frames) -> PathBuf {
    let spec =
        VideoSpec { frames: clip.len(), width: clip.width(), height: clip.height(), fps: 8.0 };
    Writer::open(path, &spec).unwrap().write(clip, &serde_json::json!({})).unwrap()
}

fn dataset(paths: &[PathBuf], spec: ClipSpec) -> ClipDataset {
    let rows = paths.iter().map(|path| Row {
        path: path.clone(),
        caption: format!("Caption of {}", path.file_name().unwrap().display()),
        num_frames: None,
    });
    ClipDataset::new(Manifest { rows: rows.collect() }, spec, 7).unwrap()
}

/// The greys of frame `t`'s left and right edge, as bytes.
fn edges(pixels: &[f32], t: usize) -> [f32; 2] {
    [pixels[t * 256], pixels[t * 256 + 15]].map(|x| (x + 1.0) * 127.5)
}

#[test]
fn windows_and_mirroring_follow_the_draw() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder.path().join("ramp"), &ramp(20, 16, 16));
    let data = dataset(&[path], SPEC);
    let (mut begins, mut flips) = (Vec::new(), 0);
    for epoch in 0..20 {
        let sample = data.read(0, epoch).unwrap();
        assert_eq!((sample.shape, sample.pixels.len()), ([3, 4, 16, 16], 3 * 4 * 256));
        assert_eq!(sample.caption, "Caption of ramp");
        let draw = Draw::new(&SPEC, 20, DrawKey { seed: 7, row: 0, epoch });
        let indices = window::frame_indices(&SPEC, 20, draw.begin).unwrap();
        for (t, index) in indices.into_iter().enumerate() {
            let bright = 10.0 * (index + 1) as f32;
            let want = if draw.flip { [bright, bright - 5.0] } else { [bright - 5.0, bright] };
            let got = edges(&sample.pixels, t);
            assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-3), "{got:?}");
        }
        begins.push(draw.begin);
        flips += usize::from(draw.flip);
    }
    begins.sort_unstable();
    begins.dedup();
    assert!(begins.len() > 3 && (1..20).contains(&flips), "{begins:?} {flips}");
}

#[test]
fn epochs_cycle_through_the_variants() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder.path().join("ramp.gif"), &ramp(20, 16, 16));
    let data = dataset(&[path], ClipSpec { variants: Some(2), ..SPEC });
    let read = |epoch| data.read(0, epoch).unwrap();
    assert_eq!(read(0), read(2));
    assert_eq!(read(1), read(5));
    assert_eq!(Dataset::get(&data, 0).unwrap(), read(0));
    assert_eq!(Dataset::len(&data), 1);
    assert_ne!(read(0), read(1), "the seed gives different draws to both variants");
}

#[test]
fn every_kind_of_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let clip = ramp(6, 24, 40);
    let mut paths: Vec<PathBuf> = ["clip.mp4", "clip.gif", "frames"]
        .iter()
        .map(|name| write(&folder.path().join(name), &clip))
        .collect();
    let still = image::RgbImage::from_raw(40, 24, clip.frame(3).unwrap().to_vec()).unwrap();
    for name in ["still.png", "still.JPG", "still.webp", "still.bmp", "still.ppm"] {
        let path = folder.path().join(name);
        still.save(&path).unwrap();
        paths.push(path);
    }
    // The format depends on the content, not on the ending.
    let odd = folder.path().join("really-a.png");
    std::fs::copy(folder.path().join("still.JPG"), &odd).unwrap();
    paths.push(odd);

    let spec = ClipSpec { frame_interval: 1, horizontal_flip: false, ..SPEC };
    let data = dataset(&paths, spec.clone());
    for (row, path) in paths.iter().enumerate() {
        let sample = data.read(row, 0).unwrap();
        let video = row < 3;
        let begin = Draw::new(&spec, 6, DrawKey { seed: 7, row, epoch: 0 }).begin;
        for t in 0..4 {
            let bright = if video { 10.0 * (begin + t + 1) as f32 } else { 40.0 };
            let [left, right] = edges(&sample.pixels, t);
            // H.264 and JPEG are lossy.
            assert!((left + 5.0 - bright).abs() < 3.0, "{}: {left} {bright}", path.display());
            assert!((right - bright).abs() < 3.0, "{}: {right} {bright}", path.display());
        }
        assert!(data.describe(row).ends_with(&path.display().to_string()));
    }
}

#[test]
fn sizes_need_not_be_square_nor_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [
        write(&folder.path().join("wide.gif"), &ramp(4, 9, 31)),
        write(&folder.path().join("tall.gif"), &ramp(4, 64, 5)),
        write(&folder.path().join("still.png"), &ramp(1, 9, 31)),
        write(&folder.path().join("pixel.png"), &ramp(1, 1, 1)),
    ];
    for image_size in [[8, 24], [24, 8], [40, 72], [1, 1]] {
        let data = dataset(&paths, ClipSpec { image_size, frame_interval: 1, ..SPEC });
        for row in 0..paths.len() {
            let sample = data.read(row, 0).unwrap();
            let [height, width] = image_size;
            assert_eq!(sample.shape, [3, 4, height, width]);
            assert_eq!(sample.pixels.len(), 3 * 4 * height * width);
            assert!(sample.pixels.iter().all(|x| (-1.0..=1.0).contains(x)));
        }
    }
}

#[test]
fn a_bad_row_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let good = write(&folder.path().join("still.png"), &ramp(1, 24, 40));
    let cut = std::fs::read(&good).unwrap();
    let bad = [
        (write(&folder.path().join("short.gif"), &ramp(3, 16, 16)), "3 frames"),
        (file("noise.mp4", b"no video"), ""),
        (file("noise.jpg", b"no image"), ""),
        (file("cut.png", &cut[..cut.len() / 2]), ""),
        (file("a.xyz", b""), "unknown format 'xyz'"),
        (file("none", b""), "unknown format ''"),
        (folder.path().join("missing.mp4"), "No such file"),
        (folder.path().join("missing.png"), "No such file"),
        (empty, "frame_00000.png"),
    ];
    let paths: Vec<_> = bad.iter().map(|(path, _)| path.clone()).collect();
    let data = dataset(&paths, SPEC);
    for (index, (file, words)) in bad.iter().enumerate() {
        let error = data.read(index, 0).unwrap_err();
        let text = error.to_string();
        let DataError::Row { row, path, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*row, path), (index, file));
        assert!(text.starts_with(&format!("row {}: ", index + 1)), "{text}");
        assert!(text.contains(words) && !text.contains('\n'), "{text}");
        assert_eq!(text.matches(&file.display().to_string()).count(), 1, "{text}");
    }
    let error = data.read(99, 0).unwrap_err();
    assert!(matches!(error, DataError::NoSuchRow { row: 99, len: 9 }), "{error}");
}

/// A hostile header must not make the reader allocate unlimited memory.
#[test]
fn an_image_with_a_huge_declared_size_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.png");
    let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 60_000, 60_000);
    encoder.set_color(png::ColorType::Rgb);
    drop(encoder.write_header().unwrap());
    let error = dataset(&[path], SPEC).read(0, 0).unwrap_err();
    assert!(matches!(error, DataError::Row { .. }), "{error}");
}
