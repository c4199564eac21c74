//! `opensora data`: training data.

mod caption;
mod clean;
mod download;
mod encode;
mod filter;
mod merge;
mod options;
mod parts;
mod preview;
mod run;
mod scan;
mod shard;
mod shots;
mod split;
mod split_manifest;
mod stats;

use crate::{options::Report, output, progress::Progress, stop};
use opensora_demo::{DemoSpec, Observer, Written, write_dataset};
use serde_json::json;
use std::{ops::ControlFlow, path::PathBuf};

/// Options of `opensora data`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora data scan videos -o videos.csv
  opensora data split --data videos.csv -o clips.csv
  opensora data stats clips.csv
  opensora help data split")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write captioned clips, images and videos of moving coloured shapes (the demo world)
    Demo(DemoArgs),
    /// Download the videos of a public list
    Download(Box<download::Args>),
    /// List the videos of folders in a table
    Scan(scan::Args),
    /// Find where the shots of videos begin and end
    Shots(shots::Args),
    /// Cut videos at their shots into clips
    Split(Box<split::Args>),
    /// Measure clips and keep those within bounds
    Filter(Box<filter::Args>),
    /// Caption clips with a vision model on a server
    Caption(Box<caption::Args>),
    /// Clean captions and paths of a table
    Clean(Box<clean::Args>),
    /// Concatenate tables; several rows of one file are an error unless --keep is given
    Merge(merge::Args),
    /// Split a table, such as into training and validation
    SplitManifest(split_manifest::Args),
    /// Summarise a table in numbers and histograms
    Stats(stats::Args),
    /// Show clips with their captions on one page
    Preview(preview::Args),
    /// Run all steps of a settings file
    Run(run::Args),
    /// Encode clips and captions once, for training from latents
    Encode(Box<encode::Args>),
}

/// Options of `opensora data demo`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora data demo -o world --clips 100 --stills 100
  opensora data demo -o world --films 6 --shots 3 --seed 2")]
struct DemoArgs {
    /// Folder for clips/, stills/, films/, clips.csv, stills.csv and captions.txt
    #[arg(long, short, alias = "output", value_name = "FOLDER")]
    out: PathBuf,
    /// Number of clips
    #[arg(long, default_value_t = 0)]
    clips: usize,
    /// Number of images
    #[arg(long, default_value_t = 0)]
    stills: usize,
    /// Number of videos of several shots, to be cut like raw videos
    #[arg(long, default_value_t = 0)]
    films: usize,
    /// Shots per video of several shots
    #[arg(long, default_value_t = 5)]
    shots: usize,
    /// Seed of all random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Height and width in pixels
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Frames of a clip
    #[arg(long, default_value_t = 16)]
    num_frames: usize,
    /// Frames per second
    #[arg(long, default_value_t = 8.0)]
    fps: f64,
    #[command(flatten)]
    report: Report,
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

/// Shows how many files of a demo data set are written.
struct DemoProgress<'a>(&'a mut Progress);

impl Observer for DemoProgress<'_> {
    fn written(&mut self, event: &Written) -> ControlFlow<()> {
        self.0.advance("writing", event.done, event.total);
        stop::flow()
    }
}

fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let DemoArgs { out, clips, stills, films, shots, seed, size, num_frames, fps, report } = args;
    let spec =
        DemoSpec { clips, stills, films, shots, seed, image_size: [size; 2], num_frames, fps };
    let mut progress = Progress::new(report.quiet);
    stop::listen();
    let written = write_dataset(&out, &spec, &mut DemoProgress(&mut progress));
    progress.finish();
    written?;
    let manifest = |name: &str, count: usize| (count > 0).then(|| out.join(name));
    let (clips_csv, stills_csv) = (manifest("clips.csv", clips), manifest("stills.csv", stills));
    let captions = (clips + stills > 0).then(|| out.join("captions.txt"));
    let films = (films > 0).then(|| out.join("films"));
    if report.json {
        output::json(&json!({
            "clips": clips, "stills": stills, "seed": seed,
            "clips_csv": clips_csv.map(output::path), "stills_csv": stills_csv.map(output::path),
            "captions": captions.map(output::path), "films": films.map(output::path),
        }))?;
    } else {
        for path in [clips_csv, stills_csv, captions, films].into_iter().flatten() {
            output::line(path.display())?;
        }
    }
    Ok(())
}
