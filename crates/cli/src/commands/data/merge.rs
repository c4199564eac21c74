//! `opensora data merge`: several tables in one.

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    manifest::Table,
    prepare::{
        arrange::{self, Keep},
        assemble::failed_path,
    },
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Tables to merge, in this order (CSV, or Parquet where the program was built with it)
    #[arg(required = true)]
    data: Vec<PathBuf>,
    /// Merged table; rows that are dropped are listed beside it (.failed.csv)
    #[arg(long)]
    out: PathBuf,
    /// Which row stays where several are of one file [default: none, it is an error]
    #[arg(long, value_enum)]
    keep: Option<Which>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Which of several rows.
#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// The first.
    First,
    /// The last.
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
    let merged = arrange::merge(&tables, keep);
    let merged = match keep {
        None => merged.context("say which row stays (--keep first or --keep last)")?,
        Some(_) => merged?,
    };
    merged.write(&args.out)?;

    let (rows, dropped) = (merged.output.len(), merged.dropped.len());
    let list = (dropped > 0).then(|| failed_path(&args.out));
    if args.json {
        let object = json!({
            "tables": tables.len(), "rows": rows, "dropped": dropped,
            "out": args.out, "failed_out": list,
        });
        println!("{object}");
        return Ok(());
    }
    println!("{rows} rows of {} tables: {}", tables.len(), args.out.display());
    if let Some(list) = list {
        println!("{dropped} rows of files that come again were dropped: {}", list.display());
    }
    Ok(())
}
