//! Wrappers that training programs put around a state dict: prefixes of keys, and dictionaries.
//!
//! Both look alike in a flattened file: `module.x_embedder.proj.weight` is a key with the prefix of
//! `DistributedDataParallel` or a key in DeepSpeed's dictionary `module`. The text in front of a key that
//! every file of an artefact has is the wrapper.

use std::collections::BTreeSet;

/// Modules that PyTorch wraps around others: `torch.compile`, FSDP, activation checkpointing. Their names
/// can be anywhere in a key and are never part of a model.
const TRANSPARENT: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Returns the rank of a wrapper; the lowest is preferred if a file has several. The averaged
/// weights come first, as in Open-Sora's `find_model` (v1.0.0, `opensora/utils/ckpt_utils.py`),
/// then common dictionaries.
fn rank(prefix: &str) -> usize {
    let has = |test: fn(&str) -> bool| prefix.split('.').any(test);
    if has(is_average) {
        0
    } else if has(|name| name == "state_dict" || name == "model_state_dict") {
        1
    } else if prefix.is_empty() {
        2
    } else if has(|name| name == "model") {
        3
    } else if has(|name| name == "module") {
        4
    } else {
        5
    }
}

fn is_average(name: &str) -> bool {
    name == "ema" || name.starts_with("ema_") || name.ends_with("_ema")
}

/// Removes the transparent components of `key`. Returns the rest and the removed names.
pub(crate) fn without_transparent(key: &str) -> (String, Vec<&str>) {
    let (transparent, kept): (Vec<&str>, Vec<&str>) =
        key.split('.').partition(|name| TRANSPARENT.contains(name));
    (kept.join("."), transparent)
}

/// Returns the prefix (empty, or ending in a dot) in front of `known`, a key that every file of the
/// artefact has, or `None` if no key ends in `known`.
pub(crate) fn find<'a>(
    keys: impl Iterator<Item = &'a str>,
    known: &str,
) -> Result<Option<&'a str>, String> {
    let fits: BTreeSet<&str> = keys
        .filter_map(|key| key.strip_suffix(known))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    let Some(best) = fits.iter().map(|prefix| rank(prefix)).min() else { return Ok(None) };
    if let [only] = Vec::from_iter(&fits)[..] {
        return Ok(Some(only));
    }
    let mut wanted = fits.iter().filter(|prefix| rank(prefix) == best);
    match (wanted.next(), wanted.next()) {
        (Some(one), None) => Ok(Some(one)),
        _ => {
            let names: Vec<String> = fits
                .iter()
                .filter(|prefix| rank(prefix) == best)
                .map(|prefix| format!("'{}'", prefix.trim_end_matches('.')))
                .collect();
            Err(format!(
                "several models found ({}), expected one; save the wanted one alone",
                names.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(keys: &[&'static str]) -> Result<Option<&'static str>, String> {
        find(keys.iter().copied(), "x.weight")
    }

    #[test]
    fn any_single_prefix_is_a_wrapper() {
        for (key, prefix) in [
            ("x.weight", ""),
            ("module.x.weight", "module."),
            ("trainer.net.0.x.weight", "trainer.net.0."),
        ] {
            assert_eq!(found(&[key, "optimizer.state.0.exp_avg"]), Ok(Some(prefix)));
        }
        assert_eq!(found(&["yx.weight", "x.weights", "module.x.bias"]), Ok(None));
    }

    #[test]
    fn averaged_weights_come_first_then_common_dictionaries() {
        for (keys, prefix) in [
            (&["ema.x.weight", "state_dict.x.weight", "x.weight"], "ema."),
            (&["model.x.weight", "model_ema.module.x.weight", "x.weight"], "model_ema.module."),
            (&["model.x.weight", "state_dict.x.weight", "x.weight"], "state_dict."),
            (&["module.x.weight", "model.x.weight", "other.x.weight"], "model."),
            (&["module.x.weight", "teacher.x.weight", "other.x.weight"], "module."),
        ] {
            assert_eq!(found(keys), Ok(Some(prefix)));
        }
    }

    #[test]
    fn two_wrappers_of_one_rank_are_an_error() {
        let error = found(&["teacher.x.weight", "student.x.weight"]).unwrap_err();
        assert!(error.contains("'student', 'teacher'"), "{error}");
    }

    #[test]
    fn transparent_modules_are_removed_anywhere() {
        let (key, names) = without_transparent("_orig_mod.module.blocks.0._orig_mod.x.weight");
        assert_eq!((key.as_str(), names.len()), ("module.blocks.0.x.weight", 2));
    }
}
