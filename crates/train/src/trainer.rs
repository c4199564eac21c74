//! A model in training: values, optimizer, moving average, step.

use crate::{
    error::TrainError,
    optimizer::{OptimizerRecipe, OptimizerState, clip_factor, global_norm},
    parameters::{FlatTensors, Graph, filled, hollow, values},
};
use burn::{
    module::Module,
    optim::{AdamWState, AdaptiveMomentumState},
    tensor::FloatDType,
};
use std::collections::BTreeSet;

/// A model in training. Everything that a resumed run needs is in it, as flat f32 tensors.
pub struct Trainer<M> {
    hollow: M,
    recipe: OptimizerRecipe,
    trainable: BTreeSet<String>,
    values: FlatTensors,
    average: FlatTensors,
    optimizer: OptimizerState,
    step: u64,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
}

impl<M: Module> Trainer<M> {
    /// Starts from `model`; parameters whose path `is_trainable` does not hold for stay as they are
    /// and outside the optimizer. As in the reference the moving average starts from the first
    /// values and leaves frozen parameters out.
    ///
    /// # Errors
    /// Where the recipe cannot be.
    pub fn new(
        model: M,
        recipe: &OptimizerRecipe,
        is_trainable: impl Fn(&str) -> bool,
    ) -> Result<Self, TrainError> {
        recipe.validate()?;
        let values = values(&model);
        let trainable: BTreeSet<String> =
            values.keys().filter(|name| is_trainable(name)).cloned().collect();
        let average = values
            .iter()
            .filter(|(name, _)| trainable.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Ok(Self {
            hollow: hollow(model),
            optimizer: OptimizerState::new(recipe),
            recipe: recipe.clone(),
            trainable,
            values,
            average,
            step: 0,
        })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The paths of the parameters that are optimised.
    pub fn trainable(&self) -> &BTreeSet<String> {
        &self.trainable
    }

    /// All parameters.
    pub fn values(&self) -> &FlatTensors {
        &self.values
    }

    /// The moving average of the trainable ones.
    pub fn average(&self) -> &FlatTensors {
        &self.average
    }

    /// The model on a fresh graph, computing in `dtype`.
    pub fn graph(&self, dtype: FloatDType) -> Graph<M> {
        Graph::new(self.hollow.clone(), &self.values, |name| self.trainable.contains(name), dtype)
    }

    /// The model as it is, in f32 and without a graph.
    pub fn model(&self) -> M {
        filled(self.hollow.clone(), &self.values, FloatDType::F32)
    }

    /// The model with the moving average in place of the trainable parameters.
    pub fn average_model(&self) -> M {
        filled(self.model(), &self.average, FloatDType::F32)
    }

    /// Changes the parameters along `gradients`: clipping, AdamW, moving average. `steps` is the
    /// planned length of the run, for the learning rate's schedule.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] (with no rows: the caller knows them) where the gradients are not
    /// finite; nothing is changed then.
    pub fn apply(&mut self, gradients: FlatTensors, steps: u64) -> Result<StepReport, TrainError> {
        let (gradients, gradient_norm) = global_norm(gradients);
        if !gradient_norm.is_finite() {
            let what = format!("the gradients' norm ({gradient_norm})");
            return Err(TrainError::NonFinite { step: self.step + 1, what, rows: Vec::new() });
        }
        let learning_rate = self.recipe.learning_rate_at(self.step, steps);
        let factor = clip_factor(gradient_norm, self.recipe.gradient_clip);
        let (values, average) = (&mut self.values, &mut self.average);
        self.optimizer.step(learning_rate, factor, values, average, gradients);
        self.step += 1;
        Ok(StepReport { gradient_norm, learning_rate })
    }

    /// First and second moments by parameter, and the number of updates each has seen.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (&String, &AdaptiveMomentumState<1>)> {
        self.optimizer.moments.iter().map(|(name, state)| (name, &state.momentum))
    }

    /// Puts back what a checkpoint held.
    pub(crate) fn restore(
        &mut self,
        step: u64,
        values: FlatTensors,
        average: FlatTensors,
        moments: impl IntoIterator<Item = (String, AdaptiveMomentumState<1>)>,
    ) {
        self.step = step;
        self.values = values;
        self.average = average;
        self.optimizer.moments =
            moments.into_iter().map(|(name, momentum)| (name, AdamWState { momentum })).collect();
    }
}
