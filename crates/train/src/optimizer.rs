//! AdamW with clipping by the global norm.

use crate::{error::TrainError, parameters::FlatTensors};
use burn::{
    optim::{AdamW, AdamWConfig, AdamWState, Optimizer},
    tensor::Tensor,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How parameters are changed. Defaults are those of the published recipes (PyTorch's AdamW).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerRecipe {
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the rate rises linearly from zero.
    pub warmup_steps: u64,
    /// What the rate does after the warm-up.
    pub schedule: Schedule,
    /// Decay of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the root of the second one.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down. `0` turns it off.
    pub gradient_clip: f64,
    /// Decay of the moving average of the parameters.
    pub ema_decay: f64,
}

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays: the published recipes.
    #[default]
    Constant,
    /// It falls to zero along half a cosine until the last step.
    Cosine,
}

impl Default for OptimizerRecipe {
    fn default() -> Self {
        Self {
            learning_rate: 2e-5,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            gradient_clip: 1.0,
            ema_decay: 0.9999,
        }
    }
}

impl OptimizerRecipe {
    /// The learning rate of step `step` (counted from 0) of `steps`.
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let span = steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }

    /// Fails where a value cannot be.
    ///
    /// # Errors
    /// Names the value.
    pub fn validate(&self) -> Result<(), TrainError> {
        let fail = |name: &str, value: f64, expected: &str| {
            Err(TrainError::Recipe(format!("{name} is {value}, expected {expected}")))
        };
        let rates =
            [("beta 1", self.betas[0]), ("beta 2", self.betas[1]), ("ema_decay", self.ema_decay)];
        for (name, value) in rates {
            if !(0.0..1.0).contains(&value) {
                return fail(name, value, "0 up to but not 1");
            }
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
            ("gradient_clip", self.gradient_clip),
        ] {
            if !value.is_finite() || value < 0.0 {
                return fail(name, value, "a number that is not negative");
            }
        }
        Ok(())
    }

    fn adamw(&self) -> AdamW {
        AdamWConfig::new()
            .with_beta_1(self.betas[0] as f32)
            .with_beta_2(self.betas[1] as f32)
            .with_epsilon(self.epsilon as f32)
            .with_weight_decay(self.weight_decay as f32)
            .build()
    }
}

/// AdamW's state for each parameter.
pub(crate) struct OptimizerState {
    adamw: AdamW,
    pub(crate) moments: BTreeMap<String, AdamWState<1>>,
}

impl OptimizerState {
    pub(crate) fn new(recipe: &OptimizerRecipe) -> Self {
        Self { adamw: recipe.adamw(), moments: BTreeMap::new() }
    }

    /// Moves every parameter that has a gradient.
    pub(crate) fn step(&mut self, rate: f64, values: &mut FlatTensors, gradients: FlatTensors) {
        for (name, gradient) in gradients {
            let Some(value) = values.remove(&name) else { continue };
            let state = self.moments.remove(&name);
            let (value, state) = self.adamw.step(rate, value, gradient, state);
            if let Some(state) = state {
                self.moments.insert(name.clone(), state);
            }
            values.insert(name, value);
        }
    }
}

/// The Euclidean norm of all tensors together.
pub fn global_norm(tensors: &FlatTensors) -> f64 {
    let squares: Vec<Tensor<1>> = tensors.values().map(|t| (t.clone() * t.clone()).sum()).collect();
    if squares.is_empty() {
        return 0.0;
    }
    // One transfer instead of one a tensor.
    let squares = Tensor::cat(squares, 0).into_data().iter::<f64>().sum::<f64>();
    squares.sqrt()
}

/// Scales all tensors together so that their norm, given as `norm`, is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does.
pub fn clip(tensors: FlatTensors, norm: f64, max_norm: f64) -> FlatTensors {
    let factor = max_norm / (norm + 1e-6);
    if max_norm == 0.0 || factor >= 1.0 {
        return tensors;
    }
    tensors.into_iter().map(|(name, tensor)| (name, tensor * factor)).collect()
}

/// The moving average `decay * average + (1 - decay) * value`, in place, of every name in
/// `average`.
pub(crate) fn update_average(average: &mut FlatTensors, values: &FlatTensors, decay: f64) {
    for (name, average) in average.iter_mut() {
        if let Some(value) = values.get(name) {
            *average = average.clone() * decay + value.clone() * (1.0 - decay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn the_rate_warms_up_and_falls() {
        let recipe = OptimizerRecipe {
            learning_rate: 1.0,
            warmup_steps: 4,
            schedule: Schedule::Cosine,
            ..OptimizerRecipe::default()
        };
        let rates: Vec<f64> = [0, 3, 4, 54, 104].map(|s| recipe.learning_rate_at(s, 104)).into();
        assert_eq!(rates[..3], [0.25, 1.0, 1.0]);
        assert!((rates[3] - 0.5).abs() < 1e-12 && rates[4].abs() < 1e-12, "{rates:?}");
        let constant = OptimizerRecipe::default();
        assert_eq!(constant.learning_rate_at(7, 8), 2e-5);
    }

    #[test]
    fn clipping_is_global() {
        let device = Device::flex();
        let tensors = FlatTensors::from([
            ("a".to_string(), Tensor::from_floats([3.0], &device)),
            ("b".to_string(), Tensor::from_floats([0.0, 4.0], &device)),
        ]);
        let norm = global_norm(&tensors);
        assert_eq!(norm, 5.0);
        let clipped = clip(tensors.clone(), norm, 1.0);
        assert!((global_norm(&clipped) - 1.0).abs() < 1e-6);
        assert_eq!(global_norm(&clip(tensors.clone(), norm, 10.0)), 5.0);
        assert_eq!(global_norm(&clip(tensors, norm, 0.0)), 5.0);
    }

    #[test]
    fn impossible_values_are_refused() {
        for bad in [
            OptimizerRecipe { ema_decay: 1.0, ..OptimizerRecipe::default() },
            OptimizerRecipe { learning_rate: f64::NAN, ..OptimizerRecipe::default() },
            OptimizerRecipe { betas: [0.9, -0.1], ..OptimizerRecipe::default() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        assert!(OptimizerRecipe::default().validate().is_ok());
    }
}
