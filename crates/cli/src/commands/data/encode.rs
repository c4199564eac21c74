//! `opensora data encode`: a cache of latents and prompt states.

use crate::{commands::sample::parse_size, open_device, progress::Progress};
use anyhow::Context;
use clap::Args as ClapArgs;
use opensora::{
    ModelFiles,
    data::{
        ClipDataset, ClipSpec, Manifest,
        cache::{self, CacheJob, CacheKey},
        encode::ClipEncoder,
    },
    model_files::PartPaths,
};
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Manifest of clips and captions (CSV)
    #[arg(long)]
    data: PathBuf,
    /// Model whose VAE and text encoder are taken: demo, a preset or a folder with a model.json
    #[arg(long, required_unless_present_all = ["vae", "t5"])]
    model: Option<String>,
    /// Folder or file of the VAE [default: the model's]
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Folder of the text encoder [default: the model's]
    #[arg(long)]
    t5: Option<PathBuf>,
    /// Folder that holds the files of a preset [default: pretrained_models]
    #[arg(long)]
    weights_dir: Option<PathBuf>,
    /// Folder of the cache
    #[arg(long)]
    out: PathBuf,
    /// Frames of a clip
    #[arg(long)]
    num_frames: usize,
    /// Frames of the file between two of a clip
    #[arg(long, default_value_t = 1)]
    frame_interval: usize,
    /// Height and width in pixels, such as 256x256
    #[arg(long, value_parser = parse_size)]
    image_size: [usize; 2],
    /// Mirror clips at random
    #[arg(long)]
    horizontal_flip: bool,
    /// Windows and flips that are drawn of each clip; epochs take them in turn
    #[arg(long, default_value_t = 1)]
    variants: u64,
    /// Seed of windows and flips
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Tokens that captions are cut to
    #[arg(long, default_value_t = 120)]
    max_length: usize,
    /// Frames that the VAE takes at once
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Megabytes after which a shard ends; as many are held in memory
    #[arg(long, visible_alias = "shard-size-mb", default_value_t = 1024)]
    shard_size: usize,
    /// Bad rows that are left out before it is an error
    #[arg(long, default_value_t = 0)]
    skip_bad: usize,
    /// Device, such as flex, cuda:0 or vulkan (see `opensora devices`)
    #[arg(long)]
    device: Option<String>,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
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
    let device = open_device(args.device.as_deref())?;
    let (vae, t5) = parts(args)?;
    let encoder = ClipEncoder::load(&vae, &t5, args.max_length, args.micro_batch, &device)?;
    let key = CacheKey::new(&clip, args.seed, args.max_length, &vae, &t5)?;
    let job = CacheJob {
        dataset: &dataset,
        encoder: &encoder,
        key: &key,
        shard_bytes: args.shard_size.max(1).saturating_mul(1 << 20),
    };
    let mut progress = Progress::new(args.quiet);
    let mut total = 0;
    let written = cache::write_skipping(&job, &args.out, args.skip_bad, |done, rows| {
        total = rows;
        progress.advance("encoding", done, rows);
    });
    progress.finish();
    let bad = written?;
    for (row, reason) in &bad {
        let path = dataset.manifest().rows[*row].path.display();
        eprintln!("left out: row {}: {path}: {reason}", row + 1);
    }
    println!("encoded {} rows: {}", total - bad.len(), args.out.display());
    Ok(())
}

/// Where VAE and text encoder lie.
fn parts(args: &Args) -> anyhow::Result<(PathBuf, PathBuf)> {
    if let (Some(vae), Some(t5)) = (&args.vae, &args.t5) {
        return Ok((vae.clone(), t5.clone()));
    }
    let model = args.model.as_deref().context("--model, or --vae and --t5")?;
    let paths = PartPaths {
        t5: args.t5.clone(),
        vae: args.vae.clone(),
        weights_dir: args.weights_dir.clone(),
    };
    let files = ModelFiles::resolve(model, &paths).context("--model")?;
    Ok((files.vae, files.t5))
}
