//! A model in training: parameters, optimizer, moving average, number of steps.

mod over;

use crate::{
    error::TrainError,
    optimizer::{
        GradientNorm, OptimizerRecipe, OptimizerState, Update, clip_factor, clip_factor_of,
        global_norm,
    },
    parameters::{FlatTensors, Graph, filled, hollow, values},
};
use burn::{
    module::Module,
    optim::{AdamWState, AdaptiveMomentumState},
    tensor::{Bool, FloatDType, Tensor},
};
use over::Over;
pub(crate) use over::GradientSum;
pub use over::HeldBytes;
use std::collections::{BTreeMap, BTreeSet};

/// A model in training. It holds everything that a resumed run needs, as flat f32 tensors. Over several ranks,
/// it holds this rank's part of that; see [`Trainer::over`].
pub struct Trainer<M> {
    hollow: M,
    recipe: OptimizerRecipe,
    trainable: BTreeSet<String>,
    values: FlatTensors,
    average: FlatTensors,
    optimizer: OptimizerState,
    step: u64,
    /// `[1]`, true if all losses and norms so far were finite. `None` on the host, and before the first
    /// step on other devices.
    finite: Option<Tensor<1, Bool>>,
    /// `None` for a single rank.
    over: Option<Over>,
    /// Bytes of the gradients of the last step.
    gradient_bytes: usize,
}

/// Gradient norm and learning rate of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Global norm of the gradients, before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
}

/// The result of one step that the device may still be computing.
#[derive(Debug, Clone)]
pub struct PendingReport {
    /// Global norm of the gradients, before clipping.
    pub gradient_norm: GradientNorm,
    /// Learning rate of the step.
    pub learning_rate: f64,
}

impl<M: Module> Trainer<M> {
    /// Creates a trainer of `model`. Parameters for whose path `is_trainable` returns false are
    /// frozen. As in the reference, the moving average starts from the initial values and does not
    /// have frozen parameters.
    ///
    /// # Errors
    /// Returns an error if a value of the recipe is out of range, or the device fails.
    pub fn new(
        model: M,
        recipe: &OptimizerRecipe,
        is_trainable: impl Fn(&str) -> bool,
    ) -> Result<Self, TrainError> {
        recipe.validate()?;
        let values = values(&model)?;
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
            finite: None,
            over: None,
            gradient_bytes: 0,
        })
    }

    /// Returns the number of steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the paths of the trained parameters.
    pub fn trainable(&self) -> &BTreeSet<String> {
        &self.trainable
    }

    /// Returns all parameters. With ZeRO, they are in the type to compute in.
    pub fn values(&self) -> &FlatTensors {
        let whole = self.over.as_ref().and_then(|over| over.whole.as_ref());
        whole.map_or(&self.values, |whole| &whole.values)
    }

    /// Returns the moving average of the trained parameters. With ZeRO, these are the rank's slices, except in
    /// hooks and after the run, where rank 0 has whole ones.
    pub fn average(&self) -> &FlatTensors {
        let whole = self.over.as_ref().and_then(|over| over.whole.as_ref());
        whole.map_or(&self.average, |whole| &whole.average)
    }

    /// Returns this rank's moving average.
    pub(crate) fn held_average(&self) -> &FlatTensors {
        &self.average
    }

    /// Returns the model on a fresh graph, which computes in `dtype`.
    pub fn graph(&self, dtype: FloatDType) -> Graph<M> {
        Graph::new(self.hollow.clone(), &self.values, |name| self.trainable.contains(name), dtype)
    }

    /// Returns the model in f32 and without a graph.
    pub fn model(&self) -> M {
        filled(self.hollow.clone(), self.values(), FloatDType::F32)
    }

    /// Returns the model with the moving average in place of the trained parameters. With ZeRO, only rank 0 has
    /// it, in hooks and after the run.
    ///
    /// # Panics
    /// Panics on a rank that has only slices of the average.
    pub fn average_model(&self) -> M {
        filled(self.model(), self.average(), FloatDType::F32)
    }

    /// Updates the parameters from `gradients`: clipping, AdamW, moving average. `steps` is the planned
    /// length of the run, for the learning rate's schedule. Waits for the device.
    ///
    /// # Errors
    /// Returns an error if the gradients are not finite ([`TrainError::NonFinite`], without rows: the
    /// caller knows them), which leaves the parameters unchanged, or if the device fails.
    pub fn apply(&mut self, gradients: FlatTensors, steps: u64) -> Result<StepReport, TrainError> {
        let (gradients, norm) = global_norm(gradients);
        let gradient_norm = norm.read()?;
        check_norm(self.step + 1, gradient_norm)?;
        let factor = clip_factor(gradient_norm, self.recipe.gradient_clip);
        let learning_rate = self.change(gradients, &Update::Scaled(factor), steps);
        Ok(StepReport { gradient_norm, learning_rate })
    }

    /// Updates the parameters as [`apply`](Self::apply) does, without waiting for the device.
    ///
    /// On a device other than the host, the device itself checks that the norm and `losses` `[B]` are
    /// finite. If they are not, neither this step nor a later one changes the parameters, and the caller
    /// finds out when it reads the losses and norms.
    ///
    /// # Errors
    /// Returns an error ([`TrainError::NonFinite`]) if the gradients are on the host and not finite.
    pub fn apply_pending(
        &mut self,
        gradients: FlatTensors,
        losses: Option<Tensor<1>>,
        steps: u64,
    ) -> Result<PendingReport, TrainError> {
        let (gradients, gradient_norm) = global_norm(gradients);
        let clip = self.recipe.gradient_clip;
        let update = match &gradient_norm {
            GradientNorm::Known(norm) => {
                check_norm(self.step + 1, *norm)?;
                Update::Scaled(clip_factor(*norm, clip))
            }
            GradientNorm::OnDevice(norm) => {
                let mut finite = norm.clone().is_finite(); // [1]
                if let Some(losses) = losses {
                    finite = finite.bool_and(losses.is_finite().all());
                }
                if let Some(before) = self.finite.take() {
                    finite = finite.bool_and(before);
                }
                self.finite = Some(finite.clone());
                Update::OnDevice { factor: clip_factor_of(norm.clone(), clip), allowed: finite }
            }
        };
        let learning_rate = self.change(gradients, &update, steps);
        Ok(PendingReport { gradient_norm, learning_rate })
    }

    /// Updates parameters, moments and averages; returns the learning rate.
    fn change(&mut self, gradients: FlatTensors, update: &Update, steps: u64) -> f64 {
        let learning_rate = self.recipe.learning_rate_at(self.step, steps);
        let master = self.over.as_mut().and_then(|over| over.master.as_mut());
        let (values, average) = (master.unwrap_or(&mut self.values), &mut self.average);
        self.optimizer.step(learning_rate, update, values, average, gradients);
        self.step += 1;
        learning_rate
    }

    /// Returns first and second moment and number of updates of each parameter.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (&String, &AdaptiveMomentumState<1>)> {
        self.optimizer.moments.iter().map(|(name, state)| (name, &state.momentum))
    }

    /// Sets the state to that of a checkpoint: this rank's slices of it with ZeRO. A collective.
    pub(crate) fn restore(
        &mut self,
        step: u64,
        values: FlatTensors,
        average: FlatTensors,
        moments: impl IntoIterator<Item = (String, AdaptiveMomentumState<1>)>,
    ) {
        self.step = step;
        self.finite = None;
        match self.over.as_mut().and_then(|over| over.master.as_mut()) {
            Some(master) => *master = values,
            None => self.values = values,
        }
        self.average = average;
        self.optimizer.moments =
            moments.into_iter().map(|(name, momentum)| (name, AdamWState { momentum })).collect();
        self.gather_values(|_, _| true);
    }

    /// Returns the number of elements of every parameter.
    pub(crate) fn lengths(&self) -> BTreeMap<String, usize> {
        self.values.iter().map(|(name, value)| (name.clone(), value.dims()[0])).collect()
    }
}

/// Returns an error if the norm is not finite; `step` counts from 1.
pub(crate) fn check_norm(step: u64, norm: f64) -> Result<(), TrainError> {
    if norm.is_finite() {
        return Ok(());
    }
    let what = format!("the gradients' norm ({norm})");
    Err(TrainError::NonFinite { step, what, rows: Vec::new() })
}
