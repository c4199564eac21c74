//! The loop: batches to steps, with checkpoints, guards and metrics.

use crate::{
    error::TrainError,
    metrics::{MetricsWriter, Record, TABLE, TrainObserver, flops::Ceiling},
    optimizer::GradientNorm,
    parameters::FlatTensors,
    state::{Checkpoints, Progress},
    task::{Cost, Evaluation, Task},
    trainer::{PendingReport, Trainer, check_norm},
};
use burn::tensor::Tensor;
use opensora_data::{
    DataError,
    dataset::Source,
    loader::{Batch, Loader, LoaderConfig},
};
use opensora_nn::{device::is_host, read::read_f64};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc, time::Instant};

/// How long a run is, and what it leaves behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunRecipe {
    /// Steps in all.
    pub steps: u64,
    /// Samples that go through the model at once.
    pub batch_size: usize,
    /// Batches whose gradients make one step.
    pub accumulation: usize,
    /// Seed of everything that is drawn: order, windows, noise, timesteps, fresh weights.
    pub seed: u64,
    /// The type that is computed in: `f32`, `bf16` or `f16`. Parameters, optimizer and average stay
    /// in f32.
    pub dtype: String,
    /// Threads that read samples; 0 reads them between the steps.
    pub workers: usize,
    /// Batches that are read ahead.
    pub prefetch: usize,
    /// Bad rows that are left out before the run stops.
    pub skip_bad: usize,
    /// Steps between checkpoints; the last step always leaves one.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Steps between sample videos; 0 makes none.
    pub sample_every: u64,
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
        }
    }
}

impl RunRecipe {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), TrainError> {
        for (name, value) in [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulation", self.accumulation as u64),
            ("checkpoint_every", self.checkpoint_every),
            ("keep", self.keep as u64),
        ] {
            if value == 0 {
                return Err(TrainError::Recipe(format!("{name} is 0, expected at least 1")));
            }
        }
        Ok(())
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// All steps are done.
    Finished(Progress),
    /// The observer stopped it; a checkpoint was left.
    Stopped(Progress),
}

/// What happens between steps, beyond the loop's own work.
pub trait Hooks<T: Task> {
    /// Called every [`sample_every`](RunRecipe::sample_every) steps.
    ///
    /// # Errors
    /// Returns an error, such as [`TrainError::Hook`], to stop the run.
    fn sample(&mut self, trainer: &Trainer<T::Model>, step: u64) -> Result<(), TrainError>;
}

/// No sample videos.
#[derive(Debug, Clone, Copy)]
pub struct NoHooks;

impl<T: Task> Hooks<T> for NoHooks {
    fn sample(&mut self, _trainer: &Trainer<T::Model>, _step: u64) -> Result<(), TrainError> {
        Ok(())
    }
}

/// What a run works with.
pub struct Run<'a, T: Task> {
    /// Model and loss.
    pub task: &'a T,
    /// How long, and what is left behind.
    pub recipe: &'a RunRecipe,
    /// The run's folder, which exists.
    pub folder: &'a Path,
    /// FLOP/s that the device can reach at best, for the utilisation; see [`Ceiling`].
    pub peak_flops: Option<f64>,
}

impl<T: Task> Run<'_, T> {
    /// Trains until the recipe's last step, from `progress` on.
    ///
    /// # Errors
    /// Returns an error if data cannot be read, a number is not finite, the device fails, or a file cannot
    /// be written. The run can resume from the last complete checkpoint.
    pub fn train<S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        trainer: &mut Trainer<T::Model>,
        source: Arc<S>,
        mut progress: Progress,
        observer: &mut dyn TrainObserver,
        hooks: &mut dyn Hooks<T>,
    ) -> Result<Outcome, TrainError> {
        let recipe = self.recipe;
        recipe.validate()?;
        let checkpoints = Checkpoints::new(self.folder, recipe.keep);
        let mut metrics = MetricsWriter::open(self.folder, progress.step)?;
        for gap in metrics.gaps() {
            observer.message(&format!("{}: {gap}", self.folder.join(TABLE).display()));
        }
        let mut ceiling = self.peak_flops.map(Ceiling::new);
        let rows = source.len() as f64;
        let config = LoaderConfig {
            batch_size: recipe.batch_size,
            workers: recipe.workers,
            prefetch: recipe.prefetch,
            seed: recipe.seed,
            shuffle: true,
            skip_bad: recipe.skip_bad,
            skip_list: (recipe.skip_bad > 0).then(|| self.folder.join("skipped.csv")),
        };
        let mut loader = Loader::new(source, config, progress.next_slot)?;

        let mut pending = Pending::new();
        while trainer.step() < recipe.steps {
            let stepped = self.step(trainer, &mut loader);
            let step = trainer.step();
            let last = step == recipe.steps;
            let save = last || step.is_multiple_of(recipe.checkpoint_every);
            let sample = recipe.sample_every > 0 && step.is_multiple_of(recipe.sample_every);
            let mut report = |pending: &mut Pending, observer: &mut dyn TrainObserver| {
                let (done, failed) = pending.read()?;
                for (step, seconds) in done {
                    progress.step = step.step;
                    progress.next_slot = step.next_slot;
                    progress.samples += step.samples as u64;
                    progress.seconds += seconds;
                    let record = step.record(&progress, seconds, rows, ceiling.as_mut());
                    metrics.write(&record)?;
                    observer.step(&record, recipe.steps);
                }
                failed.map_or(Ok(()), Err)
            };
            match stepped {
                Ok(step) => pending.steps.push(step),
                // Steps before it may have failed earlier, and their numbers are not lost.
                Err(error) => {
                    report(&mut pending, observer)?;
                    return Err(error);
                }
            }
            // Reading waits for the device, so the numbers of several steps are read together, and
            // always before the parameters are saved or sampled from.
            if save || sample || pending.is_due() {
                report(&mut pending, observer)?;
            }
            let stop = observer.should_stop();
            if stop {
                report(&mut pending, observer)?;
            }
            if save || stop {
                checkpoints.save(trainer, &progress)?;
            }
            if sample {
                hooks.sample(trainer, progress.step)?;
            }
            if stop && !last {
                return Ok(Outcome::Stopped(progress));
            }
            if save || sample {
                // That is no part of the next steps' time.
                pending.since = Instant::now();
            }
        }
        Ok(Outcome::Finished(progress))
    }

    /// One step: as many batches as the recipe says, their mean gradient, one update.
    fn step<S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        trainer: &mut Trainer<T::Model>,
        loader: &mut Loader<S>,
    ) -> Result<PendingStep, TrainError> {
        let accumulation = self.recipe.accumulation;
        let share = 1.0 / accumulation as f64;
        let mut sum = FlatTensors::new();
        let mut batches = Vec::with_capacity(accumulation);
        let mut cost = Cost::default();
        let mut next_slot = 0;
        for _ in 0..accumulation {
            let batch: Batch<T::Item> = match loader.next() {
                Some(batch) => batch?,
                None => return Err(DataError::Empty.into()),
            };
            // A batch takes at least as many slots as it has samples, so no index comes twice.
            let indices: Vec<u64> = (batch.first_slot..).take(batch.items.len()).collect();
            // A graph is used up by its backward pass.
            let graph = trainer.graph(self.task.dtype());
            let Evaluation { losses, parts, gradients } =
                self.task.gradients(&graph, &batch.items, &indices)?;
            for item in &batch.items {
                let of_item = self.task.cost(item);
                cost.tokens += of_item.tokens;
                cost.flops += of_item.flops;
            }
            next_slot = batch.next_slot;
            batches.push(PendingBatch { rows: batch.rows, losses, parts });
            for (name, gradient) in gradients {
                let gradient = if share == 1.0 { gradient } else { gradient * share };
                let gradient = match sum.remove(&name) {
                    Some(before) => before + gradient,
                    None => gradient,
                };
                sum.insert(name, gradient);
            }
        }
        let step = trainer.step() + 1;
        let on_host = batches.iter().all(|batch| is_host(&batch.losses.device()));
        if on_host {
            // Host memory is read without waiting. Checked before the update, which changes parameters.
            for batch in &batches {
                guard(step, &read_f64(batch.losses.clone())?, &batch.rows)?;
            }
        }
        let losses = batches.iter().map(|batch| batch.losses.clone()).collect();
        let losses = (!on_host).then(|| Tensor::cat(losses, 0));
        let report = trainer
            .apply_pending(sum, losses, self.recipe.steps)
            .map_err(|error| with_rows(error, &batches))?;
        Ok(PendingStep { step, batches, cost, next_slot, report })
    }
}

/// Returns an error with the rows at fault if a loss is not finite; `step` counts from 1.
fn guard(step: u64, losses: &[f64], rows: &[usize]) -> Result<(), TrainError> {
    let bad = losses.iter().zip(rows).filter(|(loss, _)| !loss.is_finite());
    let rows: Vec<usize> = bad.map(|(_, &row)| row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    Err(TrainError::NonFinite { step, what: "the loss".into(), rows })
}

/// Fills all rows of the step into an error for numbers that are not finite.
fn with_rows(error: TrainError, batches: &[PendingBatch]) -> TrainError {
    match error {
        TrainError::NonFinite { step, what, .. } => {
            let rows = batches.iter().flat_map(|batch| batch.rows.iter().copied()).collect();
            TrainError::NonFinite { step, what, rows }
        }
        other => other,
    }
}

/// Steps between reads of losses and norms, on devices where a read waits for all work.
const READ_EVERY: usize = 8;

/// Steps whose numbers have not been read yet.
struct Pending {
    steps: Vec<PendingStep>,
    since: Instant,
}

/// A step whose numbers the device may still be computing.
struct PendingStep {
    /// Number of the step, from 1.
    step: u64,
    batches: Vec<PendingBatch>,
    cost: Cost,
    next_slot: u64,
    report: PendingReport,
}

/// A micro-batch whose numbers the device may still be computing.
struct PendingBatch {
    rows: Vec<usize>,
    /// Losses `[B]`.
    losses: Tensor<1>,
    parts: Vec<(&'static str, Tensor<1>)>,
}

impl Pending {
    fn new() -> Self {
        Self { steps: Vec::new(), since: Instant::now() }
    }

    fn is_due(&self) -> bool {
        let known =
            |step: &PendingStep| matches!(step.report.gradient_norm, GradientNorm::Known(_));
        self.steps.len() >= READ_EVERY || self.steps.iter().all(known)
    }

    /// Reads the results of the steps, each with its share of the seconds since the last read.
    ///
    /// Stops at the first step with a number that is not finite, whose error comes with the steps
    /// before it.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    #[allow(clippy::type_complexity, reason = "used once")]
    fn read(&mut self) -> Result<(Vec<(Step, f64)>, Option<TrainError>), TrainError> {
        let steps = std::mem::take(&mut self.steps);
        let mut numbers = Numbers::of(&steps)?;
        let seconds = self.since.elapsed().as_secs_f64() / steps.len().max(1) as f64;
        self.since = Instant::now();
        let mut done = Vec::with_capacity(steps.len());
        for step in steps {
            match step.finish(&mut numbers) {
                Ok(step) => done.push((step, seconds)),
                Err(error) => return Ok((done, Some(error))),
            }
        }
        Ok((done, None))
    }
}

/// All numbers of some steps from one read, in the order in which they are consumed.
struct Numbers(std::vec::IntoIter<f64>);

impl Numbers {
    fn of(steps: &[PendingStep]) -> Result<Self, TrainError> {
        let mut tensors = Vec::new();
        for step in steps {
            for batch in &step.batches {
                tensors.push(batch.losses.clone());
                tensors.extend(batch.parts.iter().map(|(_, part)| part.clone()));
            }
            if let GradientNorm::OnDevice(norm) = &step.report.gradient_norm {
                tensors.push(norm.clone());
            }
        }
        let values = if tensors.is_empty() { vec![] } else { read_f64(Tensor::cat(tensors, 0))? };
        Ok(Self(values.into_iter()))
    }

    fn take(&mut self, tensor: &Tensor<1>) -> Vec<f64> {
        self.0.by_ref().take(tensor.dims()[0]).collect()
    }
}

impl PendingStep {
    fn finish(self, numbers: &mut Numbers) -> Result<Step, TrainError> {
        let share = 1.0 / self.batches.len().max(1) as f64;
        let mut step = Step {
            step: self.step,
            samples: self.batches.iter().map(|batch| batch.rows.len()).sum(),
            next_slot: self.next_slot,
            cost: self.cost,
            loss: 0.0,
            parts: Vec::new(),
            gradient_norm: 0.0,
            learning_rate: self.report.learning_rate,
        };
        for batch in &self.batches {
            let losses = numbers.take(&batch.losses);
            guard(self.step, &losses, &batch.rows)?;
            step.loss += share * mean(&losses);
            for (name, part) in &batch.parts {
                let value = share * mean(&numbers.take(part));
                match step.parts.iter_mut().find(|(part, _)| part == name) {
                    Some((_, sum)) => *sum += value,
                    None => step.parts.push((name, value)),
                }
            }
        }
        step.gradient_norm = match &self.report.gradient_norm {
            GradientNorm::Known(norm) => *norm,
            GradientNorm::OnDevice(norm) => mean(&numbers.take(norm)),
        };
        check_norm(self.step, step.gradient_norm)
            .map_err(|error| with_rows(error, &self.batches))?;
        Ok(step)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What a step did.
struct Step {
    /// From 1.
    step: u64,
    samples: usize,
    next_slot: u64,
    cost: Cost,
    loss: f64,
    parts: Vec<(&'static str, f64)>,
    gradient_norm: f64,
    learning_rate: f64,
}

impl Step {
    fn record(
        &self,
        progress: &Progress,
        seconds: f64,
        rows: f64,
        ceiling: Option<&mut Ceiling>,
    ) -> Record {
        Record {
            step: progress.step,
            samples: progress.samples,
            epoch: progress.next_slot as f64 / rows,
            loss: self.loss,
            gradient_norm: self.gradient_norm,
            learning_rate: self.learning_rate,
            samples_per_second: self.samples as f64 / seconds,
            tokens_per_second: self.cost.tokens / seconds,
            // A task that does not know its cost has no utilisation.
            mfu: ceiling
                .filter(|_| self.cost.flops > 0.0)
                .map(|ceiling| ceiling.utilisation(self.cost.flops / seconds)),
            seconds: progress.seconds,
            parts: self.parts.clone(),
        }
    }
}
