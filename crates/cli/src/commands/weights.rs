//! `opensora weights`: fetches, lists, inspects, converts and verifies weights.

mod convert;
mod fetch;
mod inspect;
mod list;
mod locate;
mod verify;

use crate::progress::Progress;
use anyhow::bail;
use opensora::{
    hub::{Hub, HubError, Repository},
    presets::PRESETS,
    pretrained::has_file_ending,
};

/// Options of `opensora weights`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights list
  opensora weights fetch opensora-v1-hq-16x512x512
  opensora weights fetch stabilityai/sd-vae-ft-ema
  opensora weights inspect OpenSora-v1-HQ-16x512x512.pth
  opensora weights convert DeepFloyd/t5-v1_1-xxl -o t5-bf16 --dtype bf16 --max-shard-size 2GB

Environment, as for Python's huggingface_hub:
  HF_HOME         folder of cache and token [default: ~/.cache/huggingface]
  HF_HUB_CACHE    the cache [default: $HF_HOME/hub]
  HF_TOKEN        access token; else the file $HF_HOME/token
  HF_ENDPOINT     the hub [default: https://huggingface.co]
  HF_HUB_OFFLINE  1: use the cache only")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Fetch a preset or files of a repository into the cache
    Fetch(fetch::Args),
    /// List the presets and the cached repositories
    List(list::Args),
    /// Identify weights and missing tensors from the headers of their files
    Inspect(inspect::Args),
    /// Convert weights of any known layout to safetensors
    Convert(convert::Args),
    /// Verify cached files by their checksums
    Verify(verify::Args),
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Fetch(args) => fetch::run(&args),
        Command::List(args) => list::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

/// Parses a repository, OWNER/NAME. Names that look like a preset or a file are rejected here, because the
/// hub would only report a missing repository.
fn repository(name: &str) -> anyhow::Result<Repository> {
    match name.parse() {
        Ok(repository) if name.contains('/') && !has_file_ending(name) => Ok(repository),
        _ => {
            let presets: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            bail!(
                "no such preset or file '{}': expected OWNER/NAME of a repository or one of {}",
                opensora::files::one_line(name),
                presets.join(", ")
            )
        }
    }
}

/// Shows bytes as MB, since bytes have too many digits to read.
fn advance_bytes(progress: &mut Progress, stage: &str, done: u64, total: u64) {
    if let Some((done, total)) = megabytes(done, total) {
        progress.advance(stage, done, total);
    }
}

/// Returns the completed and the total number of MB, or `None` if the total is below one MB. The last MB
/// is complete with the last byte.
fn megabytes(done: u64, total: u64) -> Option<(usize, usize)> {
    const MB: u64 = 1_000_000;
    let all = total.div_ceil(MB);
    let done = if done < total { done / MB } else { all };
    (total >= MB).then_some((done as usize, all as usize))
}

/// Returns the hub of the environment.
fn hub() -> Result<Hub, HubError> {
    Hub::from_env()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_megabyte_counts_when_all_is_done() {
        assert_eq!(megabytes(0, 1_500_000), Some((0, 2)));
        assert_eq!(megabytes(1_499_999, 1_500_000), Some((1, 2)));
        assert_eq!(megabytes(1_500_000, 1_500_000), Some((2, 2)));
        assert_eq!(megabytes(1_999_999, 2_000_000), Some((1, 2)));
        assert_eq!((megabytes(0, 0), megabytes(10, 999_999)), (None, None));
    }
}
