//! `opensora data split-manifest`: splits a table into several.

use crate::{options::Report, output, stop};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::{
    manifest::{Table, table::PATH},
    prepare::arrange::{Parts, Shares, parts},
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora data split-manifest --data all.csv --shares train=0.9,val=0.1 --by source
  opensora data split-manifest --data all.csv -o parts/all.csv --parts 4")]
pub(crate) struct Args {
    /// Table to split (CSV, or Parquet if this build supports it)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Base name of the parts: all.csv gives all.train.csv or all.0.csv [default: --data]
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    into: Into,
    /// Seed of --shares
    #[arg(long, default_value_t = 42, conflicts_with_all = ["rows", "parts"])]
    seed: u64,
    /// Column whose equal values stay together with --shares; `source` keeps the clips of a video
    /// together
    #[arg(long, default_value = PATH, value_name = "COLUMN", conflicts_with_all = ["rows", "parts"])]
    by: String,
    #[command(flatten)]
    report: Report,
}

#[derive(ClapArgs)]
#[group(required = true, multiple = false)]
struct Into {
    /// Split into parts of this many rows
    #[arg(long)]
    rows: Option<usize>,
    /// Split into this many parts
    #[arg(long)]
    parts: Option<usize>,
    /// Split at random, such as train=0.9,val=0.1; rows keep their part when others are added
    #[arg(long)]
    shares: Option<Shares>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let table = Table::read(&args.data)?;
    let parts = match &args.into {
        Into { rows: Some(rows), .. } => Parts::Rows(*rows),
        Into { parts: Some(parts), .. } => Parts::Count(*parts),
        Into { shares, .. } => Parts::Shares {
            shares: shares.clone().context("--rows, --parts or --shares")?,
            seed: args.seed,
            by: args.by.clone(),
        },
    };
    let out = args.out.as_ref().unwrap_or(&args.data);
    stop::listen();
    let parts = parts::run(&parts, &table, &args.data, out)?;
    if args.report.json {
        let parts = parts.iter().map(|(part, path)| {
            json!({ "name": part.name, "rows": part.rows.len(), "out": output::path(path) })
        });
        let parts: Vec<_> = parts.collect();
        return Ok(output::json(&json!({ "rows": table.len(), "parts": parts }))?);
    }
    for (part, path) in parts {
        output::line(format_args!("{} rows: {}", part.rows.len(), path.display()))?;
    }
    Ok(())
}
