//! `opensora plot`: charts of the metrics of training runs.

use crate::{options::Report, output, stop};
use anyhow::Context;
use opensora::{
    chart::{
        curve::Curve,
        panel::{self, Panel, Style},
    },
    files::{check_file_path, read::open_regular},
    train::metrics::{TABLE, Table},
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Name of the chart if `--out` is not given.
const CHART: &str = "metrics.svg";

/// Options of `opensora plot`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora plot run
  opensora plot run-a run-b --columns loss,gradient_norm --log -o both.png")]
pub(crate) struct Args {
    /// Folders of runs, or their metrics.csv
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Output file, .svg or .png [default: metrics.svg in the folder of one run, else in the working directory]
    #[arg(short, long, alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
    /// Weight of earlier values in the smoothed curve, from 0 (no smoothing) to below 1
    #[arg(long, default_value_t = 0.98)]
    smooth: f64,
    /// Columns to plot, one panel each
    #[arg(long, value_delimiter = ',', default_value = "loss", value_name = "NAME,...")]
    columns: Vec<String>,
    /// Column of the horizontal axis: step, samples, epoch or seconds
    #[arg(long, default_value = "step", value_name = "NAME")]
    x: String,
    /// Use a logarithmic vertical axis
    #[arg(long)]
    log: bool,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let tables = args
        .runs
        .iter()
        .map(|run| {
            let path = if run.is_dir() { run.join(TABLE) } else { run.clone() };
            // A pipe in a folder of others would keep the program waiting; one that is named here is wanted.
            if run.is_dir() {
                open_regular(&path).with_context(|| path.display().to_string())?;
            }
            let table = Table::read(&path)?;
            for gap in table.gaps().iter().filter(|_| !args.report.quiet) {
                output::message(format_args!("warning: {}: {gap}", path.display()));
            }
            let x = column(&table, &path, &args.x)?;
            Ok((path, table, x))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let names = names(&args.runs);
    let panels = args
        .columns
        .iter()
        .map(|title| {
            let mut curves = Vec::new();
            for (run, (_, table, x)) in tables.iter().enumerate() {
                // Runs can have different columns.
                if let Some(y) = table.column(title) {
                    curves.push(Curve { name: names[run].clone(), run, x: x.clone(), y });
                }
            }
            if curves.is_empty() {
                column(&tables[0].1, &tables[0].0, title)?;
            }
            Ok(Panel { title: title.clone(), curves })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let out = args.out.unwrap_or_else(|| match &args.runs[..] {
        [run] if run.is_dir() => run.join(CHART),
        // Not beside a file or pipe of the shell, such as /dev/stdin.
        [table] if table.ends_with(TABLE) => table.with_file_name(CHART),
        _ => CHART.into(),
    });
    let style = Style { smooth: args.smooth, log: args.log, x_label: args.x, ..Style::default() };
    check_file_path(&out).with_context(|| out.display().to_string())?;
    stop::listen();
    panel::save(&panels, &style, &out).context("plot")?;
    let printed = match args.report.json {
        true => output::json(&json!({ "out": output::path(out) })),
        false => output::line(out.display()),
    };
    Ok(printed?)
}

fn column(table: &Table, path: &Path, name: &str) -> anyhow::Result<Vec<f64>> {
    table.column(name).with_context(|| {
        format!(
            "{}: no column '{name}', expected one of {}",
            path.display(),
            table.columns.join(", ")
        )
    })
}

/// Returns names for the legend: the folders' names, or the whole paths if names are equal.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let own = |run: &PathBuf| {
        let folder = if run.is_file() { run.parent() } else { Some(run.as_path()) };
        let name = folder.and_then(Path::file_name).unwrap_or(run.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let short: Vec<String> = runs.iter().map(own).collect();
    let mut sorted = short.clone();
    sorted.sort();
    sorted.dedup();
    if sorted.len() == short.len() {
        return short;
    }
    runs.iter().map(|run| run.display().to_string()).collect()
}
