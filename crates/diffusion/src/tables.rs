//! The coefficients of a diffusion process, in f64.
//!
//! Source: `opensora/schedulers/iddpm/gaussian_diffusion.py`, `GaussianDiffusion.__init__`, and
//! `respace.py`, `SpacedDiffusion.__init__`; the tables keep their names.
//!
//! Deviation: in a process of a single step the reference leaves `posterior_log_variance_clipped`
//! empty and fails when sampling. Here it contains `ln(beta_0)`, so that the range of the learnt
//! variance collapses to one value. That value never reaches a sample, because the last step adds no
//! noise.

use thiserror::Error;

use crate::{
    respace::{RespaceError, Respacing, space_timesteps},
    schedule::{NoiseSchedule, ScheduleError, TRAINING_TIMESTEPS},
};

/// Error for a process that cannot be set up.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum TablesError {
    /// An invalid training process.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A respacing that does not fit the training process.
    #[error(transparent)]
    Respace(#[from] RespaceError),
    /// A step whose noise, or whose remaining signal, is too small for f64.
    #[error(
        "the process of {num_timesteps} steps has beta {beta} at step {step}, expected a value \
         between 0 and 1"
    )]
    Beta {
        /// Steps of the process.
        num_timesteps: usize,
        /// The first step that is out of range.
        step: usize,
        /// Its beta.
        beta: f64,
    },
}

/// The tables of a process of `num_timesteps` steps. Each has one value per step; index 0 is the step with
/// the least noise.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DiffusionTables {
    /// The timestep of the training process that corresponds to each step; the model is called with it.
    pub timestep_map: Vec<usize>,
    /// Noise variance added by each step, given the one before.
    pub betas: Vec<f64>,
    /// Remaining signal: the product of `1 - beta` up to and including each step.
    pub alphas_cumprod: Vec<f64>,
    /// `alphas_cumprod` one step earlier, 1 at the beginning.
    pub alphas_cumprod_prev: Vec<f64>,
    /// `alphas_cumprod` one step later, 0 at the end.
    pub alphas_cumprod_next: Vec<f64>,
    /// `sqrt(alphas_cumprod)`.
    pub sqrt_alphas_cumprod: Vec<f64>,
    /// `sqrt(1 - alphas_cumprod)`.
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    /// `ln(1 - alphas_cumprod)`.
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    /// `sqrt(1 / alphas_cumprod)`.
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    /// `sqrt(1 / alphas_cumprod - 1)`.
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    /// Variance of `q(x_{t-1} | x_t, x_0)`; 0 at the beginning.
    pub posterior_variance: Vec<f64>,
    /// Logarithm of the posterior variance, with the value at index 1 in place of `ln(0)` at index 0.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Coefficient of `x_0` in the mean of `q(x_{t-1} | x_t, x_0)`.
    pub posterior_mean_coef1: Vec<f64>,
    /// Coefficient of `x_t` in the same mean.
    pub posterior_mean_coef2: Vec<f64>,
    /// `ln(betas)`: the upper end of the learned variance's range.
    pub log_betas: Vec<f64>,
}

impl DiffusionTables {
    /// Returns the tables of the process that keeps the steps that `respacing` selects from `schedule` over
    /// `num_timesteps`.
    ///
    /// # Errors
    /// Returns an error if the schedule is invalid or the respacing does not fit it.
    pub fn new(
        schedule: NoiseSchedule,
        num_timesteps: usize,
        respacing: &Respacing,
    ) -> Result<Self, TablesError> {
        let kept = space_timesteps(num_timesteps, respacing)?;
        let base = cumprod(&schedule.betas(num_timesteps)?);
        // A kept step adds the noise of all the steps that were skipped before it.
        let mut last = 1.0;
        let betas = kept
            .iter()
            .map(|&timestep| {
                let beta = 1.0 - base[timestep] / last;
                last = base[timestep];
                beta
            })
            .collect();
        Self::from_betas(betas, kept)
    }

    /// Returns the tables of the published process: linear betas over 1000 steps, respaced.
    ///
    /// # Errors
    /// Returns an error if the respacing does not fit 1000 steps.
    pub fn published(respacing: &Respacing) -> Result<Self, TablesError> {
        Self::new(NoiseSchedule::Linear, TRAINING_TIMESTEPS, respacing)
    }

    fn from_betas(betas: Vec<f64>, timestep_map: Vec<usize>) -> Result<Self, TablesError> {
        let num_timesteps = betas.len();
        let alphas_cumprod = cumprod(&betas);
        // A long process can run out of signal in f64 although every beta is valid.
        let vanished = |step: usize| !(betas[step] > 0.0 && alphas_cumprod[step] > 0.0);
        if let Some(step) = (0..num_timesteps).find(|&step| vanished(step)) {
            return Err(TablesError::Beta { num_timesteps, step, beta: betas[step] });
        }

        let alphas_cumprod_prev: Vec<f64> = std::iter::once(1.0)
            .chain(alphas_cumprod.iter().copied())
            .take(num_timesteps)
            .collect();
        let alphas_cumprod_next =
            alphas_cumprod.iter().copied().skip(1).chain([0.0]).take(num_timesteps).collect();
        let each = |f: &dyn Fn(f64) -> f64| alphas_cumprod.iter().map(|&a| f(a)).collect();
        let posterior = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
            let rows = betas.iter().zip(&alphas_cumprod).zip(&alphas_cumprod_prev);
            rows.map(|((&beta, &a), &a_prev)| f(beta, a, a_prev)).collect()
        };

        let posterior_variance = posterior(&|beta, a, a_prev| beta * (1.0 - a_prev) / (1.0 - a));
        let log_betas: Vec<f64> = betas.iter().map(|beta| beta.ln()).collect();
        let mut posterior_log_variance_clipped: Vec<f64> =
            posterior_variance.iter().map(|variance| variance.ln()).collect();
        posterior_log_variance_clipped[0] =
            posterior_log_variance_clipped.get(1).copied().unwrap_or(log_betas[0]);

        Ok(Self {
            sqrt_alphas_cumprod: each(&f64::sqrt),
            sqrt_one_minus_alphas_cumprod: each(&|a| (1.0 - a).sqrt()),
            log_one_minus_alphas_cumprod: each(&|a| (1.0 - a).ln()),
            sqrt_recip_alphas_cumprod: each(&|a| (1.0 / a).sqrt()),
            sqrt_recipm1_alphas_cumprod: each(&|a| (1.0 / a - 1.0).sqrt()),
            posterior_mean_coef1: posterior(&|beta, a, a_prev| beta * a_prev.sqrt() / (1.0 - a)),
            posterior_mean_coef2: posterior(&|beta, a, a_prev| {
                (1.0 - a_prev) * (1.0 - beta).sqrt() / (1.0 - a)
            }),
            posterior_variance,
            posterior_log_variance_clipped,
            timestep_map,
            alphas_cumprod_prev,
            alphas_cumprod_next,
            alphas_cumprod,
            log_betas,
            betas,
        })
    }

    /// Returns the number of steps of the process, at least 1.
    pub fn num_timesteps(&self) -> usize {
        self.betas.len()
    }

    /// Returns the table with the given name, e.g. `"posterior_mean_coef1"`; `None` if there is no such table.
    /// `timestep_map` is not a table of this kind.
    pub fn get(&self, name: &str) -> Option<&[f64]> {
        let table = match name {
            "betas" => &self.betas,
            "alphas_cumprod" => &self.alphas_cumprod,
            "alphas_cumprod_prev" => &self.alphas_cumprod_prev,
            "alphas_cumprod_next" => &self.alphas_cumprod_next,
            "sqrt_alphas_cumprod" => &self.sqrt_alphas_cumprod,
            "sqrt_one_minus_alphas_cumprod" => &self.sqrt_one_minus_alphas_cumprod,
            "log_one_minus_alphas_cumprod" => &self.log_one_minus_alphas_cumprod,
            "sqrt_recip_alphas_cumprod" => &self.sqrt_recip_alphas_cumprod,
            "sqrt_recipm1_alphas_cumprod" => &self.sqrt_recipm1_alphas_cumprod,
            "posterior_variance" => &self.posterior_variance,
            "posterior_log_variance_clipped" => &self.posterior_log_variance_clipped,
            "posterior_mean_coef1" => &self.posterior_mean_coef1,
            "posterior_mean_coef2" => &self.posterior_mean_coef2,
            "log_betas" => &self.log_betas,
            _ => return None,
        };
        Some(table)
    }
}

fn cumprod(betas: &[f64]) -> Vec<f64> {
    let products = betas.iter().scan(1.0, |product, beta| {
        *product *= 1.0 - beta;
        Some(*product)
    });
    products.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Golden;

    #[test]
    fn tables_equal_those_of_the_reference() {
        let golden = Golden::open("iddpm-tables");
        let tolerance = |key: &str| golden.case[key].as_f64().unwrap();
        let (atol, rtol) = (tolerance("atol"), tolerance("rtol"));
        let mut compared = 0;
        for scheduler in golden.case["config"]["schedulers"].as_array().unwrap() {
            let prefix = scheduler["prefix"].as_str().unwrap();
            let args = &scheduler["args"];
            let respacing = match args["num_sampling_steps"].as_u64() {
                Some(steps) => Respacing::steps(steps as usize),
                None => args["timestep_respacing"].as_str().unwrap().parse().unwrap(),
            };
            let tables = DiffusionTables::published(&respacing).unwrap();
            assert_eq!(tables.num_timesteps() as u64, scheduler["num_timesteps"].as_u64().unwrap());

            for name in golden.expected_names().filter_map(|name| name.strip_prefix(prefix)) {
                let name = name.strip_prefix('.').unwrap();
                let key = format!("{prefix}.{name}");
                compared += 1;
                if name == "timestep_map" {
                    assert_eq!(tables.timestep_map, golden.expected_indices(&key));
                    continue;
                }
                let expected = golden.expected_f64(&key);
                let found = tables.get(name).unwrap_or_else(|| panic!("no table {name}"));
                assert_eq!(found.len(), expected.len(), "{key}");
                for (step, (got, want)) in found.iter().zip(&expected).enumerate() {
                    let close = (got - want).abs() <= atol + rtol * want.abs();
                    assert!(close, "{key}[{step}]: {got} instead of {want}");
                }
            }
        }
        // Five processes with a map and eleven tables each.
        assert_eq!(compared, 5 * 12);
    }

    #[test]
    fn every_table_has_the_name_of_its_field() {
        let tables = DiffusionTables::published(&Respacing::steps(7)).unwrap();
        for (name, table) in [
            ("betas", &tables.betas),
            ("alphas_cumprod", &tables.alphas_cumprod),
            ("alphas_cumprod_prev", &tables.alphas_cumprod_prev),
            ("alphas_cumprod_next", &tables.alphas_cumprod_next),
            ("sqrt_alphas_cumprod", &tables.sqrt_alphas_cumprod),
            ("sqrt_one_minus_alphas_cumprod", &tables.sqrt_one_minus_alphas_cumprod),
            ("log_one_minus_alphas_cumprod", &tables.log_one_minus_alphas_cumprod),
            ("sqrt_recip_alphas_cumprod", &tables.sqrt_recip_alphas_cumprod),
            ("sqrt_recipm1_alphas_cumprod", &tables.sqrt_recipm1_alphas_cumprod),
            ("posterior_variance", &tables.posterior_variance),
            ("posterior_log_variance_clipped", &tables.posterior_log_variance_clipped),
            ("posterior_mean_coef1", &tables.posterior_mean_coef1),
            ("posterior_mean_coef2", &tables.posterior_mean_coef2),
            ("log_betas", &tables.log_betas),
        ] {
            assert_eq!(tables.get(name), Some(&table[..]), "{name}");
        }
        for (step, &beta) in tables.betas.iter().enumerate() {
            assert_eq!(tables.log_betas[step], beta.ln());
            let a = tables.alphas_cumprod[step];
            assert_eq!(tables.log_one_minus_alphas_cumprod[step], (1.0 - a).ln());
        }
    }

    #[test]
    fn a_process_without_noise_or_signal_is_rejected() {
        let rejected = |betas: Vec<f64>| {
            let map = (0..betas.len()).collect();
            match DiffusionTables::from_betas(betas, map).unwrap_err() {
                TablesError::Beta { step, .. } => step,
                other => panic!("{other}"),
            }
        };
        assert_eq!(rejected(vec![0.5, 0.0, 0.5]), 1);
        // 2^-1074 is the smallest number of f64.
        assert_eq!(rejected(vec![0.5; 1100]), 1074);
    }

    #[test]
    fn a_process_of_one_step_is_valid() {
        let tables = DiffusionTables::published(&Respacing::steps(1)).unwrap();
        assert_eq!(tables.timestep_map, [0]);
        assert_eq!(tables.posterior_log_variance_clipped, tables.log_betas);
        assert_eq!((tables.posterior_mean_coef1[0], tables.posterior_mean_coef2[0]), (1.0, 0.0));
    }

    #[test]
    fn unknown_names_and_invalid_counts() {
        let tables = DiffusionTables::published(&Respacing::All).unwrap();
        assert_eq!(tables.get("timestep_map"), None);
        let rejected = DiffusionTables::published(&Respacing::steps(1001)).unwrap_err();
        assert!(matches!(rejected, TablesError::Respace(RespaceError::SectionTooShort { .. })));
        let rejected = DiffusionTables::new(NoiseSchedule::Linear, 5, &Respacing::All).unwrap_err();
        assert!(matches!(rejected, TablesError::Schedule(ScheduleError::Beta { .. })));
    }
}
