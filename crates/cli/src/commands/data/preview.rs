//! `opensora data preview`: clips and captions to look at, on one sheet.

use crate::progress::Progress;
use opensora::{
    manifest::Table,
    prepare::preview::{Choice, save},
};
use serde_json::json;
use std::path::PathBuf;

/// Options of `opensora data preview`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Manifest (CSV)
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// Sheet to write: .png (captions in Latin, Greek and Cyrillic letters) or .html (any script)
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Rows to show
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// Seed of the choice of rows
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let table = Table::read(&args.manifest)?;
    let choice = Choice { count: args.count, seed: args.seed };
    let mut progress = Progress::new(args.quiet);
    let shown = save(&table, choice, &args.out, &mut |done, total| {
        progress.advance("opening", done, total);
    });
    progress.finish();
    let shown = shown?;
    if args.json {
        let object = json!({ "out": args.out, "rows": shown.rows, "unreadable": shown.unreadable });
        println!("{object}");
        return Ok(());
    }
    for bad in &shown.unreadable {
        eprintln!("cannot be read: row {}: {}: {}", bad.row, bad.path, bad.reason);
    }
    println!("{} rows: {}", shown.rows, args.out.display());
    Ok(())
}
