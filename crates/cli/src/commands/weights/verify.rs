//! `opensora weights verify`: cached files against their checksums.

use super::{hub, repositories};
use crate::{options::Report, output, progress::Progress, stop};
use anyhow::{Context, bail};
use opensora::hub::{Checked, Repository, Verdict};
use serde_json::json;

/// Options of `opensora weights verify`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights verify
  opensora weights verify opensora-v1-hq-16x512x512
  opensora weights verify stabilityai/sd-vae-ft-ema --remove-damaged

Fails if a file is damaged. Files whose checksum the cache does not know are listed as unknown.")]
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

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cache = hub()?.cache().clone();
    let mut wanted: Vec<Repository> = Vec::new();
    for name in &args.models {
        wanted.extend(repositories(name).with_context(|| format!("no preset '{name}'"))?);
    }
    if args.models.is_empty() {
        wanted.extend(cache.repositories()?.into_iter().map(|found| found.repository));
    }
    wanted.sort();
    wanted.dedup();
    stop::listen();
    let mut progress = Progress::new(args.report.quiet);
    let mut rows: Vec<(Repository, Checked)> = Vec::new();
    for repository in wanted {
        let checked = cache.verify(&repository, &mut |name, done, total| {
            // Counted in MB: bytes have too many digits to read.
            progress.advance(name, (done >> 20) as usize, (total >> 20) as usize);
            stop::flow()
        });
        progress.finish();
        rows.extend(checked?.into_iter().map(|file| (repository.clone(), file)));
    }
    let damaged = rows.iter().filter(|(_, file)| is_damaged(file)).count();
    if args.report.json {
        let files: Vec<_> =
            rows.iter().map(|(repository, file)| as_json(repository, file)).collect();
        output::json(&json!({ "files": files, "damaged": damaged }))?;
    } else {
        for (repository, file) in &rows {
            let verdict = match &file.verdict {
                Verdict::Good => "good".into(),
                Verdict::Damaged { found, expected } => {
                    format!("damaged: checksum {found}, expected {expected}")
                }
                _ => "unknown".into(),
            };
            output::line(format_args!("{repository} {}: {verdict}", file.name))?;
        }
    }
    if args.remove_damaged {
        for (_, file) in rows.iter().filter(|(_, file)| is_damaged(file)) {
            std::fs::remove_file(&file.path).with_context(|| format!("{}", file.path.display()))?;
        }
    }
    let found = if damaged == 1 { "1 file is".into() } else { format!("{damaged} files are") };
    match (damaged, args.remove_damaged) {
        (0, _) => Ok(()),
        (_, true) => bail!("{found} damaged and removed: fetch again"),
        (_, false) => bail!("{found} damaged: remove with --remove-damaged, then fetch again"),
    }
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
        "path": file.path, "bytes": file.size, "verdict": verdict,
    })
}
