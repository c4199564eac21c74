//! `opensora data encode`: a cache of latents and prompt states.

use crate::{
    options::{DeviceName, ModelParts, Report, parse_size},
    output,
    progress::Progress,
    stop,
};
use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use opensora::data::{
    ClipDataset, ClipSpec, Manifest, Observer, RowsDone,
    cache::{self, CacheJob, CacheKey},
    encode::{ClipEncoder, EncoderConfig},
};
use serde_json::json;
use std::{ops::ControlFlow, path::PathBuf};

#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora data encode --data clips.csv --model demo -o cache --num-frames 16 --image-size 64x64
  opensora data encode --data clips.csv --vae sd-vae-ft-ema --t5 t5-v1_1-xxl -o cache \\
        --num-frames 16 --frame-interval 3 --image-size 256x256 --horizontal-flip")]
pub(crate) struct Args {
    /// Manifest of clips and captions (CSV)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Model whose VAE and text encoder encode: demo, a preset or a folder with a model.json
    #[arg(long, required_unless_present_all = ["vae", "t5"])]
    model: Option<String>,
    #[command(flatten)]
    parts: ModelParts,
    /// Folder of the cache
    #[arg(long, short, alias = "output", value_name = "FOLDER")]
    out: PathBuf,
    /// Frames of a clip
    #[arg(long)]
    num_frames: usize,
    /// Distance of two frames of a clip in frames of the file
    #[arg(long, default_value_t = 1)]
    frame_interval: usize,
    /// Height and width in pixels, such as 256x256
    #[arg(long, value_parser = parse_size, value_name = "HxW")]
    image_size: [usize; 2],
    /// Mirror clips at random
    #[arg(long)]
    horizontal_flip: bool,
    /// Random windows and flips per clip; epochs alternate between them
    #[arg(long, default_value_t = 1)]
    variants: u64,
    /// Seed of windows and flips
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Maximum number of tokens of a caption; longer captions are cut
    #[arg(long, default_value_t = 120)]
    max_length: usize,
    /// Frames that the VAE processes at once [default: all of a clip]
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Size of a shard in megabytes; one shard is held in memory
    #[arg(long, visible_alias = "shard-size-mb", default_value_t = 1024)]
    shard_size: usize,
    /// Bad rows to leave out before the command fails
    #[arg(long, default_value_t = 0)]
    skip_bad: usize,
    #[command(flatten)]
    device: DeviceName,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let clip = ClipSpec {
        num_frames: args.num_frames,
        frame_interval: args.frame_interval,
        image_size: args.image_size,
        horizontal_flip: args.horizontal_flip,
        variants: Some(args.variants),
    };
    let dataset = ClipDataset::new(Manifest::read(&args.data)?, clip.clone(), args.seed)?;
    let device = args.device.open(args.report.quiet)?;
    let (vae, t5) = parts(args)?;
    let (max_length, vae_micro_batch) = (args.max_length, args.micro_batch);
    let config = EncoderConfig { vae, t5, max_length, vae_micro_batch };
    let encoder = ClipEncoder::load(&config, &device)?;
    let key = CacheKey::new(&clip, args.seed, &config)?;
    let job = CacheJob::new(&dataset, &encoder, &key)
        .with_shard_bytes(args.shard_size.max(1).saturating_mul(1 << 20))
        .with_skip_bad(args.skip_bad);
    let progress = Progress::new(args.report.quiet).on(&device);
    stop::listen();
    let mut observer = EncodeProgress { progress, total: 0 };
    let written = cache::write(&job, &args.out, &mut observer);
    observer.progress.finish();
    let (bad, total) = (written?, observer.total);
    for (row, reason) in &bad {
        let path = dataset.manifest().rows[*row].path.display();
        output::message(format_args!("left out: row {}: {path}: {reason}", row + 1));
    }
    let rows = total - bad.len();
    if args.report.json {
        let out = output::path(&args.out);
        output::json(&json!({ "rows": rows, "left_out": bad.len(), "out": out }))?;
    } else {
        output::line(format_args!("encoded {rows} rows: {}", args.out.display()))?;
    }
    Ok(())
}

/// Shows the progress of encoding, and stops it when the user asks to.
struct EncodeProgress {
    progress: Progress,
    /// Rows of the data.
    total: usize,
}

impl Observer for EncodeProgress {
    fn row_read(&mut self, event: &RowsDone) -> ControlFlow<()> {
        self.progress.advance("reading", event.done, event.total);
        if event.done == event.total {
            self.progress.begin_stage();
        }
        stop::flow()
    }

    fn rows_done(&mut self, event: &RowsDone) -> ControlFlow<()> {
        self.total = event.total;
        self.progress.advance("encoding", event.done, event.total);
        stop::flow()
    }
}

/// Returns the paths of the VAE and the text encoder.
fn parts(args: &Args) -> anyhow::Result<(PathBuf, PathBuf)> {
    if let (Some(vae), Some(t5)) = (&args.parts.vae, &args.parts.t5) {
        ensure!(args.model.is_none(), "--model: --vae and --t5 leave no use for it");
        return Ok((vae.clone(), t5.clone()));
    }
    let model = args.model.as_deref().context("--model, or --vae and --t5")?;
    let files = crate::model::resolve(model, &args.parts.paths()?, args.report.quiet)?;
    Ok((files.vae, files.t5))
}
