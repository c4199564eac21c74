//! `opensora devices`: backends that are compiled in, and their available devices.

use crate::{options::Report, output};
use opensora::nn::device;
use serde_json::json;

/// Options of `opensora devices`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora devices
  opensora devices --json")]
pub(crate) struct Args {
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let backends = device::list();
    if args.report.json {
        let rows: Vec<_> = backends
            .iter()
            .map(|b| json!({"backend": b.name, "compiled": b.compiled, "devices": b.devices}))
            .collect();
        return Ok(output::line(format_args!("{:#}", json!(rows)))?);
    }
    output::line(format_args!(
        "{:<8}  {:<8}  devices (names for --device)",
        "backend", "compiled"
    ))?;
    for backend in backends {
        let devices = match (backend.compiled, backend.devices.is_empty()) {
            (true, false) => backend.devices.join(", "),
            (true, true) => "none present".into(),
            (false, _) => format!("build with --features {}", backend.name),
        };
        let compiled = if backend.compiled { "yes" } else { "no" };
        output::line(format_args!("{:<8}  {compiled:<8}  {devices}", backend.name))?;
    }
    Ok(())
}
