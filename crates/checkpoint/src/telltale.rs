//! The likely cause of keys that do not fit.

use crate::{Mismatch, ShapeMismatch};

/// Keys that give an artefact away, the most telling first.
const TELLTALES: [(&str, &str); 12] = [
    ("model.diffusion_model.", "a full Stable Diffusion checkpoint"),
    ("first_stage_model.", "the VAE inside a full Stable Diffusion checkpoint"),
    ("blocks.0.attn_temp.", "an STDiT (Open-Sora 1.0)"),
    ("csize_embedder.", "a PixArt-alpha multi-scale model"),
    ("y_embedder.y_embedding", "a PixArt-alpha model"),
    ("y_embedder.embedding_table", "a DiT or Latte (class labels)"),
    ("decoder.block.0.layer.", "a full T5 (encoder and decoder)"),
    ("encoder.block.0.layer.", "a T5 encoder"),
    ("encoder.down.0.block.", "a VAE in CompVis layout"),
    ("encoder.down_blocks.0.resnets.", "a VAE in diffusers layout"),
    ("lora_", "a LoRA adapter"),
    ("optimizer.", "an optimizer state"),
];

/// What a set of keys looks like.
fn looks_like<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Option<&'static str> {
    let has = |prefix: &str| keys.clone().any(|key| key.starts_with(prefix));
    TELLTALES.iter().find(|(prefix, _)| has(prefix)).map(|(_, artefact)| *artefact)
}

/// Fills in a mismatch, with the cause that its keys suggest.
pub(crate) fn explain<'a>(
    artefact: &str,
    file_keys: impl Iterator<Item = &'a str> + Clone,
    expected: usize,
    missing: Vec<String>,
    unused: Vec<String>,
    shapes: Vec<ShapeMismatch>,
) -> Mismatch {
    let likely_cause = if missing.len() * 2 > expected {
        match looks_like(file_keys) {
            Some(found) => format!("wrong artefact, the file looks like {found}"),
            None => "wrong artefact, the file's keys are of no kind known here".into(),
        }
    } else if missing.is_empty() && unused.is_empty() {
        "wrong config, the file has layers of another size".into()
    } else if unused.is_empty() {
        "wrong config (more or deeper layers than the file has) or an incomplete file".into()
    } else if missing.is_empty() {
        "wrong config (fewer layers than the file has) or a variant of the model with extra parts"
            .into()
    } else {
        "a variant of the model with other names".into()
    };
    Mismatch { artefact: artefact.into(), missing, unused, shapes, likely_cause }
}
