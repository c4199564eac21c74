//! `opensora bench`: how fast the models run on this machine.

use crate::bench::{BenchPreset, BenchSpec, PRESETS, Part};
use anyhow::Context;
use opensora::{diffusion::SamplerKind, nn::dtype::Dtype};

/// Options of `opensora bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to time.
    #[arg(value_enum)]
    what: What,
    /// Sizes of the models: stdit-xl-2 (the published ones) or demo.
    #[arg(long, default_value = PRESETS[0], value_parser = parse_preset)]
    preset: BenchPreset,
    /// Frames of a clip.
    #[arg(long, default_value_t = 16)]
    num_frames: usize,
    /// Height and width in pixels.
    #[arg(long, default_value = "256x256", value_parser = crate::commands::sample::parse_size, value_name = "HxW")]
    image_size: [usize; 2],
    /// Blocks of the denoiser, to save time [default: the preset's].
    #[arg(long)]
    depth: Option<usize>,
    /// Width of the denoiser, in heads of --num-heads, for sequences that the published width is too
    /// slow for [default: the preset's].
    #[arg(long)]
    hidden_size: Option<usize>,
    /// Heads of the denoiser [default: the preset's].
    #[arg(long)]
    num_heads: Option<usize>,
    /// Blocks of the text encoder, to save time [default: the preset's].
    #[arg(long)]
    layers: Option<usize>,
    /// Tokens of a prompt [default: the most that the denoiser takes].
    #[arg(long)]
    tokens: Option<usize>,
    /// Clips at once.
    #[arg(long, visible_alias = "batch", default_value_t = 1)]
    batch_size: usize,
    /// Frames that the VAE works on at once.
    #[arg(long, default_value_t = 1)]
    micro_batch: usize,
    /// Rows of the tiles that the VAE decodes a frame in [default: whole frames].
    #[arg(long)]
    tile_rows: Option<usize>,
    /// Compute the blocks' activations again on the way back, in a training step.
    #[arg(long)]
    activation_checkpointing: bool,
    /// Sampler of `sample`.
    #[arg(long, default_value = "dpm-solver", value_parser = crate::commands::sample::parse_sampler, value_name = "iddpm|ddim|dpm-solver")]
    sampler: SamplerKind,
    /// Its steps [default: the sampler's published number].
    #[arg(long)]
    steps: Option<usize>,
    /// Float type of weights and activations: f32, bf16 or f16.
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Device, as `opensora devices` lists them [default: the first that is present].
    #[arg(long)]
    device: Option<String>,
    /// Runs before the clock.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Runs by the clock; their median counts.
    #[arg(long, default_value_t = 3)]
    reps: usize,
    /// No progress.
    #[arg(long, short)]
    quiet: bool,
    /// Taken for the sake of scripts: the outcome is one line of JSON in any case.
    #[arg(long)]
    json: bool,
}

/// A part by its name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// One evaluation of the denoiser.
    Stdit,
    /// Frames to posteriors.
    VaeEncode,
    /// Latents to frames.
    VaeDecode,
    /// Token ids to states.
    T5,
    /// Prompt to frames: text encoder, sampler with guidance, VAE.
    Sample,
    /// Loss, gradients and AdamW on the denoiser.
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
    /// Whether a training step is timed.
    pub(crate) fn is_training(&self) -> bool {
        matches!(self.what, What::TrainStep)
    }
}

fn parse_preset(name: &str) -> Result<BenchPreset, String> {
    BenchPreset::find(name)
        .ok_or_else(|| format!("no preset '{name}', expected one of {}", PRESETS.join(", ")))
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let device = crate::open_device(args.device.as_deref())?;
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
    };
    let report = spec
        .run(&device, &mut |what| {
            if !args.quiet {
                eprintln!("{what}");
            }
        })
        .context("bench")?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
