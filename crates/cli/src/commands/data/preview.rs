//! `opensora data preview`: writes a contact sheet of clips and captions.

use crate::{options::Report, output, step_progress::StepProgress};
use opensora::{
    manifest::Table,
    prepare::preview::{self, Job},
};
use serde_json::json;
use std::path::PathBuf;

/// Options of `opensora data preview`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora data preview train.csv -o preview.html
  opensora data preview train.csv -o preview.png --count 9 --seed 7")]
pub(crate) struct Args {
    /// Table of clips (CSV)
    #[arg(value_name = "TABLE")]
    manifest: PathBuf,
    /// Page to write: .png (captions in Latin, Greek and Cyrillic letters) or .html (any script)
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Rows to show
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// Seed for choosing the rows
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let table = Table::read(&args.manifest)?;
    let job = Job { count: args.count, seed: args.seed };
    let mut progress = StepProgress::new(args.report.quiet, "opening");
    let shown = preview::run(&job, &table, &args.out, &mut progress);
    progress.finish();
    let shown = shown?;
    if args.report.json {
        output::json(&json!({
            "out": output::path(&args.out), "rows": shown.rows, "unreadable": shown.unreadable,
        }))?;
        return Ok(());
    }
    for bad in shown.unreadable.iter().filter(|_| !args.report.quiet) {
        let (row, path, reason) = (bad.row, &bad.path, &bad.reason);
        output::message(format_args!("cannot be read: row {row}: {path}: {reason}"));
    }
    Ok(output::line(format_args!("{} rows: {}", shown.rows, args.out.display()))?)
}
