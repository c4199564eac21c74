//! Recipes: what is trained, on what, how, for how long, as TOML.
//!
//! ```
//! let recipe = opensora_train::Recipe::parse(r#"
//! [stdit]
//! init = "PixArt-XL-2-512x512.pth"
//! [stdit.loss]
//! activation_checkpointing = true
//! [stdit.config]
//! space_scale = 0.5
//! [data.clip]
//! num_frames = 16
//! frame_interval = 3
//! image_size = [256, 256]
//! [run]
//! steps = 80000
//! dtype = "bf16"
//! "#)?;
//! assert_eq!(recipe.data.clip.num_frames, 16);
//! # Ok::<(), opensora_train::TrainError>(())
//! ```
//!
//! Just one of the tables `[stdit]`, `[vae]` and `[t5]` says what is trained. Paths are relative
//! to where the program runs, and the command line's win over them.

use crate::{
    denoiser::DenoiserRecipe, error::TrainError, masked_tokens::MaskedTokens,
    optimizer::OptimizerRecipe, run::RunRecipe, vae::VaeRecipe,
};
use opensora_data::window::ClipSpec;
use opensora_files::{
    one_line,
    read::{MAX_CONFIG_BYTES, read_text},
};
use opensora_stdit::DenoiserConfig;
use opensora_t5::T5Config;
use opensora_vae::VaeConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A training run, as its recipe says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A denoiser to train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdit: Option<StDitPart>,
    /// A VAE to train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<VaePart>,
    /// A text encoder to train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t5: Option<T5Part>,
    /// What it is trained on.
    #[serde(default)]
    pub data: DataRecipe,
    /// How its parameters are changed.
    #[serde(default)]
    pub optimizer: OptimizerRecipe,
    /// How long, and what is left behind.
    #[serde(default)]
    pub run: RunRecipe,
    /// Videos that are sampled along the way.
    #[serde(default)]
    pub sample: SampleRecipe,
}

/// A denoiser to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct StDitPart {
    /// Its sizes and position scales; those that are not named are STDiT-XL/2's.
    pub config: DenoiserConfig,
    /// Weights to start from: an STDiT of the stage before, or a PixArt-alpha. Fresh without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Folder of the text encoder, for captions that are not in a cache and for sample videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub t5: Option<PathBuf>,
    /// Folder or file of the VAE, for clips that are not in a cache and for sample videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// Frames that the VAE encodes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_micro_batch: Option<usize>,
    /// Its loss.
    pub loss: DenoiserRecipe,
}

/// A VAE to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct VaePart {
    /// Its sizes; those that are not named are Stable Diffusion's.
    pub config: VaeConfig,
    /// Weights to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Samples whose latents are measured after the last step, so that the finished VAE's latents
    /// have a mean of 0 and a deviation of 1; 0 leaves them as they are.
    pub unit_latents: usize,
    /// Its loss.
    pub loss: VaeRecipe,
}

/// A text encoder to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct T5Part {
    /// Its sizes; `vocab_size` is also what the tokenizer is fitted to.
    pub config: T5Config,
    /// Tokens of a caption.
    pub max_length: usize,
    /// Its loss.
    pub loss: MaskedTokens,
}

impl Default for T5Part {
    fn default() -> Self {
        // As the reference's denoiser reads them.
        let max_length = DenoiserConfig::default().model_max_length;
        Self { config: T5Config::default(), max_length, loss: MaskedTokens::default() }
    }
}

/// What a model is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    /// Manifest of clips and captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PathBuf>,
    /// Folder of latents and prompt states that were computed from it; without, they are computed
    /// along the way, with the same numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// How a clip is cut from its file.
    pub clip: ClipSpec,
}

/// Videos that are sampled along the way, from the moving average.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleRecipe {
    /// Their prompts.
    pub prompts: Vec<String>,
    /// Steps of DPM-Solver++.
    pub steps: usize,
    /// How strongly the prompts are followed.
    pub guidance_scale: f64,
}

impl Default for SampleRecipe {
    fn default() -> Self {
        Self { prompts: Vec::new(), steps: 20, guidance_scale: 7.0 }
    }
}

/// Recipes that come with the crate, by name.
pub const RECIPES: [(&str, &str); 12] = [
    ("stage1-image-256", include_str!("../recipes/stage1-image-256.toml")),
    ("stage1-image-512", include_str!("../recipes/stage1-image-512.toml")),
    ("stage2-16x256x256", include_str!("../recipes/stage2-16x256x256.toml")),
    ("stage3-hq-16x256x256", include_str!("../recipes/stage3-hq-16x256x256.toml")),
    ("stage3-hq-16x512x512", include_str!("../recipes/stage3-hq-16x512x512.toml")),
    ("stage3-64x512x512", include_str!("../recipes/stage3-64x512x512.toml")),
    ("stage3-360x512x512", include_str!("../recipes/stage3-360x512x512.toml")),
    ("demo-vae", include_str!("../recipes/demo-vae.toml")),
    ("demo-t5", include_str!("../recipes/demo-t5.toml")),
    ("demo-stage1", include_str!("../recipes/demo-stage1.toml")),
    ("demo-stage2", include_str!("../recipes/demo-stage2.toml")),
    ("demo-stage3", include_str!("../recipes/demo-stage3.toml")),
];

impl Recipe {
    /// Reads a recipe from TOML.
    ///
    /// # Errors
    /// Where it is not of the format or a value cannot be.
    pub fn parse(text: &str) -> Result<Self, TrainError> {
        let recipe: Self =
            toml::from_str(text).map_err(|error| TrainError::Recipe(located(&error, text)))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Reads a recipe from a file, or one that comes with the crate by its name.
    ///
    /// # Errors
    /// Where there is none, it cannot be read or is not of the format.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let fail = |reason: String| TrainError::RecipeFile { path: path.into(), reason };
        if let Some((_, text)) = RECIPES.iter().find(|(name, _)| Path::new(name) == path) {
            return Self::parse(text);
        }
        let text = read_text(path, MAX_CONFIG_BYTES).map_err(|error| {
            let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
            fail(format!("{error}; recipes that come along: {}", names.join(", ")))
        })?;
        Self::parse(&text).map_err(|error| fail(error.to_string()))
    }

    /// The recipe as TOML.
    ///
    /// # Errors
    /// Where a value has no form in TOML.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string_pretty(self).map_err(|error| TrainError::Recipe(error.to_string()))
    }

    /// Fails where a value cannot be.
    ///
    /// # Errors
    /// Names the value.
    pub fn validate(&self) -> Result<(), TrainError> {
        let parts = [self.stdit.is_some(), self.vae.is_some(), self.t5.is_some()];
        if parts.iter().filter(|&&part| part).count() != 1 {
            return Err(TrainError::Recipe("expected one of [stdit], [vae] and [t5]".into()));
        }
        if let Some(part) = &self.stdit {
            part.config.validate()?;
        }
        if let Some(part) = &self.vae {
            part.config.validate()?;
        }
        if let Some(part) = &self.t5 {
            part.config.validate()?;
        }
        self.optimizer.validate()?;
        self.run.validate()
    }

    /// Whether a run of `self` can be gone on with as `other`: how long it is and what it leaves
    /// behind may differ, nothing that changes its numbers may. Returns the first difference.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let plain = |recipe: &Self| {
            let mut recipe = recipe.clone();
            let run = &mut recipe.run;
            // A schedule that depends on the length keeps it.
            if recipe.optimizer.schedule == crate::optimizer::Schedule::Constant {
                run.steps = 0;
            }
            (run.workers, run.prefetch, run.skip_bad) = (0, 0, 0);
            (run.checkpoint_every, run.keep, run.sample_every) = (0, 0, 0);
            recipe.sample = SampleRecipe::default();
            recipe.to_toml().unwrap_or_default()
        };
        let (before, after) = (plain(self), plain(other));
        if before == after {
            return None;
        }
        let changed = before.lines().zip(after.lines()).find(|(a, b)| a != b);
        Some(changed.map_or_else(
            || "a table was added or removed".into(),
            |(a, b)| format!("'{a}' became '{b}'"),
        ))
    }
}

/// What is wrong and in which line, on one line; the error's own text draws the line.
fn located(error: &toml::de::Error, text: &str) -> String {
    let message = one_line(error.message());
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {message}", 1 + before.matches('\n').count()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_that_comes_along_parses_and_survives_a_round_trip() {
        for (name, text) in RECIPES {
            let recipe = Recipe::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(Recipe::parse(&recipe.to_toml().unwrap()).unwrap(), recipe, "{name}");
        }
    }

    #[test]
    fn what_is_not_a_recipe_is_refused_in_one_line() {
        for text in [
            "",
            "[stdit]\n[vae]",
            "[stdit.loss]\nfreze = 'text'",
            "[stdit.loss]\nfreeze = 'everything'",
            "[stdit.config]\nhidden_size = 1153",
            "[vae]\n[run]\nsteps = 0",
            "[vae]\n[optimizer]\nema_decay = 2.0",
            "[stdit",
        ] {
            let error = Recipe::parse(text).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.contains(": "), "{text}: {error}");
        }
        let error = Recipe::parse("[stdit]\n[stdit.loss]\nfreze = 'text'").unwrap_err().to_string();
        assert!(error.starts_with("recipe: line 3: unknown field `freze`"), "{error}");
    }

    #[test]
    fn only_what_does_not_change_the_numbers_may_change_on_the_way() {
        let recipe = Recipe::parse("[vae.loss]\nkl_weight = 1e-6").unwrap();
        let mut longer = recipe.clone();
        longer.run.steps *= 2;
        longer.run.workers += 1;
        assert_eq!(recipe.difference(&longer), None);
        longer.optimizer.schedule = crate::optimizer::Schedule::Cosine;
        assert!(recipe.difference(&longer).is_some_and(|d| d.contains("cosine")));
    }
}
