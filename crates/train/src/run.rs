//! The loop: batches to steps, with checkpoints, guards and metrics.

use crate::{
    error::TrainError,
    metrics::{MetricsWriter, Record, TABLE, TrainObserver, flops::Ceiling},
    parameters::FlatTensors,
    state::{Checkpoints, Progress},
    task::{Cost, Evaluation, Task},
    trainer::Trainer,
};
use opensora_data::{
    DataError,
    dataset::Source,
    loader::{Batch, Loader, LoaderConfig},
};
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
    /// Fails where a value cannot be.
    ///
    /// # Errors
    /// Names the value.
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
    /// [`TrainError::Hook`] stops the run.
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
    /// Where data cannot be read, a number is not finite, or a file cannot be written. The last
    /// complete checkpoint is good then, and the run can go on from it.
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

        while trainer.step() < recipe.steps {
            let began = Instant::now();
            let step = self.step(trainer, &mut loader)?;
            progress.step = trainer.step();
            progress.next_slot = step.next_slot;
            progress.samples += step.samples as u64;
            let seconds = began.elapsed().as_secs_f64();
            progress.seconds += seconds;

            let record = step.record(&progress, seconds, rows, ceiling.as_mut());
            metrics.write(&record)?;
            observer.step(&record, recipe.steps);

            let last = progress.step == recipe.steps;
            let stop = observer.should_stop();
            if last || stop || progress.step.is_multiple_of(recipe.checkpoint_every) {
                checkpoints.save(trainer, &progress)?;
            }
            if recipe.sample_every > 0 && progress.step.is_multiple_of(recipe.sample_every) {
                hooks.sample(trainer, progress.step)?;
            }
            if stop && !last {
                return Ok(Outcome::Stopped(progress));
            }
        }
        Ok(Outcome::Finished(progress))
    }

    /// One step: as many batches as the recipe says, their mean gradient, one update.
    fn step<S: Source<Item = T::Item> + ?Sized + 'static>(
        &self,
        trainer: &mut Trainer<T::Model>,
        loader: &mut Loader<S>,
    ) -> Result<Step, TrainError> {
        let share = 1.0 / self.recipe.accumulation as f64;
        let mut sum = FlatTensors::new();
        let mut step = Step::default();
        let mut rows = Vec::new();
        for _ in 0..self.recipe.accumulation {
            let batch: Batch<T::Item> = match loader.next() {
                Some(batch) => batch?,
                None => return Err(DataError::Empty.into()),
            };
            // A batch takes at least as many slots as it has samples, so no index comes twice.
            let indices: Vec<u64> = (batch.first_slot..).take(batch.items.len()).collect();
            // A graph is used up by its backward pass.
            let graph = trainer.graph(self.task.dtype());
            let evaluation = self.task.gradients(&graph, &batch.items, &indices)?;
            guard(trainer.step() + 1, &evaluation, &batch.rows)?;
            rows.extend(&batch.rows);
            step.add(&evaluation, share);
            for item in &batch.items {
                let cost = self.task.cost(item);
                step.cost.tokens += cost.tokens;
                step.cost.flops += cost.flops;
            }
            step.samples += batch.items.len();
            step.next_slot = batch.next_slot;
            for (name, gradient) in evaluation.gradients {
                let gradient = if share == 1.0 { gradient } else { gradient * share };
                let gradient = match sum.remove(&name) {
                    Some(before) => before + gradient,
                    None => gradient,
                };
                sum.insert(name, gradient);
            }
        }
        let report = trainer.apply(sum, self.recipe.steps).map_err(|error| match error {
            TrainError::NonFinite { step, what, .. } => TrainError::NonFinite { step, what, rows },
            other => other,
        })?;
        step.gradient_norm = report.gradient_norm;
        step.learning_rate = report.learning_rate;
        Ok(step)
    }
}

/// Stops at a loss that is not finite, naming the rows at fault; `step` counts from 1.
fn guard(step: u64, evaluation: &Evaluation, rows: &[usize]) -> Result<(), TrainError> {
    let bad = evaluation.losses.iter().zip(rows).filter(|(loss, _)| !loss.is_finite());
    let rows: Vec<usize> = bad.map(|(_, &row)| row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    Err(TrainError::NonFinite { step, what: "the loss".into(), rows })
}

/// What a step did.
#[derive(Default)]
struct Step {
    samples: usize,
    next_slot: u64,
    cost: Cost,
    loss: f64,
    parts: Vec<(&'static str, f64)>,
    gradient_norm: f64,
    learning_rate: f64,
}

impl Step {
    fn add(&mut self, evaluation: &Evaluation, share: f64) {
        let losses = &evaluation.losses;
        self.loss += share * losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        for &(name, value) in &evaluation.parts {
            match self.parts.iter_mut().find(|(part, _)| *part == name) {
                Some((_, sum)) => *sum += share * value,
                None => self.parts.push((name, share * value)),
            }
        }
    }

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
