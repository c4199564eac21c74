//! `opensora data split`: videos cut at their shots into clips.

use crate::step_progress::{StepProgress, print_summary};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::{
    manifest::Table,
    prepare::{
        assemble::shard_path,
        shots,
        split::{Job, Rate, Settings, split},
        step::Shard,
    },
};
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Table of videos (CSV), such as `data scan` writes
    #[arg(long)]
    data: PathBuf,
    /// Table of the clips (CSV); videos without clips are listed beside it (.failed.csv), and a
    /// shard's number is put before the ending
    #[arg(long)]
    out: PathBuf,
    /// Folder of the clips [default: --out without its ending]
    #[arg(long)]
    clips: Option<PathBuf>,
    /// Seconds of the shortest clip
    #[arg(long, default_value_t = 1.0)]
    min_seconds: f64,
    /// Seconds of the longest clip; longer scenes are cut to their beginning
    #[arg(long, default_value_t = 5.0)]
    max_seconds: f64,
    /// Cut longer scenes into several clips
    #[arg(long)]
    keep_long: bool,
    /// Frames per second of the clips, or source; slower videos repeat frames
    #[arg(long, default_value = "30")]
    fps: Rate,
    /// Pixels of the shorter side (even); smaller videos keep their size
    #[arg(long, default_value_t = 512)]
    shorter_side: usize,
    /// Enlarge smaller videos, as Open-Sora's own tool does
    #[arg(long)]
    enlarge: bool,
    /// Difference of two frames from which there is a cut
    #[arg(long, default_value_t = 27.0)]
    threshold: f64,
    /// Frames of the shortest scene
    #[arg(long, default_value_t = shots::Settings::default().min_scene_len)]
    min_scene_len: usize,
    /// Release of PySceneDetect whose cuts are found
    #[arg(long, default_value_t = shots::Settings::default().release)]
    compat: shots::Release,
    /// Videos that are worked on at once; each holds one clip in memory
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Part of the videos, such as 0/4
    #[arg(long, default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Try videos again that gave no clips before
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
    let whole = Job::new(&args.out);
    let job = Job {
        out: shard_path(&args.out, args.shard),
        clips: args.clips.clone().unwrap_or(whole.clips),
        workers: args.workers,
        shard: args.shard,
        retry_failed: args.retry_failed,
        decoder: whole.decoder,
    };
    let mut progress = StepProgress::new(args.quiet, "splitting");
    let done = split(&input, &settings, &job, &mut progress);
    progress.finish();
    print_summary(&done?, "clips", &job.out, args.json);
    Ok(())
}
