//! Losses and gradients of samples whose frames are divided among ranks, against one process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_nn::{mask::TokenMask, read::read_f64};
use opensora_parallel::{Group, Mesh, Reduction, threads::run_ranks};
use opensora_stdit::{DenoiserConfig, StDit};
use opensora_train::{
    FlatTensors, Trainer,
    denoiser::{DenoiserBatch, DenoiserRecipe, DenoiserTask, Freeze},
    optimizer::OptimizerRecipe,
    parameters::{filled, values},
};
use std::{collections::BTreeMap, sync::Arc};

const TOKENS: usize = 5;
const WIDTH: usize = 8;

/// Values by name, as numbers: tensors with gradients are not shared between ranks.
type Numbers = BTreeMap<String, Vec<f64>>;

fn config() -> DenoiserConfig {
    DenoiserConfig {
        hidden_size: 16,
        depth: 2,
        num_heads: 2,
        caption_channels: WIDTH,
        model_max_length: TOKENS,
        ..DenoiserConfig::xl_2()
    }
}

fn waves(count: usize, phase: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect()
}

fn tensor<const D: usize>(shape: [usize; D], phase: f32) -> Tensor<D> {
    let values = waves(shape.iter().product(), phase);
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// A model whose parameters all have gradients, which those of a fresh one have not.
fn trainer(freeze: Freeze) -> Trainer<StDit> {
    let model = config().init::<StDit>(&Device::flex()).unwrap();
    let parameters: FlatTensors = values(&model)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(index, (name, value))| (name, tensor(value.dims(), index as f32) * 0.3))
        .collect();
    let model = filled(model, &parameters, FloatDType::F32);
    Trainer::new(model, &OptimizerRecipe::default(), |name| freeze.is_trainable(name)).unwrap()
}

/// A training step of some samples.
#[derive(Clone)]
struct Step {
    /// Latents of a sample, `[T, h, w]`.
    size: [usize; 3],
    recipe: DenoiserRecipe,
    dtype: FloatDType,
}

impl Step {
    /// Samples `samples` of four.
    fn batch(&self, samples: &[usize]) -> DenoiserBatch {
        let [frames, height, width] = self.size;
        let rows = |phase: f32| {
            let row =
                |&sample: &usize| tensor([1, 4, frames, height, width], phase + sample as f32);
            Tensor::cat(samples.iter().map(row).collect(), 0)
        };
        let states = samples.iter().map(|&sample| tensor([1, TOKENS, WIDTH], 0.2 * sample as f32));
        let mask = samples.iter().map(|&sample| (0..TOKENS).map(|i| i + sample < 6).collect());
        DenoiserBatch {
            latents: rows(0.3),
            noise: rows(50.0),
            // Step 0 has another loss than the rest.
            t: samples.iter().map(|&sample| [0, 300, 650, 999][sample]).collect(),
            states: Tensor::cat(states.collect(), 0),
            mask: TokenMask::new(mask.collect()).unwrap(),
            dropped: samples.iter().map(|&sample| sample == 1).collect(),
        }
    }

    /// Losses of the samples, and gradients: this rank's part of them if `group` shares the samples.
    fn run(&self, samples: &[usize], group: Option<&Group>) -> (Vec<f64>, Numbers) {
        let task =
            DenoiserTask::new(&self.recipe, &config(), 0, self.dtype, &Device::flex()).unwrap();
        let task = match group {
            Some(group) => task.divided(group.clone()),
            None => task,
        };
        let graph = trainer(self.recipe.freeze).graph(self.dtype);
        let (losses, gradients) = task.losses(&graph, self.batch(samples)).unwrap();
        let losses = [losses.loss, losses.mse, losses.vb].map(|x| read_f64(x).unwrap()).concat();
        let gradients = gradients.into_iter().map(|(name, x)| (name, read_f64(x).unwrap()));
        (losses, gradients.collect())
    }
}

/// Replaces gradients by their mean over the ranks of a group.
fn averaged(gradients: Numbers, group: &Group) -> Numbers {
    let average = |(name, mut values): (String, Vec<f64>)| {
        group.all_reduce_f64(Reduction::Sum, &mut values);
        let ranks = group.size() as f64;
        (name, values.into_iter().map(|x| x / ranks).collect())
    };
    gradients.into_iter().map(average).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Compares losses relatively, and the gradient of each parameter in relative L2.
fn assert_equal(
    (losses, gradients): &(Vec<f64>, Numbers),
    (expected_losses, expected): &(Vec<f64>, Numbers),
    [of_losses, of_gradients]: [f64; 2],
    case: &str,
) {
    for (found, expected) in losses.iter().zip(expected_losses) {
        let distance = (found - expected).abs() / expected.abs();
        assert!(distance <= of_losses, "{case}: loss {found}, expected {expected}");
    }
    assert_eq!(gradients.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{case}");
    let largest = expected.values().map(|x| norm(x.iter().copied())).fold(0.0, f64::max);
    for (name, expected) in expected {
        let difference = norm(gradients[name].iter().zip(expected).map(|(a, b)| a - b));
        // Keys' biases have no gradient but rounding: softmax ignores what all scores share.
        let size = norm(expected.iter().copied()).max(1e-6 * largest);
        assert!(difference <= of_gradients * size, "{case}: {name}: {difference} of {size}");
    }
}

/// Even sizes; frames or positions that no number of ranks divides; fewer frames or positions than ranks.
const SIZES: [[usize; 3]; 4] = [[12, 4, 12], [5, 6, 6], [2, 4, 4], [3, 2, 2]];

fn assert_ranks_agree(sizes: &[[usize; 3]], step: &Step, tolerances: [f64; 2]) {
    let samples = [0, 1, 2];
    for &size in sizes {
        let step = Step { size, ..step.clone() };
        let expected = step.run(&samples, None);
        for ranks in 1..=4 {
            let found = run_ranks(ranks, |group| {
                let (losses, gradients) = step.run(&samples, Some(&group));
                (losses, averaged(gradients, &group))
            });
            for found in &found {
                assert_equal(found, &expected, tolerances, &format!("{size:?}, {ranks} ranks"));
            }
        }
    }
}

fn step() -> Step {
    Step { size: SIZES[0], recipe: DenoiserRecipe::default(), dtype: FloatDType::F32 }
}

#[test]
fn losses_and_gradients_on_ranks_are_those_of_one_process() {
    assert_ranks_agree(&SIZES, &step(), [1e-5, 1e-4]);
}

#[test]
fn activation_checkpointing_repeats_the_collectives() {
    let recipe = DenoiserRecipe { activation_checkpointing: true, ..Default::default() };
    let step = Step { recipe, ..step() };
    // Equal to the step without it, too.
    let without = Step { recipe: DenoiserRecipe::default(), ..step.clone() };
    let samples = [0, 1];
    assert_equal(&step.run(&samples, None), &without.run(&samples, None), [1e-5, 1e-4], "one");
    assert_ranks_agree(&SIZES, &step, [1e-5, 1e-4]);
}

/// Gradients then do not reach all tokens of the first block.
#[test]
fn frozen_parameters_have_no_gradients_on_any_rank() {
    let recipe = DenoiserRecipe {
        freeze: Freeze::NotTemporal,
        min_snr_gamma: Some(5.0),
        ..Default::default()
    };
    let again = DenoiserRecipe { activation_checkpointing: true, ..recipe.clone() };
    let [kept, again] = [recipe, again].map(|recipe| Step { recipe, ..step() });
    assert_equal(&again.run(&[0, 1], None), &kept.run(&[0, 1], None), [1e-5, 1e-4], "one");
    for step in [kept, again] {
        assert_ranks_agree(&SIZES[1..3], &step, [1e-5, 1e-4]);
    }
}

/// bf16 has 8 bits; gradients are sums in another order.
#[test]
fn bf16_on_ranks_is_near_to_one_process() {
    for activation_checkpointing in [false, true] {
        let recipe = DenoiserRecipe { activation_checkpointing, ..Default::default() };
        let step = Step { recipe, dtype: FloatDType::BF16, ..step() };
        assert_ranks_agree(&SIZES[1..3], &step, [0.02, 0.1]);
    }
}

/// Two groups of two ranks: each group has half of the samples, each rank half of their frames.
#[test]
fn samples_and_frames_are_divided_at_once() {
    let step = step();
    let expected = step.run(&[0, 1, 2, 3], None);
    let found = run_ranks(4, |world| {
        let mesh = Mesh::new(world, 2).unwrap();
        let samples = [[0, 1], [2, 3]][mesh.data.rank()];
        let (losses, gradients) = step.run(&samples, Some(&mesh.sequence));
        // Losses are [3, B]: loss, mse and vb of the group's samples.
        (mesh.data.rank(), losses, averaged(gradients, &mesh.world))
    });
    for (group, losses, gradients) in found {
        let of_group = |kind: usize| expected.0[4 * kind + 2 * group..][..2].to_vec();
        let expected = ([0, 1, 2].map(of_group).concat(), expected.1.clone());
        assert_equal(&(losses, gradients), &expected, [1e-5, 1e-4], "2 x 2");
    }
}

/// The same number of ranks gives the same bits.
#[test]
fn runs_on_ranks_are_repeatable() {
    let step = Arc::new(step());
    let run = || {
        run_ranks(3, |group| {
            let (losses, gradients) = step.run(&[0, 3], Some(&group));
            (losses, averaged(gradients, &group))
        })
    };
    assert_eq!(run(), run());
}
