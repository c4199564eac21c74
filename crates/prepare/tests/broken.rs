//! Damaged files: each is listed with its reason, and the other files are processed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_manifest::{Table, table::PATH};
use opensora_prepare::{
    RunOptions,
    assemble::{REASON, failed_path},
    scan::{self, Found, Walk},
    split::{self, Settings},
};
use opensora_video::{Frames, VideoSpec, Writer, reader::Decoder};
use std::path::Path;

/// Writes a clip whose grey grows lighter.
fn video(path: &Path, [frames, height, width]: [usize; 3]) {
    let grey = |frame: usize| vec![(frame % 200) as u8; 3 * height * width];
    let clip =
        Frames::from_rgb((0..frames).flat_map(grey).collect(), [frames, height, width]).unwrap();
    let writer = Writer::open(path, &VideoSpec { frames, width, height, fps: 30.0 }).unwrap();
    writer.write(&clip, &serde_json::Value::Null).unwrap();
}

/// Overwrites the bytes `behind` bytes after the name of the first box of this name.
fn patched(mut bytes: Vec<u8>, name: &[u8; 4], behind: usize, with: &[u8]) -> Vec<u8> {
    let at = bytes.windows(4).position(|window| window == name).unwrap() + 4 + behind;
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Writes intact and damaged files.
fn write_all(folder: &Path) {
    let path = |name: &str| folder.join(name);
    video(&path("good.mp4"), [45, 48, 64]);
    video(&path("slim.mp4"), [31, 16, 1024]);
    let good = std::fs::read(path("good.mp4")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
    write("empty.mp4", b"");
    write("text.mp4", b"This is a page of text, and no video at all.");
    write("picture.mp4", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01");
    write("truncated.mp4", &good[..good.len() - 200]);
    write("header.mp4", &good[..40]);
    write("audio.mp4", include_bytes!("audio.m4a"));
    // Version and flags, then the number of entries, then count and duration of the first.
    write("still-time.mp4", &patched(good.clone(), b"stts", 12, &[0; 4]));
    write("no-clock.mp4", &patched(good.clone(), b"mdhd", 12, &[0; 4]));
    write("huge-sample.mp4", &patched(good.clone(), b"stsz", 12, &[0x7f; 4]));
    write("many-samples.mp4", &patched(good.clone(), b"stsz", 8, &[0x7f; 4]));
    write("huge-box.mp4", &patched(good, b"ftyp", 0, &[0xff; 4]));
    // The writer would write a single frame as a PNG, so a clip of two frames is patched.
    video(&path("short.mp4"), [2, 48, 64]);
    let two = std::fs::read(path("short.mp4")).unwrap();
    let one = patched(two, b"stsz", 8, &1u32.to_be_bytes());
    write("one.mp4", &patched(one, b"stts", 8, &1u32.to_be_bytes()));
}

/// Returns the names of the clips.
fn kept(out: &Path) -> Vec<String> {
    let table = Table::read(out).unwrap();
    let name = |row| Path::new(table.get(row, PATH).unwrap()).file_name().unwrap();
    (0..table.len()).map(|row| name(row).to_string_lossy().into_owned()).collect()
}

/// Returns names and reasons of the failed rows.
fn failures(out: &Path) -> Vec<(String, String)> {
    let failed = Table::read(&failed_path(out)).unwrap();
    let name = |row| Path::new(failed.get(row, PATH).unwrap()).file_name().unwrap();
    (0..failed.len())
        .map(|row| {
            let reason = failed.get(row, REASON).unwrap().to_string();
            (name(row).to_string_lossy().into_owned(), reason)
        })
        .collect()
}

#[test]
fn damaged_files_are_listed_and_the_others_processed() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::create_dir(&raw).unwrap();
    write_all(&raw);

    let out = folder.path().join("videos.csv");
    let found = Found::walk(std::slice::from_ref(&raw), Walk::default()).unwrap();
    let options = RunOptions { workers: 2, ..RunOptions::default() };
    let job = scan::Job { decoder: Decoder::InProcess, options, ..scan::Job::default() };
    let scanned = scan::run(&job, &found, &out, &mut ()).unwrap();
    assert_eq!(scanned.output + scanned.failed, scanned.input);
    let unreadable = failures(&out);
    for name in ["empty.mp4", "text.mp4", "picture.mp4", "header.mp4", "audio.mp4"] {
        let (_, reason) = unreadable.iter().find(|(file, _)| file == name).unwrap();
        assert!(!reason.contains("raw") && !reason.is_empty(), "{name}: {reason}");
    }
    let table = Table::read(&out).unwrap();
    let names = |row| Path::new(table.get(row, PATH).unwrap()).file_name().unwrap().to_os_string();
    let good = (0..table.len()).find(|&row| names(row) == "good.mp4").unwrap();
    let fields = ["width", "height", "fps"].map(|column| table.get(good, column).unwrap());
    assert_eq!(fields, ["64", "48", "30"]);

    // All files, also those that the scan rejects, and a missing one.
    let mut input = Table::new([PATH]);
    for file in &found.files {
        input.push([(PATH, file.to_str().unwrap().into())]);
    }
    input.push([(PATH, raw.join("missing.mp4").to_str().unwrap().into())]);
    let out = folder.path().join("clips.csv");
    let job = split::Job { decoder: Decoder::InProcess, options, ..split::Job::default() };
    let cut = split::run(&job, &input, &out, &mut ()).unwrap();
    assert_eq!((cut.input, cut.failed + kept(&out).len()), (input.len(), input.len()));
    assert!(kept(&out).contains(&"good_scene-0.mp4".into()));

    let failures = failures(&out);
    let listed: Vec<_> = failures.iter().map(|(name, _)| name.as_str()).collect();
    for (name, reason) in &failures {
        println!("{name}: {reason}");
        assert!(!reason.contains("panic") && !reason.contains('\n'), "{name}: {reason}");
    }
    let broken = ["empty", "text", "picture", "truncated", "header", "audio", "huge-sample"];
    for name in broken {
        assert!(listed.contains(&format!("{name}.mp4").as_str()), "{name}: {:?}", kept(&out));
    }
    for (name, words) in
        [("short.mp4", "long enough"), ("one.mp4", "long enough"), ("missing.mp4", "No such file")]
    {
        let (_, reason) = failures.iter().find(|(file, _)| file == name).unwrap();
        assert!(reason.contains(words), "{name}: {reason}");
    }

    // A size that no codec supports.
    let slim = (0..input.len()).find(|&row| input.get(row, PATH).unwrap().ends_with("slim.mp4"));
    let out = folder.path().join("large.csv");
    let settings = Settings { enlarge: true, ..Settings::default() };
    let job = split::Job { settings, decoder: Decoder::InProcess, ..split::Job::default() };
    split::run(&job, &input.select(slim), &out, &mut ()).unwrap();
    let (_, reason) = &self::failures(&out)[0];
    assert!(reason.contains("512x32768"), "{reason}");
}
