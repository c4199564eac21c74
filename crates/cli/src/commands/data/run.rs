//! `opensora data run`: runs the steps of a settings file.

use super::{
    options::{StepOptions, shard_help},
    parts,
};
use crate::{options::Report, output, step_progress::StepProgress};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::prepare::{
    Summary,
    assemble::{failed_path, shard_path},
    pipeline::{self, Job, Stage, config::Config},
};
use serde_json::json;
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| {
    arg.help("Rows processed at once [default: workers of the settings file, else 1]")
}))]
#[command(mut_arg("shard", |arg| {
    shard_help(arg, "rows", " The number is put before the ending of the final table.")
}))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry rows that could not be used in an earlier run")))]
#[command(after_long_help = "\
Examples:
  opensora data run --config pipeline.toml
  opensora data run --config pipeline.toml --shard 0/4

Shards keep near-duplicates and write their hashes. Each shard prints the two commands that merge the tables
of all shards and drop near-duplicates.")]
pub(crate) struct Args {
    /// Settings file of the steps (TOML); it names the final table
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::read(&args.config).context("--config")?;
    let max_distance = config.filter.as_ref().and_then(|filter| filter.max_distance);
    let options = args.step.run_options(config.workers, args.report)?;
    let stages = config.stages(options).context("--config")?;
    let stages: Vec<&dyn Stage> = stages.iter().map(AsRef::as_ref).collect();
    let job = Job { input: config.input, work: config.work, out: config.out, options };
    let mut shown = StepProgress::new(args.report.quiet, "");
    let done = pipeline::run(&job, &stages, &mut shown);
    shown.finish();
    let done = done?;
    let out = shard_path(&job.out, options.shard);
    let list = Some(failed_path(&out)).filter(|list| list.exists());
    if args.report.json {
        let steps: Vec<_> = done.iter().map(|(name, numbers)| json!([name, numbers])).collect();
        output::json(&json!({
            "steps": steps, "out": output::path(out), "failed_out": list.map(output::path),
        }))?;
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
        parts::say_next(&job.out, options.shard, &origin, duplicates.as_deref())?;
    }
    Ok(())
}
