//! Tests of `opensora plot`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora::train::metrics::{MetricsWriter, Record};
use std::{
    path::Path,
    process::{Command, Output},
};

fn plot(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensora"));
    command.arg("plot").args(args).current_dir(folder).output().unwrap()
}

/// A run of 50 steps.
fn run(folder: &Path, name: &str) {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut writer = MetricsWriter::open(&folder, 0).unwrap();
    for step in 1..=50 {
        let loss = 1.0 / step as f64;
        let parts = vec![("mse", 0.9 * loss)];
        writer.write(&Record { step, loss, parts, ..Record::default() }).unwrap();
    }
}

#[test]
fn runs_become_pictures() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "first");
    run(folder.path(), "second");
    let output = plot(folder.path(), &["first"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "first/metrics.svg");

    // The chart of a table is beside it.
    let output = plot(folder.path(), &["second/metrics.csv"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "second/metrics.svg");

    let args = ["first", "second/metrics.csv", "--columns", "loss,mse", "--log", "-o", "both.svg"];
    let output = plot(folder.path(), &args);
    assert!(output.status.success(), "{output:?}");
    let svg = std::fs::read_to_string(folder.path().join("both.svg")).unwrap();
    for word in ["first", "second", "loss", "mse", "step"] {
        assert!(svg.contains(word), "{word}");
    }
    let output = plot(folder.path(), &["first", "second", "--smooth", "0", "--out", "both.png"]);
    assert!(output.status.success(), "{output:?}");
    let png = opensora::video::png::read(&folder.path().join("both.png")).unwrap();
    assert_eq!((png.height(), png.width()), (480, 960));
}

#[test]
fn missing_rows_are_a_warning_unless_quiet() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("gap.csv"), "step,loss\n1,0.5\n3,0.25\n").unwrap();
    let output = plot(folder.path(), &["gap.csv"]);
    assert!(output.status.success(), "{output:?}");
    let warned = String::from_utf8(output.stderr).unwrap();
    assert_eq!(warned, "warning: gap.csv: the row of step 2 is missing\n");
    let output = plot(folder.path(), &["gap.csv", "-q"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "metrics.svg");
}

#[test]
fn what_cannot_be_shown_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "first");
    std::fs::write(folder.path().join("text.csv"), "step,loss\n1,high\n").unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    for (args, tells) in [
        (vec!["empty"], "metrics.csv"),
        (vec!["first", "--columns", "lr"], "no column 'lr', expected one of step, samples"),
        (vec!["first", "--x", "hours"], "no column 'hours'"),
        (vec!["text.csv"], "text.csv, line 2: loss is 'high'"),
        (vec!["first", "--out", "a.pdf"], "a.pdf: unknown format"),
        (vec!["first", "--smooth", "2"], "smooth is 2"),
        (vec!["first", "--columns", "gradient_norm", "--log"], "gradient_norm: no values"),
        (vec!["first", "--out", "none/a.svg"], "none/a.svg"),
        (vec!["first", "--out", "empty"], "empty: it is a folder"),
    ] {
        let output = plot(folder.path(), &args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(tells), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}
