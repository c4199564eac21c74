//! `opensora verify`: runs golden cases on this machine.

use crate::{
    options::DeviceName,
    output::{self, OutputError},
    stop::{self, Stopped},
};
use anyhow::{Context, bail};
use opensora::files::error_line;
use opensora_verify::CaseReport;
use serde_json::json;
use std::path::PathBuf;

/// Options of `opensora verify`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora verify tests/fixtures/goldens
  opensora verify tests/fixtures/goldens/vae-bin tests/fixtures/goldens/pipeline --device flex --json")]
pub(crate) struct Args {
    /// Folders of golden cases, each with a case.json, or folders of such folders
    #[arg(required = true, value_name = "FOLDER")]
    cases: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceName,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Print only failed cases and the total
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let device = args.device.open(args.quiet)?;
    // Backends report unsupported operations by panics, which become errors of their cases.
    std::panic::set_hook(Box::new(|_| {}));

    let mut rows = Vec::new();
    let (mut passed, mut failed) = (0, 0);
    let folders = expand(&args.cases)?;
    stop::listen();
    for folder in &folders {
        if stop::asked() {
            bail!(Stopped(format!("{} of {} cases are run", passed + failed, folders.len())));
        }
        let result = opensora_verify::run(folder, &device);
        let good = result.as_ref().is_ok_and(CaseReport::passed);
        if good {
            passed += 1
        } else {
            failed += 1
        }
        match result {
            Ok(report) => {
                if args.json {
                    rows.push(as_json(&report));
                } else if !(good && args.quiet) {
                    print_report(&report)?;
                }
            }
            Err(error) => {
                let step = error.step().map(String::from);
                let error = error_line(&error);
                if args.json {
                    let case = output::path(folder);
                    rows.push(json!({"case": case, "passed": false, "step": step, "error": error}));
                } else {
                    output::line(format_args!("FAILED  {error}"))?;
                }
            }
        }
    }
    if args.json {
        let summary = json!({"cases": rows, "passed": passed, "failed": failed});
        output::line(format_args!("{summary:#}"))?;
    } else {
        output::line(format_args!("{passed} cases passed, {failed} failed"))?;
    }
    anyhow::ensure!(failed == 0, "{failed} of {} cases failed", passed + failed);
    Ok(())
}

/// Replaces each folder without a case.json by the case folders in it.
fn expand(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut cases = Vec::new();
    for folder in folders {
        let mut inner: Vec<PathBuf> = Vec::new();
        if folder.is_dir() && !folder.join("case.json").exists() {
            let named = || folder.display().to_string();
            for entry in std::fs::read_dir(folder).with_context(named)? {
                let path = entry.with_context(named)?.path();
                if path.join("case.json").exists() {
                    inner.push(path);
                }
            }
            inner.sort();
        }
        // A folder without cases is kept, so that its error names it.
        if inner.is_empty() { cases.push(folder.clone()) } else { cases.append(&mut inner) }
    }
    Ok(cases)
}

fn print_report(report: &CaseReport) -> Result<(), OutputError> {
    let verdict = if report.passed() { "ok    " } else { "FAILED" };
    output::line(format_args!("{verdict}  {} ({})", report.name, report.kind))?;
    for check in &report.checks {
        let mark = if check.passed { ' ' } else { '!' };
        let note = check.note.as_deref().map(|note| format!("  {note}")).unwrap_or_default();
        output::line(format_args!(
            "      {mark} {:<38} max abs error {:<10.3e} tolerance {:<10.3e}{note}",
            check.name, check.max_abs_error, check.bound
        ))?;
    }
    Ok(())
}

fn as_json(report: &CaseReport) -> serde_json::Value {
    let checks: Vec<_> = report
        .checks
        .iter()
        .map(|check| {
            json!({
                "tensor": check.name,
                // JSON has no infinity: null where nothing could be compared.
                "max_abs_error": check.max_abs_error.is_finite().then_some(check.max_abs_error),
                "bound": check.bound,
                "passed": check.passed,
                "note": check.note,
            })
        })
        .collect();
    json!({
        "case": report.name,
        "kind": report.kind,
        "passed": report.passed(),
        "checks": checks,
    })
}
