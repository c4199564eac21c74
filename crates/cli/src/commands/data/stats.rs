//! `opensora data stats`: what a manifest holds, in numbers.

use crate::progress::Progress;
use opensora::{
    manifest::Table,
    prepare::stats::{Stats, fill},
};
use std::path::PathBuf;

/// Options of `opensora data stats`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Manifest (CSV)
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// Open the files of rows that lack size, frame rate, length or duration
    #[arg(long)]
    probe: bool,
    /// Sheet of histograms, one for each column of numbers (.png or .svg)
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut table = Table::read(&args.manifest)?;
    let unreadable = if args.probe {
        let mut progress = Progress::new(args.quiet);
        let unreadable =
            fill(&mut table, &mut |done, total| progress.advance("opening", done, total));
        progress.finish();
        unreadable
    } else {
        vec![]
    };
    let stats = Stats { unreadable, ..Stats::of(&table) };
    if let Some(path) = &args.png {
        stats.save_histograms(path)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&stats)?);
    } else {
        print!("{stats}");
        if let Some(path) = &args.png {
            println!("\n{}", path.display());
        }
    }
    Ok(())
}
