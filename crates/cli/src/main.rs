//! The program `opensora`: sample videos, train models, list devices, prove a machine's numbers.
//!
//! Only this program prints; the library reports through its results and an observer.

// Their macros panic where standard output or standard error is closed: `output` prints.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod allocator;
mod bench;
mod commands;
mod fetch_progress;
mod help;
mod model;
mod options;
mod output;
mod progress;
mod step_progress;
mod stop;
mod train_progress;
mod trial;

use allocator::Kept;
use clap::{FromArgMatches, Parser, Subcommand};
#[cfg(feature = "serve")]
use commands::serve;
use commands::{
    bench as bench_command, completions, data, devices, eval, man, plot, probe_device, sample,
    train, verify, weights,
};
use opensora::files::error_line;
use output::OutputError;
use std::{process::ExitCode, time::Instant};

/// Exit code where the reader of standard output has gone, as shells report SIGPIPE.
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
    1  an error, in one line on standard error
    2  the command line is wrong
  129  stopped by SIGHUP (a closed terminal)
  130  stopped by SIGINT (Ctrl-C)
  141  the reader of standard output has closed the pipe, such as head
  143  stopped by SIGTERM

The first SIGINT, SIGTERM or SIGHUP finishes the current step and keeps complete files; a second one
ends the program at once."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on standard error: which files are used with which settings, and the time that it took
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Sample videos from prompts
    Sample(Box<sample::Args>),
    /// Fetch, list, inspect, convert and verify published weights
    Weights(weights::Args),
    /// Run golden cases and compare their numbers with the reference
    Verify(verify::Args),
    /// Train a model by a recipe
    Train(Box<train::Args>),
    /// Train a VAE by a recipe
    TrainVae(Box<train::Args>),
    /// Prepare data sets
    Data(data::Args),
    /// Measure how well the videos of a model match their prompts
    Eval(eval::Args),
    /// Time the models at published sizes with random weights
    Bench(Box<bench_command::Args>),
    /// Serve videos over HTTP: a queue of jobs, the API of /v1/videos and a page
    #[cfg(feature = "serve")]
    Serve(Box<serve::Args>),
    /// Plot the loss and other curves of training runs
    Plot(plot::Args),
    /// List the backends of this build and the available devices
    Devices(devices::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Print or write manual pages
    Man(man::Args),
    /// Try a device in this process, which its driver may end
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

/// Prints help, the version, or why the command line is wrong.
fn explain(error: &clap::Error) -> ExitCode {
    match error.print().map_err(OutputError::from) {
        // A usage error goes to standard error, where nobody needs to read it.
        _ if error.use_stderr() => ExitCode::from(2),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.into()),
    }
}

/// Says why a subcommand failed, on one line, and returns the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(OutputError::Closed) = error.downcast_ref() {
        return ExitCode::from(READER_GONE);
    }
    output::message(format_args!("error: {}", error_line(error.as_ref())));
    stop::exit_code().map_or(ExitCode::FAILURE, ExitCode::from)
}
