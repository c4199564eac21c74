//! `opensora weights list`: lists the presets and the cached repositories.

use super::hub;
use crate::{options::Report, output};
use indicatif::HumanBytes;
use opensora::{
    PRESETS, Preset,
    hub::{Cache, CachedRepository, Hub, RepositoryFile},
    presets::{self, Origin},
};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Options of `opensora weights list`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights list
  opensora weights list --json")]
pub(crate) struct Args {
    #[command(flatten)]
    report: Report,
}

/// A preset, and its file in the cache.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    origin: &'static str,
    file: &'static str,
    licence: Option<&'static str>,
    /// `None` if the file is not in the cache.
    path: Option<String>,
    commit: Option<String>,
    bytes: Option<u64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let hub = hub()?;
    let rows: Vec<Row> = PRESETS.iter().map(|preset| row(preset, &hub)).collect();
    let repositories = hub.cache().repositories()?;
    if args.report.json {
        let repositories: Vec<_> = repositories.iter().map(as_json).collect();
        return Ok(output::json(&json!({
            "cache": output::path(hub.cache().folder()), "presets": rows,
            "repositories": repositories,
        }))?);
    }
    output::line(format_args!("cache: {}", hub.cache().folder().display()))?;
    output::line("")?;
    for row in &rows {
        let size = row.bytes.map_or("not cached".into(), |bytes| HumanBytes(bytes).to_string());
        let licence = row.licence.unwrap_or("licence not stated");
        output::line(format_args!("{:<30} {size:>12}  {licence:<18}  {}", row.name, row.origin))?;
    }
    output::line("")?;
    let parts = [presets::TEXT_ENCODER, presets::VAE];
    let names = repositories.iter().map(|found| found.repository.as_str());
    let missing: Vec<&str> =
        parts.into_iter().filter(|part| !names.clone().any(|n| n == *part)).collect();
    for found in &repositories {
        let mut line =
            format!("{:<43} {:>12}", found.repository, HumanBytes(found.bytes).to_string());
        for (name, commit) in &found.refs {
            line += &format!("  {name} at {}", commit.get(..8).unwrap_or(commit));
        }
        if found.incomplete_bytes > 0 {
            line += &format!("  unfinished: {}", HumanBytes(found.incomplete_bytes));
        }
        output::line(line)?;
    }
    for part in missing {
        output::line(format_args!("{part:<43} {:>12}", "not cached"))?;
    }
    Ok(())
}

fn row(preset: &'static Preset, hub: &Hub) -> Row {
    let (file, path, commit) = match preset.origin {
        Origin::Hub { repository, file } => {
            let (path, commit) = cached(hub.cache(), repository, file);
            (file, path, commit)
        }
        Origin::Url(url) => {
            let path = hub.address_path(url).ok().filter(|path| path.is_file());
            (preset.files[0], path, None)
        }
        _ => (preset.files[0], None, None),
    };
    let bytes = path.as_deref().map(Path::metadata).and_then(Result::ok).map(|found| found.len());
    let (origin, path) = (preset.origin.place(), path.map(output::path));
    Row { name: preset.name, origin, file, licence: preset.licence, path, commit, bytes }
}

fn cached(cache: &Cache, repository: &str, file: &str) -> (Option<PathBuf>, Option<String>) {
    let found = repository.parse().ok().and_then(|repository| {
        let commit = cache.commit(&repository, "main")?;
        let wanted = RepositoryFile { repository: &repository, revision: &commit, name: file };
        Some((cache.find(&wanted)?, commit))
    });
    found.unzip()
}

fn as_json(found: &CachedRepository) -> serde_json::Value {
    let refs: serde_json::Map<_, _> =
        found.refs.iter().map(|(name, commit)| (name.clone(), json!(commit))).collect();
    let files: Vec<_> = found
        .files
        .iter()
        .map(|file| json!({"name": file.name, "commit": file.commit, "bytes": file.size}))
        .collect();
    json!({
        "repository": found.repository.as_str(), "bytes": found.bytes,
        "incomplete_bytes": found.incomplete_bytes, "refs": refs, "files": files,
    })
}
