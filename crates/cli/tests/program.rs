//! Tests of the program: files, output, errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn tiny_model() -> String {
    fixtures().join("tiny-model").display().to_string()
}

fn opensora(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_opensora")).args(args).current_dir(folder).output().unwrap()
}

/// Runs `opensora sample` with `args`; options that `args` does not set are those of a short request on
/// the tiny model.
fn sample(folder: &Path, args: &[&str]) -> Output {
    let model = tiny_model();
    // The tiny model's VAE and text encoder are in folders beside it.
    let mut all = vec!["sample", "--allow-outside-paths"];
    for (option, value) in [
        ("--model", model.as_str()),
        ("--sampler", "dpm-solver"),
        ("--steps", "3"),
        ("--num-frames", "2"),
        ("--image-size", "16x32"),
    ] {
        // Latents are sampled already.
        let is_void = args.contains(&"--latents") && ["--sampler", "--steps"].contains(&option);
        if !args.contains(&option) && !is_void {
            all.extend([option, value]);
        }
    }
    all.extend(args);
    opensora(folder, &all)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Returns the error message, which is one line.
fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "it did not fail: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_prompt_becomes_a_video_with_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let output = sample(folder.path(), &["a red fox", "-o", "out/fox.mp4", "--seed", "5"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stdout(&output).trim(), "out/fox.mp4");
    assert_eq!(names(&folder.path().join("out")), ["fox.mp4", "fox.mp4.json"]);

    let (clip, fps) = opensora::video::mp4::read(&folder.path().join("out/fox.mp4")).unwrap();
    assert_eq!((clip.len(), clip.height(), clip.width(), fps), (2, 16, 32, 8.0));
    let record = std::fs::read_to_string(folder.path().join("out/fox.mp4.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    for (field, value) in [
        ("prompt", serde_json::json!("a red fox")),
        ("seed", serde_json::json!(5)),
        ("sampler", serde_json::json!("dpm-solver")),
        ("steps", serde_json::json!(3)),
        ("image_size", serde_json::json!([16, 32])),
        ("version", serde_json::json!(env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(record[field], value, "{field}");
    }
}

#[test]
fn every_format_and_many_prompts() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("prompts.txt"), "a fox\n\n  a bear  \n").unwrap();
    for (format, written) in [
        ("mp4", vec!["sample_0.mp4", "sample_0.mp4.json", "sample_1.mp4", "sample_1.mp4.json"]),
        ("gif", vec!["sample_0.gif", "sample_0.gif.json", "sample_1.gif", "sample_1.gif.json"]),
        ("png", vec!["sample_0", "sample_1"]),
    ] {
        let output = sample(
            folder.path(),
            &["--prompt-path", "prompts.txt", "--format", format, "-o", format],
        );
        assert!(output.status.success(), "{output:?}");
        assert_eq!(stdout(&output).lines().count(), 2);
        assert_eq!(names(&folder.path().join(format)), written);
    }
    let frames = names(&folder.path().join("png/sample_1"));
    assert_eq!(frames, ["frame_00000.png", "frame_00001.png", "metadata.json"]);

    let output = sample(folder.path(), &["a fox", "--num-frames", "1", "-o", "image.mp4"]);
    assert_eq!(stdout(&output).trim(), "image.png");
}

#[test]
fn saved_latents_are_reproducible_and_can_be_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let run = |latents: &str, video: &str| {
        let args = ["a red fox", "--save-latents", latents, "-o", video, "--device", "flex"];
        assert!(sample(folder.path(), &args).status.success());
        std::fs::read(folder.path().join(latents)).unwrap()
    };
    let first = run("a.safetensors", "a.gif");
    assert_eq!(first, run("b.safetensors", "b.gif"));

    let again = sample(folder.path(), &["a red fox", "--latents", "a.safetensors", "-o", "c.gif"]);
    assert!(again.status.success(), "{again:?}");
    let gif = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(gif("a.gif"), gif("c.gif"));

    let other = ["a red fox", "--latents", "a.safetensors", "--num-frames", "4", "-o", "d.gif"];
    let message = error_line(&sample(folder.path(), &other));
    assert!(message.contains("--num-frames") && !message.contains("loading"), "{message}");
}

#[test]
fn records_of_decoded_latents_have_the_record_of_their_sampling() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("prompts.txt"), "a red fox\na bear\nthe sea\n").unwrap();
    std::fs::write(path.join("others.txt"), "a road\na drone\na lake\n").unwrap();
    let record = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(path.join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let args = ["--prompt-path", "prompts.txt", "--save-latents", "l.safetensors", "-o", "a"];
    let settings = ["--seed", "7", "--cfg-scale", "3.5", "--noise-index", "4", "--batch-size", "2"];
    let output = sample(path, &[&args[..], &settings, &["--format", "gif"]].concat());
    assert!(output.status.success(), "{output:?}");
    let decode = |latents: &str, out: &str, more: &[&str]| {
        let args = ["--prompt-path", "others.txt", "--latents", latents, "-o", out];
        sample(path, &[&args[..], &["--format", "gif"], more].concat())
    };
    let output = decode("l.safetensors", "b", &[]);
    assert!(output.status.success(), "{output:?}");
    let clip = |folder: &str| std::fs::read(path.join(folder).join("sample_1.gif")).unwrap();
    assert_eq!(clip("a"), clip("b"));
    let (sampled, decoded) = (record("a/sample_1.gif.json"), record("b/sample_1.gif.json"));
    // The prompt of the file, and the settings of this call.
    assert_eq!((&decoded["prompt"], &decoded["latents_index"]), (&"a bear".into(), &1.into()));
    assert!(decoded["latents"].as_str().unwrap().ends_with("l.safetensors"), "{decoded}");
    for field in ["model", "model_argument", "num_frames", "fps", "dtype", "device", "version"] {
        assert_ne!(decoded[field], serde_json::Value::Null, "{field}");
        assert_eq!(decoded[field], sampled[field], "{field}");
    }
    let vae = &sampled["weights"].as_array().unwrap()[2..];
    assert_eq!(decoded["weights"].as_array().unwrap(), vae, "only the VAE is used");
    // The sampling has its own record.
    let sampling = &decoded["sampling"];
    let expected = [("seed", 7), ("noise_index", 4), ("batch_size", 2)];
    assert!(expected.iter().all(|(field, value)| sampling[field] == *value), "{sampling}");
    assert_eq!(sampling["prompt"], serde_json::json!(["a red fox", "a bear", "the sea"]));
    for field in ["sampler", "steps", "guidance_scale", "attention_reuse", "t5_dtype", "weights"] {
        assert_ne!(sampling[field], serde_json::Value::Null, "{field}");
        assert_eq!(sampling[field], sampled[field], "{field}");
    }
    let unknown = |decoded: &serde_json::Value| {
        let sampler = ["sampler", "steps", "guidance_scale", "guided_channels", "attention_reuse"];
        let noise = ["seed", "noise_index", "batch_size", "batch_place", "denoiser_work"];
        let text = ["negative_prompt", "space_scale", "time_scale", "t5", "t5_dtype"];
        sampler.iter().chain(&noise).chain(&text).all(|field| decoded[field].is_null())
    };
    assert!(unknown(&decoded), "{decoded}");
    let again = ["sample", "--from-record", "b/sample_1.gif.json", "-o", "c.gif"];
    let message = error_line(&opensora(path, &again));
    assert!(message.contains("l.safetensors: use --latents"), "{message}");

    for option in ["--seed", "--steps", "--cfg-scale", "--noise-index", "--batch-size"] {
        let message = error_line(&decode("l.safetensors", "d", &[option, "2"]));
        assert!(message.contains("cannot be used with"), "{message}");
    }

    // Files of other programs, with a record and without one.
    let device = opensora::nn::device::parse("flex").unwrap();
    let latents = opensora::latents::load(&path.join("l.safetensors"), &device).unwrap();
    let other = serde_json::json!({"seed": "seven", "steps": -1, "prompt": ["a red fox"]});
    for saved in [other, serde_json::Value::Null] {
        let file = path.join("other.safetensors");
        opensora::latents::save(&file, latents.clone(), &saved).unwrap();
        let output = decode("other.safetensors", "e", &[]);
        assert!(output.status.success(), "{output:?}");
        let decoded = record("e/sample_1.gif.json");
        assert_eq!(decoded["prompt"], "a drone");
        assert_eq!(decoded.get("sampling"), Some(&saved));
        assert!(unknown(&decoded), "{decoded}");
    }
}

#[test]
fn low_memory_gives_the_same_frames() {
    let folder = tempfile::tempdir().unwrap();
    let run = |output: &str, more: &[&str]| {
        let mut args = vec!["a red circle moves to the right on a black background"];
        args.extend(["--model", "demo", "--image-size", "64x64", "--num-frames", "6"]);
        args.extend(["-o", output]);
        args.extend(more);
        let output = sample(folder.path(), &args);
        assert!(output.status.success(), "{output:?}");
    };
    let record = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    run("usual.mp4", &[]);
    run("little.mp4", &["--low-memory"]);
    // The records are embedded in the files.
    let video = |name: &str| opensora::video::mp4::read(&folder.path().join(name)).unwrap();
    assert!(video("little.mp4") == video("usual.mp4"));
    // The records differ in nothing else.
    let (mut usual, little) = (record("usual.mp4.json"), record("little.mp4.json"));
    assert_eq!((&usual["low_memory"], &little["low_memory"]), (&false.into(), &true.into()));
    usual["low_memory"] = true.into();
    assert_eq!(usual, little);
}

#[test]
fn invalid_arguments_give_one_line_and_no_files() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty.txt"), "\n \n").unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let before = names(folder.path());
    for (args, says) in [
        (vec![""], "the prompt is empty"),
        (vec!["   "], "the prompt is empty"),
        (vec![], "no prompt"),
        (vec!["--prompt-path", "empty.txt"], "empty.txt: found no prompt"),
        (vec!["--prompt-path", "nowhere.txt"], "nowhere.txt"),
        (vec!["a fox", "--device", "gpu9"], "unknown device 'gpu9'"),
        (vec!["a fox", "--device", "rocm"], "rebuild with `--features rocm`"),
        (vec!["a fox", "--image-size", "17x32"], "17x32"),
        (vec!["a fox", "--image-size", "24x32"], "patches"),
        (vec!["a fox", "--image-size", "big"], "256x256"),
        (vec!["a fox", "--num-frames", "0"], "0 frames"),
        (vec!["a fox", "--steps", "1"], "2 to 1000"),
        (vec!["a fox", "--batch-size", "0"], "batch size"),
        (vec!["a fox", "--cfg-scale", "NaN"], "guidance scale"),
        (vec!["a fox", "--fps", "0"], "frames per second"),
        (vec!["a fox", "--sampler", "euler"], "euler"),
        (vec!["a fox", "--dtype", "f64"], "f64"),
        (vec!["a fox", "-o", "clip.avi"], "unknown format"),
        (vec!["a fox", "-o", "file/clip.mp4"], "file"),
        (vec!["a fox", "-o", "/proc/no/such/clip.mp4"], "/proc/no"),
        (vec!["a fox", "--save-latents", "file/x.safetensors"], "--save-latents"),
        (vec!["a fox", "--latents", "file"], "--latents"),
        (vec!["a fox", "--model", "no-such-model"], "no model 'no-such-model'"),
        (vec!["a fox", "--t5", "nowhere"], "nowhere"),
        (vec!["a fox", "--vae", "file"], "file"),
    ] {
        let output = sample(folder.path(), &args);
        let line = error_line(&output);
        assert!(line.contains(says) || stderr_of(&output).contains(says), "{args:?}: {line}");
        assert_eq!(names(folder.path()), before, "{args:?} left something behind");
    }
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_damaged_model_is_rejected_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of_the_tiny_model(&folder);
    let weights = model.join("STDiT.pth");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let args =
        ["sample", "a fox", "--model", model.to_str().unwrap(), "-o", "out/fox.mp4", "--quiet"];
    let line = error_line(&opensora(folder.path(), &args));
    assert!(line.contains("STDiT.pth"), "{line}");
    assert!(!folder.path().join("out").exists());
}

fn copy_of_the_tiny_model(folder: &TempDir) -> PathBuf {
    let target = folder.path().join("model");
    let source = fixtures().join("goldens/pipeline");
    copy_folder(&source, &target);
    let description = std::fs::read_to_string(fixtures().join("tiny-model/model.json")).unwrap();
    let description = description.replace("../goldens/pipeline/", "");
    std::fs::write(target.join("model.json"), description).unwrap();
    target
}

fn copy_folder(source: &Path, target: &Path) {
    std::fs::create_dir_all(target).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let to = target.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

#[test]
fn a_very_long_prompt_is_truncated_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a walk in the woods ".repeat(500);
    assert!(long.len() >= 10_000);
    let output = sample(folder.path(), &[&long, "-o", "long.gif"]);
    assert!(output.status.success(), "{output:?}");
    assert!(stderr_of(&output).contains("fills all 24 tokens"), "{output:?}");
}

#[test]
fn verify_passes_golden_cases_and_fails_without_checks() {
    let folder = tempfile::tempdir().unwrap();
    let case = fixtures().join("goldens/vae-bin");
    let case = case.to_str().unwrap();
    let output = opensora(folder.path(), &["verify", case, "--device", "flex"]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert!(text.contains("decoded") && text.contains("max abs error"), "{text}");
    assert!(text.contains("1 cases passed, 0 failed"), "{text}");

    let json = stdout(&opensora(folder.path(), &["verify", case, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &0.into()));

    std::fs::create_dir(folder.path().join("case")).unwrap();
    std::fs::write(folder.path().join("case/case.json"), r#"{"kind": "new"}"#).unwrap();
    for bad in ["case", "nowhere"] {
        let output = opensora(folder.path(), &["verify", case, bad]);
        assert!(stdout(&output).contains("1 cases passed, 1 failed"), "{output:?}");
        error_line(&output);
    }
}

#[test]
fn devices_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(&opensora(folder.path(), &["devices"]));
    let heads: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heads, ["device", "kind", "adapter", "driver", "version", "memory"]);
    let flex = text.lines().find(|line| line.starts_with("flex ")).unwrap();
    assert!(flex.contains(" cpu "), "{text}");
    assert!(text.lines().any(|line| line.starts_with("default: ")), "{text}");

    let json = stdout(&opensora(folder.path(), &["devices", "--json"]));
    let json: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    let flex = json.iter().find(|row| row["backend"] == "flex").unwrap();
    assert_eq!(flex["devices"], serde_json::json!(["flex"]));
    let details = &flex["details"][0];
    assert_eq!((&details["name"], &details["kind"]), (&"flex".into(), &"cpu".into()));
    assert!(details["driver"].is_null() && details["memory_bytes"].is_null(), "{details}");
    for row in &json {
        let count = |field: &str| row[field].as_array().unwrap().len();
        assert_eq!(count("devices"), count("details"), "{row}");
    }
}

/// A trial run is a separate process, so it needs a subcommand; help does not list it.
#[test]
fn the_trial_run_of_a_device_has_a_hidden_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!stdout(&opensora(folder.path(), &["help"])).contains("probe-device"));
    let output = opensora(folder.path(), &["probe-device", "flex"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let output = opensora(folder.path(), &["probe-device", "gpu9"]);
    assert!(error_line(&output).contains("unknown device 'gpu9'"));
}

#[test]
fn verify_names_the_step_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let case = |from: &str, to: &str| {
        let source = fixtures().join("goldens/vae-safetensors");
        let target = folder.path().join("case");
        std::fs::create_dir_all(&target).unwrap();
        for name in names(&source) {
            std::fs::copy(source.join(&name), target.join(&name)).unwrap();
        }
        let text = std::fs::read_to_string(target.join("case.json")).unwrap();
        assert!(text.contains(from), "case.json has no {from:?}");
        std::fs::write(target.join("case.json"), text.replace(from, to)).unwrap();
        let output = opensora(folder.path(), &["verify", "case", "--json", "--device", "flex"]);
        let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        json["cases"][0].clone()
    };
    let row = case("\"atol\"", "\"atol_\"");
    assert_eq!(row["step"], "comparing decoded", "{row}");
    assert!(row["error"].as_str().unwrap().contains("comparing decoded: "), "{row}");
    let row = case("\"weights\": \"", "\"weights\": \"no-");
    assert_eq!(row["step"], "loading the VAE", "{row}");
}

#[test]
fn completions_and_manual_pages_name_every_subcommand() {
    let folder = TempDir::new().unwrap();
    for (shell, mark) in [
        ("bash", "complete -F _opensora"),
        ("zsh", "#compdef opensora"),
        ("fish", "complete -c opensora"),
    ] {
        let output = opensora(folder.path(), &["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        let script = stdout(&output);
        assert!(script.contains(mark) && script.contains("negative-prompt"), "{shell}");
        assert!(!script.contains("probe-device"), "{shell}: hidden subcommands are named");
    }
    assert_eq!(opensora(folder.path(), &["completions", "csh"]).status.code(), Some(2));

    let output = opensora(folder.path(), &["man", "-o", "man1"]);
    assert!(output.status.success(), "{output:?}");
    let pages = names(&folder.path().join("man1"));
    assert_eq!(stdout(&output).lines().count(), pages.len());
    for page in ["opensora.1", "opensora-sample.1", "opensora-data-scan.1", "opensora-eval-demo.1"]
    {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    assert!(!pages.iter().any(|name| name.contains("probe") || name.contains("help")), "{pages:?}");
    let text = std::fs::read_to_string(folder.path().join("man1/opensora-sample.1")).unwrap();
    assert!(text.contains("negative\\-prompt") && text.contains("Examples"), "{text}");
    assert!(stdout(&opensora(folder.path(), &["man"])).starts_with(".ie"));
}

#[test]
fn help_shows_options_in_groups_and_verbose_says_more() {
    let folder = TempDir::new().unwrap();
    let help = stdout(&opensora(folder.path(), &["sample", "--help"]));
    let place = |heading: &str| help.find(heading).unwrap_or_else(|| panic!("{heading}: {help}"));
    let headings = ["\nSampling:", "\nModel:", "\nDevice:", "\nOutput:", "\nReporting:"];
    assert!(headings.map(place).is_sorted(), "{help}");
    assert!(place("\nReporting:") < place("--verbose") && help.contains("Examples:"));

    let quiet = sample(folder.path(), &["a fox", "-q", "-o", "a.gif"]);
    assert_eq!(stderr_of(&quiet), "");
    let verbose = sample(folder.path(), &["a fox", "-q", "-v", "-o", "b.gif"]);
    let said = stderr_of(&verbose);
    assert!(said.contains("denoiser: ") && said.contains("took "), "{said}");
}
