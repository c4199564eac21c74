//! `opensora weights convert`: converts weights of any known layout to safetensors.

use super::{
    advance_bytes,
    locate::{MAIN, Place, locate},
};
use crate::{
    model::BESIDE,
    options::{Report, parse_bytes},
    output,
    progress::Progress,
    stop,
};
use anyhow::{Context, bail};
use opensora::{
    checkpoint::{Checkpoint, ConvertSpec, Converted, Observer, Written},
    files::{
        AtomicFolder, CreatedFolders, Existing, folder_of,
        read::{MAX_CONFIG_BYTES, read_text},
    },
    nn::dtype::Dtype,
};
use serde_json::{Value, json};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Options of `opensora weights convert`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora weights convert OpenSora-v1-HQ-16x512x512.pth -o stdit.safetensors
  opensora weights convert DeepFloyd/t5-v1_1-xxl -o t5-bf16 --dtype bf16 --max-shard-size 2GB

Tensors are read and written one by one: memory holds the largest one only. A folder's config.json and
tokenizer are copied beside the weights. Repositories must be in the cache (`opensora weights fetch`), presets
in pretrained_models or the cache. Files in a folder are named as by transformers, those of a VAE as by
diffusers.")]
pub(crate) struct Args {
    /// File, index or folder of weights, or a cached preset or OWNER/NAME of a repository
    #[arg(value_name = "WEIGHTS")]
    weights: String,
    /// File ending in .safetensors, or a folder that is new or empty
    #[arg(long, short, alias = "output", value_name = "PATH")]
    out: PathBuf,
    /// Float type: f32, bf16 or f16 [default: as in the file]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Maximum size of a file in an output folder, such as 500MB or 2GB [default: one file for all tensors]
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    max_shard_size: Option<u64>,
    /// Fail if the output exists already, instead of replacing a file
    #[arg(long)]
    no_overwrite: bool,
    #[command(flatten)]
    report: Report,
}

/// Prefix of the names of weights in diffusers; transformers uses `model`.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = match locate(&args.weights, None, MAIN)? {
        Place::Path(path) => Checkpoint::open(path)?,
        Place::Hub { .. } => {
            bail!("{}: not in the cache: fetch it with `opensora weights fetch {0}`", args.weights)
        }
    };
    let is_file = args.out.extension().is_some_and(|ending| ending == "safetensors");
    if is_file && args.max_shard_size.is_some() {
        bail!("--max-shard-size is for a folder: name one with --out");
    }
    if args.no_overwrite && args.out.exists() {
        bail!("{}: it exists already", args.out.display());
    }
    // Checked before the conversion, which may take minutes.
    if !is_file && args.out.is_dir() {
        let out = args.out.display();
        if args.out.read_dir()?.next().is_some() {
            bail!("{out}: the folder is not empty: name a new or an empty one");
        }
        // Mounted folders and links to folders cannot be replaced. The working directory is replaced at the end
        // only: relative paths would lead nowhere.
        if args.out.canonicalize()? != std::env::current_dir()?.canonicalize()? {
            AtomicFolder::create(&args.out, Existing::Replace)
                .and_then(AtomicFolder::commit)
                .with_context(|| {
                    format!("{out}: it cannot be replaced: name a new folder in it")
                })?;
        }
    }
    let parent = folder_of(&args.out);
    let _created = CreatedFolders::create(parent).with_context(|| parent.display().to_string())?;
    let dtype = args.dtype.map(Dtype::float);
    stop::listen();
    let mut observer = ConvertProgress(Progress::new(args.report.quiet));
    let converted = match is_file {
        true => checkpoint.convert_to_file(dtype, &args.out, &mut observer),
        false => {
            let max_shard_bytes = args.max_shard_size.unwrap_or(u64::MAX);
            let spec = ConvertSpec { dtype, max_shard_bytes };
            let out = || args.out.display().to_string();
            let existing = if args.no_overwrite { Existing::Refuse } else { Existing::Replace };
            let folder = AtomicFolder::create(&args.out, existing).with_context(out)?;
            let converted = checkpoint.convert(&spec, folder.temporary_path(), &mut observer);
            match converted {
                Ok(converted) => {
                    copy_beside(&checkpoint, folder.temporary_path())?;
                    let converted = match is_of_diffusers(&checkpoint) {
                        true => renamed(converted)?,
                        false => converted,
                    };
                    folder.commit().with_context(out)?;
                    Ok(moved(converted, &args.out))
                }
                Err(error) => Err(error),
            }
        }
    };
    observer.0.finish();
    let converted = converted.map_err(|error| match stop::exit_code() {
        Some(_) => stop::Stopped("nothing was written".into()).into(),
        None => anyhow::Error::from(error),
    })?;
    let Converted { files, index, tensors, bytes } = converted;
    if args.report.json {
        let files: Vec<_> = files.iter().map(output::path).collect();
        return Ok(output::json(&json!({
            "out": output::path(&args.out), "files": files, "index": index.map(output::path),
            "tensors": tensors, "bytes": bytes,
        }))?);
    }
    Ok(output::line(format_args!(
        "{tensors} tensors, {bytes} bytes in {}: {}",
        if files.len() == 1 { "1 file".into() } else { format!("{} files", files.len()) },
        args.out.display()
    ))?)
}

/// Shows the progress of a conversion, and stops it if a signal was received.
struct ConvertProgress(Progress);

impl Observer for ConvertProgress {
    fn written(&mut self, event: &Written) -> ControlFlow<()> {
        advance_bytes(&mut self.0, "converting (MB)", event.bytes, event.total_bytes);
        stop::flow()
    }
}

/// Copies configuration and tokenizer beside the weights, so that the folder can be loaded as a model.
fn copy_beside(checkpoint: &Checkpoint, folder: &Path) -> anyhow::Result<()> {
    let from = checkpoint.path();
    if !from.is_dir() {
        return Ok(());
    }
    for name in BESIDE {
        let path = from.join(name);
        if path.is_file() {
            // The contents only: a copy of a read-only file could not be changed.
            let copy = || std::fs::write(folder.join(name), std::fs::read(&path)?);
            copy().with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Returns true for weights in diffusers' layout, whose files have another prefix.
fn is_of_diffusers(checkpoint: &Checkpoint) -> bool {
    let config = folder_of(checkpoint.taken()).join("config.json");
    // Only diffusers writes the class into config.json.
    let names_class = read_text(&config, MAX_CONFIG_BYTES)
        .ok()
        .and_then(|text| serde_json::from_str::<Value>(&text).ok())
        .is_some_and(|config| config.get("_class_name").is_some());
    let name = checkpoint.taken().file_name().unwrap_or_default().to_string_lossy();
    names_class && checkpoint.path().is_dir() || name.starts_with(DIFFUSERS_STEM)
}

/// Renames files and index to the names that diffusers expects.
fn renamed(converted: Converted) -> anyhow::Result<Converted> {
    let rename = |path: &PathBuf| -> anyhow::Result<PathBuf> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = path.with_file_name(name.replacen("model", DIFFUSERS_STEM, 1));
        std::fs::rename(path, &to).with_context(|| to.display().to_string())?;
        Ok(to)
    };
    let files = converted.files.iter().map(rename).collect::<anyhow::Result<_>>()?;
    let index = converted.index.as_ref().map(rename).transpose()?;
    if let Some(path) = &index {
        let context = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(context)?;
        let mut index: Value = serde_json::from_str(&text).with_context(context)?;
        for (_, file) in index["weight_map"].as_object_mut().into_iter().flatten() {
            *file = file.as_str().unwrap_or_default().replacen("model", DIFFUSERS_STEM, 1).into();
        }
        std::fs::write(path, format!("{index:#}\n")).with_context(context)?;
    }
    Ok(Converted { files, index, ..converted })
}

/// Returns the paths of the files after their folder was renamed to `folder`.
fn moved(converted: Converted, folder: &Path) -> Converted {
    let moved = |path: &PathBuf| folder.join(path.file_name().unwrap_or_default());
    let files = converted.files.iter().map(moved).collect();
    Converted { files, index: converted.index.as_ref().map(moved), ..converted }
}
