//! Noise schedules: how much noise each step of the training process adds.
//!
//! Source: `opensora/schedulers/iddpm/gaussian_diffusion.py`, `get_named_beta_schedule` and
//! `get_beta_schedule`. Deviation: betas must lie strictly between 0 and 1. The reference also takes
//! exactly 1, which leaves no signal at all and makes later tables infinite.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// Steps of the process that the published models were trained on; their timesteps are `0..1000`.
pub const TRAINING_TIMESTEPS: usize = 1000;

/// The longest accepted process. The limit keeps a mistyped number from exhausting memory.
pub const MAX_TIMESTEPS: usize = 1_000_000;

/// The shape of the noise over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum NoiseSchedule {
    /// Betas rise linearly from 1e-4 to 0.02 over 1000 steps; for another number of steps both ends
    /// are scaled by `1000 / steps`. Needs more than 20 steps (or exactly one).
    #[default]
    Linear,
}

/// Error for a noise schedule that is invalid or unknown.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A number of steps that no process has.
    #[error("a diffusion process of {found} steps is not possible, expected 1 to {MAX_TIMESTEPS}")]
    NumTimesteps {
        /// The given number.
        found: usize,
    },
    /// A step would add no noise, or leave no signal.
    #[error(
        "the {schedule} schedule over {num_timesteps} steps has beta {beta} at step {step}, \
         expected a value between 0 and 1"
    )]
    Beta {
        /// The schedule.
        schedule: NoiseSchedule,
        /// The number of steps.
        num_timesteps: usize,
        /// The first step that is out of range.
        step: usize,
        /// Its beta.
        beta: f64,
    },
    /// An unknown schedule.
    #[error("unknown noise schedule {found:?}, expected \"linear\"")]
    Name {
        /// The name.
        found: String,
    },
}

impl NoiseSchedule {
    /// Returns the beta of each step, in f64.
    ///
    /// # Errors
    /// Returns [`ScheduleError::NumTimesteps`] for 0 or more than [`MAX_TIMESTEPS`] steps, and
    /// [`ScheduleError::Beta`] if a beta is not strictly between 0 and 1.
    pub fn betas(self, num_timesteps: usize) -> Result<Vec<f64>, ScheduleError> {
        if num_timesteps == 0 || num_timesteps > MAX_TIMESTEPS {
            return Err(ScheduleError::NumTimesteps { found: num_timesteps });
        }
        let betas = match self {
            Self::Linear => {
                let scale = 1000.0 / num_timesteps as f64;
                linspace(scale * 0.0001, scale * 0.02, num_timesteps)
            }
        };
        match betas.iter().position(|&beta| !(beta > 0.0 && beta < 1.0)) {
            Some(step) => {
                Err(ScheduleError::Beta { schedule: self, num_timesteps, step, beta: betas[step] })
            }
            None => Ok(betas),
        }
    }
}

/// Returns numpy's `linspace`: `start + i * step`, and exactly `stop` at the end; `[start]` for one
/// value.
fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = (stop - start) / count.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| start + i as f64 * step).collect();
    if count > 1 {
        values[count - 1] = stop;
    }
    values
}

impl fmt::Display for NoiseSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
        })
    }
}

impl FromStr for NoiseSchedule {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "linear" => Ok(Self::Linear),
            _ => Err(ScheduleError::Name { found: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_has_the_published_ends() {
        let betas = NoiseSchedule::Linear.betas(1000).unwrap();
        assert_eq!((betas.len(), betas[0], betas[999]), (1000, 0.0001, 0.02));
        // Twice the steps, half the noise each.
        let betas = NoiseSchedule::Linear.betas(2000).unwrap();
        assert_eq!((betas[0], betas[1999]), (0.00005, 0.01));
        assert_eq!(NoiseSchedule::Linear.betas(1).unwrap(), [0.1]);
        // As in numpy, the last value is not a rounded sum.
        for count in 21..1500 {
            let betas = NoiseSchedule::Linear.betas(count).unwrap();
            assert_eq!(betas[count - 1], 1000.0 / count as f64 * 0.02, "{count}");
        }
    }

    #[test]
    fn invalid_lengths_are_rejected() {
        for found in [0, MAX_TIMESTEPS + 1, usize::MAX] {
            let rejected = NoiseSchedule::Linear.betas(found);
            assert_eq!(rejected, Err(ScheduleError::NumTimesteps { found }));
        }
        // The last beta of 20 steps is exactly 1.
        let rejected = NoiseSchedule::Linear.betas(20).unwrap_err();
        assert!(matches!(rejected, ScheduleError::Beta { step: 19, beta: 1.0, .. }), "{rejected}");
        assert!(NoiseSchedule::Linear.betas(21).is_ok());
        assert_eq!(NoiseSchedule::Linear.betas(MAX_TIMESTEPS).unwrap().len(), MAX_TIMESTEPS);
    }

    #[test]
    fn names_are_parsed() {
        assert_eq!("linear".parse(), Ok(NoiseSchedule::Linear));
        assert_eq!(NoiseSchedule::Linear.to_string(), "linear");
        let message = "cosine".parse::<NoiseSchedule>().unwrap_err().to_string();
        assert_eq!(message, "unknown noise schedule \"cosine\", expected \"linear\"");
    }
}
