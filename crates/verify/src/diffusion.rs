//! Cases of the diffusion process: tables, losses and samplers.

use super::{
    Case, Failure, Output, Outputs,
    denoiser::{denoiser_config, load_stdit, prompt_states},
};
use burn::tensor::{Device, Tensor};
use opensora::{
    denoiser::PromptedDenoiser,
    diffusion::{
        Ddim, Denoiser, DiffusionTables, DpmSolver, GaussianDiffusion, Guidance, Iddpm, LossInputs,
        LossKind, MeanVariance, NoiseSchedule, Respacing, Sampler, TRAINING_TIMESTEPS,
        space_timesteps,
    },
    stdit::StDit,
    t5::PromptStates,
};
use serde::Deserialize;

/// The arguments of the reference's `IDDPM` that affect the tables.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SchedulerArgs {
    timestep_respacing: Option<String>,
    num_sampling_steps: Option<usize>,
    diffusion_steps: Option<usize>,
    noise_schedule: Option<String>,
    /// True if the model predicts the variance; always the case here.
    learn_sigma: Option<bool>,
}

impl SchedulerArgs {
    fn respacing(&self) -> Result<Respacing, Failure> {
        match (&self.timestep_respacing, self.num_sampling_steps) {
            (_, Some(steps)) => Ok(Respacing::steps(steps)),
            (Some(text), None) => Ok(text.parse()?),
            (None, None) => Ok(Respacing::All),
        }
    }

    /// Returns the tables of these arguments; omitted ones are those of `usual`, else the published ones.
    fn tables(&self, usual: &Self) -> Result<DiffusionTables, Failure> {
        if self.learn_sigma == Some(false) {
            return Err("learn_sigma is false, expected a model that predicts its variance".into());
        }
        let schedule = match self.noise_schedule.as_ref().or(usual.noise_schedule.as_ref()) {
            Some(name) => name.parse()?,
            None => NoiseSchedule::Linear,
        };
        let steps = self.diffusion_steps.or(usual.diffusion_steps).unwrap_or(TRAINING_TIMESTEPS);
        Ok(DiffusionTables::new(schedule, steps, &self.respacing()?)?)
    }
}

/// Settings of a case of kind `iddpm-tables`, those of all schedulers first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TablesConfig {
    noise_schedule: Option<String>,
    diffusion_steps: Option<usize>,
    schedulers: Vec<Scheduler>,
    space_timesteps: Vec<Spacing>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scheduler {
    prefix: String,
    args: SchedulerArgs,
    /// Expected number of steps.
    num_timesteps: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spacing {
    name: String,
    num_timesteps: usize,
    section_counts: SectionCounts,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SectionCounts {
    Text(String),
    Counts(Vec<usize>),
}

fn indices(values: &[usize]) -> Output {
    Output::from_values(values.iter().map(|&value| value as f64).collect())
}

/// Compares every table of every scheduler, and the selected steps.
pub(super) fn tables(case: &Case, _: &Device) -> Result<Outputs, Failure> {
    let mut outputs = Outputs::new();
    let config: TablesConfig = case.get("/config")?;
    let usual = SchedulerArgs {
        noise_schedule: config.noise_schedule,
        diffusion_steps: config.diffusion_steps,
        ..SchedulerArgs::default()
    };
    for scheduler in config.schedulers {
        let tables = scheduler.args.tables(&usual)?;
        if let Some(expected) = scheduler.num_timesteps
            && expected != tables.num_timesteps()
        {
            return Err(format!(
                "scheduler '{}' has {} steps, the case expects {expected}",
                scheduler.prefix,
                tables.num_timesteps()
            )
            .into());
        }
        let prefix = format!("{}.", scheduler.prefix);
        for name in case.output_names() {
            let Some(table) = name.strip_prefix(&prefix) else { continue };
            if table == "timestep_map" {
                outputs.push((name, indices(&tables.timestep_map)));
            } else if let Some(values) = tables.get(table) {
                outputs.push((name, Output::from_values(values.to_vec())));
            }
        }
    }
    for spacing in config.space_timesteps {
        let respacing = match spacing.section_counts {
            SectionCounts::Text(text) => text.parse()?,
            SectionCounts::Counts(counts) => Respacing::from(counts),
        };
        let steps = space_timesteps(spacing.num_timesteps, &respacing)?;
        outputs.push((spacing.name, indices(&steps)));
    }
    Ok(outputs)
}

fn steps_of(case: &Case, name: &str) -> Result<Vec<usize>, Failure> {
    let (values, _) = case.integers(name)?;
    Ok(values.into_iter().map(usize::try_from).collect::<Result<_, _>>()?)
}

fn mean_variance(case: &Case, prefix: &str, out: MeanVariance) -> Result<Outputs, Failure> {
    [
        ("mean", out.mean),
        ("variance", out.variance),
        ("log_variance", out.log_variance),
        ("pred_xstart", out.pred_xstart),
    ]
    .into_iter()
    .map(|(name, tensor)| case.output(format!("{prefix}.{name}"), tensor))
    .collect()
}

/// Computes training losses and `p_mean_variance` for given model outputs.
pub(super) fn losses(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    case.check_settings("/config", &["training", "spaced"])?;
    let process = |pointer: &str| -> Result<GaussianDiffusion, Failure> {
        let args: SchedulerArgs = case.get(pointer)?;
        Ok(GaussianDiffusion::new(args.tables(&SchedulerArgs::default())?))
    };
    case.begin("computing training losses");
    let full = process("/config/training")?;
    let t = steps_of(case, "t")?;
    let x_start = case.tensor::<5>("x_start", device)?;
    let noise = case.tensor::<5>("noise", device)?;
    let model_output = case.tensor::<5>("model_output", device)?;
    let x_t = full.q_sample(x_start.clone(), &t, noise.clone())?;

    let mut outputs = vec![case.output("x_t", x_t.clone())?];
    for (prefix, kind) in [("", LossKind::Mse), ("rescaled_mse.", LossKind::RescaledMse)] {
        let inputs = LossInputs {
            model_output: model_output.clone(),
            x_start: x_start.clone(),
            x_t: x_t.clone(),
            noise: noise.clone(),
            t: &t,
        };
        let losses = full.training_losses(inputs, kind)?;
        outputs.push(case.output(format!("{prefix}loss"), losses.loss)?);
        outputs.push(case.output(format!("{prefix}vb"), losses.vb)?);
        outputs.push(case.output(format!("{prefix}mse"), losses.mse)?);
    }
    for (prefix, clip_denoised) in [("full.clip0", false), ("full.clip1", true)] {
        let out = full.p_mean_variance(model_output.clone(), x_t.clone(), &t, clip_denoised)?;
        outputs.extend(mean_variance(case, prefix, out)?);
    }

    case.begin("computing means and variances of chosen steps");
    let spaced = process("/config/spaced")?;
    let t = steps_of(case, "spaced.t")?;
    let x = case.tensor::<5>("spaced.x", device)?;
    let model_output = case.tensor::<5>("spaced.model_output", device)?;
    outputs.extend(mean_variance(
        case,
        "spaced",
        spaced.p_mean_variance(model_output, x, &t, false)?,
    )?);
    let told = spaced.model_timesteps(&t)?.into_iter().map(f64::from).collect();
    outputs.push(("spaced.model_timestep".into(), Output::from_values(told)));
    Ok(outputs)
}

/// Returns the prompt states and mask of a sampling case.
fn prompts(case: &Case, device: &Device) -> Result<PromptStates, Failure> {
    Ok(PromptStates { states: prompt_states(case, "y", device)?, mask: case.mask("mask")? })
}

fn model(case: &Case, device: &Device) -> Result<StDit, Failure> {
    load_stdit(case, &denoiser_config(case, "/config", &[])?, "/weights", device)
}

/// Returns the noise of each step from `[steps, 2n, C, T, H, W]`; samplers use the first `n` rows.
pub(super) fn noise_of_step(
    noises: &Tensor<6>,
    samples: usize,
) -> impl FnMut(usize) -> Tensor<5> + use<> {
    let noises = noises.clone();
    move |step| noises.clone().narrow(0, step, 1).squeeze_dim::<5>(0).narrow(0, 0, samples)
}

/// Samples an STDiT with IDDPM and DDIM, and computes the guided output of the first step.
pub(super) fn iddpm_sample(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let model = model(case, device)?;
    let prompts = prompts(case, device)?;
    sampled(case, &PromptedDenoiser::new(&model, &prompts)?, device)
}

/// Samples with IDDPM and DDIM and the case's noise, and computes the guided output of the first step.
pub(super) fn sampled(
    case: &Case,
    denoiser: &dyn Denoiser,
    device: &Device,
) -> Result<Outputs, Failure> {
    let steps: usize = case.get("/num_sampling_steps")?;
    let guidance = Guidance::first_three_channels(case.get("/cfg_scale")?);
    let z = case.tensor::<5>("z", device)?;
    let noises = case.tensor::<6>("noises", device)?;
    let [samples, channels, ..] = z.dims();

    case.begin("sampling with IDDPM");
    let iddpm = Iddpm::with_steps(steps)?;
    let noise = &mut noise_of_step(&noises, samples);
    let sampled = iddpm.sample(denoiser, &guidance, z.clone(), noise, &mut ())?;
    case.begin("sampling with DDIM");
    let ddim = Ddim::with_steps(steps)?;
    let ddim_sampled = ddim.sample(denoiser, &guidance, z.clone(), noise, &mut ())?;

    case.begin("running the first step");
    let last = iddpm.process().num_timesteps() - 1;
    let timestep = iddpm.process().model_timesteps(&[last])?[0];
    let (prompt, null) = denoiser.denoise_both(z, timestep)?;
    let both = Tensor::cat(vec![prompt, null], 0);
    let first = guided_halves(both, channels, case.get("/cfg_scale")?)?;
    Ok(vec![
        case.output("samples", sampled)?,
        case.output("ddim_samples", ddim_sampled)?,
        case.output("cfg_first_model_output", first)?,
    ])
}

/// Guides a prediction for `[with condition, without]` as the reference's IDDPM does, and returns both
/// halves as the reference does: the second half has the unguided channels of the null condition.
pub(super) fn guided_halves(
    output: Tensor<5>,
    channels: usize,
    guidance_scale: f64,
) -> Result<Tensor<5>, Failure> {
    let half = output.dims()[0] / 2;
    let (with, null) = (output.clone().narrow(0, 0, half), output.narrow(0, half, half));
    let guidance = Guidance::first_three_channels(guidance_scale);
    let first = guidance.combine(with, null.clone(), channels)?;
    let guided = 3.min(channels);
    let rest = null.dims()[1] - guided;
    let second =
        Tensor::cat(vec![first.clone().narrow(1, 0, guided), null.narrow(1, guided, rest)], 1);
    Ok(Tensor::cat(vec![first, second], 0))
}

/// Samples an STDiT with DPM-Solver++ and each of the case's numbers of steps.
pub(super) fn dpm_solver(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let guidance = Guidance::all_channels(case.get("/cfg_scale")?);
    let model = model(case, device)?;
    let prompts = prompts(case, device)?;
    let denoiser = PromptedDenoiser::new(&model, &prompts)?;
    let z = case.tensor::<5>("z", device)?;

    let mut outputs = Outputs::new();
    for steps in case.get::<Vec<usize>>("/num_sampling_steps")? {
        case.begin(format!("sampling with DPM-Solver in {steps} steps"));
        let solver = DpmSolver::with_steps(steps)?;
        let noise = &mut |_| unreachable!("DPM-Solver adds no noise");
        let sampled = solver.sample(&denoiser, &guidance, z.clone(), noise, &mut ())?;
        let told = solver.model_timesteps().into_iter().map(f64::from).collect();
        outputs.push(case.output(format!("samples_{steps}steps"), sampled)?);
        outputs.push((format!("model_timesteps_{steps}steps"), Output::from_values(told)));
    }
    Ok(outputs)
}
