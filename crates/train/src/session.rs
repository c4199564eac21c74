//! A run from its recipe: checks, data, model, start or resume, training, finished weights.
//!
//! ```text
//! RUN/
//!   recipe.toml        the recipe, with the options of the command line
//!   metrics.csv        one row for each step; events.out.tfevents.* has the same numbers for TensorBoard
//!   checkpoints/       see `state`
//!   stdit/, vae/, t5/  the finished weights under published keys: the moving average, and for STDiT
//!                      the last values too
//!   model.json         for STDiT: the finished model and links to its parts, see `description`
//!   .lock              held by the process that trains in this folder; removed when it ends
//! ```
//!
//! Over several ranks, all ranks open data and models, and rank 0 alone writes these files (with ZeRO, each rank
//! writes its slices of checkpoints). All need the same folder and the same recipe, in which only paths, `workers` and
//! `prefetch` may differ.

use crate::{
    denoiser::DenoiserTask,
    description,
    error::{RecipeError, TrainError},
    observer::{CacheDoubted, DescriptionOmitted, Observer, Resumed},
    ranks::Ranks,
    recipe::{DataRecipe, Recipe, Settings, StDitPart, T5Part, VaePart, first_difference},
    run::{Hooks, Outcome, Run, RunRecipe},
    state::{Checkpoints, Progress},
    task::Task,
    text::{CaptionSource, TextTask},
    trainer::Trainer,
    vae::{VaeTask, clips},
};
use burn::tensor::{Device, FloatDType};
use opensora_checkpoint::{Checkpoint, ExportOptions, PublishedModel, export};
use opensora_data::{
    ClipDataset, ClipSpec, DataError, Manifest, Source,
    cache::LatentCache,
    dataset::clip_fps,
    encode::{ClipEncoder, EncodedSample, EncoderConfig, OnTheFly},
    loader::read_caught,
};
use opensora_diffusion::PredictionType;
use opensora_files::{CreatedFolders, Lock, LockError, remove_unfinished, write_atomically};
use opensora_nn::{
    dtype::Dtype,
    noise::normal_batch,
    random::Purpose,
    read::{ReadError, read},
};
use opensora_stdit::{DenoiserConfig, StDit, keys};
use opensora_t5::T5Config;
use opensora_vae::{AutoencoderKl, VaeConfig};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name of the lock file in a run's folder.
const LOCK: &str = ".lock";

/// A training run: recipe, folder and device.
#[derive(Debug, Clone)]
pub struct Session {
    /// Recipe.
    pub recipe: Recipe,
    /// The run's folder.
    pub folder: PathBuf,
    /// Resumes from the newest undamaged checkpoint, if there is one.
    pub resume: bool,
    /// Peak FLOP/s of the device, for the utilisation.
    pub peak_flops: Option<f64>,
    /// The device.
    pub device: Device,
    /// The ranks that train together, of which this process is one.
    pub ranks: Ranks,
}

/// A run that has passed all checks that need no model, and that holds the lock of its folder (rank 0 does).
pub struct Prepared<'a> {
    session: &'a Session,
    dtype: FloatDType,
    work: Work<'a>,
    peak_flops: Option<f64>,
    /// Of rank 0. Dropped in this order, which removes a folder that has only the lock.
    _held: Option<(Lock, CreatedFolders)>,
}

/// The model to train, its opened data and its opened initial weights.
enum Work<'a> {
    StDit { part: &'a StDitPart, task: Box<DenoiserTask>, data: Latents, init: Option<Checkpoint> },
    Vae { part: &'a VaePart, task: VaeTask, data: ClipDataset, init: Option<Checkpoint> },
    T5 { part: &'a T5Part, data: Manifest },
}

impl Work<'_> {
    /// Reports a cache that was encoded by another VAE or text encoder than the recipe names (samples and `model.json` use
    /// those of the recipe), or that cut prompts. Not errors: files beside the weights can differ, and no caption need be
    /// longer.
    fn report_cache(&self, observer: &mut dyn Observer) {
        let Self::StDit { part, data: Latents::Cache(cache), .. } = self else { return };
        for check in [
            cache.check_models(part.vae.as_deref(), part.t5.as_deref()),
            cache.check_length(part.config.model_max_length),
        ] {
            if let Err(error) = check {
                observer.cache_doubted(&CacheDoubted { error: &error.into() });
            }
        }
    }
}

/// Source of a denoiser's training samples: a cache, or clips that are encoded during training.
enum Latents {
    /// Samples were encoded before.
    Cache(LatentCache),
    /// Samples are encoded during training.
    Clips { dataset: ClipDataset, vae: PathBuf, t5: PathBuf },
}

impl Latents {
    /// Returns the size of the latents, `[T, h, w]`, or `None` if no sample of the cache can be read.
    fn latent_size(&self, clip: &ClipSpec) -> Result<Option<[usize; 3]>, TrainError> {
        match self {
            Self::Cache(cache) => {
                // All samples have the same shape.
                let sample = (0..cache.len()).find_map(|row| cache.read(row, 0).ok());
                Ok(sample.map(|EncodedSample { latent_shape: [_, t, h, w], .. }| [t, h, w]))
            }
            Self::Clips { vae, .. } => {
                let [height, width] = clip.image_size;
                let config = VaeConfig::beside(vae)?;
                Ok(Some(config.latent_size([clip.num_frames, height, width])?))
            }
        }
    }
}

impl Session {
    /// Trains until the recipe's last step or until the observer stops the run, and writes the weights.
    ///
    /// # Errors
    /// Returns the errors of [`prepare`](Self::prepare) and [`Prepared::run`].
    pub fn run(
        &self,
        observer: &mut dyn Observer,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        self.prepare()?.run(observer, hooks)
    }

    /// Takes the lock of the run's folder and checks everything that needs no model: recipe,
    /// folder, data, and the headers of the weights to start from. A collective.
    ///
    /// # Errors
    /// Returns an error if a check fails, the recipes of the ranks differ, or another process uses the folder.
    pub fn prepare(&self) -> Result<Prepared<'_>, TrainError> {
        let ranks = &self.ranks;
        let recipe = &self.recipe;
        let dtype = || {
            recipe.validate()?;
            Ok(recipe.run.dtype.parse::<Dtype>()?.check(&self.device)?.float())
        };
        let dtype = ranks.agree(dtype())?;
        self.check_ranks()?;
        let held = ranks.on_main(|| self.lock())?;
        ranks.on_main(|| self.check_folder())?;
        let work = ranks.agree(self.work(dtype))?;
        Ok(Prepared { session: self, dtype, work, peak_flops: self.peak_flops, _held: held })
    }

    /// Returns an error if the recipe of a rank is not that of rank 0: with other settings, the weights of the
    /// ranks diverge, or ranks wait for each other in different collectives. A collective.
    fn check_ranks(&self) -> Result<(), TrainError> {
        let ranks = &self.ranks;
        if ranks.is_solo() {
            return Ok(());
        }
        let own = self.recipe.settings_of_ranks();
        let text = serde_json::to_vec(&own).map_err(TrainError::other)?;
        let main: Settings =
            serde_json::from_slice(&ranks.bytes_of_main(&text)).map_err(TrainError::other)?;
        ranks.agree(match first_difference(&main, &own) {
            None => Ok(()),
            Some([setting, expected, found]) => {
                Err(RecipeError::Ranks { setting, found, expected }.into())
            }
        })
    }

    /// Creates the run's folder and takes its lock.
    fn lock(&self) -> Result<(Lock, CreatedFolders), TrainError> {
        let folders = CreatedFolders::create(&self.folder).map_err(TrainError::io(&self.folder))?;
        let lock = Lock::take(&self.folder.join(LOCK)).map_err(|error| match error {
            LockError::Io(source) => TrainError::Io { path: self.folder.clone(), source },
            source => TrainError::Locked { path: self.folder.clone(), source },
        })?;
        Ok((lock, folders))
    }

    /// Opens data and initial weights.
    fn work(&self, dtype: FloatDType) -> Result<Work<'_>, TrainError> {
        let (recipe, sequence) = (&self.recipe, self.ranks.sequence().size());
        if recipe.stdit.is_none() && sequence > 1 {
            let expected = "1: only samples of [stdit] are divided by frames";
            return Err(RecipeError::value("ranks that share samples", sequence, expected).into());
        }
        if let Some(part) = &recipe.stdit {
            self.stdit(part, dtype)
        } else if let Some(part) = &recipe.vae {
            self.vae(part, dtype)
        } else if let Some(part) = &recipe.t5 {
            Ok(Work::T5 { part, data: manifest(&recipe.data)? })
        } else {
            let expected = "one of [stdit], [vae] and [t5]";
            Err(RecipeError::value("number of models", 0, expected).into())
        }
    }

    fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(&self.folder, self.recipe.run.keep)
    }

    fn recipe_path(&self) -> PathBuf {
        self.folder.join("recipe.toml")
    }

    /// Returns an error if the folder holds a run that must not be resumed.
    fn check_folder(&self) -> Result<(), TrainError> {
        if self.checkpoints().complete()?.is_empty() {
            return Ok(());
        }
        if !self.resume {
            let reason = "already holds a run; resume it, or choose another folder";
            return Err(TrainError::state(&self.folder, reason));
        }
        match Recipe::open(&self.recipe_path())?.difference(&self.recipe) {
            Some(difference) => {
                let reason = format!("the run was started with another recipe: {difference}");
                Err(TrainError::state(self.recipe_path(), reason))
            }
            None => Ok(()),
        }
    }

    fn stdit<'a>(&'a self, part: &'a StDitPart, dtype: FloatDType) -> Result<Work<'a>, TrainError> {
        let seed = self.recipe.run.seed;
        let task = DenoiserTask::new(&part.loss, &part.config, seed, dtype, &self.device)?
            .divided(self.ranks.sequence().clone());
        let init = part.init.as_ref().map(|init| opened(init, part)).transpose()?;
        if init.is_none() && part.init_depth.is_some() {
            let hint = "give it in the recipe or by --init: init_depth is its depth";
            return Err(RecipeError::Missing { what: "the initial model", hint }.into());
        }
        let data = self.latents(part)?;
        if let Latents::Cache(cache) = &data {
            let (longest, tokens) = (cache.longest_prompt(), part.config.model_max_length);
            if longest > tokens {
                let expected =
                    format!("at least {longest}, the longest prompt of the cache in tokens");
                return Err(RecipeError::value("model_max_length", tokens, expected).into());
            }
            // Checks the first readable sample, since all have the same shape.
            let sample = (0..cache.len()).find_map(|row| cache.read(row, 0).ok());
            sample.map(|sample| task.batch(&[sample], &[0])).transpose()?;
        }
        Ok(Work::StDit { part, task: Box::new(task), data, init })
    }

    /// Opens the cache of latents and prompt states, or the clips that they are computed from.
    fn latents(&self, part: &StDitPart) -> Result<Latents, TrainError> {
        let data = &self.recipe.data;
        if let Some(cache) = &data.cache {
            let world = self.ranks.world();
            let share = [world.rank(), world.size()];
            let cache = LatentCache::open_for_rank(cache, &data.clip, share)?;
            if data.manifest.is_some() {
                // With both given, the cache must have been made from the manifest.
                cache.check_rows(&dataset(data, self.recipe.run.seed)?)?;
            }
            return Ok(Latents::Cache(cache));
        }
        let missing =
            |what| RecipeError::Missing { what, hint: "it is needed without a cache of latents" };
        let vae = part.vae.clone().ok_or_else(|| missing("the VAE"))?;
        let t5 = part.t5.clone().ok_or_else(|| missing("the text encoder"))?;
        let dataset = dataset(data, self.recipe.run.seed)?;
        check_encoders(part, &data.clip, &vae, &t5)?;
        Ok(Latents::Clips { dataset, vae, t5 })
    }

    fn vae<'a>(&'a self, part: &'a VaePart, dtype: FloatDType) -> Result<Work<'a>, TrainError> {
        let seed = self.recipe.run.seed;
        let task = VaeTask::new(&part.loss, seed, dtype, &self.device)?;
        let ClipSpec { num_frames, image_size: [height, width], .. } = self.recipe.data.clip;
        part.config.check_rgb()?;
        for factor in &part.loss.shrink {
            part.config.latent_size([num_frames, height / factor, width / factor])?;
        }
        let data = dataset(&self.recipe.data, seed)?;
        let init = part.init.as_deref().map(Checkpoint::open).transpose()?;
        Ok(Work::Vae { part, task, data, init })
    }
}

impl Prepared<'_> {
    /// Sets the peak FLOP/s of the device. Measuring takes a while, so it is done after the checks.
    pub fn with_peak_flops(self, peak_flops: Option<f64>) -> Self {
        Self { peak_flops, ..self }
    }

    /// Trains until the recipe's last step or until the observer stops the run, and writes the weights.
    ///
    /// # Errors
    /// Returns an error if a model cannot be loaded or a step fails. The run can resume from its
    /// last complete checkpoint.
    pub fn run(
        self,
        observer: &mut dyn Observer,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        // The same initial weights on every start. They differ between backends.
        self.session.device.seed(self.session.recipe.run.seed);
        let Self { session, dtype, work, peak_flops, _held } = self;
        // On one rank only, since hashes read all of the models.
        if session.ranks.is_main() {
            work.report_cache(observer);
        }
        let run = Running { session, peak_flops, dtype };
        match work {
            Work::StDit { part, task, data, init } => {
                run.stdit(part, &task, data, init, observer, hooks)
            }
            Work::Vae { part, task, data, init } => {
                run.vae(part, &task, Arc::new(data), init, observer)
            }
            Work::T5 { part, data } => run.t5(part, &data, observer),
        }
    }
}

/// The initial model of a denoiser and its samples.
struct OpenedStDit {
    model: StDit,
    source: Arc<dyn Source<Item = EncodedSample>>,
    /// Frames per second of the clips, if known.
    fps: Option<f64>,
}

/// A run that loads its models and trains.
struct Running<'a> {
    session: &'a Session,
    peak_flops: Option<f64>,
    dtype: FloatDType,
}

impl Running<'_> {
    fn stdit(
        &self,
        part: &StDitPart,
        task: &DenoiserTask,
        data: Latents,
        init: Option<Checkpoint>,
        observer: &mut dyn Observer,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        let ranks = &self.session.ranks;
        let clip = &self.session.recipe.data.clip;
        let size = ranks.agree(data.latent_size(clip))?;
        let opened = ranks.agree(self.open_stdit(part, data, init))?;
        let freeze = part.loss.freeze;
        let trainable = |path: &str| freeze.is_trainable(path);
        let (outcome, trainer) =
            self.train(task, opened.model, trainable, opened.source, observer, hooks)?;
        ranks.on_main(|| {
            self.write_stdit(part, &trainer, size)?;
            match description::describe(&self.session.folder, part, clip, opened.fps)? {
                Some(model) => write_json(&self.session.folder.join(description::FILE), &model)?,
                None => observer.description_omitted(&DescriptionOmitted),
            }
            Ok(())
        })?;
        Ok(outcome)
    }

    /// Loads the initial model, and for clips the encoders.
    fn open_stdit(
        &self,
        part: &StDitPart,
        data: Latents,
        init: Option<Checkpoint>,
    ) -> Result<OpenedStDit, TrainError> {
        let device = &self.session.device;
        let model = initial_stdit(part, init, device)?;
        let clip = &self.session.recipe.data.clip;
        let (fps, source): (_, Arc<dyn Source<Item = EncodedSample>>) = match data {
            Latents::Cache(cache) => (fps(clip, cache.paths()), Arc::new(cache)),
            Latents::Clips { dataset, vae, t5 } => {
                let encoder = EncoderConfig {
                    vae,
                    t5,
                    max_length: part.config.model_max_length,
                    vae_micro_batch: part.vae_micro_batch,
                };
                let encoder = ClipEncoder::load(&encoder, device)?;
                let fps = fps(clip, dataset.paths());
                (fps, Arc::new(OnTheFly::new(dataset, encoder)))
            }
        };
        Ok(OpenedStDit { model, source, fps })
    }

    /// Writes the finished weights of a denoiser for latents of `size` `[T, h, w]`.
    fn write_stdit(
        &self,
        part: &StDitPart,
        trainer: &Trainer<StDit>,
        size: Option<[usize; 3]>,
    ) -> Result<(), TrainError> {
        let folder = self.subfolder("stdit")?;
        let map = keys::stdit();
        let write = |model: StDit, name: &str| -> Result<(), TrainError> {
            let tables = size.map_or(Ok(Vec::new()), |size| model.position_tables(size))?;
            let tables = tables.into_iter().map(|(key, table)| Ok((key, read(table)?)));
            let tables = tables.collect::<Result<_, ReadError>>()?;
            let options = ExportOptions::default()
                .with_metadata(PredictionType::NOTE, part.loss.prediction_type.name())
                .with_buffers(tables);
            Ok(export(&model, &map, options, &folder.join(name))?)
        };
        write(trainer.average_model(), "ema.safetensors")?;
        write(trainer.model(), "model.safetensors")?;
        write_json(&folder.join("config.json"), &part.config)
    }

    fn vae(
        &self,
        part: &VaePart,
        task: &VaeTask,
        source: Arc<ClipDataset>,
        init: Option<Checkpoint>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        let (device, ranks) = (&self.session.device, &self.session.ranks);
        let model = || -> Result<AutoencoderKl, TrainError> {
            match &init {
                Some(init) => {
                    Ok(AutoencoderKl::load(&part.config, init, FloatDType::F32, device)?.0)
                }
                None => Ok(part.config.init(device)?),
            }
        };
        let model = ranks.agree(model())?;
        let all = |_: &str| true;
        let (outcome, trainer) = self.train(task, model, all, source.clone(), observer, &mut ())?;
        ranks.on_main(|| self.write_vae(part, &trainer, &source))?;
        Ok(outcome)
    }

    /// Writes the finished weights of a VAE.
    fn write_vae(
        &self,
        part: &VaePart,
        trainer: &Trainer<AutoencoderKl>,
        source: &ClipDataset,
    ) -> Result<(), TrainError> {
        let mut vae = trainer.average_model();
        if part.unit_latents > 0 {
            let run = &self.session.recipe.run;
            let [mean, deviation] = latent_statistics(&vae, source, part.unit_latents, run)?;
            vae = vae.with_unit_latents(&mean, &deviation);
        }
        let folder = self.subfolder("vae")?;
        let map = opensora_vae::keys::Naming::Diffusers.key_map(&part.config);
        let weights = folder.join("diffusion_pytorch_model.safetensors");
        export(&vae, &map, ExportOptions::default(), &weights)?;
        Ok(part.config.write(&folder.join("config.json"))?)
    }

    fn t5(
        &self,
        part: &T5Part,
        manifest: &Manifest,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        let ranks = &self.session.ranks;
        // Rank 0 fits and saves the tokenizer, which the others read. A run that begins anew has no use for that of a
        // run which ended before its first checkpoint.
        let source = |fit: bool| CaptionSource::new(manifest, part, &self.subfolder("t5")?, fit);
        let fitted = ranks.on_main(|| source(self.session.checkpoints().complete()?.is_empty()))?;
        let source = ranks.agree(fitted.map_or_else(|| source(false), Ok))?;
        let seed = self.session.recipe.run.seed;
        let task = ranks.agree(TextTask::new(&part.loss, &source, seed, self.dtype))?;
        let model = part.config.init(&self.session.device).map_err(TrainError::from);
        let model = ranks.agree(model)?;
        let all = |_: &str| true;
        let (outcome, trainer) =
            self.train(&task, model, all, Arc::new(source), observer, &mut ())?;
        ranks.on_main(|| {
            let folder = self.subfolder("t5")?;
            let map = opensora_t5::keys::Layout::PUBLISHED.key_map();
            let weights = folder.join("model.safetensors");
            export(&trainer.average_model(), &map, ExportOptions::default(), &weights)?;
            Ok(part.config.write(&folder.join("config.json"))?)
        })?;
        Ok(outcome)
    }

    /// Starts or resumes the run, and trains.
    fn train<T: Task, S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        task: &T,
        model: T::Model,
        trainable: impl Fn(&str) -> bool,
        source: Arc<S>,
        observer: &mut dyn Observer,
        hooks: &mut dyn Hooks<T>,
    ) -> Result<(Outcome, Trainer<T::Model>), TrainError> {
        let Session { recipe, folder, ranks, .. } = self.session;
        let trainer = ranks.agree(Trainer::new(model, &recipe.optimizer, trainable))?;
        let mut trainer = trainer.over(ranks, recipe.run.zero, self.dtype);
        let progress = self.start(&mut trainer, observer)?;
        let run = Run { task, recipe: &recipe.run, folder, peak_flops: self.peak_flops };
        let outcome = run.train(&mut trainer, source, progress, observer, hooks)?;
        // For the finished weights, which rank 0 writes.
        trainer.assemble();
        Ok((outcome, trainer))
    }

    /// Loads the newest checkpoint of the run, if there is one, and writes the recipe.
    fn start<M: burn::module::Module>(
        &self,
        trainer: &mut Trainer<M>,
        observer: &mut dyn Observer,
    ) -> Result<Progress, TrainError> {
        let session = self.session;
        let found = session.checkpoints().load_newest(trainer, &session.device, observer)?;
        session.ranks.on_main(|| {
            if let Some(progress) = &found {
                observer.resumed(&Resumed { step: progress.step });
            }
            let (path, text) = (session.recipe_path(), session.recipe.to_toml()?);
            write_atomically(&path, |file| fs::write(file, &text)).map_err(TrainError::io(&path))
        })?;
        Ok(found.unwrap_or_default())
    }

    fn subfolder(&self, name: &str) -> Result<PathBuf, TrainError> {
        let folder = self.session.folder.join(name);
        fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        // Weights that a killed process did not finish: one process at a time writes here.
        if self.session.ranks.is_main() {
            remove_unfinished(&folder).map_err(TrainError::io(&folder))?;
        }
        Ok(folder)
    }
}

/// Returns the frames per second of clips from the files at `paths`, if known.
fn fps<'a>(clip: &ClipSpec, paths: impl Iterator<Item = &'a Path>) -> Option<f64> {
    if clip.num_frames > 1 { clip_fps(paths, clip.frame_interval) } else { None }
}

/// Opens the initial weights of a denoiser.
fn opened(init: &Path, part: &StDitPart) -> Result<Checkpoint, TrainError> {
    let checkpoint = Checkpoint::open(init)?;
    let (metadata, expected) = (checkpoint.metadata()?, part.loss.prediction_type.name());
    // Weights of other programs have no such metadata.
    match metadata.get(PredictionType::NOTE).filter(|found| *found != expected) {
        Some(found) => {
            let (path, found) = (init.to_path_buf(), found.clone());
            Err(TrainError::PredictionType { path, found, expected })
        }
        None => Ok(checkpoint),
    }
}

/// Checks that VAE and text encoder fit the denoiser and the clips, from their configurations alone.
///
/// # Errors
/// Returns an error if a configuration cannot be read or does not fit.
pub fn check_encoders(
    part: &StDitPart,
    clip: &ClipSpec,
    vae: &Path,
    t5: &Path,
) -> Result<(), TrainError> {
    let fail = |key, value: usize, path: &Path, what: &str, found: usize| {
        let expected = format!("{found}, the {what} of {}", path.display());
        Err(RecipeError::value(key, value, expected).into())
    };
    let ([height, width], frames) = (clip.image_size, clip.num_frames);
    let (vae_config, config) = (VaeConfig::beside(vae)?, &part.config);
    vae_config.check_rgb()?;
    config.grid(vae_config.latent_size([frames, height, width])?)?;
    let found = vae_config.latent_channels;
    if found != config.in_channels {
        return fail("in_channels", config.in_channels, vae, "latent_channels", found);
    }
    let found = T5Config::read(&t5.join("config.json"))?.d_model;
    if found != config.caption_channels {
        return fail("caption_channels", config.caption_channels, t5, "d_model", found);
    }
    Ok(())
}

/// Returns the initial STDiT: of an earlier stage or of a PixArt-alpha, deepened if the recipe says so, or with random
/// weights.
fn initial_stdit(
    part: &StDitPart,
    init: Option<Checkpoint>,
    device: &Device,
) -> Result<StDit, TrainError> {
    let Some(checkpoint) = init else { return Ok(part.config.init::<StDit>(device)?) };
    let load = if checkpoint.keys().any(|key| key.contains(".attn_temp.")) {
        StDit::load
    } else {
        StDit::from_pixart
    };
    let depth = part.init_depth.unwrap_or(part.config.depth);
    let config = DenoiserConfig { depth, ..part.config.clone() };
    let (model, _) = load(&config, &checkpoint, FloatDType::F32, device)?;
    Ok(model.deepened(part.config.depth)?)
}

fn manifest(data: &DataRecipe) -> Result<Manifest, TrainError> {
    let path = data.manifest.as_ref();
    let hint = "give it in the recipe or by --data";
    let missing = RecipeError::Missing { what: "the manifest", hint };
    let path = path.ok_or(missing)?;
    Ok(Manifest::read(path).map_err(DataError::from)?)
}

fn dataset(data: &DataRecipe, seed: u64) -> Result<ClipDataset, TrainError> {
    Ok(ClipDataset::new(manifest(data)?, data.clip.clone(), seed)?)
}

/// Returns mean and standard deviation of the scaled latents of `samples` rows, for each channel. Leaves out bad rows if
/// the run does.
fn latent_statistics(
    vae: &AutoencoderKl,
    source: &dyn Source<Item = opensora_data::ClipSample>,
    samples: usize,
    run: &RunRecipe,
) -> Result<[Vec<f64>; 2], TrainError> {
    let channels = vae.config().latent_channels;
    let (mut sums, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    let mut count = 0.0;
    // Rows from the whole data set, since manifests are often sorted.
    let samples = samples.min(source.len());
    for sample in 0..samples {
        let item = match read_caught(source, sample * source.len() / samples, 0) {
            // One sample is needed.
            Err(DataError::Row { .. })
                if run.skip_bad > 0 && (count > 0.0 || sample + 1 < samples) =>
            {
                continue;
            }
            item => item?,
        };
        let device = vae.device();
        let posterior = vae.encode(clips(&[item], &device)?, Some(16));
        let shape = posterior.mean().dims();
        let noise = normal_batch(run.seed, Purpose::Posterior, sample as u64, 0, shape, &device);
        let latents = read(posterior.latents(noise))?;
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
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from);
    text.and_then(|text| write_atomically(path, |file| fs::write(file, text + "\n")))
        .map_err(TrainError::io(path))
}
