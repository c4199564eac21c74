//! `opensora data stats`: what a manifest holds, in numbers.

use crate::{options::Report, output, progress::Progress, stop};
use opensora::{
    manifest::Table,
    prepare::stats::{Stats, fill},
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
    stop::listen();
    let mut table = Table::read(&args.manifest)?;
    let unreadable = if args.probe {
        let mut progress = Progress::new(args.report.quiet);
        let unreadable = fill(&mut table, &mut |done, total| {
            stop::end_if_asked();
            progress.advance("opening", done, total);
        });
        progress.finish();
        unreadable
    } else {
        vec![]
    };
    let stats = Stats { unreadable, ..Stats::of(&table) };
    if let Some(path) = &args.out {
        stats.save_histograms(path)?;
    }
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
