//! Options that subcommands share, so that they are spelled the same everywhere.

use crate::trial;
use anyhow::Context;
use burn::tensor::Device;
use opensora::nn::device;

/// How a subcommand reports.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Report {
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Show no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// The device to compute on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceName {
    /// Device, such as flex, cuda:0 or vulkan; `opensora devices` lists them [default: the first
    /// available that is no software driver]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

impl DeviceName {
    /// Opens the device, or the preferred one if none was named.
    pub(crate) fn open(&self) -> anyhow::Result<Device> {
        open_device(self.device.as_deref())
    }
}

/// Opens the device of a name, or the preferred one, and makes sure that it computes.
pub(crate) fn open_device(name: Option<&str>) -> anyhow::Result<Device> {
    let device = match name {
        Some(name) => device::parse(name),
        None => device::default_device(),
    }
    .context("--device")?;
    trial::check(&device).context("--device")?;
    Ok(device)
}
