//! Reads from devices: read values do not change later, and loops do not wait at every step.
//!
//! A single test, since waits are counted for the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor};
use opensora::{
    PipelineOptions, SampleRequest, TextToVideo,
    data::{DataError, Source, encode::EncodedSample},
    diffusion::SamplerKind,
    nn::read::{read, waits},
    stdit::{DenoiserConfig, StDit},
    train::{
        Observer, Outcome, Run, TrainError, Trainer,
        denoiser::{DenoiserRecipe, DenoiserTask},
        metrics::Table,
        observer::{StepDone, Update},
        optimizer::OptimizerRecipe,
        run::RunRecipe,
        state::{Checkpoints, Progress},
    },
};
use opensora_tests::{devices, tiny_model};
use std::{fs, ops::ControlFlow, path::Path, sync::Arc};

#[test]
fn devices_are_read_at_once_and_rarely() {
    for (name, device) in devices() {
        read_values_do_not_change(&name, &device);
        sampling_does_not_wait_at_every_step(&name, &device);
        training_does_not_wait_at_every_step(&name, &device);
        a_resumed_run_is_the_same_run(&name, &device);
        a_number_that_is_not_finite_changes_nothing(&name, &device);
    }
}

/// The reproduction in `docs/upstream/lazy-reads.md`.
fn read_values_do_not_change(name: &str, device: &Device) {
    let t = Tensor::<1>::ones([32], device) * 3.0;
    let before = read(t.clone()).unwrap();
    // The only handle of its buffer, so the product is computed in place.
    let after = read(t * 2.0).unwrap();
    assert_eq!(before.try_to_vec::<f32>().unwrap(), [3.0; 32], "{name}");
    assert_eq!(after.try_to_vec::<f32>().unwrap(), [6.0; 32], "{name}");
}

fn sampling_does_not_wait_at_every_step(name: &str, device: &Device) {
    let pipeline =
        TextToVideo::new(tiny_model(), PipelineOptions::default(), device.clone()).unwrap();
    let states = pipeline.encode(&["a red fox"], &SampleRequest::default(), &mut ()).unwrap();
    let mut counts = Vec::new();
    for sampler in SamplerKind::ALL {
        for steps in [8, 16] {
            let request = SampleRequest {
                num_frames: 2,
                image_size: [16, 32],
                sampler,
                steps: Some(steps),
                ..SampleRequest::default()
            };
            let before = waits();
            pipeline.sample(&states, &request, &mut ()).unwrap();
            counts.push(waits() - before);
        }
    }
    // The guard is read every eight steps.
    assert!(
        counts.chunks(2).all(|pair| pair[1] - pair[0] <= 1 && pair[0] <= 2),
        "{name}: {counts:?}"
    );
}

/// Pseudo-random samples; one row is not finite on request.
struct Samples {
    poisoned: Option<usize>,
}

const ROWS: usize = 24;

impl Source for Samples {
    type Item = EncodedSample;

    fn len(&self) -> usize {
        ROWS
    }

    fn read(&self, row: usize, _epoch: u64) -> Result<EncodedSample, DataError> {
        let wave = |count: usize, phase: f32| -> Vec<f32> {
            (0..count).map(|i| (i as f32 * 0.37 + row as f32 + phase).sin()).collect()
        };
        let mut mean = wave(4 * 2 * 4 * 4, 0.0);
        if self.poisoned == Some(row) {
            mean[7] = f32::NAN;
        }
        Ok(EncodedSample {
            row,
            mean,
            logvar: vec![-2.0; 4 * 2 * 4 * 4],
            latent_shape: [4, 2, 4, 4],
            states: wave(3 * 8, 1.0),
            mask: vec![true; 3],
            width: 8,
        })
    }

    fn describe(&self, row: usize) -> String {
        format!("sample {row}")
    }
}

/// Stops after some steps and records the number of waits at each step.
struct Watching {
    stop_after: u64,
    heard: Vec<(u64, u64)>,
}

impl Watching {
    fn until(stop_after: u64) -> Self {
        Self { stop_after, heard: Vec::new() }
    }
}

impl Observer for Watching {
    fn step(&mut self, event: &StepDone<'_>) {
        assert!(event.record.loss.is_finite() && event.record.gradient_norm > 0.0);
        self.heard.push((event.record.step, waits()));
    }

    fn update(&mut self, _event: &Update) -> ControlFlow<()> {
        match self.heard.last() {
            Some((step, _)) if *step >= self.stop_after => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn task_and_trainer(device: &Device) -> (DenoiserTask, Trainer<StDit>) {
    let config = DenoiserConfig {
        hidden_size: 16,
        depth: 2,
        num_heads: 2,
        caption_channels: 8,
        model_max_length: 3,
        ..DenoiserConfig::default()
    };
    let task =
        DenoiserTask::new(&DenoiserRecipe::default(), &config, 5, FloatDType::F32, device).unwrap();
    // The same initial weights in every call.
    device.seed(5);
    let model = config.init::<StDit>(device).unwrap();
    let recipe = OptimizerRecipe { learning_rate: 1e-3, ..OptimizerRecipe::default() };
    (task, Trainer::new(model, &recipe, |_| true).unwrap())
}

fn recipe(steps: u64) -> RunRecipe {
    RunRecipe { steps, batch_size: 3, checkpoint_every: 1000, ..RunRecipe::default() }
}

fn train(
    folder: &Path,
    steps: u64,
    (task, trainer): &mut (DenoiserTask, Trainer<StDit>),
    progress: Progress,
    poisoned: Option<usize>,
    observer: &mut Watching,
) -> Result<Outcome, TrainError> {
    let run = Run { task: &*task, recipe: &recipe(steps), folder, peak_flops: None };
    run.train(trainer, Arc::new(Samples { poisoned }), progress, observer, &mut ())
}

fn training_does_not_wait_at_every_step(name: &str, device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = task_and_trainer(device);
    let mut observer = Watching::until(u64::MAX);
    let before = waits();
    train(folder.path(), 20, &mut parts, Progress::default(), None, &mut observer).unwrap();
    let heard: Vec<u64> = observer.heard.iter().map(|(step, _)| *step).collect();
    assert_eq!(heard, (1..=20).collect::<Vec<_>>(), "{name}");
    // When step 20 is reported, the numbers of 8, 8 and 4 steps have been read.
    let waited = observer.heard[19].1 - before;
    assert!(waited <= 3, "{name}: {waited} waits in 20 steps");
}

fn a_resumed_run_is_the_same_run(name: &str, device: &Device) {
    let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut uninterrupted = task_and_trainer(device);
    let observer = &mut Watching::until(u64::MAX);
    train(whole.path(), 14, &mut uninterrupted, Progress::default(), None, observer).unwrap();

    let mut first = task_and_trainer(device);
    let observer = &mut Watching::until(5);
    let outcome =
        train(pieces.path(), 14, &mut first, Progress::default(), None, observer).unwrap();
    let Outcome::Stopped(stopped) = outcome else { panic!("{name}: {outcome:?}") };
    assert!((5..14).contains(&stopped.step), "{name}: {stopped:?}");

    let mut second = task_and_trainer(device);
    let checkpoints = Checkpoints::new(pieces.path(), 2);
    let progress = checkpoints.load_newest(&mut second.1, device, &mut ()).unwrap().unwrap();
    // Seconds are left out: the file has them rounded.
    let place = |progress: &Progress| (progress.step, progress.next_slot, progress.samples);
    assert_eq!(place(&progress), place(&stopped), "{name}");
    let observer = &mut Watching::until(u64::MAX);
    train(pieces.path(), 14, &mut second, progress, None, observer).unwrap();
    for file in ["values", "average", "optimizer"] {
        let bytes = |folder: &Path| {
            let name = format!("checkpoints/step-00000014/{file}.safetensors");
            fs::read(folder.join(name)).unwrap()
        };
        assert!(bytes(whole.path()) == bytes(pieces.path()), "{name}: {file}");
    }
    let steps =
        |folder: &Path| Table::read(&folder.join("metrics.csv")).unwrap().column("step").unwrap();
    assert_eq!(steps(whole.path()), steps(pieces.path()), "{name}");
}

fn a_number_that_is_not_finite_changes_nothing(name: &str, device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = task_and_trainer(device);
    let poisoned = Some(11);
    let mut observer = Watching::until(u64::MAX);
    let error = train(folder.path(), 8, &mut parts, Progress::default(), poisoned, &mut observer);
    let Err(TrainError::NonFinite { step, what, rows }) = error else {
        panic!("{name}: {error:?}")
    };
    assert_eq!((what.as_str(), rows.as_slice()), ("the loss", [11].as_slice()), "{name}");
    // The steps before it are reported, whatever the device has computed meanwhile.
    let heard: Vec<u64> = observer.heard.iter().map(|(step, _)| *step).collect();
    assert_eq!(heard, (1..step).collect::<Vec<_>>(), "{name}");
    assert!(Checkpoints::new(folder.path(), 2).complete().unwrap().is_empty(), "{name}");

    // The parameters are those after the step before, although the device reported it later.
    let clean = tempfile::tempdir().unwrap();
    let mut stopped = task_and_trainer(device);
    if step > 1 {
        let observer = &mut Watching::until(u64::MAX);
        train(clean.path(), step - 1, &mut stopped, Progress::default(), None, observer).unwrap();
    }
    for (path, value) in stopped.1.values() {
        let [want, got] = [value, &parts.1.values()[path]].map(|x| read(x.clone()).unwrap());
        assert_eq!(want, got, "{name}: {path} after step {step}");
    }
}
