//! The program `opensora`: samples videos, trains models, prepares data sets, verifies numbers.
//!
//! Only this program prints; the library reports through results and observers.

// The macros panic if standard output or standard error is closed; the module `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod allocator;
mod bench;
mod commands;
mod fetch_progress;
mod help;
mod model;
mod open_files;
mod options;
mod output;
mod progress;
mod ranks;
mod step_progress;
mod stop;
mod train_progress;
mod trial;

use allocator::Kept;
use clap::{FromArgMatches, Parser, Subcommand};
#[cfg(feature = "serve")]
use commands::serve;
use commands::{
    bench as bench_command, completions, data, devices, eval, man, plan, plot, probe_device,
    sample, train, verify, weights,
};
use output::OutputError;
use std::{process::ExitCode, time::Instant};

/// Exit code if the reader has closed standard output, as shells report SIGPIPE.
const READER_GONE: u8 = 141;

#[derive(Parser)]
#[command(
    name = "opensora",
    version,
    about = "Open-Sora 1.0: text to video",
    after_long_help = "\
Examples:
  opensora sample \"a red circle grows on a black background\" -o circle.mp4
  opensora data scan videos/ -o videos.csv
  opensora train --recipe recipe.toml --data clips.csv -o run
  opensora help sample

Results go to standard output, progress and errors to standard error.

Exit codes:
    0  done
    1  an error, reported in one line on standard error
    2  an invalid command line
  129  stopped by SIGHUP (a closed terminal)
  130  stopped by SIGINT (Ctrl-C)
  141  standard output was closed by its reader, such as head
  143  stopped by SIGTERM

The first SIGINT, SIGTERM or SIGHUP stops the program after the current step; complete files are kept. A second
one ends it at once."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print details on standard error: files, settings and the time taken
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Sample videos from prompts
    Sample(Box<sample::Args>),
    /// Fetch, list, inspect, convert and verify weights
    Weights(weights::Args),
    /// Run golden cases and compare the results with the reference's
    Verify(verify::Args),
    /// Train a model with a recipe
    Train(Box<train::Args>),
    /// Train a VAE with a recipe
    TrainVae(Box<train::Args>),
    /// Prepare data sets
    Data(data::Args),
    /// Measure how well the videos of a model match their prompts
    Eval(eval::Args),
    /// Measure the speed of the models with random weights
    Bench(Box<bench_command::Args>),
    /// Serve videos over HTTP: a queue of jobs, the API of /v1/videos and a page
    #[cfg(feature = "serve")]
    Serve(Box<serve::Args>),
    /// Predict time and memory of a training step on several ranks
    Plan(Box<plan::Args>),
    /// Plot the loss and other curves of training runs
    Plot(plot::Args),
    /// List the backends of this build and the available devices
    Devices(devices::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Print or write manual pages
    Man(man::Args),
    /// Run a trial kernel on a device; its driver may crash the process
    #[command(name = trial::SUBCOMMAND, hide = true)]
    ProbeDevice(probe_device::Args),
}

fn main() -> ExitCode {
    let started = Instant::now();
    let mut command_line = help::command();
    let parsed = command_line
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| error.format(&mut command_line));
    let command = match parsed {
        Ok(Cli { command, verbose }) => {
            output::set_verbose(verbose);
            command
        }
        Err(error) => return explain(&error),
    };
    allocator::keep_freed_memory(match &command {
        Command::Train(_) | Command::TrainVae(_) => Kept::All,
        Command::Bench(args) if args.is_training() => Kept::All,
        Command::Weights(_) => Kept::Nothing,
        _ => Kept::Some,
    });
    open_files::raise_limit();
    let result = match command {
        Command::Sample(args) => sample::run(*args),
        Command::Weights(args) => weights::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Train(args) => train::run(*args),
        Command::TrainVae(args) => train::run_vae(*args),
        Command::Data(args) => data::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench_command::run(*args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(*args),
        Command::Plan(args) => plan::run(&args),
        Command::Plot(args) => plot::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::ProbeDevice(args) => probe_device::run(&args),
    };
    output::detail(format_args!("took {:.1} s", started.elapsed().as_secs_f64()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Prints help, the version, or the error of the command line; of several ranks, only rank 0 prints.
fn explain(error: &clap::Error) -> ExitCode {
    let printed = match ranks::launch() {
        Some(launch) if launch.rank > 0 => {
            ranks::await_rank_0();
            Ok(())
        }
        _ => error.print().map_err(OutputError::from),
    };
    match printed {
        // A usage error goes to standard error, where write errors are ignored.
        _ if error.use_stderr() => ExitCode::from(2),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.into()),
    }
}

/// Prints the error of a subcommand on one line, unless it is printed already, and returns the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    output::error(error);
    match error.downcast_ref() {
        Some(OutputError::Closed) => ExitCode::from(READER_GONE),
        _ => stop::exit_code().map_or(ExitCode::FAILURE, ExitCode::from),
    }
}
