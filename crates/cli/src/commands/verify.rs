//! `opensora verify`: golden cases on this machine.

use opensora_verify::CaseReport;
use serde_json::json;
use std::path::PathBuf;

/// Options of `opensora verify`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folders of golden cases, each with a case.json; a folder of such folders stands for all of
    /// them.
    #[arg(required = true)]
    cases: Vec<PathBuf>,
    /// Device to compute on; the first that is present where not given.
    #[arg(long)]
    device: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let device = crate::open_device(args.device.as_deref())?;
    // Backends report impossible operations by panicking; the case's own line says what it was.
    std::panic::set_hook(Box::new(|_| {}));

    let mut rows = Vec::new();
    let (mut passed, mut failed) = (0, 0);
    for folder in expand(&args.cases)? {
        let result = opensora_verify::run(&folder, &device);
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
                } else {
                    print_report(&report);
                }
            }
            Err(error) => {
                if args.json {
                    let case = folder.display().to_string();
                    rows.push(json!({"case": case, "passed": false, "error": error.to_string()}));
                } else {
                    println!("FAILED  {error}");
                }
            }
        }
    }
    if args.json {
        let summary = json!({"cases": rows, "passed": passed, "failed": failed});
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{passed} cases passed, {failed} failed");
    }
    anyhow::ensure!(failed == 0, "{failed} of {} cases failed", passed + failed);
    Ok(())
}

/// Folders without a case.json of their own stand for the case folders in them.
fn expand(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut cases = Vec::new();
    for folder in folders {
        let mut inner: Vec<PathBuf> = Vec::new();
        if folder.is_dir() && !folder.join("case.json").exists() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.join("case.json").exists() {
                    inner.push(path);
                }
            }
            inner.sort();
        }
        // A folder with nothing in it is kept, so that it fails with its name.
        if inner.is_empty() { cases.push(folder.clone()) } else { cases.append(&mut inner) }
    }
    Ok(cases)
}

fn print_report(report: &CaseReport) {
    let verdict = if report.passed() { "ok    " } else { "FAILED" };
    println!("{verdict}  {} ({})", report.name, report.kind);
    for check in &report.checks {
        let mark = if check.passed { ' ' } else { '!' };
        let note = check.note.as_deref().map(|note| format!("  {note}")).unwrap_or_default();
        println!(
            "      {mark} {:<38} max abs error {:<10.3e} bound {:<10.3e}{note}",
            check.name, check.max_abs_error, check.bound
        );
    }
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
