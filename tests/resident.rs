//! Resident models: a second clip reads no file, as counted by the system.
//!
//! A single test, since Linux counts the bytes of the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::Device;
use opensora::{PipelineOptions, Residency, SampleRequest, TextToVideo};
use opensora_tests::tiny_model;
use std::fs;

/// Returns the bytes that this process has read by system calls, including those of this function.
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

/// Returns the number of fixture files that this process has open or mapped.
fn files_in_use() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let open = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let is_model = |path: &str| path.contains("/fixtures/");
    open.filter(|path| is_model(&path.to_string_lossy())).count()
        + maps.lines().filter(|line| is_model(line)).count()
}

#[test]
fn a_second_clip_reads_nothing() {
    let files = tiny_model();
    let weights = fs::metadata(&files.denoiser).unwrap().len();
    let options = PipelineOptions { residency: Residency::All, ..PipelineOptions::default() };
    let pipeline = TextToVideo::new(files, options, Device::flex()).unwrap();
    let request = SampleRequest {
        num_frames: 2,
        image_size: [16, 32],
        steps: Some(2),
        ..SampleRequest::default()
    };
    let read_by = |request: &SampleRequest| {
        // Each count itself reads a few hundred bytes.
        let (first, second) = (bytes_read(), bytes_read());
        pipeline.generate(&["a red fox"], request, &mut ()).unwrap();
        let read = bytes_read() - second;
        read.saturating_sub(second - first)
    };
    let first = read_by(&request);
    assert!(first > weights, "{first} bytes are read, the denoiser alone has {weights}");
    assert_eq!(files_in_use(), 0, "no file stays open");
    let other = SampleRequest { image_size: [32, 16], space_scale: Some(0.7), ..request.clone() };
    for request in [request, other] {
        // The count may have gained a digit.
        let read = read_by(&request);
        assert!(read < 16, "{read} bytes are read");
    }
}
