//! The denoiser's loss on a tiny STDiT.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_checkpoint::{ExportOptions, export};
use opensora_diffusion::PredictionType;
use opensora_nn::{mask::TokenMask, read::read_f64};
use opensora_stdit::{DenoiserConfig, StDit, keys};
use opensora_train::{
    Ranks, Recipe, Session, Trainer,
    denoiser::{DenoiserBatch, DenoiserRecipe, DenoiserTask},
    optimizer::OptimizerRecipe,
};

const SHAPE: [usize; 5] = [2, 4, 1, 2, 2];
const TIMESTEPS: [usize; 2] = [100, 900];

fn ramp(factor: f32) -> Vec<f32> {
    (0..SHAPE.iter().product::<usize>()).map(|i| (i as f32 * factor).sin()).collect()
}

fn config() -> DenoiserConfig {
    DenoiserConfig {
        hidden_size: 16,
        depth: 1,
        num_heads: 2,
        caption_channels: 8,
        model_max_length: 3,
        ..DenoiserConfig::default()
    }
}

struct Losses {
    loss: Vec<f64>,
    mse: Vec<f64>,
    vb: Vec<f64>,
}

/// A fresh STDiT, whose output is zero.
fn losses(recipe: &DenoiserRecipe) -> Losses {
    let (device, config) = (Device::flex(), config());
    let tensor = |factor| Tensor::from_data(TensorData::new(ramp(factor), SHAPE), &device);
    let batch = DenoiserBatch {
        latents: tensor(0.7),
        noise: tensor(1.3),
        t: TIMESTEPS.to_vec(),
        states: Tensor::zeros([2, 3, 8], &device),
        mask: TokenMask::new(vec![vec![true; 3]; 2]).unwrap(),
        dropped: vec![false; 2],
    };
    let task = DenoiserTask::new(recipe, &config, 0, FloatDType::F32, &device).unwrap();
    let model = config.init::<StDit>(&device).unwrap();
    let trainer = Trainer::new(model, &OptimizerRecipe::default(), |_| true).unwrap();
    let losses = task.losses(&trainer.graph(FloatDType::F32), batch).unwrap().0;
    let [loss, mse, vb] = [losses.loss, losses.mse, losses.vb].map(|x| read_f64(x).unwrap());
    Losses { loss, mse, vb }
}

fn alpha_cumprod(t: usize) -> f64 {
    (0..=t).map(|i| 1.0 - (1e-4 + (0.02 - 1e-4) * i as f64 / 999.0)).product()
}

#[test]
fn the_loss_of_velocities_is_the_error_of_the_velocity() {
    let recipe =
        DenoiserRecipe { prediction_type: PredictionType::VPrediction, ..Default::default() };
    let found = losses(&recipe);
    let (x, noise) = (ramp(0.7), ramp(1.3));
    for (row, &t) in TIMESTEPS.iter().enumerate() {
        let a = alpha_cumprod(t);
        let rows = row * 16..(row + 1) * 16;
        let squares = rows
            .map(|i| (f64::from(noise[i]) * a.sqrt() - f64::from(x[i]) * (1.0 - a).sqrt()).powi(2));
        let expected = squares.sum::<f64>() / 16.0;
        let mse = found.loss[row] - found.vb[row];
        assert!((mse - expected).abs() < 1e-4 * expected, "{mse} {expected}");
        // The reported error is that of the noise, for both prediction types.
        assert!((found.mse[row] - a * expected).abs() < 1e-4 * expected);
    }
}

#[test]
fn the_snr_weight_is_the_same_for_both_predictions() {
    let gamma = 0.5;
    for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction] {
        let recipe = DenoiserRecipe {
            prediction_type,
            min_snr_gamma: Some(gamma),
            ..DenoiserRecipe::default()
        };
        let found = losses(&recipe);
        for (row, &t) in TIMESTEPS.iter().enumerate() {
            let snr = alpha_cumprod(t) / (1.0 - alpha_cumprod(t));
            let expected = (found.mse[row] + found.vb[row]) * snr.min(gamma) / snr;
            assert!((found.loss[row] - expected).abs() < 1e-4 * expected);
        }
    }
}

/// Training noise from weights that predict velocities would waste hours without an error.
#[test]
fn weights_of_another_prediction_type_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, device) = (folder.path().join("stage1.safetensors"), Device::flex());
    let model = config().init::<StDit>(&device).unwrap();
    let options = ExportOptions::default()
        .with_metadata(PredictionType::NOTE, PredictionType::VPrediction.name());
    export(&model, &keys::stdit(), options, &weights).unwrap();

    let mut recipe = Recipe::parse("[stdit]\n[run]\nsteps = 1\n").unwrap();
    let part = recipe.stdit.as_mut().unwrap();
    (part.config, part.init) = (config(), Some(weights));
    let run = |recipe: &Recipe| {
        let (recipe, folder) = (recipe.clone(), folder.path().join("run"));
        Session { recipe, folder, resume: false, peak_flops: None, device: device.clone(), ranks: Ranks::default() }
            .run(&mut (), &mut ())
            .unwrap_err()
            .to_string()
    };
    let said = run(&recipe);
    assert!(said.contains("prediction_type v_prediction, expected epsilon"), "{said}");
    // With the right type, the next missing input is reported.
    recipe.stdit.as_mut().unwrap().loss.prediction_type = PredictionType::VPrediction;
    let said = run(&recipe);
    assert!(!said.contains("prediction_type"), "{said}");
}
