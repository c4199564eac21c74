//! `opensora weights fetch`: fetches files from the hub into the cache.

use super::{hub, repository};
use crate::{fetch_progress::FetchProgress, options::Report, output};
use opensora::{
    Preset,
    hub::{Files, HubError, Lookup, Snapshot, Wanted, provenance},
    presets::PresetModel,
    pretrained::Pretrained,
};
use serde_json::json;
use std::path::PathBuf;

/// Options of `opensora weights fetch`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights fetch opensora-v1-hq-16x512x512
  opensora weights fetch DeepFloyd/t5-v1_1-xxl
  opensora weights fetch hpcai-tech/Open-Sora OpenSora-v1-16x256x256.pth
  opensora weights fetch owner/name --all --revision v1.0

Interrupted downloads resume. Sampling uses cached files without asking the hub; this command asks for the
newest commit. To update a repository with a model.json, use --all. Without FILE, a repository's
configuration, tokenizer and weights in one format are fetched. Parts of a preset that are in pretrained_models are not fetched: sampling uses them, and their
paths are printed.")]
pub(crate) struct Args {
    /// Preset (`opensora weights list` names them), or OWNER/NAME of a repository
    #[arg(value_name = "PRESET|REPOSITORY")]
    model: String,
    /// Files of the repository
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// Fetch all files of the repository
    #[arg(long, conflicts_with = "files")]
    all: bool,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
    #[command(flatten)]
    report: Report,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut progress = FetchProgress::new(args.report.quiet);
    let fetched = match Preset::find(&args.model) {
        Some(preset) => preset_paths(preset, args, &mut progress),
        None => repository_paths(args, &mut progress),
    };
    progress.finish();
    let paths = fetched?;
    if args.report.json {
        let files: Vec<_> = paths
            .iter()
            .map(|path| match provenance(path) {
                Some(from) => json!({
                    "path": output::path(path), "repository": from.repository.as_str(),
                    "commit": from.commit, "file": from.file,
                }),
                None => json!({ "path": output::path(path) }),
            })
            .collect();
        return Ok(output::json(&json!({ "model": args.model, "files": files }))?);
    }
    paths.iter().try_for_each(|path| output::line(path.display()))?;
    Ok(())
}

/// Fetches the parts of a preset: denoiser, text encoder and VAE.
fn preset_paths(
    preset: &Preset,
    args: &Args,
    progress: &mut FetchProgress,
) -> anyhow::Result<Vec<PathBuf>> {
    anyhow::ensure!(
        args.files.is_empty() && !args.all,
        "{}: FILE and --all are for repositories, a preset has fixed files",
        preset.name
    );
    let mut options = Pretrained::new(hub()?);
    options.lookup = Lookup::Ask;
    options.revision.clone_from(&args.revision);
    Ok(match preset.model {
        PresetModel::Class(..) => {
            let files = options.class_files(preset.name, progress)?;
            vec![files.denoiser, files.vae]
        }
        _ => {
            let files = options.text_files(preset.name, progress)?;
            vec![files.denoiser, files.t5, files.vae]
        }
    })
}

fn repository_paths(args: &Args, progress: &mut FetchProgress) -> anyhow::Result<Vec<PathBuf>> {
    let repository = repository(&args.model)?;
    let hub = hub()?;
    let files = match (args.all, &args.files[..]) {
        (true, _) => Files::All,
        (false, []) => Files::Model,
        (false, names) => Files::Named(names.to_vec()),
    };
    let revision = args.revision.as_str();
    let wanted = Wanted { repository: &repository, revision, files: &files };
    let Snapshot { folder, files: names, .. } =
        hub.fetch(&wanted, Lookup::Ask, progress).map_err(|error| {
            let unusual = files == Files::Model && matches!(error, HubError::FileNotFound { .. });
            match unusual {
                true => anyhow::Error::new(error).context("name the files, or use --all"),
                false => error.into(),
            }
        })?;
    Ok(names.iter().map(|name| folder.join(name)).collect())
}
