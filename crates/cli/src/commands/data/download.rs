//! `opensora data download`: videos of a public list.

use crate::step_progress::StepProgress;
use clap::Args as ClapArgs;
use opensora::prepare::{
    download::{
        DownloadSpec, FORMAT, List, ListFormat, Part, Timeouts, YtDlp, download, failed_path,
    },
    retry::Patience,
    step::Shard,
};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// List of videos: Panda-70M (CSV), HD-VG-130M (JSON), or a CSV with a column url
    #[arg(long)]
    list: PathBuf,
    /// Kind of the list: csv, panda-70m or hd-vg-130m [default: seen in the list]
    #[arg(long)]
    list_format: Option<ListFormat>,
    /// Records of the list that are left out at its start
    #[arg(long, default_value_t = 0)]
    offset: usize,
    /// Records of the list from there [default: all]; memory holds so many
    #[arg(long)]
    limit: Option<usize>,
    /// Part i of n of the videos, such as 0/8; each part with an --out of its own
    #[arg(long, default_value = "0/1")]
    shard: Shard,
    /// Folder of the videos
    #[arg(long)]
    videos: PathBuf,
    /// Manifest of the clips (CSV); what failed is listed beside it
    #[arg(long)]
    out: PathBuf,
    /// Accept the terms of the list and of the hosts; without, nothing is fetched and they are shown
    #[arg(long)]
    accept_license: bool,
    /// What is allowed with the videos, where neither the list nor this program knows
    #[arg(long)]
    licence: Option<String>,
    /// Videos fetched at once
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// Largest file in bytes
    #[arg(long)]
    max_bytes: Option<u64>,
    /// Requests a second of all workers together
    #[arg(long)]
    requests_per_second: Option<f64>,
    /// Bytes a second of all workers together
    #[arg(long)]
    bytes_per_second: Option<u64>,
    /// Seconds to wait for a connection
    #[arg(long, default_value_t = 20)]
    connect_timeout: u64,
    /// Seconds to wait for the next bytes
    #[arg(long, default_value_t = 60)]
    idle_timeout: u64,
    /// Attempts at a video
    #[arg(long, default_value_t = 5)]
    attempts: u32,
    /// Try videos again that failed in an earlier run
    #[arg(long)]
    retry_failed: bool,
    /// The program for videos on YouTube
    #[arg(long, default_value = "yt-dlp")]
    yt_dlp: PathBuf,
    /// Format of videos on YouTube, as yt-dlp's option -f has it
    #[arg(long, default_value = FORMAT)]
    yt_dlp_format: String,
    /// One more argument for yt-dlp, such as --yt-dlp-arg=--cookies --yt-dlp-arg=cookies.txt
    #[arg(long, allow_hyphen_values = true)]
    yt_dlp_arg: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let format = match args.list_format {
        Some(format) => format,
        None => ListFormat::of(&args.list)?,
    };
    let part = Part { offset: args.offset, limit: args.limit, shard: args.shard };
    let list = List::read(&args.list, format, part)?;
    let mut bar = StepProgress::new(args.quiet, "fetching");
    bar.line(&format!("{} videos, {} clips", list.videos(), list.clips()));
    let downloaded = download(&list, &spec(args), &args.out, &mut bar);
    bar.finish();
    let downloaded = downloaded?;
    if let Some(reason) = &downloaded.no_yt_dlp {
        eprintln!("{reason}: they are listed as failed, fetch them later with --retry-failed");
    }
    let failures = failed_path(&args.out);
    if args.json {
        println!(
            "{}",
            json!({
                "videos": downloaded.videos, "clips": downloaded.clips,
                "bytes": downloaded.bytes, "failed": downloaded.failed,
                "out": args.out, "failures": failures,
            })
        );
    } else {
        println!(
            "{} videos, {} clips, {} bytes: {}",
            downloaded.videos,
            downloaded.clips,
            downloaded.bytes,
            args.out.display()
        );
        if downloaded.failed > 0 {
            println!("{} rows failed: {}", downloaded.failed, failures.display());
        }
    }
    Ok(())
}

fn spec(args: &Args) -> DownloadSpec {
    DownloadSpec {
        folder: args.videos.clone(),
        accept_license: args.accept_license,
        licence: args.licence.clone(),
        parallel: args.parallel,
        max_bytes: args.max_bytes,
        requests_per_second: args.requests_per_second,
        bytes_per_second: args.bytes_per_second,
        timeouts: Timeouts {
            connect: Duration::from_secs(args.connect_timeout),
            idle: Duration::from_secs(args.idle_timeout),
            ..Timeouts::default()
        },
        patience: Patience { attempts: args.attempts, ..Patience::default() },
        yt_dlp: YtDlp {
            program: args.yt_dlp.clone(),
            format: args.yt_dlp_format.clone(),
            arguments: args.yt_dlp_arg.clone(),
        },
        retry_failed: args.retry_failed,
    }
}
