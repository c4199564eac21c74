//! `opensora devices`: which backends are compiled in, and what is present of them.

use opensora::nn::device;
use serde_json::json;

/// Options of `opensora devices`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let backends = device::list();
    if args.json {
        let rows: Vec<_> = backends
            .iter()
            .map(|b| json!({"backend": b.name, "compiled": b.compiled, "devices": b.devices}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("{:<8}  {:<8}  devices (names for --device)", "backend", "compiled");
    for backend in backends {
        let devices = match (backend.compiled, backend.devices.is_empty()) {
            (true, false) => backend.devices.join(", "),
            (true, true) => "none present".into(),
            (false, _) => format!("build with --features {}", backend.name),
        };
        let compiled = if backend.compiled { "yes" } else { "no" };
        println!("{:<8}  {compiled:<8}  {devices}", backend.name);
    }
    Ok(())
}
