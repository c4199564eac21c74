//! `opensora data encode`: a cache of latents and prompt states.

use crate::{open_device, progress::Progress, sample::parse_size};
use clap::Args as ClapArgs;
use opensora::data::{
    ClipDataset, ClipSpec, Manifest,
    cache::{self, CacheJob, CacheKey},
    encode::ClipEncoder,
};
use std::path::PathBuf;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Manifest of clips and captions (CSV)
    #[arg(long)]
    data: PathBuf,
    /// Folder or file of the VAE
    #[arg(long)]
    vae: PathBuf,
    /// Folder of the text encoder
    #[arg(long)]
    t5: PathBuf,
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
    /// Megabytes of a shard
    #[arg(long, default_value_t = 1024)]
    shard_size: usize,
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
    let encoder =
        ClipEncoder::load(&args.vae, &args.t5, args.max_length, args.micro_batch, &device)?;
    let key = CacheKey::new(&clip, args.seed, args.max_length, &args.vae, &args.t5)?;
    let job = CacheJob {
        dataset: &dataset,
        encoder: &encoder,
        key: &key,
        shard_bytes: args.shard_size.max(1) << 20,
    };
    let mut progress = Progress::new(args.quiet);
    let mut total = 0;
    cache::write(&job, &args.out, |done, rows| {
        total = rows;
        progress.advance("encoding", done, rows);
    })?;
    println!("encoded {total} rows: {}", args.out.display());
    Ok(())
}
