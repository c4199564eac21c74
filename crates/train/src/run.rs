//! The training loop: steps, checkpoints, checks for finite numbers, metrics.

use crate::{
    error::{RecipeError, TrainError},
    metrics::{MetricsWriter, Record, TABLE, flops::Ceiling},
    observer::{CheckpointSaved, Observer, RowsMissing, StepDone, Update},
    parameters::FlatTensors,
    pending::{Finished, Pending, PendingBatch, PendingStep, Step, with_rows},
    ranks::Ranks,
    shared::{Numbers, share as share_numbers},
    state::{Checkpoints, Progress},
    task::{Cost, Evaluation, MicroBatch, Task},
    trainer::{GradientSum, Trainer},
    zero::Zero,
};
use burn::tensor::Tensor;
use opensora_checkpoint::BoxedError;
use opensora_data::{
    DataError,
    dataset::Source,
    loader::{Batch, Loader, LoaderConfig},
};
use opensora_nn::{dtype::Dtype, read::read_f64};
use opensora_parallel::Traffic;
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// Length, batches and checkpoints of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunRecipe {
    /// Total number of steps.
    pub steps: u64,
    /// Samples of a micro-batch.
    pub batch_size: usize,
    /// Gradient accumulation: micro-batches of a step.
    pub accumulation: usize,
    /// Seed of all random draws: order, windows, noise, timesteps, initial weights.
    pub seed: u64,
    /// Type to compute in: `f32`, `bf16` or `f16`. Parameters, optimizer and moving average are
    /// always f32.
    pub dtype: String,
    /// Threads that read samples; 0 reads them between the steps.
    pub workers: usize,
    /// Batches to read ahead.
    pub prefetch: usize,
    /// Bad rows to skip before the run fails.
    pub skip_bad: usize,
    /// Steps between checkpoints. The last step always writes one.
    pub checkpoint_every: u64,
    /// Number of checkpoints to keep.
    pub keep: usize,
    /// Steps between sample videos; 0 writes none.
    pub sample_every: u64,
    /// Training state that several ranks divide: 0, 1 or 2.
    pub zero: Zero,
}

impl Default for RunRecipe {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 8,
            accumulation: 1,
            seed: 42,
            dtype: "f32".into(),
            workers: 2,
            prefetch: 4,
            skip_bad: 0,
            checkpoint_every: 1000,
            keep: 2,
            sample_every: 0,
            zero: Zero::Off,
        }
    }
}

/// Maximum number of batches of a step.
const MAX_ACCUMULATION: usize = 1 << 16;

impl RunRecipe {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        for (name, value) in [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulation", self.accumulation as u64),
            ("checkpoint_every", self.checkpoint_every),
            ("keep", self.keep as u64),
        ] {
            if value == 0 {
                return Err(RecipeError::value(name, 0, "at least 1"));
            }
        }
        if self.accumulation > MAX_ACCUMULATION {
            let expected = format!("at most {MAX_ACCUMULATION}");
            return Err(RecipeError::value("accumulation", self.accumulation, expected));
        }
        self.dtype.parse::<Dtype>()?;
        self.loader().validate()?;
        Ok(())
    }

    /// Returns the loader's settings, without a list of skipped rows.
    fn loader(&self) -> LoaderConfig {
        LoaderConfig {
            batch_size: self.batch_size,
            workers: self.workers,
            prefetch: self.prefetch,
            seed: self.seed,
            shuffle: true,
            skip_bad: self.skip_bad,
            skip_list: None,
        }
    }
}

/// The end of a run: finished or stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// All steps are done.
    Finished(Progress),
    /// The observer stopped the run, which wrote a checkpoint.
    Stopped(Progress),
}

/// Work between steps that needs the model, such as sampling. `()` does nothing.
pub trait Hooks<T: Task> {
    /// Called every [`sample_every`](RunRecipe::sample_every) steps.
    ///
    /// # Errors
    /// An error stops the run, which returns it as [`TrainError::Hook`] with its source, or
    /// unchanged if it is a [`TrainError`] itself.
    fn sample(&mut self, trainer: &Trainer<T::Model>, step: u64) -> Result<(), BoxedError> {
        let _ = (trainer, step);
        Ok(())
    }
}

impl<T: Task> Hooks<T> for () {}

/// Inputs of a training loop: task, recipe, folder and peak FLOP/s.
pub struct Run<'a, T: Task> {
    /// Model and loss.
    pub task: &'a T,
    /// Length, batches and checkpoints.
    pub recipe: &'a RunRecipe,
    /// The run's folder, which must exist.
    pub folder: &'a Path,
    /// Peak FLOP/s of the device, for the utilisation; see [`Ceiling`].
    pub peak_flops: Option<f64>,
}

impl<T: Task> Run<'_, T> {
    /// Trains from `progress` until the recipe's last step.
    ///
    /// # Errors
    /// Returns an error if data cannot be read, a number is not finite, the device or a hook fails,
    /// or a file cannot be written. The run can resume from the last complete checkpoint.
    ///
    /// Returns an error before anything is written if the folder has a complete checkpoint of a later step than
    /// that of `progress`: resume from it (see [`Checkpoints::load_newest`]), or choose another folder.
    pub fn train<S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        trainer: &mut Trainer<T::Model>,
        source: Arc<S>,
        progress: Progress,
        observer: &mut dyn Observer,
        hooks: &mut dyn Hooks<T>,
    ) -> Result<Outcome, TrainError> {
        let (recipe, ranks) = (self.recipe, trainer.ranks());
        recipe.validate()?;
        let checkpoints = Checkpoints::new(self.folder, recipe.keep);
        ranks.on_main(|| checkpoints.check_start(progress.step))?;
        let mut log = ranks.agree(self.open_log(source.len(), progress, &ranks))?;
        for &gap in log.metrics.iter().flat_map(MetricsWriter::gaps) {
            observer.rows_missing(&RowsMissing { path: self.folder.join(TABLE), gap });
        }
        let loader = Loader::new(source, self.loader_config(), progress.next_slot);
        let mut loader = ranks.agree(loader.map_err(TrainError::from))?.with_part(ranks.part())?;
        let mut pending = Pending::new();
        // The collectives of the loader belong to no step.
        log.traffic = ranks.traffic();
        while trainer.step() < recipe.steps {
            match self.step(trainer, &mut loader) {
                Ok(step) => pending.push(step),
                // A pending step may have failed before, and the numbers of pending steps must not
                // be lost.
                Err(error) => {
                    log.report(&mut pending, observer)?;
                    return Err(error);
                }
            }
            let step = trainer.step();
            let last = step == recipe.steps;
            let save = last || step.is_multiple_of(recipe.checkpoint_every);
            let sample = recipe.sample_every > 0 && step.is_multiple_of(recipe.sample_every);
            // Reading waits for the device, so the numbers of several steps are read together, and
            // always before the parameters are saved or sampled from.
            let due = save || sample || pending.is_due();
            let reported = if due { log.report(&mut pending, observer) } else { Ok(()) };
            let stop = reported.is_ok() && observer.update(&Update { step }).is_break();
            let stop = ranks.settle(reported, stop)?;
            if stop {
                // Only rank 0 writes, and only it meets a full disk.
                let reported = log.report(&mut pending, observer);
                ranks.agree(reported)?;
            }
            if save || stop {
                let path = checkpoints.save(trainer, &log.progress, observer)?;
                if ranks.is_main() {
                    observer.checkpoint_saved(&CheckpointSaved { step, path });
                }
            }
            if sample {
                sample_videos(trainer, hooks)?;
            }
            if stop && !last {
                return Ok(Outcome::Stopped(log.progress));
            }
            if save || sample {
                // The time and the collectives of saving and sampling are no part of the next steps'.
                pending.restart_clock();
                log.traffic = ranks.traffic();
            }
        }
        Ok(Outcome::Finished(log.progress))
    }

    fn open_log(&self, rows: usize, progress: Progress, ranks: &Ranks) -> Result<Log, TrainError> {
        let open = || MetricsWriter::open(self.folder, progress.step);
        let peak_flops = self.peak_flops.map(|peak| peak * ranks.world().size() as f64);
        Ok(Log {
            metrics: ranks.is_main().then(open).transpose()?,
            ceiling: peak_flops.map(Ceiling::new),
            traffic: ranks.traffic(),
            ranks: ranks.clone(),
            rows: rows as f64,
            total_steps: self.recipe.steps,
            progress,
        })
    }

    fn loader_config(&self) -> LoaderConfig {
        let skip_list = (self.recipe.skip_bad > 0).then(|| self.folder.join("skipped.csv"));
        LoaderConfig { skip_list, ..self.recipe.loader() }
    }

    /// Does one step: mean gradient of its micro-batches, one update.
    fn step<S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        trainer: &mut Trainer<T::Model>,
        loader: &mut Loader<S>,
    ) -> Result<PendingStep, TrainError> {
        let step = trainer.step() + 1;
        let accumulation = self.recipe.accumulation;
        let mut sum = GradientSum::default();
        let mut batches = Vec::new();
        let mut cost = Cost::default();
        let mut next_slot = 0;
        for index in 0..accumulation {
            let batch: Batch<T::Item> = match loader.next() {
                Some(batch) => batch?,
                None => return Err(DataError::Empty.into()),
            };
            next_slot = batch.next_slot;
            let number = trainer.step() * accumulation as u64 + index as u64;
            let (batch, of_batch) = self.micro_batch(trainer, batch, number, &mut sum)?;
            cost.tokens += of_batch.tokens;
            cost.flops += of_batch.flops;
            batches.push(batch);
        }
        let losses: Vec<_> = batches.iter().filter_map(PendingBatch::losses_on_device).collect();
        let losses = (!losses.is_empty()).then(|| Tensor::cat(losses, 0));
        let report = trainer
            .apply_sum(sum, losses, self.recipe.steps)
            .map_err(|error| with_rows(error, &batches))?;
        Ok(PendingStep { step, batches, cost, next_slot, report })
    }

    /// Adds the gradients of the micro-batch of this `number` to those of the step. Returns its numbers and its cost.
    fn micro_batch(
        &self,
        trainer: &Trainer<T::Model>,
        batch: Batch<T::Item>,
        number: u64,
        sum: &mut GradientSum,
    ) -> Result<(PendingBatch, Cost), TrainError> {
        let (step, ranks) = (trainer.step() + 1, trainer.ranks());
        let mut cost = Cost::default();
        for item in &batch.items {
            let of_item = self.task.cost(item);
            cost.tokens += of_item.tokens;
            cost.flops += of_item.flops;
        }
        let share = 1.0 / self.recipe.accumulation as f64;
        if ranks.is_solo() {
            let Evaluation { losses, parts, gradients } = self.evaluate(number, trainer, &batch)?;
            let pending = PendingBatch::new(step, batch.rows, losses, parts)?;
            trainer.add_gradients(sum, gradients, share);
            return Ok((pending, cost));
        }
        // The gradient is that of the mean over the whole micro-batch; ranks that share samples average theirs.
        let part = batch.items.len() as f64 / batch.rows.len() as f64;
        let weight = share * part / ranks.sequence().size() as f64;
        let (own, gradients) = match self.evaluate_part(number, trainer, &batch) {
            Ok((losses, parts, gradients)) => (Ok(Numbers { losses, parts, cost }), gradients),
            Err(error) => (Err(error), FlatTensors::new()),
        };
        let numbers = share_numbers(&ranks, own)?;
        let cost = numbers.cost;
        let pending = PendingBatch::known(step, batch.rows, numbers)?;
        trainer.add_gradients(sum, gradients, weight);
        Ok((pending, cost))
    }

    /// Returns the numbers and the gradients of this rank's part of a micro-batch, which may have no samples.
    fn evaluate_part(
        &self,
        number: u64,
        trainer: &Trainer<T::Model>,
        batch: &Batch<T::Item>,
    ) -> Result<PartNumbers, TrainError> {
        if batch.items.is_empty() {
            return Ok(PartNumbers::default());
        }
        let Evaluation { losses, parts, gradients } = self.evaluate(number, trainer, batch)?;
        let mut read = Vec::with_capacity(parts.len());
        for (name, part) in parts {
            let values = read_f64(part)?;
            read.push((name, values.len() as f64, values.iter().sum()));
        }
        Ok((read_f64(losses)?, read, gradients))
    }

    /// Returns losses and gradients of a micro-batch, or of this rank's part of it.
    fn evaluate(
        &self,
        number: u64,
        trainer: &Trainer<T::Model>,
        batch: &Batch<T::Item>,
    ) -> Result<Evaluation, TrainError> {
        // A batch takes at least as many slots as it has samples, so indices are unique.
        let own = batch.first_slot + batch.own.start as u64;
        let indices: Vec<u64> = (own..).take(batch.items.len()).collect();
        let whole = MicroBatch::new(number, batch.rows.len());
        // A backward pass consumes its graph.
        let graph = trainer.graph(self.task.dtype());
        let found = self.task.gradients_of_part(&graph, &batch.items, &indices, whole);
        found.map_err(|error| {
            let (step, rows) = (trainer.step() + 1, batch.rows[batch.own.clone()].to_vec());
            TrainError::or(error, |source| TrainError::Task { step, rows, source })
        })
    }
}

/// Losses, terms and gradients of a part.
type PartNumbers = (Vec<f64>, Vec<(&'static str, f64, f64)>, FlatTensors);

/// Calls the hook of rank 0 with whole parameters and averages.
fn sample_videos<T: Task>(
    trainer: &mut Trainer<T::Model>,
    hooks: &mut dyn Hooks<T>,
) -> Result<(), TrainError> {
    let step = trainer.step();
    trainer.assemble();
    let sampled = trainer.ranks().on_main(|| {
        hooks
            .sample(trainer, step)
            .map_err(|error| TrainError::or(error, |source| TrainError::Hook { step, source }))
    });
    trainer.release();
    sampled.map(drop)
}

/// The progress of a run, and the files of its metrics.
struct Log {
    /// Of rank 0, the only one that reports.
    metrics: Option<MetricsWriter>,
    ceiling: Option<Ceiling>,
    ranks: Ranks,
    /// Cost of the collectives before the steps that are reported next.
    traffic: Traffic,
    /// Rows of the data.
    rows: f64,
    total_steps: u64,
    progress: Progress,
}

impl Log {
    /// Reads the numbers of pending steps and reports them.
    fn report(
        &mut self,
        pending: &mut Pending,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Finished { steps, seconds_each, failed } = pending.read()?;
        let communication = self.communication(seconds_each * steps.len() as f64);
        for step in steps {
            self.progress.step = step.step;
            self.progress.next_slot = step.next_slot;
            self.progress.samples += step.samples as u64;
            self.progress.seconds += seconds_each;
            let record = Record { communication, ..self.record(&step, seconds_each) };
            if let Some(metrics) = &mut self.metrics {
                metrics.write(&record)?;
                observer.step(&StepDone { record: &record, total_steps: self.total_steps });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Returns the share of collectives in the last `seconds`; `None` for a single rank.
    fn communication(&mut self, seconds: f64) -> Option<f64> {
        let traffic = self.ranks.traffic();
        let spent = traffic.since(&self.traffic);
        self.traffic = traffic;
        let share = spent.time.as_secs_f64() / seconds;
        (!self.ranks.is_solo() && seconds > 0.0).then_some(share.min(1.0))
    }

    fn record(&mut self, step: &Step, seconds: f64) -> Record {
        let progress = &self.progress;
        Record {
            step: progress.step,
            samples: progress.samples,
            epoch: progress.next_slot as f64 / self.rows,
            loss: step.loss,
            gradient_norm: step.gradient_norm,
            learning_rate: step.learning_rate,
            samples_per_second: step.samples as f64 / seconds,
            tokens_per_second: step.cost.tokens / seconds,
            // Tasks without FLOPs have no utilisation.
            mfu: self
                .ceiling
                .as_mut()
                .filter(|_| step.cost.flops > 0.0)
                .map(|ceiling| ceiling.utilisation(step.cost.flops / seconds)),
            seconds: progress.seconds,
            communication: None,
            parts: step.parts.clone(),
        }
    }
}
