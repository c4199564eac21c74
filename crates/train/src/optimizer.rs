//! AdamW, gradient clipping by the global norm, and the moving average of the parameters.
//!
//! On flex, a fused pass over a parameter's values does all three; the results are the same as those of the
//! burn operations on other backends.

use crate::{error::RecipeError, parameters::FlatTensors};
use burn::{
    optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer},
    tensor::{Bool, Tensor},
};
use opensora_nn::{
    pointwise,
    read::{ReadError, read_f64},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of the optimizer. Defaults are those of the published recipes (PyTorch's AdamW).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerRecipe {
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps of the warm-up, in which the learning rate rises linearly from zero.
    pub warmup_steps: u64,
    /// Schedule of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Decays of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Maximum global norm of the gradients; larger ones are scaled down. `0` turns clipping off.
    pub gradient_clip: f64,
    /// Decay of the exponential moving average of the parameters.
    pub ema_decay: f64,
}

/// Schedule of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Constant, as in the published recipes.
    #[default]
    Constant,
    /// Falls to zero along half a cosine until the last step.
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
    /// Returns the learning rate of step `step` (counted from 0) of `steps`.
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

    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let fail =
            |name, value: f64, expected: &str| Err(RecipeError::value(name, value, expected));
        let rates = [
            ("betas[0]", self.betas[0]),
            ("betas[1]", self.betas[1]),
            ("ema_decay", self.ema_decay),
        ];
        for (name, value) in rates {
            // As the optimizer has them, in f32: 1 would divide by 0.
            if !(0.0..1.0).contains(&value) || value as f32 >= 1.0 {
                return fail(name, value, "at least 0 and less than 1");
            }
        }
        // A gradient of 0 is divided by it.
        if !(self.epsilon.is_finite() && self.epsilon as f32 > 0.0) {
            return fail("epsilon", self.epsilon, "a positive number");
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("gradient_clip", self.gradient_clip),
        ] {
            if !value.is_finite() || value < 0.0 {
                return fail(name, value, "0 or a positive number");
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

/// The global (Euclidean) norm of all gradients.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one a step")]
pub enum GradientNorm {
    /// The norm of gradients in host memory.
    Known(f64),
    /// The norm `[1]` on a device that may still be computing it.
    OnDevice(Tensor<1>),
}

impl GradientNorm {
    /// Returns the norm; waits for the device if the norm is on one.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn read(self) -> Result<f64, ReadError> {
        match self {
            Self::Known(norm) => Ok(norm),
            Self::OnDevice(norm) => Ok(read_f64(norm)?[0]),
        }
    }
}

/// Scale of the gradients of an update, and a flag that prevents the update.
#[allow(clippy::large_enum_variant, reason = "there is one a step")]
pub(crate) enum Update {
    /// Scaled by a factor.
    Scaled(f64),
    /// Scaled by `factor` `[1]`; nothing changes if `allowed` `[1]` is false.
    OnDevice { factor: Tensor<1>, allowed: Tensor<1, Bool> },
}

/// AdamW with its moments of each parameter.
pub(crate) struct OptimizerState {
    recipe: OptimizerRecipe,
    adamw: AdamW,
    pub(crate) moments: BTreeMap<String, AdamWState<1>>,
}

/// A parameter with its gradient, moments and moving average.
struct Parameter {
    value: Tensor<1>,
    gradient: Tensor<1>,
    /// `None` before the first step.
    moments: Option<AdamWState<1>>,
    average: Tensor<1>,
}

impl OptimizerState {
    pub(crate) fn new(recipe: &OptimizerRecipe) -> Self {
        Self { recipe: recipe.clone(), adamw: recipe.adamw(), moments: BTreeMap::new() }
    }

    /// Updates every parameter that has a gradient, and every moving average.
    pub(crate) fn step(
        &mut self,
        rate: f64,
        update: &Update,
        values: &mut FlatTensors,
        averages: &mut FlatTensors,
        mut gradients: FlatTensors,
    ) {
        for (name, average) in averages {
            let Some(value) = values.get_mut(name) else { continue };
            let Some(gradient) = gradients.remove(name) else {
                let after = self.averaged(average.clone(), value.clone());
                *average = update.unless_refused(average.clone(), after);
                continue;
            };
            // Moved out, so that they have no other owner and can change in place.
            let before = Parameter {
                value: taken(value),
                gradient,
                moments: self.moments.remove(name),
                average: taken(average),
            };
            let after = match update {
                Update::Scaled(factor) => match self.step_in_one_pass(rate, *factor, before) {
                    Ok(after) => after,
                    Err(before) => self.step_by_operations(rate, update, before),
                },
                Update::OnDevice { .. } => self.step_by_operations(rate, update, before),
            };
            *value = after.value;
            *average = after.average;
            self.moments.extend(after.moments.map(|moments| (name.clone(), moments)));
        }
    }

    /// Updates a parameter by burn operations.
    fn step_by_operations(&self, rate: f64, update: &Update, before: Parameter) -> Parameter {
        match update {
            // The tensors have no other owner, so that operations can work in place.
            Update::Scaled(1.0) => self.step_along(rate, before),
            Update::Scaled(factor) => {
                let gradient = before.gradient * *factor;
                self.step_along(rate, Parameter { gradient, ..before })
            }
            Update::OnDevice { factor, .. } => {
                let start = || before_the_first_step(&before.value);
                let old_moments = before.moments.clone().unwrap_or_else(start).momentum;
                let (old_value, old_average) = (before.value.clone(), before.average.clone());
                let gradient = before.gradient * factor.clone();
                let after = self.step_along(rate, Parameter { gradient, ..before });
                let if_allowed = |old, new| update.unless_refused(old, new);
                let moments = after.moments.map(|AdamWState { momentum: new }| {
                    let moment_1 = if_allowed(old_moments.moment_1, new.moment_1);
                    let moment_2 = if_allowed(old_moments.moment_2, new.moment_2);
                    AdamWState { momentum: AdaptiveMomentumState { moment_1, moment_2, ..new } }
                });
                Parameter {
                    value: if_allowed(old_value, after.value),
                    gradient: after.gradient,
                    moments,
                    average: if_allowed(old_average, after.average),
                }
            }
        }
    }

    /// Updates a parameter by AdamW, along a gradient that is already scaled, and its moving average.
    fn step_along(&self, rate: f64, before: Parameter) -> Parameter {
        let Parameter { value, gradient, moments, average } = before;
        let (value, moments) = self.adamw.step(rate, value, gradient.clone(), moments);
        let average = self.averaged(average, value.clone());
        Parameter { value, gradient, moments, average }
    }

    /// Updates a parameter in one pass if its values are in host memory. Returns the parameter
    /// unchanged as the error otherwise.
    #[allow(clippy::result_large_err, reason = "both variants hold a parameter")]
    fn step_in_one_pass(
        &self,
        rate: f64,
        factor: f64,
        before: Parameter,
    ) -> Result<Parameter, Parameter> {
        let Parameter { value, gradient, moments, average } = before;
        let AdamWState { mut momentum } = moments.unwrap_or_else(|| before_the_first_step(&value));
        let time = (momentum.time + 1) as i32;
        let betas = self.recipe.betas.map(|beta| beta as f32);
        let corrections = betas.map(|beta| 1.0 - beta.powi(time));
        let epsilon = self.recipe.epsilon as f32;
        let kept = (1.0 - rate * f64::from(self.recipe.weight_decay as f32)) as f32;
        let decay = self.recipe.ema_decay;
        let [rate, factor, decay, taken] = [rate, factor, decay, 1.0 - decay].map(|x| x as f32);
        let tensors = [value, gradient, momentum.moment_1, momentum.moment_2, average];
        let changed = pointwise::change(
            tensors,
            #[inline(always)]
            |[values, gradients, first, second, averages]| {
                let moments = first.iter_mut().zip(second);
                let values = values.iter_mut().zip(averages).zip(gradients);
                for (((value, average), gradient), (first, second)) in values.zip(moments) {
                    let gradient = *gradient * factor;
                    *first = *first * betas[0] + gradient * (1.0 - betas[0]);
                    *second = *second * betas[1] + gradient * gradient * (1.0 - betas[1]);
                    let spread = (*second / corrections[1]).sqrt() + epsilon;
                    *value = *value * kept - *first / corrections[0] / spread * rate;
                    *average = *average * decay + *value * taken;
                }
            },
        );
        momentum.time += usize::from(changed.is_ok());
        let parameter = |tensors: [Tensor<1>; 5]| {
            let [value, gradient, moment_1, moment_2, average] = tensors;
            let momentum = AdaptiveMomentumState { moment_1, moment_2, ..momentum };
            Parameter { value, gradient, moments: Some(AdamWState { momentum }), average }
        };
        match changed {
            Ok((tensors, _)) => Ok(parameter(tensors)),
            Err(tensors) => Err(parameter(tensors)),
        }
    }

    /// Returns the moving average after `value`.
    fn averaged(&self, average: Tensor<1>, value: Tensor<1>) -> Tensor<1> {
        let decay = self.recipe.ema_decay;
        average * decay + value * (1.0 - decay)
    }
}

impl Update {
    /// Returns `new`, or `old` if the update is not allowed.
    fn unless_refused(&self, old: Tensor<1>, new: Tensor<1>) -> Tensor<1> {
        match self {
            Self::Scaled(_) => new,
            Self::OnDevice { allowed, .. } => {
                let allowed = allowed.clone().expand(new.dims()); // [1] -> [N]
                old.mask_where(allowed, new)
            }
        }
    }
}

/// Returns the state of a parameter before its first update: moments of zero.
fn before_the_first_step(value: &Tensor<1>) -> AdamWState<1> {
    let [moment_1, moment_2] = [value.zeros_like(), value.zeros_like()];
    let momentum = AdaptiveMomentumState { time: 0, moment_1, moment_2, max_moment_2: None };
    AdamWState { momentum }
}

/// The tensor, with nothing in its place.
fn taken(tensor: &mut Tensor<1>) -> Tensor<1> {
    let nothing = Tensor::zeros([0], &tensor.device());
    std::mem::replace(tensor, nothing)
}

/// Returns the tensors and the Euclidean norm of all of them together. Does not wait for a device.
pub fn global_norm(tensors: FlatTensors) -> (FlatTensors, GradientNorm) {
    let mut sum = 0.0;
    let mut elsewhere = Vec::new();
    let measured = |(name, tensor)| {
        let tensor = match pointwise::change([tensor], |[run]| square_sum(run)) {
            Ok(([tensor], found)) => {
                sum += found.into_iter().sum::<f64>();
                tensor
            }
            Err([tensor]) => {
                elsewhere.push((tensor.clone() * tensor.clone()).sum());
                tensor
            }
        };
        (name, tensor)
    };
    let tensors = tensors.into_iter().map(measured).collect();
    let norm = if elsewhere.is_empty() {
        GradientNorm::Known(sum.sqrt())
    } else {
        // Tensors outside host memory are all on one device.
        GradientNorm::OnDevice((Tensor::cat(elsewhere, 0).sum() + sum).sqrt())
    };
    (tensors, norm)
}

/// The sum of the squares of some values, sixteen of them side by side.
#[inline(always)]
pub(crate) fn square_sum(values: &[f32]) -> f64 {
    let (rows, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for row in rows {
        for (lane, x) in lanes.iter_mut().zip(row) {
            *lane += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    lanes.into_iter().map(f64::from).sum()
}

/// Returns the factor that scales gradients of norm `norm` to at most `max_norm`; 1 if `max_norm` is 0 (no
/// limit). As `torch.nn.utils.clip_grad_norm_` computes it.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if max_norm == 0.0 || factor >= 1.0 { 1.0 } else { factor }
}

/// Computes [`clip_factor`] of a norm `[1]` on its device.
pub(crate) fn clip_factor_of(norm: Tensor<1>, max_norm: f64) -> Tensor<1> {
    if max_norm == 0.0 {
        return norm.ones_like();
    }
    ((norm + 1e-6).recip() * max_norm).clamp_max(1.0)
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
        let (tensors, norm) = global_norm(tensors);
        let norm = norm.read().unwrap();
        assert_eq!(norm, 5.0);
        assert!(tensors.contains_key("a") && tensors.contains_key("b"));
        assert!((clip_factor(norm, 1.0) - 0.2).abs() < 1e-6);
        assert_eq!([10.0, 0.0].map(|max_norm| clip_factor(norm, max_norm)), [1.0; 2]);
    }

    #[test]
    fn one_pass_equals_burns_operations() {
        let device = Device::flex();
        let wave = |phase: f32| {
            let values: Vec<f32> = (0..100).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
            Tensor::<1>::from_floats(values.as_slice(), &device)
        };
        for weight_decay in [0.0, 0.01] {
            let recipe = OptimizerRecipe {
                learning_rate: 1e-2,
                weight_decay,
                ema_decay: 0.9,
                ..OptimizerRecipe::default()
            };
            let state = OptimizerState::new(&recipe);
            let fresh = || Parameter {
                value: wave(0.0),
                gradient: wave(1.0),
                moments: None,
                average: wave(2.0),
            };
            let (mut once, mut by_operations) = (fresh(), fresh());
            for (step, factor) in [1.0, 0.3, 1.0].into_iter().enumerate() {
                once.gradient = wave(step as f32);
                by_operations.gradient = wave(step as f32);
                once = state.step_in_one_pass(1e-2, factor, once).ok().unwrap();
                by_operations =
                    state.step_by_operations(1e-2, &Update::Scaled(factor), by_operations);
                let [got, want] = [&once, &by_operations].map(|found| {
                    let momentum = &found.moments.as_ref().unwrap().momentum;
                    assert_eq!(momentum.time, step + 1);
                    let tensors =
                        [&found.value, &found.average, &momentum.moment_1, &momentum.moment_2];
                    tensors.map(|x| x.to_data().try_to_vec::<f32>().unwrap())
                });
                assert_eq!(got, want, "step {step}, weight decay {weight_decay}");
            }
        }
    }

    #[test]
    fn a_step_on_a_device_equals_one_on_the_host_until_a_number_is_not_finite() {
        let device = Device::flex();
        let wave = |phase: f32| {
            let values: Vec<f32> = (0..100).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
            Tensor::<1>::from_floats(values.as_slice(), &device)
        };
        let state = OptimizerState::new(&OptimizerRecipe::default());
        let fresh = || Parameter {
            value: wave(0.0),
            gradient: wave(1.0),
            moments: None,
            average: wave(2.0),
        };
        let numbers = |parameter: &Parameter| {
            let momentum = &parameter.moments.as_ref().unwrap().momentum;
            let tensors =
                [&parameter.value, &parameter.average, &momentum.moment_1, &momentum.moment_2];
            tensors.map(|x| x.to_data().try_to_vec::<f32>().unwrap())
        };
        let update = |norm: f32, allowed: bool| Update::OnDevice {
            factor: clip_factor_of(Tensor::from_floats([norm], &device), 1.0),
            allowed: Tensor::from_data([allowed], &device),
        };
        let host = Update::Scaled(clip_factor(4.0, 1.0));
        let want = state.step_by_operations(1e-2, &host, fresh());
        let got = state.step_by_operations(1e-2, &update(4.0, true), fresh());
        for (got, want) in numbers(&got).iter().flatten().zip(numbers(&want).iter().flatten()) {
            assert!((got - want).abs() <= 1e-7, "{got} {want}");
        }
        let kept = numbers(&got);
        let mut next = got;
        next.gradient = wave(f32::NAN);
        let refused = state.step_by_operations(1e-2, &update(f32::NAN, false), next);
        assert_eq!(numbers(&refused), kept);
    }

    #[test]
    fn values_out_of_range_are_rejected() {
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
