//! `opensora data clean`: captions without openings, rows without gaps, frames counted anew.

use crate::step_progress::StepProgress;
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    manifest::Table,
    prepare::{
        assemble::failed_path,
        clean::{self, Counts, Job, Naming, Openings, Settings, Treatment},
    },
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Table to clean (CSV, or Parquet where the program was built with it)
    #[arg(long)]
    data: PathBuf,
    /// Cleaned table; rows that are dropped are listed beside it (.failed.csv)
    #[arg(long)]
    out: PathBuf,
    /// Folder that relative paths of --data start from [default: the folder of --data]
    #[arg(long)]
    root: Option<PathBuf>,
    /// File of caption openings to drop, one a line, instead of the built-in ones
    #[arg(long, conflicts_with = "keep_openings")]
    openings: Option<PathBuf>,
    /// Keep openings such as "The video shows"
    #[arg(long)]
    keep_openings: bool,
    /// What becomes of rows without caption
    #[arg(long, value_enum, default_value_t = Unfit::Drop)]
    empty: Unfit,
    /// What becomes of rows whose file is missing or, with --relength, unreadable
    #[arg(long, value_enum, default_value_t = Unfit::Drop)]
    missing: Unfit,
    /// Count the frames of each file anew, by decoding it
    #[arg(long)]
    relength: bool,
    /// Files that are read at once, with --relength
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Try files again that could not be read before
    #[arg(long)]
    retry_failed: bool,
    /// Name files by their absolute paths
    #[arg(long, conflicts_with = "relative_to")]
    absolute: bool,
    /// Name files relative to this folder [default: the folder of --out]
    #[arg(long)]
    relative_to: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

/// What becomes of rows that are not as they should be; both are listed.
#[derive(Clone, Copy, ValueEnum)]
enum Unfit {
    /// They are left out.
    Drop,
    /// They are kept.
    List,
}

impl From<Unfit> for Treatment {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Drop => Self::Drop,
            Unfit::List => Self::List,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let input = match &args.root {
        Some(root) => Table::read_with_root(&args.data, root),
        None => Table::read(&args.data),
    }
    .context("--data")?;
    let settings = Settings {
        openings: match &args.openings {
            _ if args.keep_openings => Openings::NONE,
            Some(path) => Openings::read(path).context("--openings")?,
            None => Openings::default(),
        },
        empty: args.empty.into(),
        unusable: args.missing.into(),
        relength: args.relength,
        naming: match &args.relative_to {
            _ if args.absolute => Naming::Absolute,
            Some(folder) => Naming::From(folder.clone()),
            None => Naming::Movable,
        },
    };
    let job = Job { out: &args.out, workers: args.workers, retry_failed: args.retry_failed };
    let mut progress = StepProgress::new(args.quiet, "counting");
    let cleaned = clean::clean(&input, &settings, &job, &mut progress);
    progress.finish();
    print(&cleaned?, args);
    Ok(())
}

fn print(counts: &Counts, args: &Args) {
    let list = (counts.listed > 0).then(|| failed_path(&args.out));
    if args.json {
        println!("{}", json!({ "counts": counts, "out": args.out, "failed_out": list }));
        return;
    }
    println!("{} of {} rows: {}", counts.written, counts.rows, args.out.display());
    for (count, what) in [
        (counts.openings, "captions lost their opening"),
        (counts.spaces, "captions lost superfluous spaces"),
        (counts.empty, "captions are empty"),
        (counts.missing, "files are missing"),
        (counts.unreadable, "files cannot be read"),
        (counts.recounted, "numbers of frames changed"),
        (counts.elsewhere, "files lie elsewhere and are named by their absolute paths"),
    ] {
        if count > 0 {
            println!("  {count} {what}");
        }
    }
    if let Some(list) = list {
        println!("{} rows are listed with reasons: {}", counts.listed, list.display());
    }
}
