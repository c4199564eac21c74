//! `opensora data split`: cuts videos at their shots into clips.

use super::{
    options::{StepOptions, shard_help},
    parts,
};
use crate::{
    options::Report,
    step_progress::{StepProgress, print_summary},
};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::{
    manifest::Table,
    prepare::{
        assemble::output_path,
        shots,
        split::{self, Job, Rate, Settings},
    },
};
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| arg.help("Videos processed at once; each holds one clip in memory").default_value("1")))]
#[command(mut_arg("shard", |arg| shard_help(arg, "videos", "")))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry videos that gave no clips in an earlier run")))]
#[command(after_long_help = "\
Examples:
  opensora data split --data videos.csv -o clips.csv
  opensora data split --data videos.csv -o clips.csv --shorter-side 256 --max-seconds 10 --workers 4")]
pub(crate) struct Args {
    /// Table of videos (CSV), such as `data scan` writes
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Table of the clips (CSV)
    ///
    /// Videos without clips are listed beside it (.failed.csv). The number of a --shard is put before
    /// the ending.
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Folder of the clips [default: --out without its ending]
    ///
    /// Several tables can share it: their clips' names get digits that depend on the paths of the videos
    /// and on the settings.
    #[arg(long, value_name = "FOLDER")]
    clips: Option<PathBuf>,
    /// Length of the shortest clip in seconds
    #[arg(long, default_value_t = 1.0)]
    min_seconds: f64,
    /// Length of the longest clip in seconds; only the beginning of longer scenes is used
    #[arg(long, default_value_t = 5.0)]
    max_seconds: f64,
    /// Cut longer scenes into several clips
    #[arg(long)]
    keep_long: bool,
    /// Frames per second of the clips, or `source`; slower videos repeat frames
    #[arg(long, default_value = "30")]
    fps: Rate,
    /// Shorter side of the clips in pixels (even); smaller videos keep their size
    #[arg(long, default_value_t = 512)]
    shorter_side: usize,
    /// Enlarge smaller videos, as Open-Sora's own tool does
    #[arg(long)]
    enlarge: bool,
    /// Difference of two frames from which there is a cut
    #[arg(long, default_value_t = 27.0)]
    threshold: f64,
    /// Length of the shortest scene in frames
    #[arg(long, default_value_t = shots::Settings::default().min_scene_len)]
    min_scene_len: usize,
    /// PySceneDetect release whose cuts are reproduced: 0.6.3 (Open-Sora 1.0), 0.6.7 or 0.7
    #[arg(long, default_value_t = shots::Settings::default().release)]
    compat: shots::Release,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let settings = Settings {
        min_seconds: args.min_seconds,
        max_seconds: args.max_seconds,
        fps: args.fps,
        shorter_side: args.shorter_side,
        enlarge: args.enlarge,
        keep_long: args.keep_long,
        shots: shots::Settings {
            method: shots::Method::Content {
                threshold: args.threshold,
                flashes: shots::Flashes::default(),
            },
            min_scene_len: args.min_scene_len,
            release: args.compat,
            ..shots::Settings::default()
        },
    };
    let input = Table::read(&args.data).context("--data")?;
    let options = args.step.run_options(1, args.report)?;
    let out = output_path(&args.data, &args.out, options.shard).context("--out")?;
    // All shards write to the same folder.
    let clips = args.clips.clone().unwrap_or_else(|| split::clips_folder(&args.out));
    let shared = args.clips.is_some();
    let job = Job { settings, clips: Some(clips), shared, options, ..Job::default() };
    let mut progress = StepProgress::new(args.report.quiet, "splitting");
    let done = split::run(&job, &input, &out, &mut progress);
    progress.finish();
    print_summary(&done?, "clips", &out, args.report.json)?;
    if !args.report.quiet {
        parts::say_next(&args.out, options.shard, &args.data, None)?;
    }
    Ok(())
}
