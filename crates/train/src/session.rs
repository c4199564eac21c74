//! A run from its recipe: data, model, start or resume, loop, finished weights.
//!
//! ```text
//! RUN/
//!   recipe.toml        what is run, with everything the command line said
//!   metrics.csv        one row a step; events.out.tfevents.* holds the same for TensorBoard
//!   checkpoints/       see `state`
//!   stdit/, vae/, t5/  the finished weights under published names: the moving average, and for STDiT
//!                      the last values beside it
//! ```

use crate::{
    denoiser::DenoiserTask,
    error::TrainError,
    metrics::TrainObserver,
    recipe::{DataRecipe, Recipe, StDitPart, T5Part, VaePart},
    run::{Hooks, NoHooks, Outcome, Run},
    state::{Checkpoints, Progress},
    task::Task,
    text::{CaptionSource, TextTask},
    trainer::Trainer,
    vae::{VaeTask, clips},
};
use burn::tensor::{Device, FloatDType};
use opensora_checkpoint::{Checkpoint, export};
use opensora_data::{
    ClipDataset, DataError, Manifest, Source,
    cache::LatentCache,
    encode::{ClipEncoder, EncodedSample, OnTheFly},
};
use opensora_diffusion::PredictionType;
use opensora_files::write_atomically;
use opensora_nn::{dtype::Dtype, noise::normal_batch, random::Purpose};
use opensora_stdit::{StDit, keys};
use opensora_t5::T5Encoder;
use opensora_vae::AutoencoderKl;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where a run lives and how it is watched.
#[derive(Debug, Clone)]
pub struct Session {
    /// What is run.
    pub recipe: Recipe,
    /// The run's folder.
    pub folder: PathBuf,
    /// Goes on from the newest complete checkpoint, where there is one.
    pub resume: bool,
    /// FLOP/s that the device can reach at best, for the utilisation.
    pub peak_flops: Option<f64>,
    /// The device.
    pub device: Device,
}

impl Session {
    /// Trains to the recipe's end, or until the observer stops it, and writes the weights as they
    /// are then.
    ///
    /// # Errors
    /// Where the recipe cannot be run here or the run cannot go on; its last complete checkpoint is
    /// good.
    pub fn run(
        &self,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        self.recipe.validate()?;
        // The same fresh weights on every start; backends draw them in their own way.
        self.device.seed(self.recipe.run.seed);
        if let Some(part) = &self.recipe.stdit {
            self.stdit(part, observer, hooks)
        } else if let Some(part) = &self.recipe.vae {
            self.vae(part, observer)
        } else if let Some(part) = &self.recipe.t5 {
            self.t5(part, observer)
        } else {
            Err(TrainError::Recipe("nothing to train".into()))
        }
    }

    fn dtype(&self) -> Result<FloatDType, TrainError> {
        let dtype: Dtype = self.recipe.run.dtype.parse().map_err(recipe_error)?;
        Ok(dtype.check(&self.device).map_err(recipe_error)?.float())
    }

    fn stdit(
        &self,
        part: &StDitPart,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        let seed = self.recipe.run.seed;
        let task = DenoiserTask::new(&part.loss, &part.config, seed, self.dtype()?, &self.device)?;
        let model = initial_stdit(part, &self.device)?;
        let source = self.encoded_samples(part)?;
        let freeze = part.loss.freeze;
        let trainable = |path: &str| freeze.is_trainable(path);
        let (outcome, trainer) = self.train(&task, model, trainable, source, observer, hooks)?;

        let folder = self.subfolder("stdit")?;
        let (map, dtype) = (keys::stdit(), FloatDType::F32);
        let note = Some((PredictionType::NOTE, part.loss.prediction_type.name()));
        export(&trainer.average_model(), &map, dtype, note, &folder.join("ema.safetensors"))?;
        export(&trainer.model(), &map, dtype, note, &folder.join("model.safetensors"))?;
        write_json(&folder.join("config.json"), &part.config)?;
        Ok(outcome)
    }

    /// Latents and prompt states, from the cache or computed along the way.
    fn encoded_samples(
        &self,
        part: &StDitPart,
    ) -> Result<Arc<dyn Source<Item = EncodedSample>>, TrainError> {
        let data = &self.recipe.data;
        if let Some(cache) = &data.cache {
            let cache = LatentCache::open_for(cache, &data.clip)?;
            if data.manifest.is_some() {
                // Who names both means that the one was made from the other.
                cache.check_rows(&dataset(data, self.recipe.run.seed)?)?;
            }
            return Ok(Arc::new(cache));
        }
        let missing = |what: &str| {
            TrainError::Recipe(format!("without a cache of latents the {what} is needed"))
        };
        let vae = part.vae.as_ref().ok_or_else(|| missing("VAE"))?;
        let t5 = part.t5.as_ref().ok_or_else(|| missing("text encoder"))?;
        let tokens = part.config.model_max_length;
        let encoder = ClipEncoder::load(vae, t5, tokens, part.vae_micro_batch, &self.device)?;
        Ok(Arc::new(OnTheFly::new(dataset(data, self.recipe.run.seed)?, encoder)))
    }

    fn vae(&self, part: &VaePart, observer: &mut dyn TrainObserver) -> Result<Outcome, TrainError> {
        let seed = self.recipe.run.seed;
        let task = VaeTask::new(&part.loss, seed, self.dtype()?, &self.device)?;
        let source = Arc::new(dataset(&self.recipe.data, seed)?);
        let model = match &part.init {
            Some(init) => {
                let checkpoint = Checkpoint::open(init)?;
                AutoencoderKl::load(&part.config, &checkpoint, FloatDType::F32, &self.device)
                    .map_err(|error| TrainError::Recipe(error.to_string()))?
                    .0
            }
            None => AutoencoderKl::new(&part.config, &self.device)?,
        };
        let all = |_: &str| true;
        let (outcome, trainer) =
            self.train(&task, model, all, source.clone(), observer, &mut NoHooks)?;

        let mut vae = trainer.average_model();
        if part.unit_latents > 0 {
            let [mean, deviation] = latent_statistics(&vae, &*source, part.unit_latents, seed)?;
            vae = vae.with_unit_latents(&mean, &deviation);
        }
        let folder = self.subfolder("vae")?;
        let map = opensora_vae::keys::Layout::TODAY.key_map(&part.config);
        let weights = folder.join("diffusion_pytorch_model.safetensors");
        export(&vae, &map, FloatDType::F32, None, &weights)?;
        write_json(&folder.join("config.json"), &part.config)?;
        Ok(outcome)
    }

    fn t5(&self, part: &T5Part, observer: &mut dyn TrainObserver) -> Result<Outcome, TrainError> {
        let manifest = manifest(&self.recipe.data)?;
        let folder = self.subfolder("t5")?;
        let (vocabulary, length) = (part.config.vocab_size, part.max_length);
        let source = CaptionSource::new(&manifest, vocabulary, length, &folder)?;
        let task = TextTask::new(&part.loss, &source, self.recipe.run.seed, self.dtype()?)?;
        let model = T5Encoder::new(&part.config, &self.device)?;
        let all = |_: &str| true;
        let (outcome, trainer) =
            self.train(&task, model, all, Arc::new(source), observer, &mut NoHooks)?;
        let map = opensora_t5::keys::Layout::PUBLISHED.key_map();
        let weights = folder.join("model.safetensors");
        export(&trainer.average_model(), &map, FloatDType::F32, None, &weights)?;
        part.config.write(&folder.join("config.json"))?;
        Ok(outcome)
    }

    /// Starts or resumes, and trains.
    fn train<T: Task, S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        task: &T,
        model: T::Model,
        trainable: impl Fn(&str) -> bool,
        source: Arc<S>,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<T>,
    ) -> Result<(Outcome, Trainer<T::Model>), TrainError> {
        let recipe = &self.recipe;
        let mut trainer = Trainer::new(model, &recipe.optimizer, trainable)?;
        let progress = self.start(&mut trainer, observer)?;
        let run =
            Run { task, recipe: &recipe.run, folder: &self.folder, peak_flops: self.peak_flops };
        let outcome = run.train(&mut trainer, source, progress, observer, hooks)?;
        Ok((outcome, trainer))
    }

    /// Makes the run's folder, or goes on from what is in it.
    fn start<M: burn::module::Module>(
        &self,
        trainer: &mut Trainer<M>,
        observer: &mut dyn TrainObserver,
    ) -> Result<Progress, TrainError> {
        let path = self.folder.join("recipe.toml");
        let checkpoints = Checkpoints::new(&self.folder, self.recipe.run.keep).complete()?;
        if !self.resume && !checkpoints.is_empty() {
            let reason = "already holds a run: resume it, or choose another folder".into();
            return Err(TrainError::State { path: self.folder.clone(), reason });
        }
        fs::create_dir_all(&self.folder).map_err(TrainError::io(&self.folder))?;
        let mut progress = Progress::default();
        if let Some(newest) = checkpoints.first() {
            let before = Recipe::open(&path)?;
            if let Some(difference) = before.difference(&self.recipe) {
                let reason = format!("the run was begun with another recipe: {difference}");
                return Err(TrainError::State { path, reason });
            }
            progress = Checkpoints::load(newest, trainer, &self.device)?;
            observer.message(&format!("going on from step {}", progress.step));
        }
        let text = self.recipe.to_toml()?;
        write_atomically(&path, |file| fs::write(file, &text)).map_err(TrainError::io(&path))?;
        Ok(progress)
    }

    fn subfolder(&self, name: &str) -> Result<PathBuf, TrainError> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        Ok(folder)
    }
}

/// The STDiT that a recipe starts from: the stage before, a PixArt-alpha, or fresh weights.
fn initial_stdit(part: &StDitPart, device: &Device) -> Result<StDit, TrainError> {
    let Some(init) = &part.init else { return Ok(StDit::new(&part.config, device)?) };
    let checkpoint = Checkpoint::open(init)?;
    let (notes, wanted) = (checkpoint.notes()?, part.loss.prediction_type.name());
    // Weights of other programs say nothing.
    if let Some(found) = notes.get(PredictionType::NOTE).filter(|found| *found != wanted) {
        return Err(TrainError::Recipe(format!(
            "{} was trained with prediction_type {found}, the recipe says {wanted}",
            init.display()
        )));
    }
    let load = if checkpoint.keys().any(|key| key.contains(".attn_temp.")) {
        StDit::load
    } else {
        StDit::from_pixart
    };
    let loaded = load(&part.config, &checkpoint, FloatDType::F32, device);
    Ok(loaded.map_err(|error| TrainError::Recipe(error.to_string()))?.0)
}

fn manifest(data: &DataRecipe) -> Result<Manifest, TrainError> {
    let path = data.manifest.as_ref();
    let path = path.ok_or_else(|| TrainError::Recipe("no manifest was given".into()))?;
    Ok(Manifest::read(path).map_err(DataError::from)?)
}

fn dataset(data: &DataRecipe, seed: u64) -> Result<ClipDataset, TrainError> {
    Ok(ClipDataset::new(manifest(data)?, data.clip.clone(), seed)?)
}

/// Mean and deviation of the scaled latents of `samples` rows, by channel.
fn latent_statistics(
    vae: &AutoencoderKl,
    source: &dyn Source<Item = opensora_data::ClipSample>,
    samples: usize,
    seed: u64,
) -> Result<[Vec<f64>; 2], TrainError> {
    let channels = vae.config().latent_channels;
    let (mut sums, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    let mut count = 0.0;
    // Rows spread over the whole set: manifests are often sorted.
    let samples = samples.min(source.len());
    for sample in 0..samples {
        let item = source.read(sample * source.len() / samples, 0)?;
        let device = vae.device();
        let posterior = vae.encode(clips(&[item], &device)?, Some(16));
        let shape = posterior.mean().dims();
        let noise = normal_batch(seed, Purpose::Posterior, sample as u64, 0, shape, &device);
        let latents = posterior.latents(noise).into_data();
        let per_channel = shape[2] * shape[3] * shape[4];
        for (index, value) in latents.iter::<f64>().enumerate() {
            sums[index / per_channel] += value;
            squares[index / per_channel] += value * value;
        }
        count += per_channel as f64;
    }
    let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
    let deviation = squares.iter().zip(&mean).map(|(s, m)| (s / count - m * m).max(1e-12).sqrt());
    let deviation = deviation.collect();
    Ok([mean, deviation])
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value).map_err(recipe_error)? + "\n";
    write_atomically(path, |file| fs::write(file, &text)).map_err(TrainError::io(path))
}

fn recipe_error(error: impl std::fmt::Display) -> TrainError {
    TrainError::Recipe(error.to_string())
}
