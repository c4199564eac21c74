//! Tests of `opensora data demo` and `opensora eval demo`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora::data::Manifest;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

fn opensora(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_opensora")).args(args).current_dir(folder).output().unwrap()
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A quick evaluation of the tiny model, whose weights are random.
fn eval_command(folder: &Path, args: &[&str]) -> Command {
    let model = fixture("tiny-model").display().to_string();
    // The tiny model's VAE and text encoder are in folders beside it.
    let mut all = vec!["eval", "demo", "--allow-outside-paths", "--sampler", "dpm-solver"];
    all.extend(["--steps", "2", "--num-frames", "4"]);
    if !args.contains(&"--quiet") && !args.contains(&"--verbose") {
        all.push("--quiet");
    }
    for (option, value) in
        [("--model", model.as_str()), ("--prompts", "6"), ("--image-size", "32x32")]
    {
        if !args.contains(&option) {
            all.extend([option, value]);
        }
    }
    all.extend(args);
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
    command.args(all).current_dir(folder);
    command
}

fn eval(folder: &Path, args: &[&str]) -> Output {
    eval_command(folder, args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn data_demo_writes_what_training_reads() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["data", "demo", "--out", "set", "--clips", "3", "--stills", "2", "--seed", "7"];
    let output = opensora(folder.path(), &[&args[..], &["--size", "32", "-q", "--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["clips"], &line["stills"]), (&3.into(), &2.into()));
    for (key, frames) in [("clips_csv", 16), ("stills_csv", 1)] {
        let manifest = folder.path().join(line[key].as_str().unwrap());
        for row in Manifest::read(&manifest).unwrap().rows {
            let media = opensora::video::media::Media::read(&row.path).unwrap();
            assert_eq!((media.frames().len(), row.num_frames), (frames, Some(frames)));
        }
    }
    let none = opensora(folder.path(), &["data", "demo", "--out", "other"]);
    assert!(!none.status.success());
    assert_eq!(stderr(&none).lines().count(), 1, "{}", stderr(&none));
    assert!(!folder.path().join("other").exists());
}

#[test]
fn eval_demo_reports_ceilings_and_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let clips = folder.path().join("clips");
    // An earlier evaluation had 8 prompts; the ninth clip is of `sample`.
    std::fs::create_dir(&clips).unwrap();
    let older = ["0006.mp4", "0006.mp4.json", "0007.mp4", "0007.mp4.json", "sheet-01.png"];
    let sampled = ["0008.mp4", "0008.mp4.json"];
    for name in older {
        std::fs::write(clips.join(name), r#"{"prompt": "a fox", "expected": {}}"#).unwrap();
    }
    for name in sampled {
        std::fs::write(clips.join(name), r#"{"prompt": "a fox"}"#).unwrap();
    }
    let output = eval(folder.path(), &["--json", "--vae-ceiling", "--out", "clips"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["set"], &report["prompts"]), (&"held-out".into(), &6.into()));
    // The judge recognises real clips; samples of random weights match no prompt.
    assert_eq!(report["judge"]["overall"]["all"]["accuracy"], 1.0);
    assert_eq!(report["scores"]["overall"]["all"]["right"], 0);
    assert_eq!(report["vae"]["overall"]["shape"]["total"], 6);
    assert_eq!(report["vae"]["overall"]["frames"]["total"], 6 * 4);
    for group in ["by_shape", "by_colour", "by_motion", "by_phrasing"] {
        assert!(!report["scores"][group].as_object().unwrap().is_empty(), "{group}");
    }
    assert_eq!(report["judge"]["steadiness"]["background_flicker"]["clips"], 6);

    assert!(older.iter().all(|name| !clips.join(name).exists()));
    assert!(sampled.iter().all(|name| clips.join(name).exists()));
    let record = std::fs::read_to_string(clips.join("0005.mp4.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let colour = record["expected"]["colour"].as_str().unwrap();
    assert!(record["prompt"].as_str().unwrap().contains(colour), "{record}");
    let sheet = opensora::video::png::read(&clips.join("sheet-00.png")).unwrap();
    // A row is 2 (32 + 2 * 2) high, with the gap, the caption and the gap of the sheet below.
    assert_eq!((sheet.height(), sheet.width()), (6 * (72 + 4 + 19 + 8) + 8, 2 * (4 * 34 + 2) + 16));
    assert_eq!(record["frames"].as_array().unwrap().len(), 4);
    let kept: Value =
        serde_json::from_str(&std::fs::read_to_string(clips.join("report.json")).unwrap()).unwrap();
    assert_eq!(kept["scores"], report["scores"]);
}

/// The VAE is loaded before the first clip is written, and once more for its ceiling.
#[test]
fn a_ceiling_that_fails_does_not_lose_the_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let parts = fixture("goldens/pipeline");
    for part in ["STDiT.pth", "t5", "vae"] {
        copy(&parts.join(part), &path.join("model").join(part));
    }
    let description = std::fs::read_to_string(fixture("tiny-model/model.json")).unwrap();
    let description = description.replace("../goldens/pipeline/", "");
    std::fs::write(path.join("model/model.json"), description).unwrap();

    let args = ["--model", "model", "--prompts", "40", "--batch-size", "40", "--vae-ceiling"];
    let run = eval_command(path, &[&args[..], &["--json", "--out", "clips"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..60_000 {
        if path.join("clips/0000.mp4").exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    std::fs::remove_file(path.join("model/vae/diffusion_pytorch_model.bin")).unwrap();
    let output = run.wait_with_output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.starts_with("error: --vae-ceiling: "), "{message}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["prompts"] == 40 && report["vae"].is_null(), "{report}");
    let kept = std::fs::read(path.join("clips/report.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&kept).unwrap(), report);
}

#[test]
fn an_older_clip_that_cannot_be_removed_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let clips = folder.path().join("clips");
    // A folder is not removed as a clip.
    std::fs::create_dir_all(clips.join("0006.mp4")).unwrap();
    std::fs::write(clips.join("0006.mp4.json"), r#"{"expected": {}}"#).unwrap();
    for (option, is_warned) in [("--quiet", false), ("--verbose", true)] {
        let output = eval(folder.path(), &["--out", "clips", option]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
        assert!(clips.join("report.json").is_file());
        let text = stderr(&output);
        let found = text.lines().any(|line| line.starts_with("warning: clips/0006.mp4: "));
        assert_eq!(found, is_warned, "{text}");
    }
}

/// Copies a file, or a folder of files.
fn copy(source: &Path, target: &Path) {
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    if source.is_file() {
        std::fs::copy(source, target).unwrap();
        return;
    }
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        copy(&path, &target.join(path.file_name().unwrap()));
    }
}

#[test]
fn the_report_of_another_evaluation_is_removed_first() {
    let folder = tempfile::tempdir().unwrap();
    let clips = folder.path().join("clips");
    // The fourth clip cannot be written.
    std::fs::create_dir_all(clips.join("0003.mp4")).unwrap();
    std::fs::write(clips.join("report.json"), "{}").unwrap();
    let output = eval(folder.path(), &["--out", "clips"]);
    assert!(!output.status.success(), "{output:?}");
    assert!(clips.join("0002.mp4").is_file() && !clips.join("report.json").exists());
}

#[test]
fn eval_demo_fails_below_what_is_required_after_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let output = eval(folder.path(), &["--all", "--require", "background=0,all=0.9"]);
    assert!(!output.status.success());
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.lines().nth(1).unwrap().starts_with("judge on real clips"), "{table}");
    assert_eq!(stderr(&output), "error: --require: all is 0.000, required 0.900\n");
}

#[test]
fn eval_demo_rejects_invalid_options() {
    let folder = tempfile::tempdir().unwrap();
    for (args, named) in [
        (&["--image-size", "16x32"][..], "16x32"),
        (&["--require", "size=0.9"], "unknown attribute 'size'"),
        (&["--require", "shape=2"], "'2' is not a share"),
        (&["--seen", "--all"], "cannot be used with"),
    ] {
        let output = eval(folder.path(), args);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(stderr(&output).contains(named), "{}", stderr(&output));
    }
}

#[test]
fn numbers_beyond_the_limits_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let huge = "1000000000000000000";
    for args in [
        &["eval", "demo", "--prompts", huge][..],
        &["eval", "demo", "--prompts", "0"],
        &["data", "demo", "--out", "set", "--clips", huge],
        &["data", "demo", "--out", "set", "--clips", huge, "--stills", huge],
        #[cfg(feature = "serve")]
        &["serve", "--max-steps", "0"],
    ] {
        let output = opensora(folder.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let message = stderr(&output);
        assert!(message.contains("expected") && message.lines().count() == 1, "{message}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// `--model` prefers a name to a path, and a record names the model that was used.
#[test]
fn a_folder_with_the_name_of_the_model_is_not_the_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("demo")).unwrap();
    let args = ["sample", "a red circle grows", "--steps", "2", "-o", "demo/a.gif", "--quiet"];
    let output = opensora(folder.path(), &args);
    assert!(output.status.success(), "{output:?}");
    let record = std::fs::read_to_string(folder.path().join("demo/a.gif.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["model_argument"], "demo");
}
