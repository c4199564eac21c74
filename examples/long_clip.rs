//! A training step of STDiT on a clip of about a million tokens, whose frames are divided among ranks.
//!
//! ```sh
//! # 256 frames of 63x63 tokens on 4 ranks that are threads of this process:
//! cargo run --release --example long_clip --features train -- --frames 256 --side 63 --ranks 4
//! # The same on 4 processes, each with its own memory:
//! cargo build --release --example long_clip --features train,mpi
//! mpirun --oversubscribe -n 4 target/release/examples/long_clip --frames 256 --side 63
//! ```
//!
//! Each rank prints its peak memory, and rank 0 the loss, which does not depend on the number of ranks. Activation
//! checkpointing is on: a rank holds the tokens that enter each block, `[T/N * S, C]`, and the activations of one block.
//! Attention scores are computed in pieces, and again for backward.

use anyhow::{Context, ensure};
use opensora::{
    burn::tensor::{Device, FloatDType, Tensor, TensorData},
    nn::{
        mask::TokenMask,
        noise::{Purpose, normal_batch},
        read::read_f64,
    },
    parallel::{Group, Reduction, threads::run_ranks_within},
    stdit::{DenoiserConfig, StDit},
    train::{
        FlatTensors, Trainer,
        denoiser::{DenoiserBatch, DenoiserRecipe, DenoiserTask},
        optimizer::OptimizerRecipe,
        parameters,
    },
};
use std::time::{Duration, Instant};

/// How long a rank waits for the others, whose steps take as long as its own.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Sizes of the clip and the model.
#[derive(Debug, Clone, Copy)]
struct Size {
    frames: usize,
    /// Tokens along each side of a frame.
    side: usize,
    width: usize,
    depth: usize,
    heads: usize,
    /// Ranks that are threads of this process.
    ranks: usize,
}

impl Size {
    /// Reads `--frames 64 --side 16` and so on.
    fn parse(args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut size = Self { frames: 16, side: 16, width: 64, depth: 2, heads: 1, ranks: 1 };
        let args: Vec<String> = args.collect();
        for pair in args.chunks(2) {
            let [name, value] = pair else { anyhow::bail!("{}: expected a number", pair[0]) };
            let value =
                value.parse().with_context(|| format!("{name} {value}: expected a number"))?;
            match name.as_str() {
                "--frames" => size.frames = value,
                "--side" => size.side = value,
                "--width" => size.width = value,
                "--depth" => size.depth = value,
                "--heads" => size.heads = value,
                "--ranks" => size.ranks = value,
                _ => anyhow::bail!("unknown option '{name}'"),
            }
            ensure!(value > 0, "{name}: expected at least 1");
        }
        Ok(size)
    }

    fn config(&self) -> DenoiserConfig {
        DenoiserConfig {
            hidden_size: self.width,
            depth: self.depth,
            num_heads: self.heads,
            caption_channels: 64,
            model_max_length: 16,
            ..DenoiserConfig::xl_2()
        }
    }
}

/// The result of a step on one rank.
struct Step {
    loss: f64,
    gradient_norm: f64,
    seconds: f64,
}

fn main() -> anyhow::Result<()> {
    let size = Size::parse(std::env::args().skip(1))?;
    let tokens = size.frames * size.side * size.side;
    #[cfg(feature = "mpi")]
    if opensora::parallel::Launch::detect(|name| std::env::var(name).ok()).is_some() {
        return on_processes(size, tokens);
    }
    println!("{tokens} tokens: {size:?}");
    let steps = run_ranks_within(PATIENCE, size.ranks, |group| step(size, &group));
    let first = steps.into_iter().collect::<anyhow::Result<Vec<_>>>()?.swap_remove(0);
    println!(
        "loss {:.7}, gradient norm {:.7}, {:.1} s",
        first.loss, first.gradient_norm, first.seconds
    );
    println!("peak memory of this process: {} MiB", peak_memory()?);
    Ok(())
}

/// Runs the step on the ranks that `mpirun` started, with the threads of rayon divided among them by
/// `RAYON_NUM_THREADS`.
#[cfg(feature = "mpi")]
fn on_processes(size: Size, tokens: usize) -> anyhow::Result<()> {
    use opensora::parallel::{Mpi, MpiOptions};

    let mpi = Mpi::init(MpiOptions::default())?;
    let world = mpi.world();
    let step = step(size, &world).unwrap_or_else(|error| world.abort(&format!("{error:#}")));
    let (rank, ranks) = (world.rank(), world.size());
    if rank == 0 {
        println!("{tokens} tokens on {ranks} ranks: {size:?}");
        println!(
            "loss {:.7}, gradient norm {:.7}, {:.1} s",
            step.loss, step.gradient_norm, step.seconds
        );
    }
    world.barrier();
    println!("rank {rank}: peak memory {} MiB", peak_memory()?);
    drop(world);
    mpi.finish();
    Ok(())
}

/// Runs one training step on this rank's frames.
fn step(size: Size, group: &Group) -> anyhow::Result<Step> {
    let (device, config) = (Device::flex(), size.config());
    let recipe = DenoiserRecipe { activation_checkpointing: true, ..DenoiserRecipe::default() };
    let task = DenoiserTask::new(&recipe, &config, 0, FloatDType::F32, &device)?;
    let task = task.divided(group.clone());
    let mut trainer =
        Trainer::new(model(&config, &device)?, &OptimizerRecipe::default(), |name| {
            recipe.freeze.is_trainable(name)
        })?;

    let began = Instant::now();
    let shape = [1, config.in_channels, size.frames, 2 * size.side, 2 * size.side];
    let noise = |purpose| normal_batch(0, purpose, 0, 0, shape, &device);
    let states = [1, config.model_max_length, config.caption_channels];
    let batch = DenoiserBatch {
        latents: noise(Purpose::InitialLatents),
        noise: noise(Purpose::TrainingNoise),
        t: vec![500],
        states: normal_batch(0, Purpose::Posterior, 0, 0, states, &device),
        mask: TokenMask::all(1, config.model_max_length),
        dropped: vec![false],
    };
    let (losses, gradients) = task.losses(&trainer.graph(FloatDType::F32), batch)?;
    let gradients = averaged(gradients, group)?;
    let report = trainer.apply(gradients, 1)?;
    let loss = read_f64(losses.loss)?[0];
    let seconds = began.elapsed().as_secs_f64();
    Ok(Step { loss, gradient_norm: report.gradient_norm, seconds })
}

/// Returns a model that is the same on all ranks. No parameter is zero, as some of a fresh model are.
fn model(config: &DenoiserConfig, device: &Device) -> anyhow::Result<StDit> {
    let model = config.init::<StDit>(device)?;
    let parameters =
        parameters::values(&model)?.into_iter().enumerate().map(|(index, (name, x))| {
            let noise =
                normal_batch(1, Purpose::Posterior, index as u64, 0, [1, x.dims()[0]], device);
            (name, noise.squeeze_dim::<1>(0) * 0.05)
        });
    Ok(parameters::filled(model, &parameters.collect(), FloatDType::F32))
}

/// Returns the mean of the gradients of all ranks.
fn averaged(gradients: FlatTensors, group: &Group) -> anyhow::Result<FlatTensors> {
    let average = |(name, gradient): (String, Tensor<1>)| {
        let device = gradient.device();
        let mut values: Vec<f32> = read_f64(gradient)?.into_iter().map(|x| x as f32).collect();
        group.all_reduce(Reduction::Sum, &mut values);
        let mean = Tensor::from_data(TensorData::from(values.as_slice()), &device);
        Ok((name, mean / group.size() as f32))
    };
    gradients.into_iter().map(average).collect()
}

/// Returns the largest resident size of this process so far, in MiB. Linux only.
fn peak_memory() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.context("no VmHWM in /proc/self/status")?.trim().trim_end_matches("kB").trim();
    Ok(kib.parse::<u64>()? / 1024)
}
