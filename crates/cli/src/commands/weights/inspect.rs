//! `opensora weights inspect`: identifies weights from the headers of their files.

use super::{
    hub,
    locate::{MAIN, Place, locate},
};
use crate::{fetch_progress::FetchProgress, options::Report, output};
use anyhow::{Context, bail};
use opensora::{
    checkpoint::Checkpoint,
    files::error_line,
    hub::{Files, Lookup, Repository, RepositoryFile, Wanted},
    inspect::{Inspection, Unfit, inspect},
    nn::device,
};
use serde_json::json;
use std::{collections::BTreeMap, fs::File, io::Write};
use tempfile::TempDir;

/// Options of `opensora weights inspect`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights inspect OpenSora-v1-HQ-16x512x512.pth
  opensora weights inspect DeepFloyd/t5-v1_1-xxl --keys
  opensora weights inspect stabilityai/sd-vae-ft-ema --json

For a repository that is not in the cache, only the headers of its safetensors files are fetched. Files in
PyTorch's format, such as those of the presets, must be fetched first. A preset's file is searched in
pretrained_models, then in the cache.")]
pub(crate) struct Args {
    /// File, index or folder of weights, a preset, or OWNER/NAME of a repository
    #[arg(value_name = "WEIGHTS")]
    weights: String,
    /// File of the repository
    #[arg(value_name = "FILE")]
    file: Option<String>,
    /// Branch, tag or commit of the repository
    #[arg(long, default_value = MAIN)]
    revision: String,
    /// List every tensor with its dtype and shape
    #[arg(long)]
    keys: bool,
    #[command(flatten)]
    report: Report,
}

/// Checkpoint to inspect: opened files, or downloaded headers in a temporary folder.
struct Found {
    checkpoint: Checkpoint,
    /// Folder of the headers, removed when dropped.
    _folder: Option<TempDir>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let found = find(args)?;
    let checkpoint = &found.checkpoint;
    let inspection = inspect(checkpoint, &device::default_device()?);
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    let mut elements = 0_usize;
    for tensor in checkpoint.tensors().values() {
        let name = tensor.dtype().map_or("unreadable".into(), |dtype| format!("{dtype:?}"));
        *dtypes.entry(name).or_default() += 1;
        elements = elements.saturating_add(tensor.shape().iter().product());
    }
    if args.report.json {
        return print_json(args, checkpoint, &inspection, &dtypes, elements);
    }
    let count = checkpoint.tensors().len();
    let types: Vec<String> = dtypes.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let millions = elements as f64 / 1e6;
    output::line(format_args!("tensors: {count} ({}), {millions:.1} M numbers", types.join(", ")))?;
    match &inspection.outcome {
        Ok(report) => {
            output::line(format_args!("artefact: {}, {}", inspection.artefact, inspection.sizes))?;
            output::line(format_args!("fits: {report}"))?;
        }
        Err(unfit) => {
            let (near, sizes) = (&inspection.artefact, inspection.sizes);
            output::line(format_args!("artefact: unknown; nearest: {near}, {sizes}"))?;
            let reason = match unfit {
                Unfit::Keys(mismatch) => mismatch.to_string(),
                Unfit::Other(reason) => error_line(reason.as_ref()),
                _ => String::new(),
            };
            output::line(reason)?;
        }
    }
    if args.keys {
        for (key, tensor) in checkpoint.tensors() {
            let dtype = tensor.dtype().map_or("unreadable".into(), |dtype| format!("{dtype:?}"));
            let key = opensora::files::one_line(key);
            output::line(format_args!("{key}  {dtype}  {:?}", tensor.shape()))?;
        }
    }
    Ok(())
}

fn print_json(
    args: &Args,
    checkpoint: &Checkpoint,
    inspection: &Inspection,
    dtypes: &BTreeMap<String, usize>,
    elements: usize,
) -> anyhow::Result<()> {
    let (missing, unused, shapes, reason) = match &inspection.outcome {
        Ok(_) => (vec![], vec![], vec![], None),
        Err(Unfit::Keys(mismatch)) => {
            let shapes = mismatch.shapes.iter().map(
                |shape| json!({"key": shape.key, "found": shape.found, "expected": shape.expected}),
            );
            let (missing, unused) = (mismatch.missing.clone(), mismatch.unused.clone());
            (missing, unused, shapes.collect(), Some(mismatch.likely_cause.clone()))
        }
        Err(Unfit::Other(reason)) => (vec![], vec![], vec![], Some(error_line(reason.as_ref()))),
        Err(_) => (vec![], vec![], vec![], None),
    };
    let tensors: BTreeMap<&str, _> = checkpoint
        .tensors()
        .iter()
        .map(|(key, tensor)| {
            let dtype = tensor.dtype().map(|dtype| format!("{dtype:?}"));
            (key.as_str(), json!({"dtype": dtype, "shape": tensor.shape()}))
        })
        .collect();
    Ok(output::json(&json!({
        "weights": args.weights, "artefact": inspection.artefact, "sizes": inspection.sizes,
        "fits": inspection.outcome.is_ok(), "missing": missing, "left_over": unused,
        "other_shapes": shapes, "reason": reason, "dtypes": dtypes, "numbers": elements,
        "tensors": tensors,
    }))?)
}

fn find(args: &Args) -> anyhow::Result<Found> {
    match locate(&args.weights, args.file.as_deref(), &args.revision)? {
        Place::Path(path) => Ok(Found { checkpoint: Checkpoint::open(path)?, _folder: None }),
        Place::Hub { repository, file } => remote(&hub()?, &repository, file, args),
    }
}

/// Reads the headers of a repository's safetensors files into sparse files of the full size.
fn remote(
    hub: &opensora::hub::Hub,
    repository: &Repository,
    file: Option<String>,
    args: &Args,
) -> anyhow::Result<Found> {
    let mut progress = FetchProgress::new(args.report.quiet);
    let listing = hub.list(repository, &args.revision, &mut progress)?;
    let headers: Vec<String> = match file {
        Some(file) => vec![file],
        None => {
            let top = |name: &&String| name.ends_with(".safetensors") && !name.contains('/');
            listing.files.iter().filter(top).cloned().collect()
        }
    };
    if headers.is_empty() || headers.iter().any(|name| !name.ends_with(".safetensors")) {
        bail!(
            "{repository}: no safetensors files found, and other formats have no header to read: fetch the \
             weights with `opensora weights fetch`"
        );
    }
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let plain = |name: &str| folder.path().join(name.rsplit('/').next().unwrap_or(name));
    for name in &headers {
        let file = RepositoryFile { repository, revision: &listing.commit, name };
        let (header, size) = hub.safetensors_header(&file, &mut progress)?;
        let path = plain(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&header)?;
            // Sparse: takes no space on most file systems.
            file.set_len(size)
        };
        write().with_context(|| path.display().to_string())?;
    }
    let config = Files::Named(vec!["config.json".into()]);
    if listing.files.contains("config.json") {
        let revision = listing.commit.as_str();
        let wanted = Wanted { repository, revision, files: &config };
        let snapshot = hub.fetch(&wanted, Lookup::CacheFirst, &mut progress)?;
        std::fs::copy(snapshot.folder.join("config.json"), folder.path().join("config.json"))
            .context("config.json")?;
    }
    progress.finish();
    let index = "model.safetensors.index.json";
    let checkpoint = match &headers[..] {
        [one] => Checkpoint::open(plain(one))?,
        // The weights are the tensors of all files.
        several => {
            let mut weight_map = BTreeMap::new();
            for name in several {
                let shard = plain(name);
                let shard_name =
                    shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let keys: Vec<String> =
                    Checkpoint::open(&shard)?.keys().map(String::from).collect();
                weight_map.extend(keys.into_iter().map(|key| (key, shard_name.clone())));
            }
            let path = folder.path().join(index);
            std::fs::write(&path, json!({ "weight_map": weight_map }).to_string())
                .context("the index of headers")?;
            Checkpoint::open(&path)?
        }
    };
    Ok(Found { checkpoint, _folder: Some(folder) })
}
