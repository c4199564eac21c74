//! `opensora data scan`: a folder of videos as a table.

use crate::{
    options::Report,
    step_progress::{StepProgress, print_summary},
};
use clap::Args as ClapArgs;
use opensora::{
    prepare::scan::{Found, Job, Walk, scan},
    video::reader::Decoder,
};
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora data scan videos/ -o videos.csv
  opensora data scan videos/ extra.mp4 -o videos.csv --workers 8 --retry-failed
  opensora data scan ~/.cache/huggingface/hub/datasets--clips -o videos.csv --follow-links")]
pub(crate) struct Args {
    /// Folders of videos, and single files
    #[arg(required = true, value_name = "PATH")]
    places: Vec<PathBuf>,
    /// Table of the videos (CSV); files that cannot be opened are listed beside it (.failed.csv)
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Files opened at once
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Retry files that could not be opened in an earlier run
    #[arg(long)]
    retry_failed: bool,
    /// Follow symbolic links, such as those of a Hugging Face cache
    #[arg(long)]
    follow_links: bool,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let found = Found::walk_with(&args.places, Walk { follow_links: args.follow_links })?;
    let job = Job {
        out: args.out.clone(),
        decoder: Decoder::Auto,
        workers: args.workers,
        retry_failed: args.retry_failed,
    };
    let mut progress = StepProgress::new(args.report.quiet, "scanning");
    if found.links > 0 {
        progress.line(&format!("{} links were not followed (--follow-links)", found.links));
    }
    if !found.again.is_empty() {
        let count = found.again.len();
        progress.line(&format!("{count} more paths lead to files that are listed already"));
    }
    let scanned = scan(&found, &job, &mut progress);
    progress.finish();
    Ok(print_summary(&scanned?, "videos", &args.out, args.report.json)?)
}
