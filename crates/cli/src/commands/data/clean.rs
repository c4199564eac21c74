//! `opensora data clean`: cleans captions and paths, and counts frames again.

use super::{
    options::{StepOptions, shard_help},
    parts,
};
use crate::{
    options::Report,
    output::{self, OutputError},
    step_progress::StepProgress,
};
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    manifest::Table,
    prepare::{
        assemble::{failed_path, output_path},
        clean::{self, Job, Naming, Openings, Treatment},
    },
};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| arg.help("Files decoded at once, with --relength").default_value("1")))]
#[command(mut_arg("shard", |arg| shard_help(arg, "rows", "")))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry files that could not be read in an earlier run")))]
#[command(after_long_help = "\
Examples:
  opensora data clean --data captioned.csv -o train.csv
  opensora data clean --data captioned.csv -o train.csv --relength --workers 8 --absolute")]
pub(crate) struct Args {
    /// Table to clean (CSV, or Parquet if this build supports it)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Cleaned table; dropped rows are listed beside it (.failed.csv)
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Folder of the relative paths in --data [default: the folder of --data]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// File of caption openings to remove, one per line, in place of the built-in ones
    #[arg(long, value_name = "FILE", conflicts_with = "keep_openings")]
    openings: Option<PathBuf>,
    /// Keep openings such as "The video shows"
    #[arg(long)]
    keep_openings: bool,
    /// Treatment of rows without caption
    #[arg(long, value_enum, default_value_t = Unfit::Drop)]
    empty: Unfit,
    /// Treatment of rows whose file is missing or, with --relength, unreadable
    #[arg(long, value_enum, default_value_t = Unfit::Drop)]
    missing: Unfit,
    /// Count the frames of each file again by decoding it
    #[arg(long)]
    relength: bool,
    /// Write absolute paths
    #[arg(long, conflicts_with = "relative_to")]
    absolute: bool,
    /// Write paths relative to this folder [default: the folder of --out]
    #[arg(long, value_name = "FOLDER")]
    relative_to: Option<PathBuf>,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

/// Treatment of unusable rows: dropped or kept. They are listed in both cases.
#[derive(Clone, Copy, ValueEnum)]
enum Unfit {
    /// Leave them out and list them
    Drop,
    /// Keep them and list them
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
    let options = args.step.run_options(1, args.report)?;
    let job = Job {
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
        options,
    };
    let out = output_path(&args.data, &args.out, options.shard).context("--out")?;
    let mut progress = StepProgress::new(args.report.quiet, "counting");
    let cleaned = clean::run(&job, &input, &out, &mut progress);
    progress.finish();
    print(&cleaned?, &out, args.report.json)?;
    if !args.report.quiet {
        parts::say_next(&args.out, options.shard, &args.data, None)?;
    }
    Ok(())
}

fn print(counts: &clean::Report, out: &Path, as_json: bool) -> Result<(), OutputError> {
    let list = (counts.listed > 0).then(|| failed_path(out));
    if as_json {
        return output::json(&json!({
            "counts": counts, "out": output::path(out), "failed_out": list.map(output::path),
        }));
    }
    let clean::Report { written, rows, .. } = counts;
    output::line(format_args!("{written} of {rows} rows: {}", out.display()))?;
    for (count, what) in [
        (counts.openings, "captions lost their opening"),
        (counts.spaces, "captions lost superfluous spaces"),
        (counts.empty, "captions are empty"),
        (counts.missing, "files are missing"),
        (counts.unreadable, "files cannot be read"),
        (counts.recounted, "numbers of frames changed"),
        (counts.elsewhere, "files are outside the folder and have absolute paths"),
    ] {
        if count > 0 {
            output::line(format_args!("  {count} {what}"))?;
        }
    }
    if let Some(list) = list {
        let (listed, list) = (counts.listed, list.display());
        output::line(format_args!("{listed} rows are listed with reasons: {list}"))?;
    }
    Ok(())
}
