//! `opensora data`: training data.

mod caption;
mod clean;
mod download;
mod encode;
mod filter;
mod merge;
mod preview;
mod run;
mod scan;
mod shots;
mod split;
mod split_manifest;
mod stats;

use crate::progress::Progress;
use opensora_demo::{DemoSpec, write_dataset};
use serde_json::json;
use std::path::PathBuf;

/// Options of `opensora data`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write captioned clips and stills of the demo world: coloured shapes that move.
    Demo(DemoArgs),
    /// Fetch the videos of a public list.
    Download(Box<download::Args>),
    /// List the videos of a folder.
    Scan(scan::Args),
    /// Say where the shots of videos begin and end.
    Shots(shots::Args),
    /// Cut videos at their shots into clips.
    Split(Box<split::Args>),
    /// Measure clips and keep those within bounds.
    Filter(Box<filter::Args>),
    /// Caption clips by a vision model that a server holds.
    Caption(Box<caption::Args>),
    /// Put captions and paths in order.
    Clean(Box<clean::Args>),
    /// Join manifests.
    Merge(merge::Args),
    /// Part a manifest, such as into training and validation.
    SplitManifest(split_manifest::Args),
    /// Say what a manifest holds, in numbers and histograms.
    Stats(stats::Args),
    /// Show clips with their captions on one page.
    Preview(preview::Args),
    /// Do all steps that a file of settings names.
    Run(run::Args),
    /// Encode clips and captions once, for training from latents.
    Encode(Box<encode::Args>),
}

/// Options of `opensora data demo`.
#[derive(clap::Args)]
struct DemoArgs {
    /// Folder for clips/, stills/, films/, clips.csv, stills.csv and captions.txt.
    #[arg(long)]
    out: PathBuf,
    /// Number of clips.
    #[arg(long, default_value_t = 0)]
    clips: usize,
    /// Number of stills.
    #[arg(long, default_value_t = 0)]
    stills: usize,
    /// Number of films: several shots in one video, as raw videos have them.
    #[arg(long, default_value_t = 0)]
    films: usize,
    /// Shots of a film.
    #[arg(long, default_value_t = 5)]
    shots: usize,
    /// Seed of everything that is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Height and width in pixels.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Frames of a clip.
    #[arg(long, default_value_t = 16)]
    num_frames: usize,
    /// Frames per second.
    #[arg(long, default_value_t = 8.0)]
    fps: f64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Demo(args) => demo(args),
        Command::Download(args) => download::run(&args),
        Command::Scan(args) => scan::run(&args),
        Command::Shots(args) => shots::run(&args),
        Command::Split(args) => split::run(&args),
        Command::Filter(args) => filter::run(&args),
        Command::Caption(args) => caption::run(&args),
        Command::Clean(args) => clean::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::SplitManifest(args) => split_manifest::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Preview(args) => preview::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Encode(args) => encode::run(&args),
    }
}

fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let DemoArgs { out, clips, stills, films, shots, seed, size, num_frames, fps, json, quiet } =
        args;
    let spec =
        DemoSpec { clips, stills, films, shots, seed, image_size: [size; 2], num_frames, fps };
    let mut progress = Progress::new(quiet);
    let written =
        write_dataset(&out, &spec, |done, total| progress.advance("writing", done, total));
    progress.finish();
    written?;
    let manifest = |name: &str, count: usize| (count > 0).then(|| out.join(name));
    let (clips_csv, stills_csv) = (manifest("clips.csv", clips), manifest("stills.csv", stills));
    let captions = (clips + stills > 0).then(|| out.join("captions.txt"));
    let films = (films > 0).then(|| out.join("films"));
    if json {
        println!(
            "{}",
            json!({
                "clips": clips, "stills": stills, "seed": seed,
                "clips_csv": clips_csv, "stills_csv": stills_csv, "captions": captions,
                "films": films,
            })
        );
    } else {
        for path in [clips_csv, stills_csv, captions, films].into_iter().flatten() {
            println!("{}", path.display());
        }
    }
    Ok(())
}
