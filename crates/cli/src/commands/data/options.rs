//! Options that the data steps share.

use super::shard::{self, GivenShard, ShardError};
use crate::{options::Report, output};
use clap::{Arg, Args as ClapArgs};
use opensora::prepare::{RunOptions, Shard, retry::RetryPolicy};
use std::{env, time::Duration};

/// Workers, shard, and retries of failed rows. Each command adapts the help texts to its rows and passes
/// its default of `--workers` to [`run_options`](Self::run_options).
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct StepOptions {
    /// Rows processed at once
    #[arg(long, visible_alias = "parallel", value_name = "N")]
    workers: Option<usize>,
    /// Share i of n of the rows
    #[arg(long, value_name = "I/N")]
    shard: Option<GivenShard>,
    /// Retry rows that failed in an earlier run
    #[arg(long)]
    retry_failed: bool,
}

impl StepOptions {
    /// Returns the options; `workers` is the default of `--workers`. The shard is taken from the
    /// environment of a job array or of MPI unless `--shard` is given; a message says so.
    ///
    /// # Errors
    /// Returns an error if variables of the environment are malformed or contradictory.
    pub(crate) fn run_options(
        &self,
        workers: usize,
        report: Report,
    ) -> Result<RunOptions, ShardError> {
        let choice = shard::choose(self.shard, |name| env::var_os(name))?;
        if choice.shard != Shard::WHOLE && !choice.from.is_empty() && !report.quiet {
            output::message(&choice);
        }
        Ok(RunOptions {
            workers: self.workers.unwrap_or(workers),
            shard: choice.shard,
            retry_failed: self.retry_failed,
        })
    }
}

/// Sets the help of `--shard` for shares of `rows`, with `more` in the long help.
pub(crate) fn shard_help(arg: Arg, rows: &str, more: &str) -> Arg {
    let first = format!("Share i of n of the {rows}, such as 0/4, or none");
    let default = "[default: that of the job array or MPI rank, else none]";
    let long = format!(
        "{first}\n\n\
         Without this option, the tasks of a Slurm array or of srun, the pods of a Kubernetes Indexed Job \
         (with {} set to its completions) and the ranks of mpirun each take their share.{more} {default}",
        shard::ARRAY_SIZE
    );
    arg.help(format!("{first} {default}")).long_help(long)
}

/// Timeouts and retries of requests to servers.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct RequestOptions {
    /// Seconds to wait for a connection
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    connect_timeout: u64,
    /// Attempts per row if the server is busy or closes the connection
    #[arg(long, default_value_t = RetryPolicy::default().attempts, value_name = "N")]
    attempts: u32,
}

impl RequestOptions {
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout)
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy { attempts: self.attempts, ..RetryPolicy::default() }
    }
}
