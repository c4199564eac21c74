//! `opensora bench`: measures the speed of the models on this machine.

use crate::{
    bench::{BenchPreset, BenchSpec, PRESETS, Part},
    options::DeviceName,
    output,
};
use anyhow::Context;
use opensora::{diffusion::SamplerKind, nn::dtype::Dtype};

/// Options of `opensora bench`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora bench stdit --depth 4
  opensora bench train-step --preset demo --batch-size 2 --reps 5
  opensora bench sample --preset demo --num-frames 4 --image-size 32x32 --steps 4")]
pub(crate) struct Args {
    /// Part to measure
    #[arg(value_enum)]
    what: What,
    /// Sizes of the models: stdit-xl-2 (the published ones) or demo
    #[arg(long, default_value = PRESETS[0], value_parser = parse_preset)]
    preset: BenchPreset,
    /// Frames of a clip
    #[arg(long, default_value_t = 16)]
    num_frames: usize,
    /// Height and width in pixels
    #[arg(long, default_value = "256x256", value_parser = crate::options::parse_size, value_name = "HxW")]
    image_size: [usize; 2],
    /// Number of denoiser blocks; fewer save time [default: the preset's]
    #[arg(long)]
    depth: Option<usize>,
    /// Width of the denoiser, a multiple of --num-heads [default: the preset's]
    #[arg(long)]
    hidden_size: Option<usize>,
    /// Attention heads of the denoiser [default: the preset's]
    #[arg(long)]
    num_heads: Option<usize>,
    /// Number of text encoder blocks; fewer save time [default: the preset's]
    #[arg(long)]
    layers: Option<usize>,
    /// Tokens of a prompt [default: the denoiser's maximum]
    #[arg(long)]
    tokens: Option<usize>,
    /// Clips per batch
    #[arg(long, visible_alias = "batch", default_value_t = 1)]
    batch_size: usize,
    /// Frames that the VAE processes at once
    #[arg(long, default_value_t = 1)]
    micro_batch: usize,
    /// Rows of the tiles in which the VAE decodes a frame [default: whole frames]
    #[arg(long)]
    tile_rows: Option<usize>,
    /// Recompute the activations of each block in the backward pass of a training step
    #[arg(long)]
    activation_checkpointing: bool,
    /// Sampler of `sample`
    #[arg(long, default_value = "dpm-solver", value_parser = crate::options::parse_sampler, value_name = "iddpm|ddim|dpm-solver")]
    sampler: SamplerKind,
    /// Sampler steps of `sample` [default: the sampler's published number]
    #[arg(long)]
    steps: Option<usize>,
    /// Float type of weights and activations: f32, bf16 or f16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceName,
    /// Unmeasured runs before the measurement
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Measured runs; the result is their median
    #[arg(long, default_value_t = 3)]
    reps: usize,
    /// Skip timing large matrix products, the ceiling that results are compared with
    #[arg(long)]
    no_ceiling: bool,
    /// Has no effect: the result is always one JSON object
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Value of the argument `what`: the part that is measured.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// One forward pass of the denoiser
    Stdit,
    /// Frames to latents
    VaeEncode,
    /// Latents to frames
    VaeDecode,
    /// Token ids to prompt states
    T5,
    /// Prompt to frames: text encoder, sampler with guidance, VAE
    Sample,
    /// Loss, gradients and AdamW on the denoiser
    TrainStep,
}

impl From<What> for Part {
    fn from(what: What) -> Self {
        match what {
            What::Stdit => Self::Stdit,
            What::VaeEncode => Self::VaeEncode,
            What::VaeDecode => Self::VaeDecode,
            What::T5 => Self::T5,
            What::Sample => Self::Sample,
            What::TrainStep => Self::TrainStep,
        }
    }
}

impl Args {
    /// Returns true if a training step is timed.
    pub(crate) fn is_training(&self) -> bool {
        matches!(self.what, What::TrainStep)
    }
}

pub(crate) fn parse_preset(name: &str) -> Result<BenchPreset, String> {
    BenchPreset::find(name)
        .ok_or_else(|| format!("no preset '{name}', expected one of {}", PRESETS.join(", ")))
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let device = args.device.open(args.quiet)?;
    let mut preset = args.preset;
    preset.denoiser.depth = args.depth.unwrap_or(preset.denoiser.depth);
    preset.denoiser.hidden_size = args.hidden_size.unwrap_or(preset.denoiser.hidden_size);
    preset.denoiser.num_heads = args.num_heads.unwrap_or(preset.denoiser.num_heads);
    preset.t5.num_layers = args.layers.unwrap_or(preset.t5.num_layers);
    let spec = BenchSpec {
        part: args.what.into(),
        tokens: args.tokens.unwrap_or(preset.denoiser.model_max_length),
        preset,
        num_frames: args.num_frames,
        image_size: args.image_size,
        batch_size: args.batch_size,
        micro_batch: args.micro_batch,
        tile_rows: args.tile_rows,
        activation_checkpointing: args.activation_checkpointing,
        sampler: args.sampler,
        steps: args.steps,
        dtype: args.dtype,
        warmup: args.warmup,
        reps: args.reps,
        ceiling: !args.no_ceiling,
    };
    let report = spec
        .run(&device, &mut |what| {
            if !args.quiet {
                output::message(what);
            }
        })
        .context("bench")?;
    Ok(output::json(&report)?)
}
