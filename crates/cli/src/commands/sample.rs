//! `opensora sample`: samples videos of prompts, or images and clips of class labels.
//!
//! Errors come early: the request is checked against the model and every output is opened and tried
//! before weights are read.

mod job;
mod label;
mod outputs;
mod record;
mod text;

use crate::{
    options::{DeviceName, ModelParts, Report, Sampling},
    output,
    ranks::{World, on_ranks},
};
use anyhow::ensure;
use clap::ValueEnum;
use opensora::{
    PipelineError, PipelineOptions, Residency, SampleRequest, nn::dtype::Dtype,
    pipeline::SamplingRanks,
};
use record::Record;
use std::{
    iter::repeat_n,
    num::NonZero,
    path::{Path, PathBuf},
};

/// Maximum number of videos of one call; their prompts are held in memory.
const MAX_VIDEOS: usize = 1_000_000;

/// Options of `opensora sample`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora sample \"a red circle grows on a black background\" -o circle.mp4
  opensora sample --model opensora-v1-hq-16x256x256 --prompt-path prompts.txt -o clips \\
        --sampler dpm-solver --steps 20
  mpirun -n 4 opensora sample \"waves at night\" --num-frames 64 --device cuda:local -o waves.mp4
  opensora sample \"waves at night\" --negative-prompt people --num-videos-per-prompt 4 -o waves
  opensora sample --from-record clips/sample_0.mp4.json -o again.mp4")]
pub(crate) struct Args {
    /// Prompt: what the video shows
    #[arg(conflicts_with = "prompt_path")]
    prompt: Option<String>,
    /// File with one prompt per line
    #[arg(long)]
    prompt_path: Option<PathBuf>,
    /// Negative prompt: what the videos should not show [default: the model's null prompt]
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Videos per prompt
    ///
    /// Video v of prompt p (both from 0) has the noise index --noise-index + p * N + v, which together with
    /// --seed determines its noise.
    #[arg(long, value_name = "N", default_value_t = NonZero::<usize>::MIN, conflicts_with = "from_record")]
    num_videos_per_prompt: NonZero<usize>,
    /// Class label: a number, or a name such as "golden retriever"; repeatable
    ///
    /// For models with class labels (dit-xl-2-256x256, dit-xl-2-512x512,
    /// latte-xl-2-16x256x256-ucf101).
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["prompt", "prompt_path", "from_record",
        "latents", "save_latents", "negative_prompt", "t5", "t5_dtype", "pab", "space_scale", "time_scale"])]
    label: Vec<String>,
    /// Sample the clip of a record again (the .json beside an output)
    ///
    /// The record supplies the prompt and all settings that are not given here. Bit-exact on the same kind
    /// of device.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_path", "latents", "save_latents"])]
    from_record: Option<PathBuf>,
    /// Model: demo (bundled), a preset, a folder, a repository of the Hugging Face hub, or a checkpoint
    /// [default: demo; with --label dit-xl-2-256x256]
    ///
    /// Presets are fetched at their first use. A folder needs a model.json or the shards of an STDiT-XL/2
    /// checkpoint; a repository (OWNER/NAME) needs a model.json or is a preset's; a checkpoint must be an
    /// STDiT-XL/2.
    ///
    /// Presets: opensora-v1-16x256x256, opensora-v1-hq-16x256x256, opensora-v1-hq-16x512x512; for
    /// images pixart-xl-2-256x256, pixart-xl-2-sam-256x256, pixart-xl-2-512x512, pixart-xl-2-1024-ms;
    /// see --label.
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    parts: ModelParts,
    #[command(flatten)]
    sampling: Sampling,
    /// Ratio of height to width, such as 9:16; selects the nearest training size of pixart-xl-2-1024-ms
    #[arg(long, value_parser = parse_ratio, value_name = "H:W", conflicts_with_all = ["image_size", "label"])]
    aspect_ratio: Option<f64>,
    /// Frames per second of the output [default: the model's]
    #[arg(long)]
    fps: Option<f64>,
    /// Number of guided latent channels [default: 3; for dpm-solver all, as published]
    #[arg(long)]
    guided_channels: Option<usize>,
    /// Unit of rows and columns in the position tables [default: the model's]
    #[arg(long)]
    space_scale: Option<f64>,
    /// Unit of frames in the position tables [default: the model's]
    #[arg(long)]
    time_scale: Option<f64>,
    /// Noise index of the first clip; 6 repeats the 7th clip of a call
    #[arg(long, default_value_t = 0, conflicts_with = "from_record")]
    noise_index: u64,
    /// Clips per batch
    #[arg(long, default_value_t = 1, conflicts_with = "from_record")]
    batch_size: usize,
    #[command(flatten)]
    device: DeviceName,
    /// Float type of the denoiser and the VAE: f32, bf16 or f16 [default: f32]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Float type of the text encoder [default: f32]
    #[arg(long)]
    t5_dtype: Option<Dtype>,
    /// Use less memory and more time
    ///
    /// The denoiser is streamed from its file in every step (3 GB at published size), one block at a time,
    /// and frames are decoded one by one, in tiles. The latents are the same, pixels are equal up to
    /// rounding. Denoisers other than STDiT are held in memory.
    #[arg(long)]
    low_memory: bool,
    /// Work that the ranks of mpirun or srun divide: frames, or guidance and then frames
    ///
    /// With guidance, half of the ranks predict with the prompt and half without it.
    #[arg(long, value_name = "WORK", default_value = "frames")]
    divide: Division,
    /// Output file (.mp4, .gif, .png), folder for several clips, or - for standard output
    #[arg(short, long, alias = "output", default_value = "outputs")]
    out: PathBuf,
    /// Fail if an output exists, instead of replacing it
    #[arg(long)]
    no_overwrite: bool,
    /// Format of the files in an output folder; single frames are always PNG
    #[arg(long, default_value = "mp4")]
    format: FileKind,
    /// Save the sampled latents to this file before they are decoded
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Decode latents of --save-latents instead of sampling
    ///
    /// Only the number of prompts matters then: the records have the prompts of the file, if it has as many, and the
    /// record of its sampling in the field "sampling".
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save_latents", "negative_prompt", "sampler", "steps",
        "pab", "guidance_scale", "guided_channels", "seed", "noise_index", "space_scale", "time_scale",
        "batch_size", "t5_dtype"])]
    latents: Option<PathBuf>,
    #[command(flatten)]
    report: Report,
}

impl Args {
    fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(Dtype::F32)
    }

    fn t5_dtype(&self) -> Dtype {
        self.t5_dtype.unwrap_or(Dtype::F32)
    }

    fn options(&self) -> PipelineOptions {
        PipelineOptions {
            dtype: self.dtype().float(),
            text_dtype: self.t5_dtype().float(),
            residency: match self.low_memory {
                true => Residency::Streamed,
                false => Residency::Sequential,
            },
        }
    }

    /// Arranges the ranks. A collective, with the same error on all.
    fn ranks(&self, world: &World) -> Result<SamplingRanks, PipelineError> {
        let group = world.group().clone();
        match self.divide {
            Division::Frames => Ok(SamplingRanks::by_frames(group)),
            Division::Guidance if group.size() == 1 => Ok(SamplingRanks::default()),
            Division::Guidance => SamplingRanks::by_guidance(group),
        }
    }

    /// Returns the request of these options, with a model's defaults for the rest.
    fn request(&self, defaults: &SampleRequest) -> SampleRequest {
        SampleRequest {
            fps: self.fps.unwrap_or(defaults.fps),
            negative_prompt: self.negative_prompt.clone(),
            guided_channels: self.guided_channels,
            space_scale: self.space_scale,
            time_scale: self.time_scale,
            noise_index: self.noise_index,
            batch_size: self.batch_size,
            ..self.sampling.request(defaults)
        }
    }
}

/// Work that ranks divide.
#[derive(Clone, Copy, ValueEnum)]
enum Division {
    /// The frames of each clip.
    Frames,
    /// The two predictions of guidance, then frames.
    Guidance,
}

/// Formats of files in an output folder.
#[derive(Clone, Copy, ValueEnum)]
enum FileKind {
    Mp4,
    Gif,
    /// A folder of PNG frames for each clip.
    Png,
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let parsed = text
        .split_once(':')
        .and_then(|(h, w)| Some(h.trim().parse::<f64>().ok()? / w.trim().parse::<f64>().ok()?));
    parsed
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .ok_or_else(|| "expected height:width, such as 9:16".into())
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    on_ranks(|world| {
        let recorded =
            args.from_record.take().map(|path| Record::open(&path)?.apply(&path, &mut args));
        let recorded = world.agree(recorded.transpose())?;
        if args.label.is_empty() {
            return text::run(&args, recorded, world);
        }
        ensure!(
            world.group().size() == 1,
            "--label: labels are sampled by one process: leave mpirun out"
        );
        label::run(&args, recorded, world)
    })
}

/// Prints the files of a model, named by `parts`, and the request, if details are printed.
fn print_details(parts: &[&str], weights: &[&Path], request: &SampleRequest) {
    for (part, path) in parts.iter().zip(weights) {
        output::detail(format_args!("{part}: {}", path.display()));
    }
    output::detail(format_args!("request: {request:?}"));
}

/// Repeats each item: all of the first, then all of the second.
fn each_times<T: Clone>(items: &[T], times: NonZero<usize>) -> anyhow::Result<Vec<T>> {
    let count = items.len().checked_mul(times.get()).filter(|&count| count <= MAX_VIDEOS);
    ensure!(
        count.is_some(),
        "--num-videos-per-prompt: {times} of {}: more than {MAX_VIDEOS} videos",
        items.len()
    );
    Ok(items.iter().flat_map(|item| repeat_n(item.clone(), times.get())).collect())
}
