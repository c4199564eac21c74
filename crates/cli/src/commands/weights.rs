//! `opensora weights`: published weights.

mod convert;
mod fetch;
mod inspect;
mod list;
mod verify;

use opensora::{
    hub::{Hub, HubError, Repository},
    presets::{self, Origin, Preset},
};

/// Options of `opensora weights`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights list
  opensora weights fetch opensora-v1-hq-16x512x512
  opensora weights fetch stabilityai/sd-vae-ft-ema
  opensora weights inspect OpenSora-v1-HQ-16x512x512.pth
  opensora weights convert t5-v1_1-xxl -o t5-bf16 --dtype bf16 --max-shard-size 2GB

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
    /// List the presets, and what the cache has
    List(list::Args),
    /// Say what weights are and what they would miss, from their headers
    Inspect(inspect::Args),
    /// Convert weights of any known layout to safetensors
    Convert(convert::Args),
    /// Compare the checksums of cached files
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

/// Returns the repositories of a preset's parts with the file in them, if it is one.
fn parts_of(preset: &Preset) -> Vec<(&'static str, &'static str)> {
    let mut parts = Vec::new();
    if let Origin::Hub { repository, file } = preset.origin {
        parts.push((repository, file));
    }
    if preset.denoiser_config().is_some() {
        parts.push((presets::TEXT_ENCODER, ""));
    }
    parts.push((presets::VAE, ""));
    parts
}

/// Returns the repositories that a preset or a repository's name stands for.
fn repositories(name: &str) -> Result<Vec<Repository>, HubError> {
    match Preset::find(name) {
        Some(preset) => parts_of(preset).into_iter().map(|(name, _)| name.parse()).collect(),
        None => Ok(vec![name.parse()?]),
    }
}

/// Returns the hub that the environment names.
fn hub() -> Result<Hub, HubError> {
    Hub::from_env()
}
