//! Identifies a file of weights by its headers.

use crate::{
    checkpoint::{Checkpoint, CheckpointError, ImportReport, Mismatch, PublishedModel},
    stdit::{
        ClassConfig, DenoiserConfig, Dit, LabelCondition, Latte, LoadError, PixArt, PixArtMs, StDit,
    },
    t5::{self, T5Config, T5Encoder},
    vae::{self, AutoencoderKl, VaeConfig},
};
use burn::tensor::Device;
use std::{error::Error, path::Path};

/// The model that a checkpoint belongs to, by its keys and shapes.
#[derive(Debug)]
pub struct Inspection {
    /// The known model that fits, or else the nearest one.
    pub artefact: String,
    /// Source of the sizes of that model: published ones, a `config.json` beside the weights, or the shapes
    /// of the tensors.
    pub sizes: &'static str,
    /// The report of an import, or the reason why the checkpoint does not fit.
    pub outcome: Result<ImportReport, Unfit>,
}

/// Reason why a checkpoint does not fit a model.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unfit {
    /// Keys are missing, unused or of another shape.
    Keys(Box<Mismatch>),
    /// Another reason.
    Other(Box<dyn Error + Send + Sync>),
}

/// Published sizes.
const PUBLISHED: &str = "published sizes";
/// Sizes from the shapes of the tensors.
const SHAPES: &str = "sizes of its tensors";
/// Sizes from a file beside the weights.
const CONFIG: &str = "sizes of config.json";

/// Result of comparing a checkpoint with one model.
struct Candidate {
    name: &'static str,
    sizes: &'static str,
    outcome: Result<ImportReport, Unfit>,
}

/// Compares a checkpoint with every known model; reads no tensor.
pub fn inspect(checkpoint: &Checkpoint, device: &Device) -> Inspection {
    let mut candidates = denoisers(checkpoint, device);
    candidates.extend(text_encoder(checkpoint, device));
    candidates.extend(vae(checkpoint, device));
    let best = candidates.into_iter().min_by_key(|candidate| match &candidate.outcome {
        Ok(_) => (0, 0),
        Err(Unfit::Keys(mismatch)) => {
            (1, mismatch.missing.len() + mismatch.unused.len() + mismatch.shapes.len())
        }
        Err(Unfit::Other(_)) => (2, 0),
    });
    match best {
        Some(Candidate { name, sizes, outcome }) => {
            Inspection { artefact: name.into(), sizes, outcome }
        }
        None => Inspection {
            artefact: "unknown".into(),
            sizes: PUBLISHED,
            outcome: Err(Unfit::Other("no model is known".into())),
        },
    }
}

fn denoisers(checkpoint: &Checkpoint, device: &Device) -> Vec<Candidate> {
    let (found, class, sizes) = match crate::stdit::keys::unwrapped(checkpoint) {
        Ok(plain) => sizes_of(&plain),
        Err(_) => (DenoiserConfig::xl_2(), None, PUBLISHED),
    };
    let text = |name, outcome: Result<ImportReport, LoadError>| Candidate {
        name,
        sizes,
        outcome: outcome.map_err(of_load_error),
    };
    let classes = |published: ClassConfig| match class {
        None => published,
        Some(rows) => ClassConfig {
            hidden_size: found.hidden_size,
            depth: found.depth,
            num_heads: found.num_heads,
            patch_size: found.patch_size,
            in_channels: found.in_channels,
            // One row is the null class.
            condition: LabelCondition { num_classes: rows.saturating_sub(1).max(1) },
            ..published
        },
    };
    vec![
        text("STDiT (Open-Sora 1.0)", StDit::check(&found, checkpoint, device)),
        text("PixArt-alpha", PixArt::check(&found, checkpoint, device)),
        text("PixArt-alpha of many sizes", PixArtMs::check(&found, checkpoint, device)),
        text("Latte", Latte::check(&classes(ClassConfig::latte_xl_2()), checkpoint, device)),
        text("DiT", Dit::check(&classes(ClassConfig::dit_xl_2()), checkpoint, device)),
    ]
}

/// Returns the sizes of a denoiser and the rows of its label table, from the shapes of the tensors. The number
/// of heads does not appear in any shape: the published width of a head is assumed.
fn sizes_of(plain: &Checkpoint) -> (DenoiserConfig, Option<usize>, &'static str) {
    let published = DenoiserConfig::xl_2();
    let shape = |key: &str| plain.tensors().get(key).map(|tensor| tensor.shape());
    let blocks = plain
        .keys()
        .filter_map(|key| key.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok());
    let labels = shape("y_embedder.embedding_table.weight").and_then(<[usize]>::first).copied();
    let (Some(patch), Some(last)) = (shape("x_embedder.proj.weight"), blocks.max()) else {
        return (published, labels, PUBLISHED);
    };
    let (hidden_size, in_channels, patch_size) = match *patch {
        [hidden, channels, h, w] => (hidden, channels, [1, h, w]),
        [hidden, channels, t, h, w] => (hidden, channels, [t, h, w]),
        _ => return (published, labels, PUBLISHED),
    };
    let caption = shape("y_embedder.y_proj.fc1.weight").and_then(|shape| shape.get(1).copied());
    let tokens = shape("y_embedder.y_embedding").and_then(<[usize]>::first).copied();
    let head_size = published.hidden_size / published.num_heads;
    let num_heads = if hidden_size.is_multiple_of(head_size) { hidden_size / head_size } else { 1 };
    let found = DenoiserConfig {
        in_channels,
        patch_size,
        hidden_size,
        depth: last.saturating_add(1),
        num_heads,
        caption_channels: caption.unwrap_or(published.caption_channels),
        model_max_length: tokens.unwrap_or(published.model_max_length),
        ..published.clone()
    };
    let is_published = found.hidden_size == published.hidden_size
        && found.depth == published.depth
        && found.patch_size == published.patch_size;
    (found, labels, if is_published { PUBLISHED } else { SHAPES })
}

fn text_encoder(checkpoint: &Checkpoint, device: &Device) -> Option<Candidate> {
    let beside = config_beside(checkpoint);
    let (config, sizes) = match beside.and_then(|path| T5Config::read(&path).ok()) {
        Some(config) => (config, CONFIG),
        None => (T5Config::default(), PUBLISHED),
    };
    let outcome = T5Encoder::check(&config, checkpoint, device).map_err(|error| match error {
        t5::LoadError::Checkpoint(error) => of_checkpoint_error(error),
        other => Unfit::Other(other.into()),
    });
    Some(Candidate { name: "T5 v1.1 encoder", sizes, outcome })
}

fn vae(checkpoint: &Checkpoint, device: &Device) -> Option<Candidate> {
    let beside = config_beside(checkpoint);
    let (config, sizes) = match beside.and_then(|path| VaeConfig::read(&path).ok()) {
        Some(config) => (config, CONFIG),
        None => (VaeConfig::default(), PUBLISHED),
    };
    let outcome = AutoencoderKl::check(&config, checkpoint, device).map_err(|error| match error {
        vae::LoadError::Checkpoint(error) => of_checkpoint_error(error),
        other => Unfit::Other(other.into()),
    });
    Some(Candidate { name: "Stable Diffusion VAE", sizes, outcome })
}

fn config_beside(checkpoint: &Checkpoint) -> Option<std::path::PathBuf> {
    let path = checkpoint.taken().parent().unwrap_or(Path::new("")).join("config.json");
    path.exists().then_some(path)
}

fn of_load_error(error: LoadError) -> Unfit {
    match error {
        LoadError::Checkpoint(error) => of_checkpoint_error(error),
        other => Unfit::Other(other.into()),
    }
}

fn of_checkpoint_error(error: CheckpointError) -> Unfit {
    match error {
        CheckpointError::Mismatch { mismatch, .. } => Unfit::Keys(mismatch),
        other => Unfit::Other(other.into()),
    }
}
