//! `opensora data download`: downloads the videos of a public list.

use super::options::{RequestOptions, StepOptions, shard_help};
use crate::{options::Report, output, step_progress::StepProgress};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::prepare::{
    RunOptions,
    assemble::output_path,
    download::{self, FORMAT, Job, List, ListFormat, Part, Timeouts, YtDlp, failed_path},
};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| arg.help("Videos downloaded at once").default_value("4")))]
#[command(mut_arg("shard", |arg| {
    shard_help(arg, "videos", "")
}))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry videos that failed in an earlier run")))]
#[command(mut_arg("attempts", |arg| arg.help("Attempts per video")))]
#[command(after_long_help = "\
Examples:
  opensora data download --list panda70m_training_2m.csv --videos videos -o clips.csv --limit 1000
  opensora data download --list urls.csv --videos videos -o clips.csv --accept-license --parallel 8")]
pub(crate) struct Args {
    /// List of videos: Panda-70M (CSV), HD-VG-130M (JSON), or a CSV with a column url
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
    /// Format of the list: csv, panda-70m or hd-vg-130m [default: detected]
    #[arg(long, value_name = "FORMAT")]
    list_format: Option<ListFormat>,
    /// Records to skip at the start of the list
    #[arg(long, default_value_t = 0)]
    offset: usize,
    /// Records to read from there; all are held in memory [default: all]
    #[arg(long)]
    limit: Option<usize>,
    /// Folder of the videos
    #[arg(long, value_name = "FOLDER")]
    videos: PathBuf,
    /// Table of the clips (CSV); failed rows are listed beside it
    ///
    /// A row has its video's file, and the clip's range in it in seconds (columns clip_start and clip_end).
    /// `opensora data split` cuts these ranges. The number of a --shard is put before the ending.
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Accept the terms of the list and of the hosts; without it the terms are shown and nothing is
    /// downloaded
    #[arg(long)]
    accept_license: bool,
    /// Licence of the videos, if neither the list nor this program knows it
    #[arg(long, value_name = "TEXT")]
    licence: Option<String>,
    /// Download from this machine, private networks and link-local addresses as well
    #[arg(long)]
    allow_private: bool,
    /// Maximum size of a file in bytes [default: unlimited]
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Requests per second of all workers together [default: unlimited]
    #[arg(long, value_name = "N")]
    requests_per_second: Option<f64>,
    /// Bytes per second of all workers together [default: unlimited]
    #[arg(long, value_name = "BYTES")]
    bytes_per_second: Option<u64>,
    /// Seconds to wait for the next bytes
    #[arg(long, default_value_t = 60)]
    idle_timeout: u64,
    /// Program that downloads videos from YouTube
    #[arg(long, default_value = "yt-dlp", value_name = "PROGRAM")]
    yt_dlp: PathBuf,
    /// Format of videos from YouTube, in the syntax of yt-dlp's option -f
    #[arg(long, default_value = FORMAT, value_name = "FORMAT")]
    yt_dlp_format: String,
    /// One more argument for yt-dlp, such as --yt-dlp-arg=--cookies --yt-dlp-arg=cookies.txt
    #[arg(long, allow_hyphen_values = true, value_name = "ARGUMENT")]
    yt_dlp_arg: Vec<String>,
    #[command(flatten)]
    requests: RequestOptions,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let format = match args.list_format {
        Some(format) => format,
        None => ListFormat::of(&args.list)?,
    };
    let options = args.step.run_options(4, args.report)?;
    let part = Part { offset: args.offset, limit: args.limit, shard: options.shard };
    let list = List::read(&args.list, format, part)?;
    let out = output_path(&args.list, &args.out, options.shard).context("--out")?;
    let mut bar = StepProgress::new(args.report.quiet, "fetching");
    bar.line(&format!("{} videos, {} clips", list.videos(), list.clips()));
    let downloaded = download::run(&job(args, options), &list, &out, &mut bar);
    bar.finish();
    let downloaded = downloaded?;
    if let Some(reason) = &downloaded.no_yt_dlp {
        output::message(format_args!(
            "{reason}: they are listed as failed, download them later with --retry-failed"
        ));
    }
    let failures = failed_path(&out);
    if args.report.json {
        output::json(&json!({
            "videos": downloaded.videos, "clips": downloaded.clips,
            "bytes": downloaded.bytes, "failed": downloaded.failed,
            "out": output::path(out), "failures": output::path(failures),
        }))?;
        return Ok(());
    }
    output::line(format_args!(
        "{} videos, {} clips, {} bytes: {}",
        downloaded.videos,
        downloaded.clips,
        downloaded.bytes,
        out.display()
    ))?;
    if downloaded.failed > 0 {
        output::line(format_args!("{} rows failed: {}", downloaded.failed, failures.display()))?;
    }
    Ok(())
}

fn job(args: &Args, options: RunOptions) -> Job {
    Job {
        folder: args.videos.clone(),
        accept_license: args.accept_license,
        licence: args.licence.clone(),
        max_bytes: args.max_bytes,
        requests_per_second: args.requests_per_second,
        bytes_per_second: args.bytes_per_second,
        timeouts: Timeouts {
            connect: args.requests.connect_timeout(),
            idle: Duration::from_secs(args.idle_timeout),
            ..Timeouts::default()
        },
        retry: args.requests.retry_policy(),
        yt_dlp: YtDlp {
            program: args.yt_dlp.clone(),
            format: args.yt_dlp_format.clone(),
            arguments: args.yt_dlp_arg.clone(),
        },
        allow_private: args.allow_private,
        options,
    }
}
