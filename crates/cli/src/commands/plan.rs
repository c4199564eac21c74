//! `opensora plan`: predicts time and memory of a training step on several ranks.

use crate::{
    bench::{BenchPreset, PRESETS},
    options::parse_size,
    output::{self, OutputError},
};
use anyhow::bail;
use opensora::{
    nn::dtype::Dtype,
    train::{
        plan::{
            Constraints, Job, Network, Prediction, Processor, Scaling, USABLE_MEMORY, WeakScaling,
        },
        zero::Zero,
    },
};
use serde_json::json;

/// Options of `opensora plan`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora plan --ranks 64
  opensora plan --num-frames 64 --image-size 512x512 --batch-size 256 --ranks 64 --network 1600 --direct
  opensora plan --num-frames 360 --image-size 512x512 --batch-size 4 --ranks 8 --processor h800 --json
  opensora plan --ranks 64 --scaling 8,16,32,64,128,256,512
  opensora plan --preset demo --dtype f32 --ranks 2 --processor cpu --ranks-per-node 2 --zero 2")]
pub(crate) struct Args {
    /// Sizes of the models: stdit-xl-2 (the published ones) or demo
    #[arg(long, default_value = PRESETS[0], value_parser = super::bench::parse_preset)]
    preset: BenchPreset,
    /// Number of denoiser blocks [default: the preset's]
    #[arg(long)]
    depth: Option<usize>,
    /// Width of the denoiser, a multiple of --num-heads [default: the preset's]
    #[arg(long)]
    hidden_size: Option<usize>,
    /// Attention heads of the denoiser [default: the preset's]
    #[arg(long)]
    num_heads: Option<usize>,
    /// Frames of a clip
    #[arg(long, default_value_t = 16)]
    num_frames: usize,
    /// Height and width in pixels
    #[arg(long, default_value = "256x256", value_parser = parse_size, value_name = "HxW")]
    image_size: [usize; 2],
    /// Tokens of a prompt [default: the denoiser's maximum]
    #[arg(long)]
    tokens: Option<usize>,
    /// Clips of an optimizer step, over all ranks [default: 8 for each rank]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Float type to compute in: f32, bf16 or f16
    #[arg(long, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Numbers of ranks of a table of weak scaling, with as many clips for each rank
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    scaling: Vec<usize>,
    /// Number of layouts to list
    #[arg(long, default_value_t = 5)]
    layouts: usize,
    #[command(flatten)]
    machines: Machines,
    #[command(flatten)]
    layout: LayoutOptions,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Show no warnings
    #[arg(long, short)]
    quiet: bool,
}

/// Processors and network.
#[derive(clap::Args)]
#[command(next_help_heading = "Machines")]
struct Machines {
    /// Number of ranks, one for each processor
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// Ranks of a node
    #[arg(long, default_value_t = 8)]
    ranks_per_node: usize,
    /// Processor: h100, h200, h800, a100, rtx-4090 or cpu
    #[arg(long, default_value = Processor::H100.name, value_parser = Processor::find)]
    processor: Processor,
    /// Peak of a processor in TFLOP/s [default: of its data sheet, for --dtype]
    #[arg(long, value_name = "N")]
    peak_tflops: Option<f64>,
    /// Share of the peak that training reaches, 0 to 1 [default: 0.15 for GPUs, as published; cpu 0.8]
    #[arg(long, value_name = "N")]
    efficiency: Option<f64>,
    /// Memory of a processor in GB [default: of its data sheet]
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// Bandwidth of a processor's memory in GB/s [default: of its data sheet]
    #[arg(long, value_name = "N")]
    memory_bandwidth: Option<f64>,
    /// Bandwidth of a node to the others in Gbit/s, all links together
    #[arg(long, default_value_t = 200.0, value_name = "GBITS")]
    network: f64,
    /// Latency between nodes in microseconds; the default is assumed
    #[arg(long, default_value_t = 10.0, value_name = "US")]
    network_latency: f64,
    /// Bandwidth between two ranks of a node in GB/s [default: of the data sheet]
    #[arg(long, value_name = "N")]
    node_bandwidth: Option<f64>,
    /// Latency within a node in microseconds; the default is assumed
    #[arg(long, default_value_t = 5.0, value_name = "US")]
    node_latency: f64,
    /// Assume collectives that read a GPU's memory [default: they pass through the host, as this program's do]
    #[arg(long)]
    direct: bool,
    /// MiB of gradients or parameters, over all ranks, that a collective moves at once [default: 4 for each rank, at
    /// most 256, as the trainer]
    #[arg(long, value_name = "MIB")]
    bucket: Option<f64>,
    /// Share of the gradients' reduction that the backward pass hides, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "N")]
    overlap: f64,
}

/// Properties of the layout that are not searched.
#[derive(clap::Args)]
#[command(next_help_heading = "Layout")]
struct LayoutOptions {
    /// Ranks that share the tokens of a clip [default: searched]
    #[arg(long, value_name = "N")]
    sequence: Option<usize>,
    /// Stage of ZeRO: 0, 1 or 2 [default: searched]
    #[arg(long, value_parser = parse_zero, value_name = "STAGE")]
    zero: Option<Zero>,
    /// Save only the input of each block for the backward pass: true or false [default: searched]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    activation_checkpointing: Option<bool>,
    /// Micro-batches of a step [default: searched]
    #[arg(long, value_name = "N")]
    accumulation: Option<usize>,
}

fn parse_zero(text: &str) -> Result<Zero, String> {
    let stage = text.parse::<u8>().ok().and_then(|stage| Zero::try_from(stage).ok());
    stage.ok_or_else(|| "expected 0, 1 or 2".into())
}

impl Machines {
    fn processor(&self, dtype: Dtype) -> Processor {
        let mut processor = self.processor;
        if let Some(peak) = self.peak_tflops {
            let peak = peak * 1e12;
            match dtype {
                Dtype::F32 => processor.peak_f32 = peak,
                Dtype::Bf16 | Dtype::F16 => processor.peak_half = peak,
            }
        }
        let giga = |given: Option<f64>, else_: f64| given.map_or(else_, |given| given * 1e9);
        processor.efficiency = self.efficiency.unwrap_or(processor.efficiency);
        processor.memory_bytes = giga(self.memory, processor.memory_bytes);
        processor.memory_bandwidth = giga(self.memory_bandwidth, processor.memory_bandwidth);
        processor
    }

    fn network(&self, processor: &Processor) -> Network {
        let mut network = Network::of(processor).with_gbits(self.network);
        if self.direct {
            network = network.direct(processor);
        }
        network.ranks_per_node = self.ranks_per_node;
        network.between.latency = self.network_latency * 1e-6;
        network.within.latency = self.node_latency * 1e-6;
        if let Some(bandwidth) = self.node_bandwidth {
            network.within.bandwidth = bandwidth * 1e9;
        }
        network
    }
}

fn job(args: &Args) -> anyhow::Result<Job> {
    let mut config = args.preset.denoiser.clone();
    config.depth = args.depth.unwrap_or(config.depth);
    config.hidden_size = args.hidden_size.unwrap_or(config.hidden_size);
    config.num_heads = args.num_heads.unwrap_or(config.num_heads);
    let [height, width] = args.image_size;
    let latents = args.preset.vae.latent_size([args.num_frames, height, width])?;
    let machines = &args.machines;
    let processor = machines.processor(args.dtype);
    Ok(Job {
        latents,
        caption_tokens: args.tokens.unwrap_or(config.model_max_length),
        config,
        clips: args.batch_size.unwrap_or_else(|| machines.ranks.saturating_mul(8)),
        dtype: args.dtype.float(),
        ranks: machines.ranks,
        network: machines.network(&processor),
        processor,
        bucket: machines.bucket.map(|mib| mib * f64::from(1 << 20)),
        overlap: machines.overlap,
    })
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let job = job(args)?;
    let LayoutOptions { sequence, zero, activation_checkpointing, accumulation } = args.layout;
    let constraints = Constraints { sequence, zero, activation_checkpointing, accumulation };
    let mut found = job.search_within(&constraints)?;
    let scaling = scaling(&job, &constraints, args)?;
    found.truncate(args.layouts.max(1));
    if args.json {
        output::json(&json!({
            "is_prediction": true,
            "tokens": job.config.grid(job.latents)?.iter().product::<usize>(),
            "clips": job.clips, "ranks": job.ranks,
            "processor": job.processor, "network": job.network, "bucket": job.bucket_bytes(), "overlap": job.overlap,
            "layouts": found, "scaling": scaling,
        }))?;
        return Ok(());
    }
    print_job(&job, args)?;
    let Some((best, others)) = found.split_first() else { return Ok(()) };
    print_best(&job, best)?;
    print_others(others)?;
    print_scaling(&scaling)?;
    Ok(())
}

/// Returns the rows of `--scaling`. Numbers of ranks without a layout are left out with a warning.
fn scaling(job: &Job, constraints: &Constraints, args: &Args) -> anyhow::Result<Vec<Scaling>> {
    if args.scaling.is_empty() {
        return Ok(Vec::new());
    }
    let WeakScaling { rows, left_out, .. } = job.weak_scaling(constraints, &args.scaling)?;
    if rows.is_empty() {
        let reasons: Vec<String> =
            left_out.iter().map(|(ranks, reason)| format!("{ranks} ({reason})")).collect();
        bail!("--scaling: no number of ranks has a layout: {}", reasons.join(", "));
    }
    for (ranks, reason) in left_out.iter().filter(|_| !args.quiet) {
        output::message(format_args!("warning: --scaling {ranks} is left out: {reason}"));
    }
    Ok(rows)
}

fn print_job(job: &Job, args: &Args) -> anyhow::Result<()> {
    let tokens: usize = job.config.grid(job.latents)?.iter().product();
    let [height, width] = args.image_size;
    output::line("prediction of a cost model, not a measurement")?;
    output::line(format_args!(
        "{}, {} x {height} x {width}, {tokens} tokens a clip, {} clips a step, {}",
        args.preset.name, args.num_frames, job.clips, args.dtype
    ))?;
    let nodes = job.ranks.div_ceil(job.network.ranks_per_node);
    let path = if job.network.staging.is_some() { "through the host" } else { "direct" };
    output::line(format_args!(
        "{} {} on {nodes} nodes, {} GB/s within and {} GB/s between nodes, {path}",
        job.ranks,
        job.processor.name,
        job.network.within.bandwidth / 1e9,
        job.network.between.bandwidth / 1e9,
    ))?;
    Ok(())
}

fn print_best(job: &Job, best: &Prediction) -> Result<(), OutputError> {
    output::line("")?;
    output::line(format_args!("layout: {}", best.layout))?;
    output::line(format_args!(
        "step: {:.3} s, {:.3} clips/s, {:.1} % of the peak; largest part: {}",
        best.seconds,
        best.clips_per_second,
        100.0 * best.utilisation,
        best.limited_by
    ))?;
    for (part, seconds) in best.time.parts().into_iter().filter(|(_, seconds)| *seconds > 0.0) {
        let share = 100.0 * seconds / best.seconds;
        output::line(format_args!("  {part:<18} {seconds:>9.4} s {share:>5.1} %"))?;
    }
    let (needed, all) = (best.memory_bytes / 1e9, job.processor.memory_bytes / 1e9);
    let verdict = if best.fits { "fits" } else { "no layout fits; this one needs least" };
    output::line(format_args!(
        "memory of a rank: {needed:.2} of {all:.0} GB ({:.0} % is usable): {verdict}",
        100.0 * USABLE_MEMORY
    ))?;
    for (category, bytes) in best.memory.categories().into_iter().filter(|(_, bytes)| *bytes > 0.0)
    {
        output::line(format_args!("  {category:<18} {:>9.3} GB", bytes / 1e9))?;
    }
    Ok(())
}

fn print_others(others: &[Prediction]) -> Result<(), OutputError> {
    if others.is_empty() {
        return Ok(());
    }
    output::line("")?;
    output::line("other layouts:")?;
    for other in others {
        let fits = if other.fits { "" } else { ", does not fit" };
        let (seconds, memory) = (other.seconds, other.memory_bytes / 1e9);
        output::line(format_args!("  {seconds:>9.3} s {memory:>9.2} GB  {}{fits}", other.layout))?;
    }
    Ok(())
}

fn print_scaling(rows: &[Scaling]) -> Result<(), OutputError> {
    if rows.is_empty() {
        return Ok(());
    }
    output::line("")?;
    output::line("weak scaling:")?;
    output::line("  ranks      step  clips/s  efficiency  layout")?;
    for Scaling { ranks, efficiency, prediction, .. } in rows {
        let Prediction { seconds, clips_per_second, layout, fits, .. } = prediction;
        let fits = if *fits { "" } else { ", does not fit" };
        let efficiency = 100.0 * efficiency;
        output::line(format_args!(
            "  {ranks:>5} {seconds:>7.3} s {clips_per_second:>8.2} {efficiency:>9.1} %  {layout}{fits}"
        ))?;
    }
    Ok(())
}
