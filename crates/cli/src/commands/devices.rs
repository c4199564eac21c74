//! `opensora devices`: lists the devices of this machine and the backends that are compiled in.

use crate::{options::Report, output, trial};
use opensora::nn::device::{self, BackendInfo, DeviceInfo, DeviceKind};
use serde_json::{Value, json};

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

/// Headings of the table.
const HEADS: [&str; 6] = ["device", "kind", "adapter", "driver", "version", "memory"];

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let backends = device::list();
    // A device whose driver does not start is listed without details.
    let details: Vec<Vec<DeviceInfo>> =
        trial::silently(|| backends.iter().map(described).collect());
    let default = device::default_device().ok().and_then(|device| device::name(&device));
    if args.report.json {
        let rows: Vec<Value> = backends.iter().zip(&details).map(|(b, d)| as_json(b, d)).collect();
        return Ok(output::line(format_args!("{:#}", json!(rows)))?);
    }
    let rows: Vec<[String; 6]> = details.iter().flatten().map(row).collect();
    for line in table(&rows) {
        output::line(line)?;
    }
    output::line("")?;
    output::line(format_args!("default: {}", default.as_deref().unwrap_or("none, use --device")))?;
    if details.iter().flatten().any(|info| info.kind == DeviceKind::Software) {
        output::line(
            "software: a driver that computes on the processor, for tests; never the default",
        )?;
    }
    let names = |wanted: fn(&BackendInfo) -> bool| -> Vec<&str> {
        backends.iter().filter(|backend| wanted(backend)).map(|backend| backend.name).collect()
    };
    let without = names(|backend| backend.compiled && backend.devices.is_empty());
    if !without.is_empty() {
        output::line(format_args!("compiled in, without a device: {}", without.join(", ")))?;
    }
    let missing = names(|backend| !backend.compiled);
    if !missing.is_empty() {
        let missing = missing.join(", ");
        output::line(format_args!("not in this build: {missing} (build with --features NAME)"))?;
    }
    Ok(())
}

/// Returns the devices of a backend, without those that disappeared since they were listed.
fn described(backend: &BackendInfo) -> Vec<DeviceInfo> {
    backend.devices.iter().filter_map(|name| device::describe(name).ok()).collect()
}

fn as_json(backend: &BackendInfo, details: &[DeviceInfo]) -> Value {
    json!({
        "backend": backend.name,
        "compiled": backend.compiled,
        "devices": backend.devices,
        "details": details,
    })
}

fn row(info: &DeviceInfo) -> [String; 6] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    [
        info.name.clone(),
        info.kind.as_str().into(),
        or_dash(&info.adapter),
        match (&info.api, &info.driver) {
            (Some(api), Some(driver)) => format!("{driver} ({api})"),
            (Some(api), None) => format!("({api})"),
            (None, driver) => or_dash(driver),
        },
        or_dash(&info.driver_version),
        info.memory_bytes.map_or("-".into(), gibibytes),
    ]
}

/// Formats a size as in `15.6 GiB`.
fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// Returns the lines of a table, with columns as wide as their longest cell.
fn table(rows: &[[String; 6]]) -> Vec<String> {
    let heads = HEADS.map(String::from);
    let all: Vec<&[String; 6]> = std::iter::once(&heads).chain(rows).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let line = |row: &&[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let cells = |cells: [&str; 6]| cells.map(String::from);
        let rows = [
            cells(["flex", "cpu", "-", "-", "-", "-"]),
            cells([
                "wgpu:0",
                "software",
                "llvmpipe",
                "llvmpipe (Vulkan)",
                "Mesa 22.3.6",
                "15.6 GiB",
            ]),
        ];
        assert_eq!(
            table(&rows),
            [
                "device  kind      adapter   driver             version      memory",
                "flex    cpu       -         -                  -            -",
                "wgpu:0  software  llvmpipe  llvmpipe (Vulkan)  Mesa 22.3.6  15.6 GiB",
            ]
        );
        assert_eq!(gibibytes(141 << 30), "141.0 GiB");
    }
}
