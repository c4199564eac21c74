//! Image resizing against Pillow 13: SHA-256 of its results on a picture of 640x360.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_data::transform;
use opensora_video::pillow::{Filter, Resize};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

#[derive(Deserialize)]
struct Expected {
    src_sha256_rgb: String,
    resize: Vec<Resized>,
    center_crop_arr: Vec<Crop>,
}

#[derive(Deserialize)]
struct Resized {
    filter: String,
    w: usize,
    h: usize,
    sha256: String,
}

#[derive(Deserialize)]
struct Crop {
    size: usize,
    sha256: String,
}

fn source() -> (Vec<u8>, Expected) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize");
    let text = std::fs::read_to_string(folder.join("pil_expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let source = opensora_video::png::read(&folder.join("src_640x360.png")).unwrap();
    assert_eq!(sha256(source.data()), expected.src_sha256_rgb);
    (source.data().to_vec(), expected)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn resized_images_equal_pillows() {
    let (rgb, expected) = source();
    let mut checked = 0;
    for case in &expected.resize {
        let filter = match case.filter.as_str() {
            "box" => Filter::Box,
            "bicubic" => Filter::Bicubic,
            _ => continue,
        };
        let got = Resize::whole([360, 640], [case.h, case.w]).apply(&rgb, filter);
        assert_eq!(sha256(&got), case.sha256, "{filter:?} {}x{}", case.h, case.w);
        checked += 1;
    }
    assert_eq!(checked, 10);
}

#[test]
fn centre_crops_equal_the_references() {
    let (rgb, expected) = source();
    for case in &expected.center_crop_arr {
        let got = transform::image(&rgb, [360, 640], [case.size; 2]);
        assert_eq!(sha256(&got), case.sha256, "{}", case.size);
    }
    assert_eq!(expected.center_crop_arr.len(), 6);
}

#[test]
fn a_crop_equals_that_part_of_the_whole() {
    let (rgb, _) = source();
    let (resized, offset, size) = ([77, 101], [31, 5], [40, 90]);
    let whole = Resize::whole([360, 640], resized).apply(&rgb, Filter::Bicubic);
    let part = Resize { source: [360, 640], resized, offset, size }.apply(&rgb, Filter::Bicubic);
    let want: Vec<u8> = (0..size[0])
        .flat_map(|y| {
            let begin = 3 * ((y + offset[0]) * resized[1] + offset[1]);
            whole[begin..begin + 3 * size[1]].to_vec()
        })
        .collect();
    assert_eq!(part, want);
}
