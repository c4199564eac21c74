//! `opensora data`: training data.

use crate::{
    data_caption, data_clean, data_download, data_encode, data_filter, data_merge, data_preview,
    data_run, data_scan, data_shots, data_split, data_split_manifest, data_stats,
    progress::Progress,
};
use opensora::data::demo::{DemoSpec, write_dataset};
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
    Download(Box<data_download::Args>),
    /// List the videos of a folder.
    Scan(data_scan::Args),
    /// Say where the shots of videos begin and end.
    Shots(data_shots::Args),
    /// Cut videos at their shots into clips.
    Split(Box<data_split::Args>),
    /// Measure clips and keep those within bounds.
    Filter(Box<data_filter::Args>),
    /// Caption clips by a vision model that a server holds.
    Caption(Box<data_caption::Args>),
    /// Put captions and paths in order.
    Clean(Box<data_clean::Args>),
    /// Join manifests.
    Merge(data_merge::Args),
    /// Part a manifest, such as into training and validation.
    SplitManifest(data_split_manifest::Args),
    /// Say what a manifest holds, in numbers and histograms.
    Stats(data_stats::Args),
    /// Show clips with their captions on one page.
    Preview(data_preview::Args),
    /// Do all steps that a file of settings names.
    Run(data_run::Args),
    /// Encode clips and captions once, for training from latents.
    Encode(Box<data_encode::Args>),
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
        Command::Download(args) => data_download::run(&args),
        Command::Scan(args) => data_scan::run(&args),
        Command::Shots(args) => data_shots::run(&args),
        Command::Split(args) => data_split::run(&args),
        Command::Filter(args) => data_filter::run(&args),
        Command::Caption(args) => data_caption::run(&args),
        Command::Clean(args) => data_clean::run(&args),
        Command::Merge(args) => data_merge::run(&args),
        Command::SplitManifest(args) => data_split_manifest::run(&args),
        Command::Stats(args) => data_stats::run(&args),
        Command::Preview(args) => data_preview::run(&args),
        Command::Run(args) => data_run::run(&args),
        Command::Encode(args) => data_encode::run(&args),
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
