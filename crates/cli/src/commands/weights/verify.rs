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
    hub::{
        self, Checked, Files, Hub, HubError, Lookup, Observer, Repository, Settings, Verdict,
        Verified,
    },
    presets::{self, Origin, Preset},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

/// Options of `opensora weights verify`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights verify
  opensora weights verify opensora-v1-hq-16x512x512
  opensora weights verify stabilityai/sd-vae-ft-ema --remove-damaged

Fails if a file is damaged, or if a named model is not in the cache. Files whose checksum the cache does not know are
listed as unknown.")]
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

/// Names of the files to verify in each repository; `None`: all cached ones.
type Wanted<'a> = BTreeMap<Repository, Option<BTreeSet<&'a str>>>;

/// Repositories, addresses and files that are not cached.
type Missing<'a> = Vec<(String, Option<&'a str>)>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let hub = hub()?;
    let (wanted, missing) = find(args, &hub)?;
    stop::listen();
    let rows = verify(&hub, wanted, args.report.quiet)?;
    let damaged = rows.iter().filter(|(_, file)| is_damaged(file)).count();
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
        (0, _) => bail!("not cached: fetch with `opensora weights fetch`"),
        (_, true) => bail!("{found} damaged and removed: fetch again"),
        (_, false) => bail!("{found} damaged: remove with --remove-damaged, then fetch again"),
    }
}

/// Removes the damaged files.
fn remove_damaged(rows: &[(Repository, Checked)]) -> anyhow::Result<()> {
    for (_, file) in rows.iter().filter(|(_, file)| is_damaged(file)) {
        std::fs::remove_file(&file.path).with_context(|| format!("{}", file.path.display()))?;
    }
    Ok(())
}

/// Looks up the named models in the cache, or all that it holds.
fn find(args: &Args, hub: &Hub) -> anyhow::Result<(Wanted<'static>, Missing<'static>)> {
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
    let (mut wanted, mut missing) = (Wanted::new(), Missing::new());
    for part in parts {
        // A file outside the hub has no checksum to compare.
        let is_address = part.name.contains("://");
        if !part.is_cached && !missing.contains(&(part.name.clone(), part.file)) {
            missing.push((part.name, part.file));
        } else if part.is_cached && !is_address {
            let names = wanted.entry(part.name.parse()?).or_insert_with(|| Some(BTreeSet::new()));
            match part.file {
                Some(file) => _ = names.as_mut().map(|names| names.insert(file)),
                None => *names = None,
            }
        }
    }
    if args.models.is_empty() {
        let all = hub.cache().repositories()?.into_iter().map(|found| (found.repository, None));
        wanted.extend(all);
    }
    Ok((wanted, missing))
}

/// Compares files with their checksums, until a signal asks for an end.
fn verify(
    hub: &Hub,
    wanted: Wanted<'_>,
    quiet: bool,
) -> anyhow::Result<Vec<(Repository, Checked)>> {
    let mut progress = Progress::new(quiet);
    let mut rows = Vec::new();
    for (repository, names) in wanted {
        let is_wanted = |name: &str| names.as_ref().is_none_or(|names| names.contains(name));
        let checked = hub.cache().verify_files(&repository, &is_wanted, &mut Shown(&mut progress));
        progress.finish();
        rows.extend(checked?.into_iter().map(|file| (repository.clone(), file)));
    }
    Ok(rows)
}

fn print_json(
    rows: &[(Repository, Checked)],
    missing: &Missing<'_>,
    damaged: usize,
) -> Result<(), OutputError> {
    let files: Vec<_> = rows.iter().map(|(repository, file)| as_json(repository, file)).collect();
    let missing: Vec<_> = missing
        .iter()
        .map(|(repository, file)| json!({"repository": repository, "file": file}))
        .collect();
    output::json(&json!({ "files": files, "damaged": damaged, "missing": missing }))
}

fn print(rows: &[(Repository, Checked)], missing: &Missing<'_>) -> Result<(), OutputError> {
    for (repository, file) in rows {
        let verdict = match &file.verdict {
            Verdict::Good => "good".into(),
            Verdict::Damaged { found, expected } => {
                format!("damaged: checksum {found}, expected {expected}")
            }
            _ => "unknown".into(),
        };
        output::line(format_args!("{repository} {}: {verdict}", file.name))?;
    }
    for (repository, file) in missing {
        let space = if file.is_some() { " " } else { "" };
        let file = file.unwrap_or_default();
        output::line(format_args!("{repository}{space}{file}: not cached"))?;
    }
    Ok(())
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

fn is_damaged(file: &Checked) -> bool {
    matches!(file.verdict, Verdict::Damaged { .. })
}

fn as_json(repository: &Repository, file: &Checked) -> serde_json::Value {
    let verdict = match &file.verdict {
        Verdict::Good => "good",
        Verdict::Damaged { .. } => "damaged",
        _ => "unknown",
    };
    json!({
        "repository": repository.as_str(), "file": file.name, "commit": file.commit,
        "path": output::path(&file.path), "bytes": file.size, "verdict": verdict,
    })
}
