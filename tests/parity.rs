//! Every golden case on every backend, within its tolerances.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora_files::error_line;
use opensora_tests::{devices, fixture, golden_cases, with_causes};
use opensora_verify::{self as verify, KINDS, VerifyError};
use std::collections::BTreeSet;

#[test]
fn every_golden_case_passes_on_every_device() {
    let cases = golden_cases();
    assert!(cases.len() >= 32, "only {} golden cases found", cases.len());
    for (name, device) in devices() {
        for case in &cases {
            let report = verify::run(case, &device)
                .unwrap_or_else(|error| panic!("{name}: {}", error_line(&error)));
            let failed: Vec<_> = report.checks.iter().filter(|check| !check.passed).collect();
            assert!(report.passed(), "{name}: {}: {failed:#?}", report.name);
        }
    }
}

#[test]
fn every_kind_has_a_case() {
    let kinds: BTreeSet<String> = golden_cases()
        .iter()
        .map(|folder| verify::Case::open(folder).unwrap().kind().to_string())
        .collect();
    assert_eq!(kinds, KINDS.iter().map(|kind| kind.to_string()).collect());
}

/// Wrong weights must fail.
#[test]
fn a_case_with_other_weights_fails() {
    let folder = copy_of("stdit-safetensors");
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last f32 of the file: a weight or bias becomes 1.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1.0f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    for (name, device) in devices() {
        let report = verify::run(folder.path(), &device).unwrap();
        assert!(!report.passed(), "{name}");
    }
}

#[test]
fn a_case_of_an_unknown_kind_is_an_error() {
    let folder = copy_of("iddpm-tables");
    rewrite(folder.path(), "\"kind\": \"iddpm-tables\"", "\"kind\": \"new\"");
    let (_, device) = devices().remove(0);
    let error = verify::run(folder.path(), &device).unwrap_err();
    assert!(matches!(&error, VerifyError::UnknownKind { kind, .. } if kind == "new"), "{error}");
}

#[test]
fn unknown_settings_are_an_error() {
    let (_, device) = devices().remove(0);
    for (case, from, to) in [
        ("iddpm-tables", "\"noise_schedule\"", "\"noise_scheduler\""),
        ("iddpm-tables", "\"timestep_respacing\": \"\"", "\"sigma_small\": true"),
        ("iddpm-losses", "\"num_sampling_steps\": 100", "\"predict_xstart\": true"),
        ("stdit-safetensors", "\"pred_sigma\"", "\"qk_norm\""),
        ("dpm-solver", "\"time_scale\"", "\"time_scales\""),
        ("t5-tokenizer", "\"padding\"", "\"padding_side\""),
    ] {
        let folder = copy_of(case);
        rewrite(folder.path(), from, to);
        let error = verify::run(folder.path(), &device).unwrap_err();
        let message = error_line(&error);
        let name = to.split('"').nth(1).unwrap();
        assert!(message.contains("unknown") && message.contains(name), "{case}: {message}");
    }
}

/// Tables of a process that is not the published one.
#[test]
fn the_case_decides_the_number_of_diffusion_steps() {
    let (_, device) = devices().remove(0);
    let schedule = "\"noise_schedule\": \"linear\"";
    let with_steps = |steps: usize| {
        let folder = copy_of("iddpm-tables");
        let both = format!("{schedule}, \"diffusion_steps\": {steps}");
        rewrite(folder.path(), schedule, &both);
        folder
    };
    assert!(verify::run(with_steps(1000).path(), &device).unwrap().passed());
    let error = error_line(&verify::run(with_steps(500).path(), &device).unwrap_err());
    assert!(error.contains("'full' has 500 steps, the case expects 1000"), "{error}");
    // Without that setting the tables of the published process are compared, and differ.
    let folder = with_steps(500);
    rewrite(
        folder.path(),
        "\"num_timesteps\": 1000\n   },\n   {\n    \"prefix\": \"spaced_100\"",
        "\"num_timesteps\": 500\n   },\n   {\n    \"prefix\": \"spaced_100\"",
    );
    let report = verify::run(folder.path(), &device).unwrap();
    assert!(!report.passed());
    let full = report.checks.iter().filter(|check| check.name.starts_with("full."));
    assert!(full.into_iter().all(|check| !check.passed), "{:#?}", report.checks);
}

#[test]
fn an_expected_tensor_that_is_not_computed_fails() {
    let folder = copy_of("dpm-solver");
    rewrite(
        folder.path(),
        "\"num_sampling_steps\": [\n  10,\n  8\n ]",
        "\"num_sampling_steps\": [8]",
    );
    let (_, device) = devices().remove(0);
    let report = verify::run(folder.path(), &device).unwrap();
    assert!(!report.passed());
    let missing: Vec<_> = report.checks.iter().filter(|check| !check.passed).collect();
    assert!(missing.iter().all(|check| check.name.ends_with("10steps")), "{missing:?}");
}

#[test]
fn computed_tensors_without_expected_ones_fail() {
    let folder = copy_of("train-step");
    rewrite(folder.path(), "\"expected_file\": \"expected.safetensors\",", "");
    std::fs::remove_file(folder.path().join("expected.safetensors")).unwrap();
    let (_, device) = devices().remove(0);
    let report = verify::run(folder.path(), &device).unwrap();
    assert!(report.checks.iter().any(|check| !check.passed), "{:#?}", report.checks);
}

/// Inputs that do not fit the configuration make backends panic; the case reports it.
#[test]
fn inputs_that_do_not_fit_are_an_error_and_no_panic() {
    let folder = copy_of("vae-safetensors");
    let other = fixture("goldens/vae-bin/inputs.safetensors");
    std::fs::copy(other, folder.path().join("inputs.safetensors")).unwrap();
    let (_, device) = devices().remove(0);
    match verify::run(folder.path(), &device) {
        Ok(report) => assert!(!report.passed()),
        Err(error) => assert!(!with_causes(&error).contains('\n'), "{error}"),
    }
}

fn copy_of(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("goldens").join(case)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn rewrite(folder: &std::path::Path, from: &str, to: &str) {
    let path = folder.join("case.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "case.json has no {from:?}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}
