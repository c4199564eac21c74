//! `opensora data run`: all steps of a pipeline.

use crate::step_progress::StepProgress;
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
pub(crate) struct Args {
    /// The steps and their settings (TOML)
    #[arg(long)]
    config: PathBuf,
    /// Part of the rows, such as 0/4; its number is put before the ending of the final table
    #[arg(long, default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Try rows again that could not be used before
    #[arg(long)]
    retry_failed: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::read(&args.config).context("--config")?;
    let stages = config.stages(args.retry_failed).context("--config")?;
    let stages: Vec<&dyn Stage> = stages.iter().map(AsRef::as_ref).collect();
    let job = Job {
        input: config.input,
        work: config.work,
        out: config.out,
        shard: args.shard,
        retry_failed: args.retry_failed,
    };
    let mut shown = StepProgress::new(args.quiet, "");
    let done = pipeline::run(&stages, &job, &mut shown);
    shown.finish();
    let done = done?;
    let out = shard_path(&job.out, job.shard);
    let list = Some(failed_path(&out)).filter(|list| list.exists());
    if args.json {
        let steps: Vec<_> = done.iter().map(|(name, numbers)| json!([name, numbers])).collect();
        println!("{}", json!({"steps": steps, "out": out, "failed_out": list}));
        return Ok(());
    }
    for (name, Summary { input, output, failed }) in &done {
        println!("{name}: {input} rows, {output} made of them, {failed} could not be used");
    }
    println!("{}", out.display());
    if let Some(list) = list {
        println!("rows that could not be used, with reasons: {}", list.display());
    }
    Ok(())
}
