//! `opensora plan`, shards of job arrays, and the job scripts of the examples.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Variables that tell a process its shard.
const VARIABLES: [&str; 13] = [
    "OPENSORA_ARRAY_SIZE",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_MAX",
    "SLURM_ARRAY_TASK_STEP",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "JOB_COMPLETION_INDEX",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
];

/// Runs the program in `folder` with only the shard variables in `environment`.
fn opensora(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
    command.args(args).current_dir(folder);
    for name in VARIABLES {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the JSON of `opensora plan` with `args`.
fn plan(args: &str) -> Value {
    let args: Vec<&str> = ["plan", "--json"].into_iter().chain(args.split_whitespace()).collect();
    let output = opensora(Path::new("."), &args, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_plan_has_the_best_layout_first() {
    let found = plan("--ranks 16 --batch-size 64 --layouts 1000 --scaling 8,16,64");
    assert_eq!((&found["is_prediction"], &found["tokens"]), (&true.into(), &4096.into()));
    let layouts = found["layouts"].as_array().unwrap();
    assert!(layouts.len() > 20, "{}", layouts.len());
    assert_eq!(layouts[0]["fits"], true);
    let seconds = |layout: &Value| layout["seconds"].as_f64().unwrap();
    let fitting: Vec<&Value> = layouts.iter().filter(|layout| layout["fits"] == true).collect();
    assert!(fitting.windows(2).all(|pair| seconds(pair[0]) <= seconds(pair[1])));
    for layout in layouts {
        let parts = layout["time"].as_object().unwrap();
        let sum: f64 = parts.values().map(|part| part.as_f64().unwrap()).sum();
        assert!((sum / seconds(layout) - 1.0).abs() < 1e-9, "{layout}");
    }
    let scaling = found["scaling"].as_array().unwrap();
    let ranks: Vec<u64> = scaling.iter().map(|row| row["ranks"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [8, 16, 64]);
    assert!(scaling.iter().all(|row| row["efficiency"].as_f64().unwrap() <= 1.0));
}

/// The search is free to choose otherwise.
#[test]
fn given_values_of_the_layout_and_of_the_machines_are_kept() {
    let fixed = "--zero 2 --sequence 2 --activation-checkpointing=false --accumulation 2";
    let found = plan(&format!("--ranks 8 {fixed} --peak-tflops 10 --efficiency 0.5 --memory 1"));
    let layouts = found["layouts"].as_array().unwrap();
    assert_eq!(layouts.len(), 1);
    let layout = &layouts[0]["layout"];
    let wanted = serde_json::json!({
        "data": 4, "sequence": 2, "accumulation": 2, "zero": 2, "activation_checkpointing": false,
    });
    assert_eq!(layout, &wanted);
    assert_eq!(layouts[0]["fits"], false);
    // 64 clips of 5.71 TFLOP, three passes, on 8 processors of 5 TFLOP/s.
    let compute = layouts[0]["time"]["compute"].as_f64().unwrap();
    assert!((compute / (64.0 * 5.71 * 3.0 / 8.0 / 5.0) - 1.0).abs() < 5e-3, "{compute}");
}

#[test]
fn a_plan_is_shown_as_a_table_and_named_a_prediction() {
    let args = ["plan", "--ranks", "64", "--scaling", "8,64"];
    let output = opensora(Path::new("."), &args, &[]);
    let shown = text(&output.stdout);
    assert!(shown.starts_with("prediction of a cost model, not a measurement\n"), "{shown}");
    for wanted in ["64 h100 on 8 nodes", "layout: data ", "compute", "optimizer", "weak scaling:"] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}

#[test]
fn numbers_of_ranks_without_a_layout_are_left_out_with_a_warning() {
    let args = ["plan", "--ranks", "2", "--batch-size", "3", "--scaling", "2,3,4", "--json"];
    let output = opensora(Path::new("."), &args, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = found["scaling"].as_array().unwrap();
    let ranks: Vec<u64> = rows.iter().map(|row| row["ranks"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [2, 4]);
    assert_eq!(
        text(&output.stderr),
        "warning: --scaling 3 is left out: 3 clips a step of 2 ranks are not a whole number of clips \
         on 3 ranks\n"
    );
    let quiet = opensora(Path::new("."), &[&args[..], &["-q"]].concat(), &[]);
    assert!(quiet.stderr.is_empty(), "{}", text(&quiet.stderr));
    assert_eq!(quiet.stdout, output.stdout);
}

#[test]
fn plans_that_are_impossible_are_one_clear_line() {
    for (args, wanted) in [
        ("--image-size 250x256", "multiples of 8"),
        ("--ranks 0", "ranks is 0, expected 1 to"),
        ("--ranks 8 --sequence 3", "no layout of 8 ranks for 64 clips a step"),
        ("--efficiency 2", "efficiency is 2, expected at most 1"),
        ("--network 0", "bandwidth between nodes is 0, expected a positive number"),
        ("--hidden-size 7", "hidden_size 7"),
        (
            "--ranks 2 --batch-size 3 --scaling 0,3",
            "no number of ranks has a layout: 0 (ranks is 0, ",
        ),
    ] {
        let all: Vec<&str> = ["plan"].into_iter().chain(args.split_whitespace()).collect();
        let output = opensora(Path::new("."), &all, &[]);
        assert_eq!(output.status.code(), Some(1), "{args}");
        let error = text(&output.stderr);
        assert!(error.starts_with("error: ") && error.contains(wanted), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let output = opensora(Path::new("."), &["plan", "--processor", "tpu"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("expected one of h100, h200"));
}

#[test]
fn a_task_of_an_array_processes_its_share() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &str, environment: &[(&str, &str)]| {
        let args: Vec<&str> = args.split_whitespace().collect();
        opensora(folder.path(), &args, environment)
    };
    let made = run("data demo -o set --clips 5 --size 16 --num-frames 2", &[]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let clean = "data clean --data set/clips.csv -o cleaned.csv";
    let of_task = |id| {
        [
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_MAX", "2"),
        ]
    };
    for (id, shard) in [("1", "0/2"), ("2", "1/2")] {
        let done = run(clean, &of_task(id));
        assert!(done.status.success(), "{}", text(&done.stderr));
        let wanted = format!("shard {shard} (from SLURM_ARRAY_TASK_ID)\n");
        assert!(text(&done.stderr).starts_with(&wanted), "{}", text(&done.stderr));
    }
    let merge =
        "data merge cleaned.0-of-2.csv cleaned.1-of-2.csv -o all.csv --order-of set/clips.csv";
    // The rest of the job is one process, whatever the array's variables are.
    let merged = run(merge, &of_task("2"));
    assert!(merged.status.success(), "{}", text(&merged.stderr));
    let whole = run(&format!("{clean} --shard none"), &of_task("2"));
    assert!(whole.status.success() && whole.stderr.is_empty(), "{}", text(&whole.stderr));
    let table = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(table("all.csv"), table("cleaned.csv"));

    let failed = run(clean, &[("JOB_COMPLETION_INDEX", "1")]);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(
        text(&failed.stderr),
        "error: JOB_COMPLETION_INDEX is set, but OPENSORA_ARRAY_SIZE is not: set it, or give --shard I/N \
         or none\n"
    );
}

/// Returns the commands of `opensora` in a shell script and in the list `command` of a Kubernetes file.
fn commands(script: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line in script.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let line = line.split(" #").next().unwrap();
        if let Some((_, command)) = line.split_once("opensora ") {
            let words = command.trim_end_matches(')').split_whitespace();
            found.push(words.map(|word| word.replace(['\'', '"'], "")).collect());
        }
    }
    let mut lines = script.lines().map(str::trim);
    while lines.by_ref().any(|line| line == "- opensora") {
        let words = lines.by_ref().map_while(|line| line.strip_prefix("- "));
        found.push(words.map(|word| word.replace('"', "")).collect());
    }
    found
}

#[test]
fn the_commands_of_the_job_scripts_parse() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/jobs");
    let mut count = 0;
    for (name, least) in [
        ("prepare.slurm", 8),
        ("train.slurm", 1),
        ("prepare.kubernetes.yaml", 1),
        ("train.kubernetes.yaml", 1),
    ] {
        let found = commands(&std::fs::read_to_string(folder.join(name)).unwrap());
        assert!(found.len() >= least, "{name}: {found:?}");
        for words in found {
            // Options after an unknown one are not read, `--help` included.
            let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
            args.push("--help");
            let output = opensora(Path::new("."), &args, &[]);
            assert!(output.status.success(), "{name}: {words:?}: {}", text(&output.stderr));
            count += 1;
        }
    }
    assert_eq!(count, 11);
}
