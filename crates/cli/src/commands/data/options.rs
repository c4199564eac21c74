//! Options that the data steps share.

use clap::Args as ClapArgs;
use opensora::prepare::{RunOptions, Shard, retry::RetryPolicy};
use std::time::Duration;

/// Workers, shard, and retries of failed rows. Each command adapts the help texts to its rows and passes
/// its default of `--workers` to [`run_options`](Self::run_options).
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct StepOptions {
    /// Rows processed at once
    #[arg(long, visible_alias = "parallel", value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Share i of n of the rows, such as 0/4, for several machines
    #[arg(long, default_value_t = Shard::WHOLE, value_name = "I/N")]
    pub(crate) shard: Shard,
    /// Retry rows that failed in an earlier run
    #[arg(long)]
    pub(crate) retry_failed: bool,
}

impl StepOptions {
    /// Returns the options; `workers` is the default of `--workers`.
    pub(crate) fn run_options(&self, workers: usize) -> RunOptions {
        RunOptions {
            workers: self.workers.unwrap_or(workers),
            shard: self.shard,
            retry_failed: self.retry_failed,
        }
    }
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
