//! Tests of the program in shells: closed pipes, full disks, signals.
//!
//! `scripts/shells.sh` does the same with every subcommand, many times.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command
}

/// Returns a file on a full disk.
fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Returns a pipe whose reader has closed it.
fn no_reader() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Writes a film of two shots and returns its path in `folder`.
fn film(folder: &Path) -> &'static str {
    let args =
        ["data", "demo", "-o", "world", "--films", "1", "--shots", "2", "--size", "32", "-q"];
    assert!(command(folder, &args).status().unwrap().success());
    "world/films/000000.mp4"
}

/// Returns fast subcommands, each with a file that it writes.
fn subcommands(folder: &Path) -> Vec<(Vec<String>, Option<&'static str>)> {
    let args = ["data", "demo", "-o", "world", "--clips", "2", "--films", "1", "--shots", "2"];
    let size = ["--size", "32", "--num-frames", "4", "-q"];
    assert!(command(folder, &[&args[..], &size].concat()).output().unwrap().status.success());
    let model = fixtures().join("tiny-model").display().to_string();
    let case = fixtures().join("goldens/vae-bin").display().to_string();
    [
        (
            format!(
                "sample fox --model {model} --allow-outside-paths --sampler dpm-solver --steps 2 --num-frames 2 \
            --image-size 16x32 -o out/fox.mp4"
            ),
            Some("out/fox.mp4"),
        ),
        (format!("verify {case} --device flex"), None),
        ("devices".into(), None),
        ("bench stdit --preset demo --num-frames 2 --image-size 16x24 --reps 1".into(), None),
        ("data scan world/films -o out/videos.csv".into(), Some("out/videos.csv")),
        ("data shots world/films/000000.mp4 -o out/scores.csv".into(), Some("out/scores.csv")),
        (
            "data filter --data world/clips.csv -o out/kept.csv --min-frames 2".into(),
            Some("out/kept.csv"),
        ),
        ("data clean --data world/clips.csv -o out/clean.csv".into(), Some("out/clean.csv")),
        ("data merge world/clips.csv -o out/merged.csv --json".into(), Some("out/merged.csv")),
        (
            "data split-manifest --data world/clips.csv --parts 2 -o out/all.csv".into(),
            Some("out/all.1.csv"),
        ),
        ("data stats world/clips.csv --probe -o out/sheet.svg".into(), Some("out/sheet.svg")),
        ("data preview world/clips.csv -o out/page.html".into(), Some("out/page.html")),
        (
            "data demo -o out/world --clips 1 --size 16 --num-frames 2".into(),
            Some("out/world/clips.csv"),
        ),
        ("completions zsh".into(), None),
        ("man -o out/man".into(), Some("out/man/opensora-sample.1")),
        ("help data".into(), None),
        ("--version".into(), None),
    ]
    .map(|(line, made)| (line.split_whitespace().map(String::from).collect(), made))
    .into()
}

/// Returns the temporary files below a folder.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(".opensora-") || name.ends_with(".part") {
            found.push(path);
        } else if path.is_dir() {
            found.extend(leftovers(&path));
        }
    }
    found
}

/// Runs every fast subcommand with the given streams, and checks its exit code and files.
fn each(code: i32, streams: impl Fn(&mut Command), check: impl Fn(&[String], &Output)) {
    let folder = tempfile::tempdir().unwrap();
    for (args, made) in subcommands(folder.path()) {
        let out = folder.path().join("out");
        fs::create_dir_all(&out).unwrap();
        let args_text: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = command(folder.path(), &args_text);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        streams(&mut command);
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        if let Some(made) = made {
            assert!(folder.path().join(made).metadata().unwrap().len() > 0, "{args:?}");
        }
        assert_eq!(leftovers(folder.path()), Vec::<PathBuf>::new(), "{args:?}");
        check(&args, &output);
        fs::remove_dir_all(&out).unwrap();
    }
}

fn no_error(args: &[String], output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.lines().any(|line| line.starts_with("error")), "{args:?}: {said}");
}

#[test]
fn a_closed_pipe_ends_the_program_quietly_after_its_files() {
    each(141, |command| _ = command.stdout(no_reader()), no_error);
}

#[test]
fn a_full_disk_behind_standard_output_is_one_line() {
    let check = |args: &[String], output: &Output| {
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error")).collect();
        assert_eq!(
            errors,
            ["error: standard output: No space left on device (os error 28)"],
            "{args:?}: {said}"
        );
    };
    each(1, |command| _ = command.stdout(full()), check);
}

#[test]
fn write_errors_of_standard_error_are_ignored() {
    let printed = |args: &[String], output: &Output| {
        assert!(!output.stdout.is_empty(), "{args:?}");
    };
    each(0, |command| _ = command.stderr(full()), printed);
    each(0, |command| _ = command.stderr(no_reader()), printed);
}

#[test]
fn a_closed_standard_output_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_opensora");
    let line = format!("{program} data demo -o world --clips 1 --size 16 --num-frames 2 >&-");
    let output = Command::new("sh").args(["-c", &line]).current_dir(folder.path()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(folder.path().join("world/clips.csv").exists());
}

/// Starts writing a data set that takes minutes, and waits for its first files.
fn long_run(folder: &Path, prefix: &str) -> Child {
    let program = env!("CARGO_BIN_EXE_opensora");
    let args = "data demo -o world --clips 100000 --size 64 --num-frames 32";
    let line = format!("{prefix} exec {program} {args}");
    let child = Command::new("sh")
        .args(["-c", &line])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(|| clips(folder) > 0);
    child
}

fn clips(folder: &Path) -> usize {
    let entries = fs::read_dir(folder.join("world/clips")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".mp4") && !name.starts_with('.')).count()
}

fn wait_for(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(120), "it takes too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill(child: &Child, signal: &str) {
    // A builtin of the shell: not every system has a program `kill`.
    let line = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
}

#[test]
fn signals_end_the_program_after_a_step_with_their_exit_codes() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let folder = tempfile::tempdir().unwrap();
        let child = long_run(folder.path(), "");
        kill(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let last = said.lines().last().unwrap();
        assert!(last.starts_with("error: stopped with "), "{said}");
        assert!(output.stdout.is_empty());
        assert_eq!(leftovers(folder.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // The output is not read, and no clip is completed.
    let mut child = long_run(folder.path(), "");
    kill(&child, "TERM");
    kill(&child, "INT");
    let status = child.wait().unwrap();
    // The first signal may have ended the process before the second arrived.
    assert!(matches!(status.code(), Some(130 | 143)), "{status:?}");
    assert_eq!(status.signal(), None);
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = long_run(folder.path(), "trap '' HUP;");
    kill(&child, "HUP");
    let before = clips(folder.path());
    wait_for(|| clips(folder.path()) > before + 3);
    assert!(child.try_wait().unwrap().is_none());
    kill(&child, "TERM");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{said}");
}

#[test]
fn system_errors_are_printed_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = ["-o", "out.csv"];
    let data = ["--data", "no.csv"];
    for args in
        [
            [&["data", "split"][..], &data, &out].concat(),
            [&["data", "clean"][..], &data, &out].concat(),
            [&["data", "filter"][..], &data, &out, &["--min-frames", "2"]].concat(),
            [&["data", "merge", "no.csv"][..], &out].concat(),
            [&["data", "split-manifest"][..], &data, &["--parts", "2"]].concat(),
            [&["data", "caption"][..], &data, &out, &["--endpoint", "http://x", "--model", "m"]]
                .concat(),
            [&["data", "scan", "no.csv"][..], &out].concat(),
            [&["data", "download", "--list", "no.csv", "--videos", "v"][..], &out].concat(),
            [
                &[
                    "data",
                    "encode",
                    "--num-frames",
                    "2",
                    "--image-size",
                    "16x16",
                    "--model",
                    "demo",
                ][..],
                &data,
                &["-o", "cache"],
            ]
            .concat(),
            vec!["data", "stats", "no.csv"],
            vec!["data", "preview", "no.csv", "-o", "page.html"],
            vec!["data", "run", "--config", "no.csv"],
            vec!["plot", "no.csv"],
            vec!["train", "--recipe", "no.csv", "-o", "run"],
            vec!["sample", "--prompt-path", "no.csv"],
            vec!["sample", "a fox", "--latents", "no.csv"],
        ]
    {
        let output = command(folder.path(), &args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        let [error] = errors[..] else { panic!("{args:?}: {said}") };
        assert_eq!(error.matches("no.csv").count(), 1, "{args:?}: {error}");
        assert!(error.matches("No such file").count() <= 1, "{args:?}: {error}");
    }
}

#[test]
fn a_terminal_without_bars_gets_lines() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_opensora");
    let call = format!("{program} data demo -o world --clips 3 --size 32 --num-frames 4");
    // `script` gives the command a terminal.
    let output = Command::new("script")
        .args(["-qec", &call, "/dev/null"])
        .env("TERM", "dumb")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("3/3"), "{shown}");
}

#[test]
fn contradictions_are_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let film = film(path);
    let bytes = fs::read(path.join(film)).unwrap();
    fs::write(path.join("a.csv"), "path,text\nworld/films/000000.mp4,fog\n").unwrap();
    let data = ["--data", "a.csv"];
    let parts = ["--vae", "v", "--t5", "t", "--num-frames", "2", "--image-size", "16x16"];
    for (args, words) in [
        (
            [&["data", "split-manifest"][..], &data, &["--parts", "2", "--by", "source"]].concat(),
            "cannot be used with",
        ),
        (vec!["data", "shots", film, "--detector", "adaptive", "--suppress"], "--suppress"),
        (vec!["data", "shots", film, "-o", film], "it is the video that is read"),
        (vec!["data", "shots", film, "-o", "none/s.csv"], "none/s.csv"),
        (
            [&["data", "encode", "-o", "cache", "--model", "demo"][..], &data, &parts].concat(),
            "--model",
        ),
        ([&["data", "split", "-o", "world"][..], &data].concat(), "world: it is a folder"),
        (
            [&["data", "filter", "-o", "world", "--min-frames", "2"][..], &data].concat(),
            "world: it is a folder",
        ),
        (vec!["data", "scan", "world", "-o", "world"], "world: it is a folder"),
    ] {
        let output = command(path, &args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{args:?}: {said}");
        assert!(!said.contains("0/1"), "{args:?}: {said}");
    }
    assert_eq!(fs::read(path.join(film)).unwrap(), bytes);
}

#[test]
fn shots_are_found_if_the_program_lacks_the_decoder() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let film = film(path);
    let program = path.join("ffmpeg");
    fs::write(&program, "#!/bin/sh\necho 'Decoder (codec h264) not found' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let shots = |program: Option<&Path>| {
        let mut command = command(path, &["data", "shots", film, "--json", "-q"]);
        program.map(|program| command.env("OPENSORA_FFMPEG", program));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        found["videos"][0]["scenes"].as_array().unwrap().len()
    };
    assert_eq!((shots(Some(&program)), shots(None)), (2, 2));
}

#[test]
fn warnings_are_not_printed_with_quiet() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..2 {
        let table = format!("path,text\n/{index}.mp4,fog\n");
        fs::write(folder.path().join(format!("a.{index}-of-3.csv")), table).unwrap();
    }
    let merge = ["data", "merge", "a.0-of-3.csv", "a.1-of-3.csv", "-o", "m.csv"];
    let preview = ["data", "preview", "a.0-of-3.csv", "-o", "page.html"];
    for (args, warning) in [(&merge[..], "not merged"), (&preview, "cannot be read")] {
        for (quiet, is_warned) in [(&[][..], true), (&["-q"], false)] {
            let output = command(folder.path(), &[args, quiet].concat()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            assert_eq!(said.contains(warning), is_warned, "{said}");
            assert!(is_warned || said.is_empty(), "{said}");
        }
    }
}

#[test]
fn every_subcommand_has_examples_and_the_common_options() {
    let folder = tempfile::tempdir().unwrap();
    let help = |args: &[&str]| {
        let output = command(folder.path(), &[args, &["--help"]].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let top = help(&[]);
    for code in ["0", "1", "2", "129", "130", "141", "143"] {
        let has = |line: &str| line.trim_start().starts_with(&format!("{code}  "));
        assert!(top.lines().any(has), "{code}: {top}");
    }
    let data = [
        "demo",
        "download",
        "scan",
        "shots",
        "split",
        "filter",
        "caption",
        "clean",
        "merge",
        "split-manifest",
        "stats",
        "preview",
        "run",
        "encode",
    ];
    let mut all: Vec<Vec<&str>> = data.map(|name| vec!["data", name]).into();
    all.extend([
        vec!["sample"],
        vec!["eval", "demo"],
        vec!["verify"],
        vec!["devices"],
        vec!["bench"],
    ]);
    all.extend([vec!["plot"], vec!["train"], vec!["train-vae"]]);
    for args in all {
        let text = help(&args);
        let (options, examples) =
            text.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{text}"));
        let name = format!("  opensora {}", args.join(" "));
        assert!(examples.lines().any(|line| line.starts_with(&name)), "{text}");
        for option in ["--json", "-q, --quiet"] {
            assert!(options.contains(option), "{args:?}: {option}");
        }
        if !["verify", "devices", "bench", "run", "stats", "shots"].contains(args.last().unwrap()) {
            assert!(options.contains("-o, --out"), "{args:?}");
        }
    }
}
