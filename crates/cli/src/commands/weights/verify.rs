//! `opensora weights verify`: compares cached files with their checksums.

use super::{advance_bytes, hub, repository};
use crate::{
    options::Report,
    output::{self, OutputError},
    progress::Progress,
    stop,
};
use anyhow::{Context, bail};
use opensora::{
    hub::{self, Files, Hub, HubError, Lookup, Observer, Repository, Settings, Verdict, Verified},
    presets::{self, Origin, PRESETS, Preset},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    ops::ControlFlow,
    path::PathBuf,
};

/// Options of `opensora weights verify`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights verify
  opensora weights verify opensora-v1-hq-16x512x512
  opensora weights verify stabilityai/sd-vae-ft-ema --remove-damaged

Fails if a file is damaged, or if a named model is not in the cache. Files whose checksum the cache does not know are
listed as unknown, such as those of presets from outside the hub. Files in pretrained_models are not verified.")]
pub(crate) struct Args {
    /// Presets, or OWNER/NAME of repositories [default: all of the cache]
    #[arg(value_name = "PRESET|REPOSITORY")]
    models: Vec<String>,
    /// Remove damaged files, so that they can be fetched again
    #[arg(long)]
    remove_damaged: bool,
    #[command(flatten)]
    report: Report,
}

/// Shows the progress of a check; a signal stops it.
struct Shown<'a>(&'a mut Progress);

impl Observer for Shown<'_> {
    fn verified(&mut self, event: &Verified<'_>) -> ControlFlow<()> {
        advance_bytes(self.0, event.file, event.done, event.total);
        stop::flow()
    }
}

/// Files of one repository to verify.
struct Part {
    name: String,
    /// `None`: all cached files of the repository.
    file: Option<&'static str>,
    is_cached: bool,
}

/// The named models, or all, in the cache.
#[derive(Default)]
struct Found {
    /// Names of the files to verify in each repository; `None`: all cached ones.
    repositories: BTreeMap<Repository, Option<BTreeSet<&'static str>>>,
    /// Addresses of cached files from outside the hub.
    addresses: BTreeSet<String>,
    missing: Missing,
}

/// Repositories, addresses and files that are not cached.
type Missing = Vec<(String, Option<&'static str>)>;

/// A cached file and the result of its verification.
struct Row {
    /// Repository or address.
    origin: String,
    /// Name in the repository; `None` for an address.
    file: Option<String>,
    /// `None` for an address.
    commit: Option<String>,
    path: PathBuf,
    bytes: u64,
    verdict: Verdict,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let hub = hub()?;
    let Found { repositories, addresses, missing } = find(args, &hub)?;
    stop::listen();
    let mut rows = verify(&hub, repositories, args.report.quiet)?;
    for address in addresses {
        rows.push(unknown(&hub, address)?);
    }
    let damaged = rows.iter().filter(|row| is_damaged(row)).count();
    // Before anything is printed, which fails if the reader has closed the pipe.
    let removed = if args.remove_damaged { remove_damaged(&rows) } else { Ok(()) };
    let printed = match args.report.json {
        true => print_json(&rows, &missing, damaged),
        false => print(&rows, &missing),
    };
    removed?;
    printed?;
    let found = if damaged == 1 { "1 file is".into() } else { format!("{damaged} files are") };
    match (damaged, args.remove_damaged) {
        (0, _) if missing.is_empty() => Ok(()),
        (0, _) => bail!(
            "not cached: fetch with `opensora weights fetch`; files in pretrained_models are not verified"
        ),
        (_, true) => bail!("{found} damaged and removed: fetch again"),
        (_, false) => bail!("{found} damaged: remove with --remove-damaged, then fetch again"),
    }
}

/// Removes the damaged files.
fn remove_damaged(rows: &[Row]) -> anyhow::Result<()> {
    for row in rows.iter().filter(|row| is_damaged(row)) {
        std::fs::remove_file(&row.path).with_context(|| format!("{}", row.path.display()))?;
    }
    Ok(())
}

/// Looks up the named models in the cache, or all that it holds.
fn find(args: &Args, hub: &Hub) -> anyhow::Result<Found> {
    let mut parts: Vec<Part> = Vec::new();
    for name in &args.models {
        match Preset::find(name) {
            Some(preset) => parts.extend(parts_of(preset, hub)?),
            None => {
                let repository = repository(name)?;
                let is_cached = !hub.cache().describe(repository)?.files.is_empty();
                parts.push(Part { name: name.clone(), file: None, is_cached });
            }
        }
    }
    let mut found = Found::default();
    for part in parts {
        if !part.is_cached {
            let missing = (part.name, part.file);
            if !found.missing.contains(&missing) {
                found.missing.push(missing);
            }
        } else if part.name.contains("://") {
            found.addresses.insert(part.name);
        } else {
            let names = found.repositories.entry(part.name.parse()?);
            let names = names.or_insert_with(|| Some(BTreeSet::new()));
            match part.file {
                Some(file) => _ = names.as_mut().map(|names| names.insert(file)),
                None => *names = None,
            }
        }
    }
    if args.models.is_empty() {
        let all = hub.cache().repositories()?.into_iter().map(|found| (found.repository, None));
        found.repositories.extend(all);
        for preset in &PRESETS {
            if let Origin::Url(url) = preset.origin
                && hub.address_path(url)?.is_file()
            {
                found.addresses.insert(url.into());
            }
        }
    }
    Ok(found)
}

/// Compares files with their checksums, until a signal asks for an end.
fn verify(
    hub: &Hub,
    repositories: BTreeMap<Repository, Option<BTreeSet<&str>>>,
    quiet: bool,
) -> anyhow::Result<Vec<Row>> {
    let mut progress = Progress::new(quiet);
    let mut rows = Vec::new();
    for (repository, names) in repositories {
        let is_wanted = |name: &str| names.as_ref().is_none_or(|names| names.contains(name));
        let checked = hub.cache().verify_files(&repository, &is_wanted, &mut Shown(&mut progress));
        progress.finish();
        rows.extend(checked.map_err(or_stopped)?.into_iter().map(|file| Row {
            origin: repository.to_string(),
            file: Some(file.name),
            commit: Some(file.commit),
            path: file.path,
            bytes: file.size,
            verdict: file.verdict,
        }));
    }
    Ok(rows)
}

/// Returns the error of a check, or [`stop::Stopped`] if a signal ended it.
fn or_stopped(error: HubError) -> anyhow::Error {
    match error {
        HubError::Stopped => stop::Stopped("no file was changed".into()).into(),
        error => error.into(),
    }
}

/// Returns the row of a cached file from outside the hub, which has no checksum to compare.
fn unknown(hub: &Hub, address: String) -> anyhow::Result<Row> {
    let path = hub.address_path(&address)?;
    let bytes = path.metadata().with_context(|| path.display().to_string())?.len();
    let verdict = Verdict::Unknown;
    Ok(Row { origin: address, file: None, commit: None, path, bytes, verdict })
}

fn print_json(rows: &[Row], missing: &Missing, damaged: usize) -> Result<(), OutputError> {
    let files: Vec<_> = rows.iter().map(as_json).collect();
    let missing: Vec<_> = missing
        .iter()
        .map(|(repository, file)| json!({"repository": repository, "file": file}))
        .collect();
    output::json(&json!({ "files": files, "damaged": damaged, "missing": missing }))
}

fn print(rows: &[Row], missing: &Missing) -> Result<(), OutputError> {
    for Row { origin, file, verdict, .. } in rows {
        let file = file.as_deref();
        match verdict {
            Verdict::Good => line(origin, file, "good")?,
            Verdict::Damaged { found, expected } => {
                line(origin, file, format_args!("damaged: checksum {found}, expected {expected}"))?
            }
            _ => line(origin, file, "unknown")?,
        }
    }
    missing.iter().try_for_each(|(origin, file)| line(origin, *file, "not cached"))
}

/// Prints a row; `file` is `None` for an address or a whole repository.
fn line(origin: &str, file: Option<&str>, verdict: impl Display) -> Result<(), OutputError> {
    let space = if file.is_some() { " " } else { "" };
    output::line(format_args!("{origin}{space}{}: {verdict}", file.unwrap_or_default()))
}

/// Returns the parts of a preset: its own file, and the models that it is used with.
fn parts_of(preset: &Preset, hub: &Hub) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    match preset.origin {
        Origin::Url(url) => {
            let is_cached = hub.address_path(url)?.is_file();
            parts.push(Part { name: url.into(), file: None, is_cached });
        }
        Origin::Hub { repository, file } => {
            let files = hub.cache().describe(repository.parse()?)?.files;
            let is_cached = files.iter().any(|found| found.name == file);
            parts.push(Part { name: repository.into(), file: Some(file), is_cached });
        }
        _ => {}
    }
    let text_encoder = preset.denoiser_config().map(|_| presets::TEXT_ENCODER);
    for name in text_encoder.into_iter().chain([presets::VAE]) {
        // The revision that sampling uses.
        let offline = Hub::new(Settings { offline: true, ..hub.settings().clone() });
        let (revision, files) = ("main", &Files::Model);
        let wanted = hub::Wanted { repository: &name.parse()?, revision, files };
        let is_cached = match offline.fetch(&wanted, Lookup::CacheFirst, &mut ()) {
            Ok(_) => true,
            Err(HubError::Offline { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        parts.push(Part { name: name.into(), file: None, is_cached });
    }
    Ok(parts)
}

fn is_damaged(row: &Row) -> bool {
    matches!(row.verdict, Verdict::Damaged { .. })
}

fn as_json(row: &Row) -> serde_json::Value {
    let verdict = match &row.verdict {
        Verdict::Good => "good",
        Verdict::Damaged { .. } => "damaged",
        _ => "unknown",
    };
    json!({
        "repository": row.origin, "file": row.file, "commit": row.commit,
        "path": output::path(&row.path), "bytes": row.bytes, "verdict": verdict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_is_stopped_does_not_speak_of_a_download() {
        let stopped = or_stopped(HubError::Stopped);
        assert!(stopped.is::<stop::Stopped>());
        assert_eq!(stopped.to_string(), "stopped as asked: no file was changed");
    }
}
