//! `opensora data preview`: clips and captions to look at, on one sheet.

use crate::{options::Report, output, progress::Progress, stop};
use opensora::{
    manifest::Table,
    prepare::preview::{Choice, save},
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
    /// Seed of the choice of rows
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let table = Table::read(&args.manifest)?;
    stop::listen();
    let choice = Choice { count: args.count, seed: args.seed };
    let mut progress = Progress::new(args.report.quiet);
    let shown = save(&table, choice, &args.out, &mut |done, total| {
        stop::end_if_asked();
        progress.advance("opening", done, total);
    });
    progress.finish();
    let shown = shown?;
    if args.report.json {
        output::json(&json!({
            "out": args.out, "rows": shown.rows, "unreadable": shown.unreadable,
        }))?;
        return Ok(());
    }
    for bad in &shown.unreadable {
        let (row, path, reason) = (bad.row, &bad.path, &bad.reason);
        output::message(format_args!("cannot be read: row {row}: {path}: {reason}"));
    }
    Ok(output::line(format_args!("{} rows: {}", shown.rows, args.out.display()))?)
}
