//! `opensora data merge`: merges tables.

use crate::{options::Report, output, stop};
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    manifest::Table,
    prepare::{
        PrepareError, Summary,
        arrange::{
            self, Keep,
            merge::{self, Job},
        },
        assemble::failed_path,
    },
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora data merge clips.0-of-2.csv clips.1-of-2.csv -o clips.csv --order-of videos.csv
  opensora data merge old.csv new.csv -o all.csv --keep last

Near-duplicates of tables from several machines (data filter --hashes --shard I/N) are dropped after merging:
  opensora data merge hashed.*-of-4.csv -o hashed.csv --order-of clips.csv
  opensora data filter --data hashed.csv -o kept.csv --duplicates")]
pub(crate) struct Args {
    /// Tables to merge, in this order (CSV, or Parquet if this build supports it)
    #[arg(required = true, value_name = "TABLE")]
    data: Vec<PathBuf>,
    /// Merged table; dropped rows are listed beside it (.failed.csv)
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Order the rows as in this table [default: one table after the other]
    ///
    /// The table from which the others were made with --shard: by file, clips by their source.
    #[arg(long, value_name = "TABLE")]
    order_of: Option<PathBuf>,
    /// Which of several rows of one file is kept [default: none, they are an error]
    #[arg(long, value_enum)]
    keep: Option<Which>,
    #[command(flatten)]
    report: Report,
}

/// Which of several rows of one file.
#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// The first
    First,
    /// The last
    Last,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let keep = args.keep.map(|which| match which {
        Which::First => Keep::First,
        Which::Last => Keep::Last,
    });
    let mut tables = Vec::with_capacity(args.data.len());
    for path in &args.data {
        tables.push((path.display().to_string(), Table::read(path)?));
    }
    let order_of = args.order_of.as_ref().map(|table| Table::read(table).context("--order-of"));
    let job = Job { keep, order_of: order_of.transpose()? };
    let missing = arrange::missing_parts(&args.data);
    if !missing.is_empty() && !args.report.quiet {
        output::message(format_args!("not merged: shard {}", missing.join(", ")));
    }
    stop::listen();
    let merged = merge::run(&job, &tables, &args.out);
    let Summary { output: rows, failed: dropped, .. } = match merged {
        Err(error @ PrepareError::Duplicates { .. }) if keep.is_none() => {
            Err(error).context("choose the row to keep (--keep first or --keep last)")?
        }
        merged => merged?,
    };
    let list = (dropped > 0).then(|| failed_path(&args.out));
    if args.report.json {
        output::json(&json!({
            "tables": tables.len(), "rows": rows, "dropped": dropped,
            "out": output::path(&args.out), "failed_out": list.map(output::path),
        }))?;
        return Ok(());
    }
    output::line(format_args!("{rows} rows of {} tables: {}", tables.len(), args.out.display()))?;
    if let Some(list) = list {
        let list = list.display();
        output::line(format_args!("{dropped} duplicate rows were dropped: {list}"))?;
    }
    Ok(())
}
