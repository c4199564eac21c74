//! Tests of `opensora sample`: records, signals, many prompts, unusual outputs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// `opensora sample` with a short request on the tiny model.
fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
    command.arg("sample").current_dir(folder).args(args);
    if !args.contains(&"--from-record") {
        command.args(["--allow-outside-paths", "--device", "flex"]);
        for (option, value) in [
            ("--model", fixture("tiny-model").to_str().unwrap()),
            ("--sampler", "ddim"),
            ("--steps", "3"),
            ("--num-frames", "2"),
            ("--image-size", "16x32"),
        ] {
            if !args.contains(&option) {
                command.args([option, value]);
            }
        }
    }
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !stderr.contains("panicked"), "{stderr}");
    stderr.lines().find(|line| line.starts_with("error")).unwrap_or_default().to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_record_reproduces_its_clip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("prompts.txt"), "a fox\na bear\nthe sea\na drone\na road\n").unwrap();
    for (batch, place) in [("1", 3), ("2", 3), ("2", 4)] {
        let out = format!("clips-{batch}");
        let args = ["--prompt-path", "prompts.txt", "--batch-size", batch, "-o", &out];
        ok(path, &[&args[..], &["--seed", "9", "--format", "gif", "--cfg-scale", "3.5"]].concat());
        let clip = path.join(&out).join(format!("sample_{place}.gif"));
        let record = path.join(&out).join(format!("sample_{place}.gif.json"));
        let json: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        assert_eq!(json["noise_index"], place);

        let again =
            ["--from-record", record.to_str().unwrap(), "--allow-outside-paths", "-o", "again.gif"];
        assert_eq!(ok(path, &again).trim(), "again.gif");
        assert!(fs::read(path.join("again.gif")).unwrap() == fs::read(&clip).unwrap(), "{batch}");
        let again = fs::read(path.join("again.gif.json")).unwrap();
        let again: Value = serde_json::from_slice(&again).unwrap();
        for field in ["prompt", "noise_index", "seed", "guidance_scale", "sampler", "steps"] {
            assert_eq!(again[field], json[field], "{field}");
        }
    }
}

/// Several videos per prompt with a negative prompt: each record reproduces its video.
#[test]
fn videos_of_one_prompt_differ_and_are_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("prompts.txt"), "a fox\na bear\n").unwrap();
    let prompts = ["--prompt-path", "prompts.txt", "--num-videos-per-prompt", "3"];
    let settings = ["--negative-prompt", "rain over the sea", "--format", "gif"];
    for batch in ["1", "4"] {
        let out = format!("clips-{batch}");
        let batch_size = ["--batch-size", batch, "-o", &out];
        ok(path, &[&prompts[..], &settings[..], &batch_size[..]].concat());
        let clip = |index: usize| path.join(&out).join(format!("sample_{index}.gif"));
        assert_eq!(names(&path.join(&out)).len(), 12);
        assert_ne!(fs::read(clip(3)).unwrap(), fs::read(clip(4)).unwrap());
        let record = path.join(&out).join("sample_4.gif.json");
        let json: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        assert_eq!((&json["prompt"], &json["noise_index"]), (&"a bear".into(), &4.into()));
        assert_eq!(json["negative_prompt"], "rain over the sea");
        let again = ["--from-record", record.to_str().unwrap(), "--allow-outside-paths"];
        ok(path, &[&again[..], &["-o", "again.gif"]].concat());
        assert!(fs::read(path.join("again.gif")).unwrap() == fs::read(clip(4)).unwrap(), "{batch}");
    }
    // The noise of a video depends on its index, not on the call.
    let one = ["a bear", "--noise-index", "4", "-o", "one.gif"];
    ok(path, &[&one[..], &settings[..2]].concat());
    let clip = path.join("clips-1/sample_4.gif");
    assert!(fs::read(path.join("one.gif")).unwrap() == fs::read(clip).unwrap());
    ok(path, &["a bear", "--noise-index", "4", "-o", "other.gif"]);
    assert!(fs::read(path.join("one.gif")).unwrap() != fs::read(path.join("other.gif")).unwrap());
    let none = run(path, &["a fox", "--num-videos-per-prompt", "0"]);
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn unknown_words_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let known = "a red circle grows on a black background";
    for (prompt, words) in [
        (known, None),
        ("a red spaceship grows", Some("spaceship")),
        // Cleaning removes ideographs.
        ("a red 圆 and 圆 grows", Some("圆")),
        ("一只红狐狸", Some("一只红狐狸")),
    ] {
        let output = run(path, &[prompt, "--model", "demo", "--steps", "1", "-o", "x.mp4"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let warning = stderr.lines().find(|line| line.starts_with("warning: word"));
        assert_eq!(warning.is_some(), words.is_some(), "{stderr}");
        let last = warning.and_then(|line| line.rsplit(": ").next());
        assert_eq!(last, words, "{stderr}");
    }
}

#[test]
fn a_separator_at_the_end_names_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (count, out) in [("1", "v1.0/"), ("2", "v2.0/")] {
        ok(path, &["a fox", "--num-videos-per-prompt", count, "--format", "gif", "-o", out]);
        let written = names(&path.join(out));
        assert!(written.contains(&"sample_0.gif".to_string()), "{written:?}");
    }
}

#[test]
fn incomplete_records_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let old = fixture("written-by-0.1.0/record.json");
    let message = error(&run(path, &["--from-record", old.to_str().unwrap()]));
    assert!(message.contains("record.json") && message.contains("noise index"), "{message}");
    fs::write(path.join("no.json"), "{}").unwrap();
    assert!(error(&run(path, &["--from-record", "no.json"])).contains("not a record"));
    // The record determines the noise.
    for option in ["--noise-index", "--batch-size"] {
        let message = error(&run(path, &["--from-record", "no.json", option, "2"]));
        assert!(message.contains("cannot be used with"), "{message}");
    }
}

/// Weights that are not from the hub are recognised by their digest.
#[test]
fn a_record_of_other_weights_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let vae = fixture("goldens/pipeline/vae");
    fs::create_dir(path.join("vae")).unwrap();
    for name in names(&vae) {
        fs::copy(vae.join(&name), path.join("vae").join(&name)).unwrap();
    }
    ok(path, &["a fox", "--vae", "vae", "-o", "fox.gif"]);
    let warned = || {
        let again = ["--from-record", "fox.gif.json", "--allow-outside-paths", "-o", "again.gif"];
        let output = run(path, &again);
        assert!(output.status.success(), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        stderr.lines().any(|line| line.starts_with("warning: vae: the record was made with other"))
    };
    assert!(!warned());
    let config = path.join("vae/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n").unwrap();
    assert!(warned());
    // Weights are read after all checks.
    let again = ["--from-record", "fox.gif.json", "--allow-outside-paths", "-o", "again.avi"];
    let output = run(path, &again);
    assert!(error(&output).contains("unknown format"), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning: vae"), "{output:?}");
    // Records of earlier versions have no digests.
    let mut record: Value =
        serde_json::from_slice(&fs::read(path.join("fox.gif.json")).unwrap()).unwrap();
    assert_eq!(record["weights"].as_array().unwrap().len(), 3, "{record}");
    record.as_object_mut().unwrap().remove("weights");
    fs::write(path.join("fox.gif.json"), record.to_string()).unwrap();
    assert!(!warned());
}

#[test]
fn existing_outputs_are_kept_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("prompts.txt"), "a fox\na bear\n").unwrap();
    fs::create_dir(path.join("out")).unwrap();
    fs::write(path.join("out/sample_1.gif"), "precious").unwrap();
    let args = ["--prompt-path", "prompts.txt", "--format", "gif", "-o", "out"];
    let message = error(&run(path, &[&args[..], &["--no-overwrite"]].concat()));
    assert!(message.contains("sample_1.gif"), "{message}");
    assert_eq!(names(&path.join("out")), ["sample_1.gif"], "nothing was sampled");
    assert_eq!(fs::read(path.join("out/sample_1.gif")).unwrap(), b"precious");
    // A single frame is an image in any format, and its record is kept too.
    fs::write(path.join("out/sample_1.png.json"), "precious").unwrap();
    let message =
        error(&run(path, &[&args[..], &["--num-frames", "1", "--no-overwrite"]].concat()));
    assert!(message.contains("sample_1.png"), "{message}");
    assert_eq!(names(&path.join("out")), ["sample_1.gif", "sample_1.png.json"]);
    // Latents can be written too.
    fs::write(path.join("l.safetensors"), "precious").unwrap();
    let latents = ["a fox", "-o", "fox.gif", "--save-latents", "l.safetensors", "--no-overwrite"];
    let message = error(&run(path, &latents));
    assert!(message.contains("l.safetensors: exists already"), "{message}");
    assert_eq!(fs::read(path.join("l.safetensors")).unwrap(), b"precious");
    ok(path, &args);
    assert_ne!(fs::read(path.join("out/sample_1.gif")).unwrap(), b"precious");
}

#[test]
fn standard_output_takes_one_clip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let output = run(path, &["a fox", "-o", "-", "--quiet"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(&output.stdout[4..8], b"ftyp");
    fs::write(path.join("clip.mp4"), &output.stdout).unwrap();
    let (clip, _) = opensora::video::mp4::read(&path.join("clip.mp4")).unwrap();
    assert_eq!((clip.len(), clip.height(), clip.width()), (2, 16, 32));
    fs::write(path.join("prompts.txt"), "a fox\na bear\n").unwrap();
    let message = error(&run(path, &["--prompt-path", "prompts.txt", "-o", "-"]));
    assert!(message.contains("takes one clip"), "{message}");
}

/// Hundreds of outputs under a low limit of open files; all numbers have the same number of digits.
#[cfg(unix)]
#[test]
fn many_prompts_need_few_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let prompts: String = (0..120).map(|index| format!("fox number {index}\n")).collect();
    fs::write(path.join("prompts.txt"), prompts).unwrap();
    let args = ["--prompt-path", "prompts.txt", "--num-frames", "1", "--image-size", "16x16"];
    let sample = command(path, &[&args[..], &["--steps", "1", "--batch-size", "20"]].concat());
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 40 && exec \"$@\"", "sh"]).current_dir(path);
    let output = shell.arg(sample.get_program()).args(sample.get_args()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = names(&path.join("outputs"));
    assert_eq!(written.len(), 240);
    assert_eq!((&*written[0], &*written[239]), ("sample_000.png", "sample_119.png.json"));
}

/// After a signal, the first clip is kept, no incomplete file is left, and the exit code is that of the signal.
#[cfg(unix)]
#[test]
fn a_signal_keeps_complete_clips() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("prompts.txt"), "a fox\n".repeat(40)).unwrap();
        let args = ["--prompt-path", "prompts.txt", "--steps", "40", "--image-size", "64x64"];
        let child = command(path, &[&args[..], &["--num-frames", "4", "-o", "out"]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let first = path.join("out/sample_00.mp4");
        for _ in 0..6000 {
            if first.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let said = String::from_utf8(output.stdout).unwrap();
        let written = names(&path.join("out"));
        assert!(!said.is_empty() && said.lines().count() < 40, "{said}");
        assert_eq!(written.len(), 2 * said.lines().count(), "{written:?}");
        for line in said.lines() {
            assert_eq!(opensora::video::mp4::read(&path.join(line)).unwrap().0.len(), 4);
        }
    }
}

#[test]
fn non_finite_values_stop_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let model = fixture("field/ck_nan_w");
    let message = error(&run(path, &["a fox", "--model", model.to_str().unwrap(), "-o", "x.mp4"]));
    assert!(
        message.contains("step 1 of 3") && message.contains("STDiT.pth: tensor '"),
        "{message}"
    );
    assert!(!path.join("x.mp4").exists());

    let huge = ["a fox", "--cfg-scale", "1e38", "-o", "x.mp4"];
    let message = error(&run(path, &huge));
    assert!(message.contains("not finite") && message.contains("guidance scale"), "{message}");
    assert!(!path.join("x.mp4").exists());
}
