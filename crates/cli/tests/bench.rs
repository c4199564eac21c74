//! Tests of `opensora bench` with models of the demo's size.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    let small = ["--preset", "demo", "--num-frames", "2", "--image-size", "16x24", "--reps", "3"];
    Command::new(env!("CARGO_BIN_EXE_opensora"))
        .arg("bench")
        .args(args)
        .args(small)
        .output()
        .unwrap()
}

#[test]
fn every_part_gives_one_line_of_json() {
    for part in ["stdit", "vae-encode", "vae-decode", "t5", "sample", "train-step"] {
        let output = bench(&[part, "--batch", "2", "--steps", "2", "--quiet"]);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |key: &str| report[key].as_f64().unwrap();
        assert_eq!((&report["what"], &report["preset"]), (&part.into(), &"demo".into()));
        assert_eq!(report["image_size"], serde_json::json!([16, 24]));
        let mut reps: Vec<f64> =
            report["reps"].as_array().unwrap().iter().map(|rep| rep.as_f64().unwrap()).collect();
        reps.sort_by(f64::total_cmp);
        assert_eq!((reps.len(), reps[1]), (3, number("seconds")));
        assert_eq!(reps[0], number("min_seconds"));
        assert!(number("gflop") > 0.0 && number("matmul_ceiling_gflops") > 0.0);
        let share = number("gflop") / number("seconds") / number("matmul_ceiling_gflops");
        assert!((share / number("share_of_ceiling") - 1.0).abs() < 1e-9);
        if cfg!(target_os = "linux") {
            assert!(number("peak_rss_bytes") > 1e6);
        }
        let stages = ["text", "denoise", "decode"].map(|stage| report["stages"][stage].as_f64());
        assert_eq!(stages.iter().all(Option::is_some), part == "sample", "{report}");
    }
}

#[test]
fn the_ceiling_can_be_left_out() {
    let output = bench(&["stdit", "--no-ceiling", "--quiet"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["matmul_ceiling_gflops"].is_null() && report["share_of_ceiling"].is_null());
    assert!(report["gflops"].as_f64().unwrap() > 0.0);
}

#[test]
fn invalid_sizes_give_one_line() {
    for (args, said) in [
        (&["stdit", "--depth", "0"][..], "depth is 0"),
        (&["t5", "--tokens", "33"], "at most 32"),
        (&["stdit", "--warmup", "0", "--batch", "0"], "batch size is 0"),
        (&["sample", "--steps", "1"], "1 steps"),
        (&["stdit", "--device", "gpu"], "unknown device"),
        (&["vae-encode", "--batch", "18446744073709551615"], "too many"),
    ] {
        let output = bench(&[args, &["--quiet"]].concat());
        assert!(!output.status.success(), "{output:?}");
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
    let sizes = Command::new(env!("CARGO_BIN_EXE_opensora"))
        .args(["bench", "vae-decode", "--preset", "demo", "--image-size", "30x30"])
        .output()
        .unwrap();
    assert!(!sizes.status.success());
    assert!(String::from_utf8(sizes.stderr).unwrap().contains("multiples of 4"));
}
