//! Tests of `opensora train`: from data to weights, killed and resumed, stopped by signals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

fn opensora(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_opensora")).args(args).current_dir(folder).output().unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = opensora(folder, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(folder: &Path, args: &[&str]) -> String {
    let output = opensora(folder, args);
    assert!(!output.status.success(), "{args:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    let line = error.lines().last().unwrap_or_default().to_string();
    assert!(line.starts_with("error: "), "{error}");
    line
}

const VAE: &str = r#"
[vae]
unit_latents = 4
[vae.config]
block_out_channels = [8, 8, 8]
layers_per_block = 1
norm_num_groups = 4
[data.clip]
num_frames = 1
image_size = [32, 32]
[run]
steps = 2
batch_size = 2
"#;

const T5: &str = r#"
[t5]
max_length = 16
[t5.config]
vocab_size = 160
d_model = 16
d_kv = 8
d_ff = 32
num_layers = 1
num_heads = 2
[run]
steps = 2
batch_size = 2
"#;

const STDIT: &str = r#"
[stdit.config]
caption_channels = 16
model_max_length = 16
hidden_size = 32
depth = 2
num_heads = 2
space_scale = 0.5
[data.clip]
num_frames = 4
frame_interval = 1
image_size = [32, 32]
horizontal_flip = true
variants = 2
[optimizer]
learning_rate = 1e-3
[run]
steps = 30
batch_size = 2
workers = 1
checkpoint_every = 1
sample_every = 15
[sample]
prompts = ["a red circle grows on a black background"]
steps = 2
"#;

/// A tiny data set, VAE and text encoder.
fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let size = ["--size", "32", "--num-frames", "6"];
    let demo = ["data", "demo", "--out", "data", "--clips", "6", "--stills", "4"];
    ok(path, &[&demo[..], &size[..]].concat());
    for (name, recipe) in [("vae.toml", VAE), ("t5.toml", T5), ("stdit.toml", STDIT)] {
        fs::write(path.join(name), recipe).unwrap();
    }
    ok(path, &["train-vae", "--recipe", "vae.toml", "--data", "data/stills.csv", "--out", "vae"]);
    ok(path, &["train", "--recipe", "t5.toml", "--data", "data/clips.csv", "--out", "t5"]);
    folder
}

const PARTS: [&str; 4] = ["--vae", "vae/vae", "--t5", "t5/t5"];

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--recipe", "stdit.toml", "--out", out, "--quiet"], &PARTS[..], more].concat()
}

#[test]
fn killed_anywhere_and_resumed_it_is_the_same_run_to_the_bit() {
    let folder = prepared();
    let path = folder.path();
    ok(
        path,
        &[
            &["data", "encode", "--data", "data/clips.csv", "--out", "cache"],
            &PARTS[..],
            &["--num-frames", "4", "--image-size", "32x32", "--horizontal-flip"],
            &["--variants", "2", "--max-length", "16", "--seed", "42", "--quiet"],
        ]
        .concat(),
    );
    let cached = ["--cache", "cache"];
    let said = ok(path, &[&train("whole", &cached)[..], &["--json"]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["step"], &said["finished"]), (&30.into(), &true.into()));
    assert!(path.join("whole/samples/step-00000015.png").exists());

    // A finished run is a model folder.
    let prompt = "a red circle grows on a black background";
    ok(
        path,
        &["sample", "--model", "whole", prompt, "--steps", "2", "-o", "sample.gif", "--quiet"],
    );
    let (clip, _) = opensora::video::gif::read(&path.join("sample.gif")).unwrap();
    assert_eq!((clip.len(), clip.height(), clip.width()), (4, 32, 32));

    // Training without a cache gives the same weights.
    ok(path, &train("fly", &["--data", "data/clips.csv"]));
    let weights = |run: &str| {
        ["ema", "model"]
            .map(|name| fs::read(path.join(run).join(format!("stdit/{name}.safetensors"))).unwrap())
    };
    assert!(weights("whole") == weights("fly"));

    // Each round is killed later: during start-up, steps and the writing of checkpoints.
    let args = [&train("killed", &cached)[..], &["--resume"]].concat();
    let mut kills = 0;
    for round in 0..40u64 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_opensora"))
            .args(&args)
            .current_dir(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150 + 37 * round));
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
        }
    }
    assert!(kills >= 2, "the run was too short to be killed: {kills}");
    ok(path, &args);
    assert!(weights("whole") == weights("killed"));
    let rows = |run: &str| fs::read_to_string(path.join(run).join("metrics.csv")).unwrap();
    assert_eq!(rows("killed").lines().count(), rows("whole").lines().count());

    // A cache is stale if its rows differ from the manifest's.
    let csv = fs::read_to_string(path.join("data/clips.csv")).unwrap();
    let fewer: Vec<&str> = csv.lines().take(3).collect();
    fs::write(path.join("data/fewer.csv"), fewer.join("\n")).unwrap();
    let stale = train("stale", &["--cache", "cache", "--data", "data/fewer.csv"]);
    assert!(refused(path, &stale).contains("stale"));

    // Trained weights initialise the next stage; weights of another model are rejected.
    let next = train("next", &["--cache", "cache", "--steps", "1", "--init", "vae/vae"]);
    assert!(refused(path, &next).contains("vae/vae"));
    let next = ["--cache", "cache", "--steps", "1", "--init", "whole/stdit/ema.safetensors"];
    ok(path, &train("next", &next));
}

/// A limit on file size simulates a full disk: writes fail in the same way.
#[cfg(unix)]
#[test]
fn a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint() {
    let folder = prepared();
    let path = folder.path();
    let data = ["--data", "data/clips.csv"];
    ok(path, &train("run", &[&data[..], &["--steps", "3"]].concat()));
    let more = train("run", &[&data[..], &["--steps", "6", "--resume"]].concat());
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_opensora"))
        .args(&more)
        .current_dir(path)
        .output()
        .unwrap();
    let error = String::from_utf8(limited.stderr).unwrap();
    assert!(!limited.status.success() && error.contains("error: "), "{error}");
    let mut kept: Vec<String> = fs::read_dir(path.join("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["step-00000002", "step-00000003"]);
    ok(path, &more);
}

/// Starts a run, sends it a signal after its first steps, and returns its output.
#[cfg(unix)]
fn stopped(path: &Path, out: &str, signal: &str) -> Output {
    let args = train(out, &["--data", "data/clips.csv", "--json"]);
    let run = Command::new(env!("CARGO_BIN_EXE_opensora"))
        .args(&args)
        .current_dir(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Rows in the metrics show that the training loop runs.
    let metrics = path.join(out).join("metrics.csv");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        std::thread::sleep(Duration::from_millis(20));
    }
    // A builtin of the shell: not every system has a program `kill`.
    let kill = format!("kill -{signal} {}", run.id());
    let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(sent.success());
    run.wait_with_output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_a_checkpoint_to_go_on_from() {
    let folder = prepared();
    let path = folder.path();
    // Too few steps are done for a scheduled checkpoint, so any checkpoint is due to the signal.
    let recipe =
        STDIT.replace("steps = 30", "steps = 100000").replace("_every = 1\n", "_every = 100000\n");
    fs::write(path.join("stdit.toml"), recipe).unwrap();
    let mut step = 0;
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let output = stopped(path, signal, signal);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains("stopped as asked: ") && error.contains("--resume"), "{error}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["finished"], false);
        step = said["step"].as_u64().unwrap();
        let checkpoint = format!("{signal}/checkpoints/step-{step:08}");
        assert!(path.join(&checkpoint).exists(), "{checkpoint}");
    }
    let metrics = path.join("INT/metrics.csv");

    // The run resumes from the checkpoint of the signal and finishes after one more step.
    let steps = (step + 1).to_string();
    let recipe = fs::read_to_string(path.join("stdit.toml")).unwrap();
    fs::write(path.join("stdit.toml"), recipe.replace("100000", &steps)).unwrap();
    let more = train("INT", &["--data", "data/clips.csv", "--json", "--resume"]);
    let said: Value = serde_json::from_str(&ok(path, &more)).unwrap();
    assert_eq!((&said["step"], &said["finished"]), (&(step + 1).into(), &true.into()));
    let rows = fs::read_to_string(&metrics).unwrap().lines().count() as u64;
    assert_eq!(rows, 1 + step + 1);
}

#[test]
fn what_cannot_be_trained_is_refused_in_one_line() {
    let folder = prepared();
    let path = folder.path();
    let data = ["--data", "data/clips.csv", "--steps", "2"];
    ok(path, &train("run", &data));
    for (args, expected) in [
        (train("run", &data), "resume"),
        (train("new", &["--data", "nowhere.csv"]), "nowhere.csv"),
        (train("new", &["--cache", "data"]), "no complete cache"),
        (train("new", &[]), "the manifest is missing"),
        (train("new", &["--data", "data/clips.csv", "--init", "stdit.toml"]), "stdit.toml"),
        (vec!["train", "--recipe", "nothing.toml", "--out", "new"], "nothing.toml"),
        (vec!["train-vae", "--recipe", "stdit.toml", "--out", "new"], "no [vae]"),
    ] {
        let line = refused(path, &args);
        assert!(line.contains(expected), "{args:?}: {line}");
    }

    // Options and settings of which another model has no use.
    for (recipe, model) in [("vae.toml", "[vae]"), ("t5.toml", "[t5]")] {
        let args = ["train", "--recipe", recipe, "--data", "data/clips.csv", "--out", "new"];
        let line = refused(path, &[&args[..], &["--peak-tflops", "1"]].concat());
        assert!(line.contains(&format!("--peak-tflops: a recipe with {model}")), "{line}");
    }
    for (recipe, words) in [
        ("[vae]\n[run]\nsample_every = 1\n", "sample_every: a recipe with [vae]"),
        ("[t5]\n[data]\ncache = \"nowhere\"\n", "cache: a recipe with [t5]"),
    ] {
        fs::write(path.join("other.toml"), recipe).unwrap();
        let args = ["train", "--recipe", "other.toml", "--data", "data/clips.csv", "--out", "new"];
        let line = refused(path, &args);
        assert!(line.contains(words), "{line}");
    }

    // A run cannot be resumed with another recipe.
    let recipe = STDIT.replace("learning_rate = 1e-3", "learning_rate = 1e-2");
    fs::write(path.join("stdit.toml"), recipe).unwrap();
    let more = ["--data", "data/clips.csv", "--steps", "3", "--resume"];
    let line = refused(path, &train("run", &more));
    assert!(line.contains("learning_rate"), "{line}");
}

#[test]
fn a_bad_clip_stops_the_run_unless_it_may_be_left_out() {
    let folder = prepared();
    let path = folder.path();
    fs::write(path.join("data/clips/broken.mp4"), "not a video").unwrap();
    let list = fs::read_to_string(path.join("data/clips.csv")).unwrap();
    fs::write(path.join("data/clips.csv"), list + "clips/broken.mp4,a broken clip,6\n").unwrap();
    let data = ["--data", "data/clips.csv", "--steps", "4"];
    let line = refused(path, &train("strict", &data));
    assert!(line.contains("row 7") && line.contains("broken.mp4"), "{line}");
    ok(path, &[&train("lenient", &data)[..], &["--skip-bad", "1"]].concat());
    let skipped = fs::read_to_string(path.join("lenient/skipped.csv")).unwrap();
    assert!(skipped.starts_with("7,") && skipped.contains("broken.mp4"), "{skipped}");
}

/// Ranks without MPI would be independent runs in one folder.
#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_does_not_start_on_several_ranks() {
    let folder = tempfile::tempdir().unwrap();
    for (rank, size, expected) in [
        ("0", "2", "error: started on several ranks, but this build has no MPI"),
        ("1", "2", ""),
        ("0", "1", "error: nothing.toml"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_opensora"))
            .args(["train", "--recipe", "nothing.toml", "--out", "run"])
            .env("OMPI_COMM_WORLD_RANK", rank)
            .env("OMPI_COMM_WORLD_SIZE", size)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(error.lines().count(), usize::from(!expected.is_empty()), "{error}");
        assert!(error.starts_with(expected), "{error}");
    }
}
