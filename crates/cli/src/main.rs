//! The program `opensora`: sample videos, train models, list devices, prove a machine's numbers.
//!
//! Only this program prints; the library reports through its results and an observer.

mod allocator;
mod bench;
mod commands;
mod model;
mod progress;
mod step_progress;
mod stop;
mod train_progress;

use allocator::Kept;
use anyhow::Context;
use clap::{Parser, Subcommand};
use commands::{bench as bench_command, data, devices, eval, plot, sample, train, verify};
use opensora::nn::device;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "opensora", version, about = "Open-Sora 1.0: text to video")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sample videos from prompts.
    Sample(Box<sample::Args>),
    /// Run golden cases and compare every number with the reference's.
    Verify(verify::Args),
    /// Train a model by a recipe.
    Train(Box<train::Args>),
    /// Train a VAE by a recipe.
    TrainVae(Box<train::Args>),
    /// Make and prepare data sets.
    Data(data::Args),
    /// Judge how well a model does what its prompts say.
    Eval(eval::Args),
    /// Time the models at published sizes with random weights.
    Bench(Box<bench_command::Args>),
    /// Draw the loss and other curves of training runs.
    Plot(plot::Args),
    /// List the backends of this build and the devices that are present.
    Devices(devices::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    allocator::keep_freed_memory(match &command {
        Command::Train(_) | Command::TrainVae(_) => Kept::All,
        Command::Bench(args) if args.is_training() => Kept::All,
        _ => Kept::Some,
    });
    let result = match command {
        Command::Sample(args) => sample::run(*args),
        Command::Verify(args) => verify::run(args),
        Command::Train(args) => train::run(*args),
        Command::TrainVae(args) => train::run_vae(*args),
        Command::Data(args) => data::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench_command::run(*args),
        Command::Plot(args) => plot::run(args),
        Command::Devices(args) => devices::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: the message with its causes.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The device that `--device` names, or the first that is present.
fn open_device(name: Option<&str>) -> anyhow::Result<burn::tensor::Device> {
    match name {
        Some(name) => device::parse(name),
        None => device::default_device(),
    }
    .context("--device")
}
