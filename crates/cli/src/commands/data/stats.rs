//! `opensora data stats`: statistics of a table.

use crate::{options::Report, output, step_progress::StepProgress};
use opensora::{
    manifest::Table,
    prepare::stats::{self, Job},
};
use std::path::PathBuf;

/// Options of `opensora data stats`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora data stats clips.csv
  opensora data stats clips.csv --probe -o histograms.png --json")]
pub(crate) struct Args {
    /// Table of clips (CSV)
    #[arg(value_name = "TABLE")]
    manifest: PathBuf,
    /// Open the files of rows that lack size, frame rate, length or duration
    #[arg(long)]
    probe: bool,
    /// Write histograms of all columns of numbers to a file (.png or .svg)
    #[arg(long, short, aliases = ["output", "png"], value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut progress = StepProgress::new(args.report.quiet, "opening");
    let job = Job { probe: args.probe, histograms: args.out.clone() };
    let stats = stats::run(&job, &Table::read(&args.manifest)?, &mut progress);
    progress.finish();
    let stats = stats?;
    if args.report.json {
        output::json(&stats)?;
    } else {
        output::line(stats.to_string().trim_end_matches('\n'))?;
        if let Some(path) = &args.out {
            output::line(format_args!("\n{}", path.display()))?;
        }
    }
    Ok(())
}
