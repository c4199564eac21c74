//! `opensora probe-device`: a trial run of a device, started by `trial::check` in a separate process because
//! the driver may crash. Hidden.

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
