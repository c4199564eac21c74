//! A run from its recipe: checks, data, model, start or resume, loop, finished weights.
//!
//! ```text
//! RUN/
//!   recipe.toml        what is run, with everything the command line said
//!   metrics.csv        one row a step; events.out.tfevents.* holds the same for TensorBoard
//!   checkpoints/       see `state`
//!   stdit/, vae/, t5/  the finished weights under published names: the moving average, and for STDiT
//!                      the last values beside it
//!   model.json         for STDiT: the finished model and links to its parts, see `description`
//!   .lock              held by the process that trains here; removed when it ends
//! ```

use crate::{
    denoiser::DenoiserTask,
    description,
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
use opensora_checkpoint::{Checkpoint, PublishedModel, export, export_with_buffers};
use opensora_data::{
    ClipDataset, ClipSpec, DataError, Manifest, Source,
    cache::LatentCache,
    dataset::clip_fps,
    encode::{ClipEncoder, EncodedSample, OnTheFly},
};
use opensora_diffusion::PredictionType;
use opensora_files::{CreatedFolders, Lock, LockError, write_atomically};
use opensora_nn::{
    dtype::Dtype,
    noise::normal_batch,
    random::Purpose,
    read::{ReadError, read},
};
use opensora_stdit::{StDit, keys};
use opensora_t5::T5Config;
use opensora_vae::{AutoencoderKl, VaeConfig};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name of the lock's file in a run's folder.
const LOCK: &str = ".lock";

/// Where a run lives and how it is watched.
#[derive(Debug, Clone)]
pub struct Session {
    /// What is run.
    pub recipe: Recipe,
    /// The run's folder.
    pub folder: PathBuf,
    /// Resumes from the newest whole checkpoint, if there is one.
    pub resume: bool,
    /// FLOP/s that the device can reach at best, for the utilisation.
    pub peak_flops: Option<f64>,
    /// The device.
    pub device: Device,
}

/// A run that passed all checks that need no model, and holds the lock of its folder.
pub struct Prepared<'a> {
    session: &'a Session,
    dtype: FloatDType,
    work: Work<'a>,
    peak_flops: Option<f64>,
    /// Dropped in this order: the folder goes again if nothing but the lock was in it.
    _lock: Lock,
    _folders: CreatedFolders,
}

/// What is trained, on which opened data, from which opened weights.
enum Work<'a> {
    StDit { part: &'a StDitPart, task: Box<DenoiserTask>, data: Latents, init: Option<Checkpoint> },
    Vae { part: &'a VaePart, task: VaeTask, data: ClipDataset, init: Option<Checkpoint> },
    T5 { part: &'a T5Part, data: Manifest },
}

/// Where a denoiser's samples come from.
enum Latents {
    /// They were computed before.
    Cache(LatentCache),
    /// They are computed along the way.
    Clips { dataset: ClipDataset, vae: PathBuf, t5: PathBuf },
}

impl Latents {
    /// Size of the latents, `[T, h, w]`; `None` if no sample of the cache can be read.
    fn latent_size(&self, clip: &ClipSpec) -> Result<Option<[usize; 3]>, TrainError> {
        match self {
            Self::Cache(cache) => {
                // All samples are of one shape.
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
    /// Trains to the recipe's end, or until the observer stops it, and writes the weights as they
    /// are then.
    ///
    /// # Errors
    /// Returns an error if the recipe cannot be run here or the run cannot go on; its last whole
    /// checkpoint is good.
    pub fn run(
        &self,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        self.prepare()?.run(observer, hooks)
    }

    /// Takes the lock of the run's folder and checks all that can be checked before a model is
    /// loaded: recipe, folder, data, and the headers of the weights to start from.
    ///
    /// # Errors
    /// Returns an error if the recipe cannot be run here, or another process uses the folder.
    pub fn prepare(&self) -> Result<Prepared<'_>, TrainError> {
        let recipe = &self.recipe;
        recipe.validate()?;
        let dtype = recipe.run.dtype.parse::<Dtype>()?.check(&self.device)?.float();
        let folders = CreatedFolders::create(&self.folder).map_err(TrainError::io(&self.folder))?;
        let lock = Lock::take(&self.folder.join(LOCK)).map_err(|error| match error {
            LockError::Io(source) => TrainError::Io { path: self.folder.clone(), source },
            source => TrainError::Locked { path: self.folder.clone(), source },
        })?;
        self.check_folder()?;
        let work = if let Some(part) = &recipe.stdit {
            self.stdit(part, dtype)?
        } else if let Some(part) = &recipe.vae {
            self.vae(part, dtype)?
        } else if let Some(part) = &recipe.t5 {
            Work::T5 { part, data: manifest(&recipe.data)? }
        } else {
            return Err(TrainError::Recipe("nothing to train".into()));
        };
        let peak_flops = self.peak_flops;
        Ok(Prepared { session: self, dtype, work, peak_flops, _lock: lock, _folders: folders })
    }

    fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(&self.folder, self.recipe.run.keep)
    }

    fn recipe_path(&self) -> PathBuf {
        self.folder.join("recipe.toml")
    }

    /// Fails if the folder holds a run that may not be resumed.
    fn check_folder(&self) -> Result<(), TrainError> {
        if self.checkpoints().complete()?.is_empty() {
            return Ok(());
        }
        let fail = |path: PathBuf, reason: String| Err(TrainError::State { path, reason });
        if !self.resume {
            let reason = "already holds a run: resume it, or choose another folder";
            return fail(self.folder.clone(), reason.into());
        }
        match Recipe::open(&self.recipe_path())?.difference(&self.recipe) {
            Some(difference) => {
                let reason = format!("the run was begun with another recipe: {difference}");
                fail(self.recipe_path(), reason)
            }
            None => Ok(()),
        }
    }

    fn stdit<'a>(&'a self, part: &'a StDitPart, dtype: FloatDType) -> Result<Work<'a>, TrainError> {
        let seed = self.recipe.run.seed;
        let task = DenoiserTask::new(&part.loss, &part.config, seed, dtype, &self.device)?;
        let init = part.init.as_ref().map(|init| opened(init, part)).transpose()?;
        let data = self.latents(part)?;
        if let Latents::Cache(cache) = &data {
            // The first one that can be read stands for all: they are of one shape.
            let sample = (0..cache.len()).find_map(|row| cache.read(row, 0).ok());
            sample.map(|sample| task.batch(&[sample], &[0])).transpose()?;
        }
        Ok(Work::StDit { part, task: Box::new(task), data, init })
    }

    /// Opens the latents and prompt states, or what they are computed from.
    fn latents(&self, part: &StDitPart) -> Result<Latents, TrainError> {
        let data = &self.recipe.data;
        if let Some(cache) = &data.cache {
            let cache = LatentCache::open_for(cache, &data.clip)?;
            if data.manifest.is_some() {
                // Naming both says that the cache was made from the manifest.
                cache.check_rows(&dataset(data, self.recipe.run.seed)?)?;
            }
            return Ok(Latents::Cache(cache));
        }
        let missing = |what: &str| {
            TrainError::Recipe(format!("without a cache of latents the {what} is needed"))
        };
        let vae = part.vae.clone().ok_or_else(|| missing("VAE"))?;
        let t5 = part.t5.clone().ok_or_else(|| missing("text encoder"))?;
        let dataset = dataset(data, self.recipe.run.seed)?;
        check_encoders(part, &data.clip, &vae, &t5)?;
        Ok(Latents::Clips { dataset, vae, t5 })
    }

    fn vae<'a>(&'a self, part: &'a VaePart, dtype: FloatDType) -> Result<Work<'a>, TrainError> {
        let seed = self.recipe.run.seed;
        let task = VaeTask::new(&part.loss, seed, dtype, &self.device)?;
        let data = dataset(&self.recipe.data, seed)?;
        let init = part.init.as_deref().map(Checkpoint::open).transpose()?;
        Ok(Work::Vae { part, task, data, init })
    }
}

impl Prepared<'_> {
    /// Sets the FLOP/s that the device can reach at best, which take a while to measure.
    pub fn with_peak_flops(self, peak_flops: Option<f64>) -> Self {
        Self { peak_flops, ..self }
    }

    /// Trains to the recipe's end, or until the observer stops it, and writes the weights as they
    /// are then.
    ///
    /// # Errors
    /// Returns an error if a model cannot be loaded or the run cannot go on; its last whole
    /// checkpoint is good.
    pub fn run(
        self,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        // The same fresh weights on every start; backends draw them in their own way.
        self.session.device.seed(self.session.recipe.run.seed);
        let Self { session, dtype, work, peak_flops, _lock, _folders } = self;
        let _held = (_lock, _folders);
        let run = Running { session, peak_flops };
        match work {
            Work::StDit { part, task, data, init } => {
                run.stdit(part, &task, data, init, observer, hooks)
            }
            Work::Vae { part, task, data, init } => {
                run.vae(part, &task, Arc::new(data), init, observer)
            }
            Work::T5 { part, data } => run.t5(part, &data, dtype, observer),
        }
    }
}

/// A run that loads its models and trains.
struct Running<'a> {
    session: &'a Session,
    peak_flops: Option<f64>,
}

impl Running<'_> {
    fn stdit(
        &self,
        part: &StDitPart,
        task: &DenoiserTask,
        data: Latents,
        init: Option<Checkpoint>,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> Result<Outcome, TrainError> {
        let device = &self.session.device;
        let model = initial_stdit(part, init, device)?;
        let clip = &self.session.recipe.data.clip;
        let size = data.latent_size(clip)?;
        let (fps, source): (_, Arc<dyn Source<Item = EncodedSample>>) = match data {
            Latents::Cache(cache) => (fps(clip, cache.paths()), Arc::new(cache)),
            Latents::Clips { dataset, vae, t5 } => {
                let tokens = part.config.model_max_length;
                let encoder = ClipEncoder::load(&vae, &t5, tokens, part.vae_micro_batch, device)?;
                let fps = fps(clip, dataset.paths());
                (fps, Arc::new(OnTheFly::new(dataset, encoder)))
            }
        };
        let freeze = part.loss.freeze;
        let trainable = |path: &str| freeze.is_trainable(path);
        let (outcome, trainer) = self.train(task, model, trainable, source, observer, hooks)?;

        let folder = self.subfolder("stdit")?;
        let (map, dtype) = (keys::stdit(), FloatDType::F32);
        let note = Some((PredictionType::NOTE, part.loss.prediction_type.name()));
        let write = |model: StDit, name: &str| -> Result<(), TrainError> {
            let tables = size.map_or(Ok(Vec::new()), |size| model.position_tables(size))?;
            let tables = tables.into_iter().map(|(key, table)| Ok((key, read(table)?)));
            let tables = tables.collect::<Result<_, ReadError>>()?;
            Ok(export_with_buffers(&model, &map, tables, dtype, note, &folder.join(name))?)
        };
        write(trainer.average_model(), "ema.safetensors")?;
        write(trainer.model(), "model.safetensors")?;
        write_json(&folder.join("config.json"), &part.config)?;
        match description::describe(&self.session.folder, part, clip, fps)? {
            Some(model) => write_json(&self.session.folder.join(description::FILE), &model)?,
            None => observer.message(
                "no model.json was written, since the run was given no text encoder and VAE; \
                 sample with --t5 and --vae",
            ),
        }
        Ok(outcome)
    }

    fn vae(
        &self,
        part: &VaePart,
        task: &VaeTask,
        source: Arc<ClipDataset>,
        init: Option<Checkpoint>,
        observer: &mut dyn TrainObserver,
    ) -> Result<Outcome, TrainError> {
        let device = &self.session.device;
        let model = match init {
            Some(init) => AutoencoderKl::load(&part.config, &init, FloatDType::F32, device)?.0,
            None => part.config.init(device)?,
        };
        let all = |_: &str| true;
        let (outcome, trainer) =
            self.train(task, model, all, source.clone(), observer, &mut NoHooks)?;

        let mut vae = trainer.average_model();
        if part.unit_latents > 0 {
            let seed = self.session.recipe.run.seed;
            let [mean, deviation] = latent_statistics(&vae, &*source, part.unit_latents, seed)?;
            vae = vae.with_unit_latents(&mean, &deviation);
        }
        let folder = self.subfolder("vae")?;
        let map = opensora_vae::keys::Naming::Diffusers.key_map(&part.config);
        let weights = folder.join("diffusion_pytorch_model.safetensors");
        export(&vae, &map, FloatDType::F32, None, &weights)?;
        part.config.write(&folder.join("config.json"))?;
        Ok(outcome)
    }

    fn t5(
        &self,
        part: &T5Part,
        manifest: &Manifest,
        dtype: FloatDType,
        observer: &mut dyn TrainObserver,
    ) -> Result<Outcome, TrainError> {
        let folder = self.subfolder("t5")?;
        let (vocabulary, length) = (part.config.vocab_size, part.max_length);
        let source = CaptionSource::new(manifest, vocabulary, length, &folder)?;
        let task = TextTask::new(&part.loss, &source, self.session.recipe.run.seed, dtype)?;
        let model = part.config.init(&self.session.device)?;
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
        let Session { recipe, folder, .. } = self.session;
        let mut trainer = Trainer::new(model, &recipe.optimizer, trainable)?;
        let progress = self.start(&mut trainer, observer)?;
        let run = Run { task, recipe: &recipe.run, folder, peak_flops: self.peak_flops };
        let outcome = run.train(&mut trainer, source, progress, observer, hooks)?;
        Ok((outcome, trainer))
    }

    /// Resumes from what is in the run's folder, and writes the recipe there.
    fn start<M: burn::module::Module>(
        &self,
        trainer: &mut Trainer<M>,
        observer: &mut dyn TrainObserver,
    ) -> Result<Progress, TrainError> {
        let session = self.session;
        let mut tell = |text: &str| observer.message(text);
        let found = session.checkpoints().load_newest(trainer, &session.device, &mut tell)?;
        if let Some(progress) = &found {
            observer.message(&format!("resuming from step {}", progress.step));
        }
        let (path, text) = (session.recipe_path(), session.recipe.to_toml()?);
        write_atomically(&path, |file| fs::write(file, &text)).map_err(TrainError::io(&path))?;
        Ok(found.unwrap_or_default())
    }

    fn subfolder(&self, name: &str) -> Result<PathBuf, TrainError> {
        let folder = self.session.folder.join(name);
        fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        Ok(folder)
    }
}

/// Frames per second of clips from the files at `paths`, if they are known.
fn fps<'a>(clip: &ClipSpec, paths: impl Iterator<Item = &'a Path>) -> Option<f64> {
    if clip.num_frames > 1 { clip_fps(paths, clip.frame_interval) } else { None }
}

/// Opens the weights that a denoiser starts from.
fn opened(init: &Path, part: &StDitPart) -> Result<Checkpoint, TrainError> {
    let checkpoint = Checkpoint::open(init)?;
    let (notes, expected) = (checkpoint.notes()?, part.loss.prediction_type.name());
    // Weights of other programs say nothing.
    match notes.get(PredictionType::NOTE).filter(|found| *found != expected) {
        Some(found) => {
            let (path, found) = (init.to_path_buf(), found.clone());
            Err(TrainError::PredictionType { path, found, expected })
        }
        None => Ok(checkpoint),
    }
}

/// Fails if VAE or text encoder do not fit the denoiser, as their configurations say.
fn check_encoders(
    part: &StDitPart,
    clip: &ClipSpec,
    vae: &Path,
    t5: &Path,
) -> Result<(), TrainError> {
    let fail = |key: &str, value: usize, path: &Path, what: &str, found: usize| {
        let path = path.display();
        Err(TrainError::Recipe(format!("{key} is {value}, but {path} has {what} of {found}")))
    };
    let ([height, width], frames) = (clip.image_size, clip.num_frames);
    let (vae_config, config) = (VaeConfig::beside(vae)?, &part.config);
    config.grid(vae_config.latent_size([frames, height, width])?)?;
    let found = vae_config.latent_channels;
    if found != config.in_channels {
        return fail("in_channels", config.in_channels, vae, "latent_channels", found);
    }
    let found = T5Config::read(&t5.join("config.json"))?.d_model;
    if found != config.caption_channels {
        return fail("caption_channels", config.caption_channels, t5, "a d_model", found);
    }
    Ok(())
}

/// The STDiT that a recipe starts from: the stage before, a PixArt-alpha, or fresh weights.
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
    Ok(load(&part.config, &checkpoint, FloatDType::F32, device)?.0)
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
