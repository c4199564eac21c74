//! `opensora data split-manifest`: one table in several.

use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::{
    manifest::{Table, table::PATH},
    prepare::arrange::{self, Parts, Shares},
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Table to split (CSV, or Parquet where the program was built with it)
    #[arg(long)]
    data: PathBuf,
    /// Name of the parts, which is put before its ending: all.csv gives all.train.csv or all.0.csv
    /// [default: --data]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    into: Into,
    /// Seed of the shares
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Column by which rows are shared out; with source, clips of a video stay together
    #[arg(long, default_value = PATH)]
    by: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(ClapArgs)]
#[group(required = true, multiple = false)]
struct Into {
    /// Rows of a part
    #[arg(long)]
    rows: Option<usize>,
    /// Number of parts
    #[arg(long)]
    parts: Option<usize>,
    /// Shares by chance, such as train=0.9,val=0.1; rows stay in theirs when others are added
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
    let parts = arrange::split(&table, &args.data, &parts)?;
    let out = args.out.as_ref().unwrap_or(&args.data);
    let written = arrange::write_parts(&table, out, &parts)?;

    let parts = parts.iter().zip(&written);
    if args.json {
        let parts = parts
            .map(|(part, path)| json!({ "name": part.name, "rows": part.rows.len(), "out": path }));
        println!("{}", json!({ "rows": table.len(), "parts": parts.collect::<Vec<_>>() }));
        return Ok(());
    }
    for (part, path) in parts {
        println!("{} rows: {}", part.rows.len(), path.display());
    }
    Ok(())
}
