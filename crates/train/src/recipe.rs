//! Training recipes in TOML: model, data, optimizer, length of the run.
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
//! # Ok::<(), opensora_train::RecipeError>(())
//! ```
//!
//! Exactly one of the tables `[stdit]`, `[vae]` and `[t5]` selects the model. Paths are relative to
//! the working directory, and options of the command line override them.

use crate::{
    denoiser::{DenoiserRecipe, check_variance},
    error::RecipeError,
    masked_tokens::MaskedTokens,
    optimizer::OptimizerRecipe,
    run::RunRecipe,
    vae::VaeRecipe,
    zero::Zero,
};
use opensora_checkpoint::known_fields;
use opensora_data::window::ClipSpec;
use opensora_files::{
    one_line,
    read::{MAX_CONFIG_BYTES, read_text},
};
use opensora_stdit::{DenoiserConfig, deepen::check_depth};
use opensora_t5::T5Config;
use opensora_vae::VaeConfig;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A training recipe: model, data, optimizer, run and sample videos.
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
    /// Training data.
    #[serde(default)]
    pub data: DataRecipe,
    /// Optimizer.
    #[serde(default)]
    pub optimizer: OptimizerRecipe,
    /// Length, batches and checkpoints.
    #[serde(default)]
    pub run: RunRecipe,
    /// Videos that are sampled during the run.
    #[serde(default)]
    pub sample: SampleRecipe,
}

/// Section of a denoiser to train: sizes, initial weights and loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct StDitPart {
    /// Sizes and position scales; defaults are STDiT-XL/2's.
    #[serde(deserialize_with = "known_fields")]
    pub config: DenoiserConfig,
    /// Weights to start from: an STDiT of an earlier stage, or a PixArt-alpha. `None`: random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Depth of the initial weights, a divisor of the depth to train. Each of their blocks is followed by copies that add
    /// nothing until they are trained ([`StDit::deepened`](opensora_stdit::StDit::deepened)). `None`: the depth to train.
    /// `freeze` holds for the copies as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_depth: Option<usize>,
    /// Folder of the text encoder, for captions that are not in a cache and for sample videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub t5: Option<PathBuf>,
    /// Folder or file of the VAE, for clips that are not in a cache and for sample videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// Frames that the VAE encodes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_micro_batch: Option<usize>,
    /// Loss.
    pub loss: DenoiserRecipe,
}

impl StDitPart {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.config.validate()?;
        check_variance(&self.config)?;
        if let Some(depth) = self.init_depth
            && check_depth(self.config.depth, depth).is_err()
        {
            let expected = format!("a divisor of depth, which is {}", self.config.depth);
            return Err(RecipeError::value("init_depth", depth, expected));
        }
        self.loss.validate()
    }
}

/// Section of a VAE to train: sizes, initial weights and loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct VaePart {
    /// Sizes; defaults are Stable Diffusion's.
    #[serde(deserialize_with = "known_fields")]
    pub config: VaeConfig,
    /// Weights to start from. `None`: random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Samples whose latents are measured after the last step, to normalise the latents of the
    /// finished VAE to a mean of 0 and a standard deviation of 1. 0 does not normalise.
    pub unit_latents: usize,
    /// Loss.
    pub loss: VaeRecipe,
}

impl VaePart {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.config.validate()?;
        self.loss.validate()
    }
}

/// Section of a text encoder to train: sizes, maximum caption length and loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct T5Part {
    /// Sizes; the tokenizer is fitted to at most `vocab_size` tokens.
    #[serde(deserialize_with = "known_fields")]
    pub config: T5Config,
    /// Maximum number of tokens of a caption.
    pub max_length: usize,
    /// Loss.
    pub loss: MaskedTokens,
}

impl T5Part {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.config.validate()?;
        if self.max_length == 0 {
            return Err(RecipeError::value("max_length", 0, "at least 1"));
        }
        self.loss.validate()
    }
}

impl Default for T5Part {
    fn default() -> Self {
        // The length that the reference's denoiser uses.
        let max_length = DenoiserConfig::default().model_max_length;
        Self { config: T5Config::default(), max_length, loss: MaskedTokens::default() }
    }
}

/// Section of the training data: manifest, cache and clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    /// Manifest of clips and captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PathBuf>,
    /// Folder of latents and prompt states that were computed from the manifest. Without it, they are computed
    /// during training, with the same numbers if `variants` of the clips is that of the cache; without
    /// `variants`, each epoch then draws new windows and flips.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Frames, size and augmentation of the clips.
    pub clip: ClipSpec,
}

/// Videos that are sampled from the moving average during the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleRecipe {
    /// Prompts.
    pub prompts: Vec<String>,
    /// Steps of DPM-Solver++.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance_scale: f64,
}

impl Default for SampleRecipe {
    fn default() -> Self {
        Self { prompts: Vec::new(), steps: 20, guidance_scale: 7.0 }
    }
}

impl SampleRecipe {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        // What DPM-Solver++ needs, and the timesteps that there are.
        if !(2..=1000).contains(&self.steps) {
            return Err(RecipeError::value("steps of [sample]", self.steps, "2 to 1000"));
        }
        if !self.guidance_scale.is_finite() {
            let expected = "a finite number";
            return Err(RecipeError::value("guidance_scale", self.guidance_scale, expected));
        }
        Ok(())
    }
}

/// Names and contents of the bundled recipes.
pub const RECIPES: [(&str, &str); 13] = [
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
    ("demo-stage3-deep", include_str!("../recipes/demo-stage3-deep.toml")),
];

impl Recipe {
    /// Reads a recipe from TOML.
    ///
    /// # Errors
    /// Returns an error if the text is not a recipe, or a value is out of range.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let recipe: Self = toml::from_str(text).map_err(|error| syntax(&error, text))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Reads a recipe from a file, or a bundled one by its name.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a recipe, or a value is out of range.
    pub fn open(path: &Path) -> Result<Self, RecipeError> {
        if let Some((_, text)) = RECIPES.iter().find(|(name, _)| Path::new(name) == path) {
            return Self::parse(text);
        }
        let text = read_text(path, MAX_CONFIG_BYTES)
            .map_err(|source| RecipeError::Read { path: path.into(), source })?;
        Self::parse(&text)
            .map_err(|error| RecipeError::File { path: path.into(), source: Box::new(error) })
    }

    /// Returns the recipe as TOML.
    ///
    /// # Errors
    /// Returns an error if TOML has no form for a value.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range, or not exactly one model is to be trained.
    pub fn validate(&self) -> Result<(), RecipeError> {
        match (&self.stdit, &self.vae, &self.t5) {
            (Some(part), None, None) => part.validate()?,
            (None, Some(part), None) => part.validate()?,
            (None, None, Some(part)) => part.validate()?,
            (stdit, vae, t5) => {
                let tables = [stdit.is_some(), vae.is_some(), t5.is_some()];
                let found = tables.into_iter().filter(|found| *found).count();
                let expected = "one of [stdit], [vae] and [t5]";
                return Err(RecipeError::value("number of models", found, expected));
            }
        }
        if self.t5.is_none() {
            self.data.clip.validate()?;
        }
        self.optimizer.validate()?;
        self.run.validate()?;
        // Recipes of other models, and without samples, may have any: nothing reads it.
        if self.stdit.is_some() && self.run.sample_every > 0 {
            self.sample.validate()
        } else {
            Ok(())
        }
    }

    /// Returns the first difference that prevents a run of `self` from being resumed as `other`. Length,
    /// checkpoints and samples may differ; settings that change the numbers may not.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let plain = |recipe: &Self| {
            let mut recipe = recipe.clone();
            let run = &mut recipe.run;
            // The length changes the numbers of schedules that depend on it.
            if recipe.optimizer.schedule == crate::optimizer::Schedule::Constant {
                run.steps = 0;
            }
            (run.workers, run.prefetch, run.skip_bad) = (0, 0, 0);
            (run.checkpoint_every, run.keep, run.sample_every) = (0, 0, 0);
            run.zero = Zero::Off;
            recipe.sample = SampleRecipe::default();
            // Other models never read it.
            if recipe.stdit.is_none() {
                recipe.data.cache = None;
            }
            recipe.settings()
        };
        let [name, before, after] = first_difference(&plain(self), &plain(other))?;
        Some(format!("{name} was {before}, now {after}"))
    }

    /// Returns the settings that all ranks of a run need to have in common: not those of reading ahead. Of paths, only
    /// whether they are given: nodes may have copies in different places.
    pub(crate) fn settings_of_ranks(&self) -> Settings {
        let mut recipe = self.clone();
        (recipe.run.workers, recipe.run.prefetch) = (0, 0);
        let mut paths = vec![&mut recipe.data.manifest, &mut recipe.data.cache];
        if let Some(part) = &mut recipe.stdit {
            paths.extend([&mut part.init, &mut part.t5, &mut part.vae]);
        }
        if let Some(part) = &mut recipe.vae {
            paths.push(&mut part.init);
        }
        paths.into_iter().flatten().for_each(|path| *path = "a path".into());
        recipe.settings()
    }

    /// Returns all settings.
    fn settings(&self) -> Settings {
        let mut recipe = self.clone();
        // `toml::Value` has numbers up to `i64::MAX` only.
        let seed = std::mem::take(&mut recipe.run.seed);
        let mut found = Settings::new();
        match toml::Value::try_from(&recipe) {
            Ok(recipe) => settings("", &recipe, &mut found),
            // Compared as a whole, so that no difference is missed.
            Err(_) => drop(found.insert("the recipe".into(), format!("{recipe:?}"))),
        }
        found.insert("run.seed".into(), seed.to_string());
        found
    }
}

/// Settings of a recipe in TOML, by their whole names, such as `optimizer.betas`.
pub(crate) type Settings = BTreeMap<String, String>;

/// Returns the first setting that differs: its name and both values.
pub(crate) fn first_difference(before: &Settings, after: &Settings) -> Option<[String; 3]> {
    let mut names = before.keys().chain(after.keys());
    let name = names.find(|name| before.get(*name) != after.get(*name))?;
    let value = |from: &Settings| from.get(name).map_or("not set", String::as_str).to_string();
    Some([name.clone(), value(before), value(after)])
}

/// Adds the settings in `value`.
fn settings(name: &str, value: &toml::Value, found: &mut Settings) {
    match value.as_table().filter(|table| !table.is_empty()) {
        None => drop(found.insert(name.into(), value.to_string())),
        Some(table) => {
            for (key, value) in table {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                settings(&name, value, found);
            }
        }
    }
}

/// The parser's message, and the line of `text` that it is about.
fn syntax(error: &toml::de::Error, text: &str) -> RecipeError {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| 1 + before.matches('\n').count());
    RecipeError::Syntax { line, message: one_line(error.message()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bundled_recipe_parses_and_survives_a_round_trip() {
        for (name, text) in RECIPES {
            let recipe = Recipe::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(Recipe::parse(&recipe.to_toml().unwrap()).unwrap(), recipe, "{name}");
        }
    }

    #[test]
    fn large_seeds_hide_no_difference() {
        let mut recipe = Recipe::parse("[vae]").unwrap();
        recipe.run.seed = u64::MAX;
        assert_eq!(recipe.difference(&recipe.clone()), None);
        let mut other = recipe.clone();
        other.optimizer.learning_rate = 0.5;
        assert!(recipe.difference(&other).unwrap().starts_with("optimizer.learning_rate was"));
        let other = Recipe { run: RunRecipe { seed: 5, ..recipe.run.clone() }, ..recipe.clone() };
        let expected = format!("run.seed was {}, now 5", u64::MAX);
        assert_eq!(recipe.difference(&other), Some(expected));
    }

    #[test]
    fn invalid_recipes_are_rejected_in_one_line() {
        use opensora_files::error_line;
        for text in [
            "",
            "[stdit]\n[vae]",
            "[stdit.loss]\nfreze = 'text'",
            "[stdit.loss]\nfreeze = 'everything'",
            "[stdit.config]\nhidden_size = 1153",
            "[stdit]\ninit_depth = 3\n[stdit.config]\ndepth = 28",
            "[stdit]\ninit_depth = 0",
            "[stdit.config]\nspace_scale = nan",
            "[vae]\n[run]\nsteps = 0",
            "[vae]\n[optimizer]\nema_decay = 2.0",
            "[stdit",
        ] {
            let error: crate::TrainError = Recipe::parse(text).unwrap_err().into();
            let error = error_line(&error);
            assert!(!error.contains('\n') && error.contains(": "), "{text}: {error}");
        }
        let error = Recipe::parse("[stdit]\n[stdit.loss]\nfreze = 'text'").unwrap_err().to_string();
        assert!(error.starts_with("line 3: unknown field `freze`"), "{error}");
        // Also in the tables of models, whose types other files share.
        for (model, field) in [("stdit", "num_head"), ("vae", "latent_channel"), ("t5", "d_models")]
        {
            let text = format!("[{model}]\n[{model}.config]\n{field} = 4");
            let error = Recipe::parse(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown field `{field}`")), "{error}");
        }
    }

    #[test]
    fn a_difference_names_the_setting_and_both_values() {
        let recipe = Recipe::parse("[stdit]\ninit = 'a.pth'\n[data]\ncache = 'c'").unwrap();
        let said = |change: fn(&mut Recipe)| {
            let mut other = recipe.clone();
            change(&mut other);
            recipe.difference(&other).unwrap()
        };
        assert_eq!(said(|r| r.data.cache = None), "data.cache was \"c\", now not set");
        let init = said(|r| r.stdit.as_mut().unwrap().init = None);
        assert_eq!(init, "stdit.init was \"a.pth\", now not set");
        let size = said(|r| r.data.clip.image_size = [256, 512]);
        assert_eq!(size, "data.clip.image_size was [256, 256], now [256, 512]");
    }

    #[test]
    fn only_paths_may_differ_between_ranks() {
        let recipe = Recipe::parse("[stdit]\ninit = 'a.pth'\n[data]\ncache = 'c'").unwrap();
        let differs = |change: fn(&mut Recipe)| {
            let mut other = recipe.clone();
            change(&mut other);
            first_difference(&recipe.settings_of_ranks(), &other.settings_of_ranks())
                .map(|[name, ..]| name)
        };
        let elsewhere = differs(|r| {
            r.stdit.as_mut().unwrap().init = Some("/scratch/a.pth".into());
            r.data.cache = Some("/scratch/c".into());
        });
        assert_eq!(elsewhere, None);
        assert_eq!(differs(|r| r.data.cache = None).as_deref(), Some("data.cache"));
        assert_eq!(differs(|r| r.run.seed = u64::MAX).as_deref(), Some("run.seed"));
        assert_eq!(differs(|r| r.run.steps += 1).as_deref(), Some("run.steps"));
        assert_eq!(differs(|r| r.run.zero = Zero::Gradients).as_deref(), Some("run.zero"));
        assert_eq!(differs(|r| r.optimizer.betas[1] = 0.5).as_deref(), Some("optimizer.betas"));
    }

    #[test]
    fn only_settings_that_do_not_change_the_numbers_may_differ_at_a_resume() {
        let recipe = Recipe::parse("[vae.loss]\nkl_weight = 1e-6").unwrap();
        let mut longer = recipe.clone();
        longer.run.steps *= 2;
        longer.run.workers += 1;
        assert_eq!(recipe.difference(&longer), None);
        longer.optimizer.schedule = crate::optimizer::Schedule::Cosine;
        assert!(recipe.difference(&longer).is_some_and(|d| d.contains("cosine")));
    }
}
