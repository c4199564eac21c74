//! Cases of training steps: `train-step`.

use super::{
    Case, Check, Failure, Output, Outputs,
    compare::Tolerance,
    denoiser::{denoiser_config, load_stdit, prompt_states},
};
use burn::tensor::{Device, FloatDType, TensorData};
use opensora::checkpoint::published_tensors;
use opensora::{
    nn::read::read_f64,
    stdit::{StDit, keys},
    train::{
        FlatTensors, Trainer,
        denoiser::{DenoiserBatch, DenoiserRecipe, DenoiserTask, Freeze},
        optimizer::OptimizerRecipe,
        parameters::filled,
    },
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Steps of a case.
const STEPS: usize = 3;

/// Largest difference between gradients with and without activation checkpointing.
const RECOMPUTED_BOUND: f64 = 1e-6;

/// Runs three steps of AdamW on given batches, with their gradients and moving averages; one step with each set of
/// frozen parameters; and compares the gradients with activation checkpointing, which must be the same.
pub(super) fn train_step(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let mut outputs = Outputs::new();
    for decay in case.get::<Vec<f64>>("/ema_decays")? {
        outputs.extend(Setup { case, device, decay }.three_steps()?);
    }
    let setup = Setup { case, device, decay: 0.9999 };
    for (freeze, name) in [(Freeze::NotTemporal, "not_temporal"), (Freeze::Text, "text")] {
        outputs.extend(setup.one_frozen_step(freeze, name)?);
    }
    outputs.push(("activation_checkpointing".into(), Output::Check(setup.recomputed()?)));
    Ok(outputs)
}

struct Setup<'a> {
    case: &'a Case,
    device: &'a Device,
    decay: f64,
}

impl Setup<'_> {
    fn trainer(
        &self,
        freeze: Freeze,
        activation_checkpointing: bool,
    ) -> Result<(DenoiserTask, Trainer<StDit>), Failure> {
        let config = denoiser_config(self.case, "/config", &[])?;
        let model = load_stdit(self.case, &config, "/weights", self.device)?;
        let optimizer: Value = self.case.get("/optimizer")?;
        let number = |name: &str| {
            optimizer[name].as_f64().ok_or_else(|| format!("case.json: no number optimizer.{name}"))
        };
        let optimizer = OptimizerRecipe {
            learning_rate: number("lr")?,
            weight_decay: number("weight_decay")?,
            epsilon: number("eps")?,
            betas: self.case.get("/optimizer/betas")?,
            gradient_clip: number("grad_clip_global_norm")?,
            ema_decay: self.decay,
            ..OptimizerRecipe::default()
        };
        let recipe =
            DenoiserRecipe { freeze, activation_checkpointing, ..DenoiserRecipe::default() };
        let task = DenoiserTask::new(&recipe, &config, 0, FloatDType::F32, self.device)?;
        Ok((task, Trainer::new(model, &optimizer, |path| freeze.is_trainable(path))?))
    }

    fn batch(&self, step: usize) -> Result<DenoiserBatch, Failure> {
        let name = |part: &str| format!("step{step}.{part}");
        let integers = |part: &str| Ok::<_, Failure>(self.case.integers(&name(part))?.0);
        Ok(DenoiserBatch {
            latents: self.case.tensor(&name("x_start"), self.device)?,
            noise: self.case.tensor(&name("noise"), self.device)?,
            t: integers("t")?.into_iter().map(usize::try_from).collect::<Result<_, _>>()?,
            states: prompt_states(self.case, &name("y"), self.device)?,
            mask: self.case.mask(&name("mask"))?,
            dropped: integers("drop_ids")?.into_iter().map(|drop| drop == 1).collect(),
        })
    }

    fn three_steps(&self) -> Result<Outputs, Failure> {
        let order: Vec<String> = self.case.get("/param_order")?;
        let (task, mut trainer) = self.trainer(Freeze::Nothing, false)?;
        let mut outputs = Outputs::new();
        for step in 0..STEPS {
            self.case.begin(format!("training step {step}, EMA decay {}", self.decay));
            let graph = trainer.graph(FloatDType::F32);
            let (losses, gradients) = task.losses(&graph, self.batch(step)?)?;
            let [loss, mse, vb] = [losses.loss, losses.mse, losses.vb].map(read_f64);
            let (loss, mse, vb) = (loss?, mse?, vb?);
            let total = loss.iter().sum::<f64>() / loss.len() as f64;
            let published = published(&trainer, &gradients)?;
            let report = trainer.apply(gradients, STEPS as u64)?;
            let after = self::published(&trainer, trainer.values())?;
            for (name, values) in [
                ("loss", loss),
                ("mse", mse),
                ("vb", vb),
                ("total_loss", vec![total]),
                ("grad_norm_before_clip", vec![report.gradient_norm]),
                ("grad_l2_norms", norms(&published, &order)?),
                ("param_l2_norms_after", norms(&after, &order)?),
            ] {
                outputs.push((format!("step{step}.{name}"), Output::from_values(values)));
            }
            for (what, tensors) in [("grad", published), ("param_after", after)] {
                outputs.extend(named(&format!("step{step}.{what}"), tensors)?);
            }
        }
        let average = published(&trainer, trainer.average())?;
        outputs.extend(named(&format!("ema{}", self.decay), average)?);
        Ok(outputs)
    }

    fn one_frozen_step(&self, freeze: Freeze, name: &str) -> Result<Outputs, Failure> {
        let (task, mut trainer) = self.trainer(freeze, false)?;
        self.case.begin(format!("training step with frozen parameters ({name})"));
        let before = published(&trainer, trainer.values())?;
        let graph = trainer.graph(FloatDType::F32);
        let (_, gradients) = task.losses(&graph, self.batch(0)?)?;
        let report = trainer.apply(gradients, 1)?;
        let after = published(&trainer, trainer.values())?;

        // The case lists the trained parameters; all others must be bitwise unchanged.
        let listed: Vec<String> =
            self.case.get(&format!("/freeze/{name}/changed_after_one_step"))?;
        let moved: Vec<&String> =
            after.iter().filter(|(key, data)| before[*key] != **data).map(|(key, _)| key).collect();
        if let Some(key) = moved.iter().find(|key| !listed.contains(key)) {
            return Err(format!("freeze = {name}: '{key}' moved and is not to").into());
        }
        if let Some(key) = listed.iter().find(|key| !moved.contains(key)) {
            return Err(format!("freeze = {name}: '{key}' did not move").into());
        }
        let mut outputs = named(&format!("freeze_{name}.param_after"), after)?;
        let norm = Output::from_values(vec![report.gradient_norm]);
        outputs.push((format!("freeze_{name}.grad_norm_before_clip"), norm));
        Ok(outputs)
    }
}

impl Setup<'_> {
    /// Returns the largest difference between gradients with and without activation checkpointing.
    fn recomputed(&self) -> Result<Check, Failure> {
        let mut both = Vec::new();
        for activation_checkpointing in [false, true] {
            let (task, trainer) = self.trainer(Freeze::Nothing, activation_checkpointing)?;
            self.case.begin("gradients with activation checkpointing");
            let graph = trainer.graph(FloatDType::F32);
            both.push(task.losses(&graph, self.batch(0)?)?.1);
        }
        let (kept, recomputed) = (&both[0], &both[1]);
        let same_names = kept.keys().eq(recomputed.keys());
        let mut differences = Vec::new();
        for (kept, recomputed) in kept.values().zip(recomputed.values()) {
            // Every value is read: the maximum of some backends leaves out NaN.
            differences.extend(read_f64(kept.clone() - recomputed.clone())?);
        }
        let check = is_zero(differences);
        let not_finite = check.note.map(|note| format!(", {note}")).unwrap_or_default();
        let note = format!("{} gradients beside those that keep activations", kept.len());
        Ok(Check { passed: same_names && check.passed, note: Some(note + &not_finite), ..check })
    }
}

/// Returns the check that all of `differences` are zero up to [`RECOMPUTED_BOUND`]. Differences of values that are not
/// finite fail, also those of equal ones, which are NaN.
fn is_zero(differences: Vec<f64>) -> Check {
    let zeros = Output::from_values(vec![0.0; differences.len()]);
    let tolerance = Tolerance::Close { atol: RECOMPUTED_BOUND, rtol: 0.0 };
    tolerance.check("", &Output::from_values(differences), &zeros)
}

/// Returns the tensors of `values` under published names and in published layout.
fn published(
    trainer: &Trainer<StDit>,
    values: &FlatTensors,
) -> Result<BTreeMap<String, TensorData>, Failure> {
    let map = keys::stdit();
    let names: Vec<String> = values.keys().map(|path| map.published_key(path)).collect();
    let model = filled(trainer.model(), values, FloatDType::F32);
    let tensors = published_tensors(&model, &map)?;
    Ok(tensors.into_iter().filter(|(key, _)| names.contains(key)).collect())
}

/// Returns the Euclidean norm of each tensor, in the order of the case.
fn norms(tensors: &BTreeMap<String, TensorData>, order: &[String]) -> Result<Vec<f64>, Failure> {
    let norm = |name: &String| -> Result<f64, Failure> {
        let tensor = tensors.get(name).ok_or_else(|| format!("there is no parameter '{name}'"))?;
        Ok(tensor.iter::<f64>().map(|value| value * value).sum::<f64>().sqrt())
    };
    order.iter().map(norm).collect()
}

fn named(prefix: &str, tensors: BTreeMap<String, TensorData>) -> Result<Outputs, Failure> {
    let name = |(key, data)| Ok((format!("{prefix}.{key}"), Output::from_data(data)?));
    tensors.into_iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_that_are_large_or_not_finite_fail() {
        let good = is_zero(vec![0.0, -5e-7, 1e-6]);
        assert!(good.passed && good.note.is_none(), "{good:?}");
        assert_eq!((good.max_abs_error, good.bound), (1e-6, RECOMPUTED_BOUND));
        let large = is_zero(vec![0.0, -2e-6]);
        assert!(!large.passed && large.max_abs_error == 2e-6, "{large:?}");
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let failed = is_zero(vec![0.0, bad, 0.0]);
            assert!(!failed.passed && failed.max_abs_error == f64::INFINITY, "{failed:?}");
            assert_eq!(failed.note.as_deref(), Some("1 of 3 values not finite"));
        }
    }
}
