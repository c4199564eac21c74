//! `opensora data run`: all steps of a pipeline.

use super::parts;
use crate::{options::Report, output, step_progress::StepProgress};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::prepare::{
    assemble::{Summary, failed_path, shard_path},
    pipeline::{self, Job, Stage, config::Config},
    step::Shard,
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora data run --config pipeline.toml
  opensora data run --config pipeline.toml --shard 0/4

Parts of a job array keep near-duplicates and their hashes. Each part prints the two commands, for when all
are done, that merge the parts' tables and drop near-duplicates from the whole.")]
pub(crate) struct Args {
    /// Settings file of the steps (TOML); it names the final table
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Share i of n of the rows, such as 0/4, for several machines
    ///
    /// The number is put before the ending of the final table.
    #[arg(long, default_value_t = Shard::WHOLE, value_name = "I/N")]
    shard: Shard,
    /// Retry rows that could not be used in an earlier run
    #[arg(long)]
    retry_failed: bool,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::read(&args.config).context("--config")?;
    let max_distance = config.filter.as_ref().and_then(|filter| filter.max_distance);
    let stages = config.stages(args.retry_failed).context("--config")?;
    let stages: Vec<&dyn Stage> = stages.iter().map(AsRef::as_ref).collect();
    let job = Job {
        input: config.input,
        work: config.work,
        out: config.out,
        shard: args.shard,
        retry_failed: args.retry_failed,
    };
    let mut shown = StepProgress::new(args.report.quiet, "");
    let done = pipeline::run(&stages, &job, &mut shown);
    shown.finish();
    let done = done?;
    let out = shard_path(&job.out, job.shard);
    let list = Some(failed_path(&out)).filter(|list| list.exists());
    if args.report.json {
        let steps: Vec<_> = done.iter().map(|(name, numbers)| json!([name, numbers])).collect();
        output::json(&json!({ "steps": steps, "out": out, "failed_out": list }))?;
        return Ok(());
    }
    for (name, Summary { input, output: made, failed }) in &done {
        output::line(format_args!(
            "{name}: {input} rows in, {made} rows out, {failed} could not be used"
        ))?;
    }
    output::line(out.display())?;
    if let Some(list) = list {
        let list = list.display();
        output::line(format_args!("rows that could not be used, with reasons: {list}"))?;
    }
    if !args.report.quiet {
        let origin = pipeline::origin(&stages, &job);
        let needs_all = stages.iter().any(|stage| stage.for_part().is_some());
        let distance = max_distance.map(|bits| format!(" --max-distance {bits}"));
        let duplicates = needs_all.then(|| distance.unwrap_or_default());
        parts::say_next(&job.out, job.shard, &origin, duplicates.as_deref())?;
    }
    Ok(())
}
