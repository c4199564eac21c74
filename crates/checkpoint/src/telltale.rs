//! The likely cause of keys that do not match.

use crate::{Mismatch, ShapeMismatch, error::quoted};
use opensora_files::one_line;
use std::collections::BTreeSet;

/// Keys by which artefacts are recognised, the most specific first.
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

/// Returns the artefact that a set of keys looks like, and the prefix of its keys.
fn looks_like<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Option<(&'static str, &'a str)> {
    let plain = |telltale: &str| keys.clone().any(|key| key.starts_with(telltale));
    if let Some((_, artefact)) = TELLTALES.iter().find(|(telltale, _)| plain(telltale)) {
        return Some((artefact, ""));
    }
    let under = |telltale: &str| {
        keys.clone().find_map(|key| {
            let inside = format!(".{telltale}");
            key.find(&inside).map(|end| &key[..end])
        })
    };
    TELLTALES.iter().find_map(|(telltale, artefact)| Some((*artefact, under(telltale)?)))
}

/// Returns the first components of keys if there are few: the prefix or dictionaries of an unknown file.
fn containers<'a>(keys: impl Iterator<Item = &'a str>) -> Option<String> {
    const FEW: usize = 4;
    let mut names = BTreeSet::new();
    for key in keys {
        names.insert(key.split_once('.').map_or("", |(first, _)| first));
        if names.len() > FEW {
            return None;
        }
    }
    names.remove("");
    let names: Vec<String> = names.into_iter().map(str::to_string).collect();
    (!names.is_empty()).then(|| quoted(&names))
}

/// Returns a mismatch with its likely cause; `expected` is the number of keys of the model.
pub(crate) fn explain<'a>(
    artefact: &str,
    file_keys: impl Iterator<Item = &'a str> + Clone,
    expected: usize,
    missing: Vec<String>,
    unused: Vec<String>,
    shapes: Vec<ShapeMismatch>,
) -> Mismatch {
    let likely_cause = if missing.len() * 2 > expected {
        match (looks_like(file_keys.clone()), containers(file_keys)) {
            (Some((found, "")), _) => format!("wrong artefact, the file looks like {found}"),
            (Some((found, prefix)), _) => {
                format!("wrong artefact, the file looks like {found} under '{}'", one_line(prefix))
            }
            (None, Some(names)) => format!(
                "wrong artefact, the file's keys are of no kind known here; they begin with {names}"
            ),
            (None, None) => "wrong artefact, the file's keys are of no kind known here".into(),
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
    Mismatch {
        artefact: artefact.into(),
        wrappers: Vec::new(),
        missing,
        unused,
        shapes,
        likely_cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_most_keys_are_of_another_model() {
        let cause = |missing: usize, expected: usize| {
            let missing = (0..missing).map(|key| key.to_string()).collect();
            let keys = ["x.a", "y.b"].into_iter();
            explain("a VAE", keys, expected, missing, vec!["z".into()], vec![]).likely_cause
        };
        let another =
            "wrong artefact, the file's keys are of no kind known here; they begin with 'x', 'y'";
        assert_eq!((cause(6, 10), cause(1, 1)), (another.to_string(), another.to_string()));
        let variant = "a variant of the model with other names";
        assert_eq!((cause(5, 10), cause(1, 2)), (variant.to_string(), variant.to_string()));
    }
}
