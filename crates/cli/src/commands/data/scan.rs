//! `opensora data scan`: a folder of videos as a table.

use crate::step_progress::{StepProgress, print_summary};
use clap::Args as ClapArgs;
use opensora::{
    prepare::scan::{Found, Job, scan},
    video::reader::Decoder,
};
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Folders of videos, and single files
    #[arg(required = true, value_name = "FOLDER")]
    places: Vec<PathBuf>,
    /// Table of the videos (CSV); those that cannot be opened are listed beside it (.failed.csv)
    #[arg(long)]
    out: PathBuf,
    /// Files that are opened at once
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Try files again that could not be opened before
    #[arg(long)]
    retry_failed: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let found = Found::walk(&args.places)?;
    let job = Job {
        out: args.out.clone(),
        decoder: Decoder::Auto,
        workers: args.workers,
        retry_failed: args.retry_failed,
    };
    let mut progress = StepProgress::new(args.quiet, "scanning");
    if found.links > 0 {
        progress.line(&format!("links passed over: {}", found.links));
    }
    let scanned = scan(&found, &job, &mut progress);
    progress.finish();
    print_summary(&scanned?, "videos", &args.out, args.json);
    Ok(())
}
