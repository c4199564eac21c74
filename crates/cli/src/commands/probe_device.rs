//! `opensora probe-device`: one trial run, in a separate process since the driver may crash. Hidden:
//! `trial::check` starts it.

use crate::trial;
use opensora::nn::device;

/// Options of `opensora probe-device`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Device to try
    name: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let device = device::parse(&args.name)?;
    Ok(trial::silently(|| device::probe(&device))?)
}
