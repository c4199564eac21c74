//! `opensora data scan`: lists the videos of folders in a table.

use super::options::{StepOptions, shard_help};
use crate::{
    options::Report,
    step_progress::{StepProgress, print_summary},
};
use clap::Args as ClapArgs;
use opensora::prepare::{
    assemble::shard_path,
    scan::{self, Found, Job, Walk},
};
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| arg.help("Files opened at once").default_value("4")))]
#[command(mut_arg("shard", |arg| shard_help(arg, "files", "")))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry files that could not be opened in an earlier run")))]
#[command(after_long_help = "\
Examples:
  opensora data scan videos/ -o videos.csv
  opensora data scan videos/ extra.mp4 -o videos.csv --workers 8 --retry-failed
  opensora data scan ~/.cache/huggingface/hub/datasets--clips -o videos.csv --follow-links")]
pub(crate) struct Args {
    /// Folders of videos, and single files
    ///
    /// Clips of `data split` are skipped if the journal of their table is in one of the folders. To list clips, name
    /// their folder.
    #[arg(required = true, value_name = "PATH")]
    places: Vec<PathBuf>,
    /// Table of the videos (CSV); files that cannot be opened are listed beside it (.failed.csv)
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Follow symbolic links, such as those of a Hugging Face cache
    #[arg(long)]
    follow_links: bool,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let options = args.step.run_options(4, args.report)?;
    let job = Job { walk: Walk { follow_links: args.follow_links }, options, ..Job::default() };
    let found = Found::walk(&args.places, job.walk)?;
    let out = shard_path(&args.out, options.shard);
    let mut progress = StepProgress::new(args.report.quiet, "scanning");
    if found.links > 0 {
        progress.line(&format!("{} links were not followed (--follow-links)", found.links));
    }
    if !found.again.is_empty() {
        let count = found.again.len();
        progress.line(&format!("{count} more paths lead to files that are listed already"));
    }
    if found.clips > 0 {
        progress
            .line(&format!("{} clips of data split were skipped (name their folder)", found.clips));
    }
    let scanned = scan::run(&job, &found, &out, &mut progress);
    progress.finish();
    Ok(print_summary(&scanned?, "videos", &out, args.report.json)?)
}
