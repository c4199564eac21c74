//! Tests of `opensora sample --label`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A model folder around a small file in the layout of the published DiT.
fn model(folder: &Path) {
    let case = fixture("goldens/dit-original-pt");
    let json: Value = serde_json::from_slice(&fs::read(case.join("case.json")).unwrap()).unwrap();
    let model = folder.join("dit");
    fs::create_dir(&model).unwrap();
    fs::copy(case.join("DiT-XL-2-tiny.pt"), model.join("DiT.pt")).unwrap();
    let mut config = json["config"].clone();
    // The reference's name for the size of a clip.
    config.as_object_mut().unwrap().remove("input_size");
    let description = json!({
        "name": "small", "architecture": "dit", "denoiser": "DiT.pt",
        "denoiser_config": config, "vae": fixture("goldens/pipeline/vae"),
        "num_frames": 1, "image_size": [64, 64], "fps": 1.0, "sampler": "dpm-solver", "steps": 3,
        "guidance_scale": 4.0,
    });
    fs::write(model.join("model.json"), description.to_string()).unwrap();
}

fn run(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
    command.arg("sample").current_dir(folder).args(args);
    if !args.contains(&"--from-record") {
        command.args(["--allow-outside-paths", "--device", "flex"]);
        if !args.contains(&"--model") {
            command.args(["--model", "dit"]);
        }
    }
    command.output().unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn error(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && !stderr.contains("panicked"), "{args:?}: {stderr}");
    stderr
}

#[test]
fn an_image_of_each_label() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(path);
    assert_eq!(ok(path, &["--label", "3", "-o", "one.png", "--quiet"]).trim(), "one.png");
    let record: Value =
        serde_json::from_slice(&fs::read(path.join("one.png.json")).unwrap()).unwrap();
    assert_eq!((&record["label"], &record["label_name"]), (&json!(3), &Value::Null));
    assert_eq!((&record["sampler"], &record["steps"]), (&json!("dpm-solver"), &json!(3)));
    // Two samples (with the null class) in each of three steps.
    assert_eq!(record["denoiser_work"]["forward_samples"], 6);

    let printed = ok(path, &["--label", "3", "--label", "9", "-o", "many", "--json"]);
    assert_eq!(printed.lines().count(), 2);
    let images = ["one.png", "many/sample_0.png", "many/sample_1.png"]
        .map(|name| fs::read(path.join(name)).unwrap());
    assert!(images[0] == images[1], "the first image of many is the one that was made alone");
    assert!(images[1] != images[2]);
}

#[test]
fn a_record_reproduces_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(path);
    for batch in ["1", "2"] {
        let many = ["--label", "3", "--label", "9", "--label", "1", "--seed", "5", "-o", "many"];
        ok(path, &[&many[..], &["--batch-size", batch, "--sampler", "ddim"]].concat());
        for place in 0..3 {
            let image = path.join(format!("many/sample_{place}.png"));
            let record = format!("many/sample_{place}.png.json");
            let again = ["--from-record", &record, "--allow-outside-paths", "-o", "again.png"];
            ok(path, &again);
            let again = fs::read(path.join("again.png")).unwrap();
            assert!(again == fs::read(image).unwrap(), "batch {batch}, image {place}");
        }
    }
    for option in [["--aspect-ratio", "1:1"], ["--t5", "t5"], ["--negative-prompt", "a cat"]] {
        let message =
            error(path, &[&["--from-record", "many/sample_1.png.json"][..], &option].concat());
        assert!(message.contains(&format!("{} has no meaning", option[0])), "{message}");
    }
    let record = fs::read(path.join("many/sample_1.png.json")).unwrap();
    let mut record: Value = serde_json::from_slice(&record).unwrap();
    record["batch_place"] = json!(2);
    fs::write(path.join("bad.json"), record.to_string()).unwrap();
    assert!(error(path, &["--from-record", "bad.json"]).contains("batch_place"));
}

#[test]
fn details_are_printed_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(path);
    for (options, is_detailed) in [(&["-v"][..], true), (&[], false)] {
        let output = run(path, &[&["--label", "1", "-o", "a.gif"], options].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        for detail in ["denoiser: ", "VAE: ", "request: "] {
            assert_eq!(stderr.contains(detail), is_detailed, "{stderr}");
        }
    }
}

#[test]
fn invalid_arguments_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    model(path);
    for (args, words) in [
        (&["--label", "10"][..], "classes 0 to 9"),
        (&["--label", "golden retriever"], "names of the model's classes are not known"),
        (&["--label", "1", "a fox"], "cannot be used with"),
        (&["--label", "1", "--pab"], "cannot be used with"),
        (&["--label", "1", "--model", "opensora-v1-16x256x256"], "leave --label out"),
        (&["--label", "1", "--model", "demo"], "leave --label out"),
        (
            &["--label", "1", "--model", "dit-xl-2-256x256", "--weights-dir", "none"],
            "DiT-XL-2-256x256.pt",
        ),
        // Reported before files are fetched.
        (&["--label", "1000", "--model", "dit-xl-2-256x256"], "classes 0 to 999"),
        (&["--label", "zebrafish", "--model", "dit-xl-2-256x256"], "zebrafish"),
        (&["--label", "1", "--image-size", "64x32"], "not square"),
        (&["a fox"], "give one with --label"),
        (&["a fox", "--model", "latte-xl-2-16x256x256-ucf101"], "give one with --label"),
        (&["a fox", "--model", "demo", "--aspect-ratio", "9:16"], "trained for one size"),
        (&["a fox", "--model", "demo", "--aspect-ratio", "9:0"], "such as 9:16"),
    ] {
        let message = error(path, args);
        assert!(message.contains(words), "{args:?}: {message}");
    }
    assert!(!path.join("outputs").exists());
}
