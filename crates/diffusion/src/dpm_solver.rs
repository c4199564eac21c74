//! DPM-Solver++: solves the process as a differential equation with a multistep method of order 2.
//!
//! Source: `opensora/schedulers/dpms/dpm_solver.py`, `NoiseScheduleVP("discrete")`, `model_wrapper`
//! and `DPM_Solver("dpmsolver++").sample` with `method="multistep"`, `order=2`,
//! `skip_type="time_uniform"`; Lu et al. 2022, algorithm 2 with `D1`.
//!
//! Quirks kept: time runs uniformly from 1 to 1/N and the timesteps of the model are fractional,
//! rounded as the reference's f32 arithmetic rounds them. With fewer than 10 steps, the order falls to 1 at the
//! last step. The result is at time 1/N; there is no last step to clean latents.
//!
//! Deviation: `alpha`, `sigma` and `lambda` are computed in f64 (the reference: f32, which is off by
//! up to 1e-3 of `sigma` at the end), then rounded.

use burn::tensor::Tensor;
use thiserror::Error;

use crate::{
    denoiser::Denoiser,
    gather::check_shape,
    guidance::Guidance,
    process::ProcessError,
    sampler::{Sampler, SamplerKind},
    schedule::{NoiseSchedule, ScheduleError, TRAINING_TIMESTEPS},
    step::{Observer, SampleError, StepInfo},
};

/// Order of the method: the number of predictions that a step uses.
const ORDER: usize = 2;

/// With fewer steps than this, the last step has order 1, for stability.
const LOWER_ORDER_FINAL_BELOW: usize = 10;

/// Times at which the logarithm of the root of the signal-to-noise ratio is below this value are cut off.
const CLIPPED_LAMBDA: f64 = -5.1;

/// The DPM-Solver++ sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct DpmSolver {
    /// `ln(alpha)` at the times `(i + 1) / N`.
    log_alphas: Vec<f64>,
    /// The times, from 1 down to 1/N: one more than steps.
    times: Vec<f32>,
    /// First step to run, from 0.
    first_step: usize,
}

/// Error for a solver that cannot be set up.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum DpmSolverError {
    /// An invalid training process.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Fewer steps than the order of the method, or more than the training process has.
    #[error("DPM-Solver with {found} steps is not possible, expected {ORDER} to {most}")]
    Steps {
        /// The given number of steps.
        found: usize,
        /// Steps of the training process.
        most: usize,
    },
}

/// Signal and noise at a time of the process.
#[derive(Debug, Clone, Copy)]
struct Level {
    alpha: f64,
    sigma: f64,
    /// `ln(alpha / sigma)`.
    lambda: f64,
}

/// `x_t = of_latents * x - of_data * x_0 - of_slope * (x_0 - x_0 before)`.
struct Update {
    of_latents: f64,
    of_data: f64,
    of_slope: Option<f64>,
}

impl DpmSolver {
    /// Steps of the reference's recipes with this sampler.
    pub const PUBLISHED_STEPS: usize = 20;

    /// Returns the sampler with `steps` steps of the published process.
    ///
    /// # Errors
    /// Returns an error for fewer than 2 or more than 1000 steps.
    pub fn with_steps(steps: usize) -> Result<Self, DpmSolverError> {
        Self::new(NoiseSchedule::Linear, TRAINING_TIMESTEPS, steps)
    }

    /// Returns the sampler with `steps` steps of the process of `schedule` over `num_timesteps`. Models are
    /// called with timesteps on the scale `0..1000` for any `num_timesteps`.
    ///
    /// # Errors
    /// Returns an error for fewer than 2 or more than `num_timesteps` steps, or if the schedule is invalid.
    pub fn new(
        schedule: NoiseSchedule,
        num_timesteps: usize,
        steps: usize,
    ) -> Result<Self, DpmSolverError> {
        let betas = schedule.betas(num_timesteps)?;
        if steps < ORDER || steps > num_timesteps {
            return Err(DpmSolverError::Steps { found: steps, most: num_timesteps });
        }
        let mut log_alphas: Vec<f64> = betas
            .iter()
            .scan(0.0, |sum, beta| {
                *sum += (1.0 - beta).ln();
                Some(0.5 * *sum)
            })
            .collect();
        // The published schedule is not cut off: its last lambda is -5.03. Two points remain to interpolate.
        while log_alphas.len() > 2
            && log_alphas.last().is_some_and(|&last| Level::of(last).lambda < CLIPPED_LAMBDA)
        {
            log_alphas.pop();
        }
        let times = linspace_f32(1.0, (1.0 / log_alphas.len() as f64) as f32, steps + 1);
        Ok(Self { log_alphas, times, first_step: 0 })
    }

    /// Returns the timestep of each step that the model is called with, from 999 downwards.
    pub fn model_timesteps(&self) -> Vec<f32> {
        let first = (1.0 / self.log_alphas.len() as f64) as f32;
        self.times[..self.steps()].iter().map(|time| (time - first) * 1000.0).collect()
    }

    /// Returns the sampler without the steps before `first_step` (from 0; at most the last one). It starts from
    /// the latents that [`noised`](Self::noised) returns for a clean clip, and its result resembles that clip.
    pub fn starting_at(self, first_step: usize) -> Self {
        Self { first_step: first_step.min(self.steps() - 1), ..self }
    }

    /// Returns the latents that the first step expects of a clean clip and standard normal `noise`, all
    /// `[B, C, T, H, W]`.
    ///
    /// # Errors
    /// Returns an error if the shapes differ.
    pub fn noised(&self, clean: Tensor<5>, noise: Tensor<5>) -> Result<Tensor<5>, ProcessError> {
        check_shape("noise", &noise, clean.dims())?;
        let Level { alpha, sigma, .. } = self.level(self.first_step);
        Ok(clean.mul_scalar(alpha as f32) + noise.mul_scalar(sigma as f32))
    }

    /// Returns the update from time `step` to the next time.
    fn update(&self, step: usize) -> Update {
        let (here, next) = (self.level(step), self.level(step + 1));
        let h = next.lambda - here.lambda;
        let of_data = next.alpha * (-h).exp_m1();
        let last = step + 1 == self.steps();
        let low_order = step == self.first_step || (last && self.steps() < LOWER_ORDER_FINAL_BELOW);
        let of_slope = (!low_order).then(|| {
            let h_before = here.lambda - self.level(step - 1).lambda;
            0.5 * of_data * (h / h_before)
        });
        Update { of_latents: next.sigma / here.sigma, of_data, of_slope }
    }

    /// Returns signal and noise at time `time`; `ln(alpha)` is linear between the training steps.
    fn level(&self, time: usize) -> Level {
        let count = self.log_alphas.len();
        // Time (i + 1) / N has index i.
        let index = f64::from(self.times[time]) * count as f64 - 1.0;
        let left = (index.max(0.0) as usize).min(count - 2);
        let (from, to) = (self.log_alphas[left], self.log_alphas[left + 1]);
        Level::of(from + (index - left as f64) * (to - from))
    }
}

impl Sampler for DpmSolver {
    fn name(&self) -> &str {
        SamplerKind::DpmSolver.name()
    }

    fn steps(&self) -> usize {
        self.times.len() - 1
    }

    /// Samples as [`Sampler::sample`] says. Of the model's output (`C` or `2C` channels) only the first `C`
    /// are used; `noise` is not called.
    fn sample(
        &self,
        model: &dyn Denoiser,
        guidance: &Guidance,
        mut latents: Tensor<5>,
        _noise: &mut dyn FnMut(usize) -> Tensor<5>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<5>, SampleError> {
        guidance.check()?;
        let channels = latents.dims()[1];
        let total = self.steps();
        let mut before: Option<Tensor<5>> = None;
        for (step, timestep) in self.model_timesteps().into_iter().enumerate().skip(self.first_step)
        {
            let eps = guidance.predict(model, &latents, timestep, channels)?;
            let Level { alpha, sigma, .. } = self.level(step);
            let data = (latents.clone() - eps.mul_scalar(sigma as f32)).div_scalar(alpha as f32);

            let update = self.update(step);
            latents = latents.mul_scalar(update.of_latents as f32)
                - data.clone().mul_scalar(update.of_data as f32);
            if let (Some(of_slope), Some(before)) = (update.of_slope, before) {
                latents = latents - (data.clone() - before).mul_scalar(of_slope as f32);
            }
            StepInfo::new(step, total, timestep, &latents).with_clean(&data).report(observer)?;
            before = Some(data);
        }
        Ok(latents)
    }
}

impl Level {
    fn of(log_alpha: f64) -> Self {
        // 1 - alpha^2 without loss of digits if alpha is almost 1.
        let sigma = (-(2.0 * log_alpha).exp_m1()).sqrt();
        Self { alpha: log_alpha.exp(), sigma, lambda: log_alpha - sigma.ln() }
    }
}

/// Returns PyTorch's `linspace` in f32: computed from the start up to the middle, from the end after it.
fn linspace_f32(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let value = |i: usize| {
        if i < count / 2 { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 }
    };
    (0..count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Affine, GaussianData, Golden, ramp, values};
    use std::ops::ControlFlow;

    #[test]
    fn the_first_step_is_at_most_the_last_one() {
        let sampler = DpmSolver::with_steps(10).unwrap();
        assert_eq!(sampler.clone().starting_at(3).first_step, 3);
        assert_eq!(sampler.starting_at(100).first_step, 9);
    }

    #[test]
    fn timesteps_equal_the_reference() {
        let golden = Golden::open("dpm-solver");
        for steps in [8, 10] {
            let name = format!("model_timesteps_{steps}steps");
            let found = DpmSolver::with_steps(steps).unwrap().model_timesteps();
            assert_eq!(found.len(), steps);
            golden.assert_values(&name, &found);
        }
    }

    /// The two formulas differ in the last bit at both indices.
    #[test]
    fn linspace_switches_formulas_in_the_middle() {
        let values = linspace_f32(1.0, 0.001, 9);
        assert_eq!((values.len(), values[0], values[8]), (9, 1.0, 0.001));
        let step = (0.001 - 1.0) / 8.0_f32;
        let (from_start, from_end) = (1.0 + step * 3.0, 0.001 - step * 4.0);
        assert_eq!((values[3], values[4]), (from_start, from_end));
        assert_ne!(values[3], 0.001 - step * 5.0);
        assert_ne!(values[4], 1.0 + step * 4.0);
    }

    fn run(sampler: &DpmSolver, model: &dyn Denoiser, start: &Tensor<5>) -> Vec<f32> {
        let guidance = Guidance::all_channels(4.0);
        let noise = &mut |_| panic!("no noise in DPM-Solver");
        values(sampler.sample(model, &guidance, start.clone(), noise, &mut ()).unwrap())
    }

    /// Like DDIM's test, except that the path ends at timestep 0 and not at clean latents.
    #[test]
    fn converges_to_the_known_solution() {
        let model = GaussianData { deviation: 0.5 };
        let start = ramp([1, 4, 1, 2, 2], 0.1);
        let error_of = |steps: usize| {
            let found = run(&DpmSolver::with_steps(steps).unwrap(), &model, &start);
            let scale = model.spread(0.0) / model.spread(999.0);
            let wanted = values(start.clone()).into_iter().map(|x| f64::from(x) * scale);
            found
                .iter()
                .zip(wanted)
                .map(|(&x, want)| (f64::from(x) - want).abs())
                .fold(0., f64::max)
        };
        let (few, many) = (error_of(80), error_of(160));
        // Second order: twice the steps, a quarter of the error.
        assert!((3.5..4.5).contains(&(few / many)), "{few} {many}");
    }

    /// The published formulas for each number in f64, in the quantities of the paper.
    #[test]
    fn equals_the_published_formulas() {
        let model = Affine::new();
        let start = ramp([1, 4, 1, 1, 1], 0.1);
        for steps in [8, 10] {
            let sampler = DpmSolver::with_steps(steps).unwrap();
            let betas = NoiseSchedule::Linear.betas(1000).unwrap();
            let log_alpha = |timestep: f64| {
                let at = |n: usize| 0.5 * betas[..=n].iter().map(|b| (1.0 - b).ln()).sum::<f64>();
                let left = (timestep as usize).min(998);
                at(left) + (timestep - left as f64) * (at(left + 1) - at(left))
            };
            let step = 999.0 / steps as f64;
            let level = |i: usize| {
                let log_alpha = log_alpha(999.0 - step * i as f64);
                let sigma = (1.0 - (2.0 * log_alpha).exp()).sqrt();
                (log_alpha.exp(), sigma, log_alpha - sigma.ln())
            };
            let expected = values(start.clone()).into_iter().map(|x| {
                let (mut x, mut before) = (f64::from(x), 0.0);
                for i in 0..steps {
                    let ((alpha, sigma, lambda), next) = (level(i), level(i + 1));
                    let eps = model.guided(x, 999.0 - step * i as f64, 4.0);
                    let data = (x - sigma * eps) / alpha;
                    let h = next.2 - lambda;
                    let first_order = i == 0 || (steps < 10 && i + 1 == steps);
                    let d = if first_order {
                        data
                    } else {
                        let r = (lambda - level(i - 1).2) / h;
                        (1.0 + 0.5 / r) * data - 0.5 / r * before
                    };
                    x = next.1 / sigma * x - next.0 * ((-h).exp() - 1.0) * d;
                    before = data;
                }
                x
            });
            for (got, want) in run(&sampler, &model, &start).into_iter().zip(expected) {
                let close = (f64::from(got) - want).abs() <= 2e-4 * want.abs().max(1.0);
                assert!(close, "{steps} steps: {got} instead of {want}");
            }
        }
    }

    #[test]
    fn outputs_without_variance_are_accepted() {
        let start = ramp([2, 4, 1, 2, 2], 0.1);
        let sampler = DpmSolver::with_steps(4).unwrap();
        let half = Affine { with_variance: false, ..Affine::new() };
        assert_eq!(run(&sampler, &half, &start), run(&sampler, &Affine::new(), &start));
    }

    #[test]
    fn the_observer_stops_the_run() {
        let sampler = DpmSolver::with_steps(6).unwrap();
        let guidance = Guidance::all_channels(4.0);
        let mut seen = Vec::new();
        let latents = ramp([1, 4, 1, 1, 1], 0.1);
        let noise = &mut |_| panic!("no noise in DPM-Solver");
        let observer = &mut |step: &StepInfo<'_>| {
            seen.push(step.timestep);
            if step.step == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped =
            sampler.sample(&Affine::new(), &guidance, latents, noise, observer).unwrap_err();
        assert!(matches!(stopped, SampleError::Interrupted { completed: 3, total: 6 }));
        assert_eq!(seen, sampler.model_timesteps()[..3]);
    }

    #[test]
    fn invalid_step_counts_are_rejected() {
        for found in [0, 1, 1001, usize::MAX] {
            let rejected = DpmSolver::with_steps(found).unwrap_err();
            assert_eq!(rejected, DpmSolverError::Steps { found, most: 1000 });
        }
        assert!(DpmSolver::with_steps(2).is_ok() && DpmSolver::with_steps(1000).is_ok());
        assert!(DpmSolver::new(NoiseSchedule::Linear, 0, 2).is_err());
    }

    #[test]
    fn a_process_without_signal_at_its_end_is_cut_off() {
        let sampler = DpmSolver::new(NoiseSchedule::Linear, 30, 10).unwrap();
        assert!(sampler.log_alphas.len() < 30, "{}", sampler.log_alphas.len());
        let last = sampler.log_alphas.last().copied().map(Level::of).unwrap();
        assert!(last.lambda >= CLIPPED_LAMBDA);
        let published = DpmSolver::with_steps(10).unwrap();
        assert_eq!(published.log_alphas.len(), 1000);
    }
}
