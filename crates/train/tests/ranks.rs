//! Training over ranks, with ranks that are threads: the numbers of one process, checkpoints, failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_checkpoint::BoxedError;
use opensora_data::{DataError, Source, encode::EncodedSample};
use opensora_files::error_line;
use opensora_parallel::{Group, Solo, threads::run_ranks};
use opensora_stdit::{DenoiserConfig, StDit};
use opensora_train::{
    FlatTensors, Observer, Outcome, Ranks, Run, TrainError, Trainer, Zero,
    denoiser::{DenoiserRecipe, DenoiserTask},
    metrics::Table,
    observer::{StepDone, Update},
    optimizer::OptimizerRecipe,
    parameters,
    run::{Hooks, RunRecipe},
    state::{Checkpoints, Progress},
    trainer::HeldBytes,
};
use std::{fs, ops::ControlFlow, path::Path, sync::Arc};

const ROWS: usize = 24;
const ZERO: [Zero; 3] = [Zero::Off, Zero::Optimizer, Zero::Gradients];

/// Latents of 24 rows. Some rows are unreadable, one may be NaN.
#[derive(Clone, Default)]
struct Samples {
    bad: Vec<usize>,
    poisoned: Option<usize>,
}

fn wave(count: usize, phase: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37 + phase).sin()).collect()
}

impl Source for Samples {
    type Item = EncodedSample;

    fn len(&self) -> usize {
        ROWS
    }

    fn read(&self, row: usize, _epoch: u64) -> Result<EncodedSample, DataError> {
        if self.bad.contains(&row) {
            return Err(DataError::row(row, format!("clip-{row}.mp4"), "truncated"));
        }
        let mut mean = wave(4 * 2 * 4 * 4, row as f32);
        if self.poisoned == Some(row) {
            mean[7] = f32::NAN;
        }
        // Captions of several lengths, so that parts of a batch are padded differently.
        let tokens = 1 + row % 3;
        Ok(EncodedSample {
            row,
            mean,
            logvar: vec![-2.0; 4 * 2 * 4 * 4],
            latent_shape: [4, 2, 4, 4],
            states: wave(tokens * 8, row as f32 + 1.0),
            mask: vec![true; tokens],
            width: 8,
        })
    }

    fn describe(&self, row: usize) -> String {
        format!("clip-{row}.mp4")
    }
}

fn config() -> DenoiserConfig {
    DenoiserConfig {
        hidden_size: 32,
        depth: 2,
        num_heads: 2,
        caption_channels: 8,
        model_max_length: 3,
        ..DenoiserConfig::default()
    }
}

fn optimizer() -> OptimizerRecipe {
    OptimizerRecipe {
        learning_rate: 1e-3,
        warmup_steps: 5,
        weight_decay: 0.01,
        gradient_clip: 0.5,
        ema_decay: 0.9,
        ..OptimizerRecipe::default()
    }
}

/// A trainer with the same parameters on every call.
fn trainer(
    config: &DenoiserConfig,
    ranks: &Ranks,
    zero: Zero,
    dtype: FloatDType,
) -> Trainer<StDit> {
    let device = Device::flex();
    let model = config.init::<StDit>(&device).unwrap();
    let values = parameters::values(&model).unwrap();
    let values: FlatTensors = (values.into_iter().zip(1..))
        .map(|((name, value), index)| {
            let [length] = value.dims();
            let data = TensorData::new(wave(length, index as f32), [length]);
            (name, Tensor::<1>::from_data(data, &device) * 0.05)
        })
        .collect();
    let model = parameters::filled(model, &values, FloatDType::F32);
    let trainable = |path: &str| !path.ends_with("y_embedder.y_embedding");
    Trainer::new(model, &optimizer(), trainable).unwrap().over(ranks, zero, dtype)
}

/// Inputs of a run on one rank.
#[derive(Clone)]
struct Job<'a> {
    folder: &'a Path,
    recipe: RunRecipe,
    samples: Samples,
    resume: bool,
    /// Ranks that share the frames of each sample.
    sequence: usize,
    activation_checkpointing: bool,
}

impl<'a> Job<'a> {
    fn new(folder: &'a Path, recipe: RunRecipe) -> Self {
        let samples = Samples::default();
        Self {
            folder,
            recipe,
            samples,
            resume: false,
            sequence: 1,
            activation_checkpointing: false,
        }
    }

    fn run(
        &self,
        group: Group,
        observer: &mut dyn Observer,
        hooks: &mut dyn Hooks<DenoiserTask>,
    ) -> (Result<Outcome, TrainError>, Trainer<StDit>) {
        let (config, device) = (config(), Device::flex());
        let dtype = match self.recipe.dtype.as_str() {
            "bf16" => FloatDType::BF16,
            _ => FloatDType::F32,
        };
        let ranks = Ranks::with_sequence(group, self.sequence).unwrap();
        let mut trainer = trainer(&config, &ranks, self.recipe.zero, dtype);
        let loss = DenoiserRecipe {
            caption_dropout: 0.2,
            activation_checkpointing: self.activation_checkpointing,
            ..DenoiserRecipe::default()
        };
        let task = DenoiserTask::new(&loss, &config, self.recipe.seed, dtype, &device).unwrap();
        let task = task.divided(ranks.sequence().clone());
        let mut progress = Progress::default();
        if self.resume {
            let checkpoints = Checkpoints::new(self.folder, 2);
            let found = checkpoints.load_newest(&mut trainer, &device, observer).unwrap();
            progress = found.unwrap();
        }
        let run = Run { task: &task, recipe: &self.recipe, folder: self.folder, peak_flops: None };
        let source = Arc::new(self.samples.clone());
        (run.train(&mut trainer, source, progress, observer, hooks), trainer)
    }

    /// Runs on `ranks` ranks and returns the bytes that each holds at the end.
    fn finish(&self, ranks: usize) -> Vec<HeldBytes> {
        run_ranks(ranks, |group| {
            let (outcome, trainer) = self.run(group, &mut (), &mut ());
            assert!(matches!(outcome.unwrap(), Outcome::Finished(_)));
            trainer.held_bytes()
        })
    }

    /// Runs on `ranks` ranks, all of which fail, and returns their errors.
    fn fail(&self, ranks: usize) -> Vec<TrainError> {
        run_ranks(ranks, |group| self.run(group, &mut (), &mut ()).0.unwrap_err())
    }

    fn column(&self, name: &str) -> Vec<f64> {
        Table::read(&self.folder.join("metrics.csv")).unwrap().column(name).unwrap()
    }
}

fn recipe(steps: u64) -> RunRecipe {
    RunRecipe { steps, batch_size: 8, workers: 0, checkpoint_every: 1000, ..RunRecipe::default() }
}

/// All tensors of the newest checkpoint: parameters, averages and moments, whole.
fn state(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let scratch = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let mut whole = trainer(&config(), &Ranks::default(), Zero::Off, FloatDType::F32);
    let progress = Checkpoints::new(folder, 2).load_newest(&mut whole, &device, &mut ());
    let progress = progress.unwrap().unwrap();
    let path = Checkpoints::new(scratch.path(), 1).save(&whole, &progress, &mut ()).unwrap();
    let mut tensors = Vec::new();
    for kind in ["values", "average", "optimizer"] {
        let file = opensora_checkpoint::Checkpoint::open(path.join(format!("{kind}.safetensors")));
        for (key, tensor) in file.unwrap().tensors() {
            let values = tensor.read(key).unwrap().iter::<f32>().collect();
            tensors.push((format!("{kind} {key}"), values));
        }
    }
    tensors
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Asserts that the parameters and averages of two runs are close.
fn assert_close(found: &[(String, Vec<f32>)], wanted: &[(String, Vec<f32>)], limit: f64) {
    assert_eq!(found.len(), wanted.len());
    for ((name, found), (_, wanted)) in found.iter().zip(wanted) {
        if name.starts_with("optimizer") {
            continue;
        }
        let distance = norm(found.iter().zip(wanted).map(|(a, b)| f64::from(a - b)));
        let length = norm(wanted.iter().map(|x| f64::from(*x)));
        assert!(distance <= limit * length, "{name}: {distance:e} of {length:e}");
    }
}

fn worst(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

#[test]
fn losses_and_weights_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    fs::create_dir_all(&one).unwrap();
    let job = Job::new(&one, recipe(50));
    job.finish(1);
    let (losses, norms, wanted) = (job.column("loss"), job.column("gradient_norm"), state(&one));
    assert!(losses[49] < 0.95 * losses[0], "it does not learn: {losses:?}");
    for ranks in [2, 4] {
        let mut first = None;
        for zero in ZERO {
            let path = folder.path().join(format!("{ranks}-{zero:?}"));
            fs::create_dir_all(&path).unwrap();
            let job = Job::new(&path, RunRecipe { zero, ..recipe(50) });
            job.finish(ranks);
            let (found, grads) = (job.column("loss"), job.column("gradient_norm"));
            let (loss, grad) = (worst(&found, &losses), worst(&grads, &norms));
            println!("{ranks} ranks, {zero:?}: loss {loss:.1e}, gradient norm {grad:.1e}");
            assert!(loss < 1e-5, "{ranks} ranks, {zero:?}: {loss:e}");
            assert_eq!(
                job.column("samples"),
                (1..=50).map(|i| f64::from(8 * i)).collect::<Vec<_>>()
            );
            for part in ["mse", "vb"] {
                assert_eq!(job.column(part).len(), 50);
            }
            let state = state(&path);
            assert_close(&state, &wanted, 1e-4);
            // All stages are bit-exact, and so is a second run of the same ranks.
            let first = first.get_or_insert_with(|| state.clone());
            assert!(*first == state, "{ranks} ranks, {zero:?}");
        }
        let again = folder.path().join(format!("{ranks}-again"));
        fs::create_dir_all(&again).unwrap();
        Job::new(&again, recipe(50)).finish(ranks);
        assert!(first.unwrap() == state(&again), "{ranks} ranks");
    }
}

/// Clips have two frames: of three ranks that share a sample, one has only padding.
#[test]
fn ranks_that_share_samples_train_as_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    fs::create_dir_all(&one).unwrap();
    Job::new(&one, recipe(20)).finish(1);
    let (losses, wanted) = (Job::new(&one, recipe(20)).column("loss"), state(&one));
    for (ranks, sequence) in [(2, 2), (4, 2), (3, 3)] {
        for (zero, activation_checkpointing) in [(Zero::Off, false), (Zero::Gradients, true)] {
            let case = format!("{ranks}-{sequence}-{zero:?}");
            let path = folder.path().join(&case);
            fs::create_dir_all(&path).unwrap();
            let job = Job::new(&path, RunRecipe { zero, ..recipe(20) });
            let job = Job { sequence, activation_checkpointing, ..job };
            job.finish(ranks);
            let distance = worst(&job.column("loss"), &losses);
            println!("{case}: loss {distance:.1e}");
            assert!(distance < 1e-5, "{case}: {distance:e}");
            assert_eq!(job.column("samples")[19], 160.0, "{case}");
            assert_close(&state(&path), &wanted, 1e-4);
        }
    }
}

#[test]
fn uneven_and_empty_parts_have_the_right_weight() {
    let folder = tempfile::tempdir().unwrap();
    let run = |ranks: usize, batch_size: usize, zero, accumulation| {
        let path = folder.path().join(format!("{ranks}-{batch_size}-{zero:?}-{accumulation}"));
        fs::create_dir_all(&path).unwrap();
        let job = Job::new(&path, RunRecipe { batch_size, accumulation, zero, ..recipe(6) });
        job.finish(ranks);
        (job.column("loss"), state(&path))
    };
    for (batch_size, accumulation) in [(7, 1), (3, 2)] {
        let (losses, wanted) = run(1, batch_size, Zero::Off, accumulation);
        for zero in ZERO {
            let (found, state) = run(4, batch_size, zero, accumulation);
            assert!(worst(&found, &losses) < 1e-5, "batch {batch_size}, {zero:?}");
            assert_close(&state, &wanted, 1e-4);
        }
    }
}

#[test]
fn parameters_in_bf16_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let run = |ranks: usize, zero| {
        let path = folder.path().join(format!("{ranks}-{zero:?}"));
        fs::create_dir_all(&path).unwrap();
        let job = Job::new(&path, RunRecipe { zero, dtype: "bf16".into(), ..recipe(5) });
        let held = job.finish(ranks);
        (held[0], state(&path), job.column("loss"))
    };
    let (whole, wanted, losses) = run(2, Zero::Off);
    let (divided, found, again) = run(2, Zero::Gradients);
    assert!(found == wanted && losses == again);
    assert_eq!(divided.parameters * 2, whole.parameters);
    let (_, _, alone) = run(1, Zero::Off);
    assert!(worst(&losses, &alone) < 1e-2, "{losses:?} {alone:?}");
}

#[test]
fn zero_divides_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let held = |ranks: usize, zero| {
        let path = folder.path().join(format!("{ranks}-{zero:?}"));
        fs::create_dir_all(&path).unwrap();
        let recipe = RunRecipe { zero, batch_size: 4, ..recipe(1) };
        Job::new(&path, recipe).finish(ranks)
    };
    let one = held(1, Zero::Gradients)[0];
    // Moments, average and gradients, of all but the null prompt.
    let state =
        |held: &HeldBytes, master: usize| held.optimizer - master + held.average + held.gradients;
    let whole = state(&one, 0);
    assert_eq!(whole / 4, one.gradients);
    for ranks in [2, 4] {
        for held in held(ranks, Zero::Gradients) {
            // The slices of the parameters are as large as those of the average and the null prompt.
            let master = held.optimizer - 2 * held.average;
            assert!(master >= held.average && master < held.average + one.parameters / ranks / 50);
            let share = state(&held, master) as f64 * ranks as f64 / whole as f64;
            println!("{ranks} ranks: {held:?}, {share:.3} of 1/{ranks}");
            assert!((0.9..1.1).contains(&share), "{ranks} ranks: {share}");
            assert_eq!(held.parameters, one.parameters);
        }
        for held in held(ranks, Zero::Optimizer) {
            assert_eq!(held.gradients, one.gradients);
            assert!(held.average * ranks < one.average * 11 / 10);
        }
        assert_eq!(held(ranks, Zero::Off)[0], one);
    }
}

#[test]
fn a_checkpoint_of_any_ranks_resumes_on_any_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved");
    fs::create_dir_all(&saved).unwrap();
    let four = RunRecipe { zero: Zero::Gradients, ..recipe(6) };
    Job::new(&saved, four.clone()).finish(4);
    let newest = saved.join("checkpoints/step-00000006");
    let mut names: Vec<String> = fs::read_dir(&newest)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 13);
    assert_eq!(names[0], "average-00000-of-00004.safetensors");
    let wanted = state(&saved);

    // Loaded and saved again by other ranks, every bit is the same.
    for (ranks, zero) in
        [(1, Zero::Off), (2, Zero::Optimizer), (4, Zero::Gradients), (3, Zero::Off)]
    {
        let copied = folder.path().join(format!("copied-{ranks}"));
        let copy = |group: Group| {
            let ranks = Ranks::new(group);
            let mut trainer = trainer(&config(), &ranks, zero, FloatDType::F32);
            let device = Device::flex();
            let progress = Checkpoints::new(&saved, 2).load_newest(&mut trainer, &device, &mut ());
            Checkpoints::new(&copied, 2)
                .save(&trainer, &progress.unwrap().unwrap(), &mut ())
                .unwrap();
        };
        run_ranks(ranks, copy);
        assert!(state(&copied) == wanted, "{ranks} ranks, {zero:?}");
    }

    // Resumed by the same ranks, the run is the one without a break; by others, it is close.
    let whole = folder.path().join("whole");
    fs::create_dir_all(&whole).unwrap();
    Job::new(&whole, RunRecipe { steps: 12, ..four.clone() }).finish(4);
    let wanted = state(&whole);
    for (ranks, zero) in [(4, Zero::Gradients), (2, Zero::Optimizer), (1, Zero::Off)] {
        let resumed = folder.path().join(format!("resumed-{ranks}"));
        fs::create_dir_all(resumed.join("checkpoints/step-00000006")).unwrap();
        for name in &names {
            fs::copy(newest.join(name), resumed.join("checkpoints/step-00000006").join(name))
                .unwrap();
        }
        let recipe = RunRecipe { steps: 12, zero, ..four.clone() };
        Job { resume: true, ..Job::new(&resumed, recipe) }.finish(ranks);
        let found = state(&resumed);
        if ranks == 4 {
            assert!(found == wanted);
        } else {
            assert_close(&found, &wanted, 1e-4);
        }
    }
}

#[test]
fn a_damaged_slice_is_found_by_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = RunRecipe { zero: Zero::Optimizer, checkpoint_every: 2, ..recipe(4) };
    Job::new(folder.path(), recipe.clone()).finish(2);
    let slice = folder.path().join("checkpoints/step-00000004/average-00001-of-00002.safetensors");
    let mut bytes = fs::read(&slice).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&slice, bytes).unwrap();
    let steps = run_ranks(4, |group| {
        let mut trainer = trainer(&config(), &Ranks::new(group), Zero::Off, FloatDType::F32);
        let checkpoints = Checkpoints::new(folder.path(), 2);
        let found = checkpoints.load_newest(&mut trainer, &Device::flex(), &mut ());
        (found.unwrap().unwrap().step, trainer.step())
    });
    assert_eq!(steps, [(2, 2); 4]);
    assert!(folder.path().join("checkpoints/step-00000004.damaged").exists());
}

#[test]
fn bad_rows_are_skipped_by_all_ranks_or_end_all() {
    let folder = tempfile::tempdir().unwrap();
    let samples = Samples { bad: vec![3, 9, 17], poisoned: None };
    let run = |ranks: usize, workers: usize| {
        let path = folder.path().join(format!("{ranks}-{workers}"));
        fs::create_dir_all(&path).unwrap();
        let recipe = RunRecipe { skip_bad: 3, workers, ..recipe(8) };
        let job = Job { samples: samples.clone(), ..Job::new(&path, recipe) };
        job.finish(ranks);
        let skipped = fs::read_to_string(path.join("skipped.csv")).unwrap();
        (job.column("loss"), job.column("epoch"), skipped, state(&path))
    };
    let wanted = run(1, 0);
    for (ranks, workers) in [(1, 2), (2, 0), (4, 2), (3, 1)] {
        let found = run(ranks, workers);
        assert!(worst(&found.0, &wanted.0) < 1e-5, "{ranks} ranks");
        assert_eq!((found.1, &found.2), (wanted.1.clone(), &wanted.2), "{ranks} ranks");
        assert_close(&found.3, &wanted.3, 1e-4);
    }
    for (skip_bad, words) in [(0, "row "), (1, "more than the 1 bad rows")] {
        let path = folder.path().join(format!("fails-{skip_bad}"));
        fs::create_dir_all(&path).unwrap();
        let job = Job::new(&path, RunRecipe { skip_bad, ..recipe(50) });
        let errors = Job { samples: samples.clone(), ..job }.fail(4);
        let lines: Vec<String> = errors.iter().map(|error| error_line(error)).collect();
        assert!(lines[0].contains(words) && lines[0].contains("truncated"), "{lines:?}");
        assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_the_same_error_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let samples = Samples { bad: vec![], poisoned: Some(6) };
    let errors = Job { samples, ..Job::new(folder.path(), recipe(50)) }.fail(4);
    let lines: Vec<String> = errors.iter().map(|error| error.to_string()).collect();
    assert!(lines[0].contains("the loss is not finite, for rows 7"), "{lines:?}");
    assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
}

/// Stops after a step, on one rank.
struct StopAt(u64);

impl Observer for StopAt {
    fn step(&mut self, event: &StepDone<'_>) {
        assert!(event.record.loss.is_finite());
    }

    fn update(&mut self, event: &Update) -> ControlFlow<()> {
        if event.step == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_rank_that_is_stopped_stops_all_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = RunRecipe { zero: Zero::Gradients, ..recipe(20) };
    let job = Job::new(folder.path(), recipe);
    let steps = run_ranks(3, |group| {
        let stop = if group.rank() == 2 { 4 } else { u64::MAX };
        match job.run(group, &mut StopAt(stop), &mut ()).0.unwrap() {
            Outcome::Stopped(progress) => progress.step,
            Outcome::Finished(_) => 0,
        }
    });
    assert_eq!(steps, [4; 3]);
    assert_eq!(job.column("loss").len(), 4);
    assert!(folder.path().join("checkpoints/step-00000004/state.json").exists());
}

/// Samples on rank 0 with the whole average, and then fails.
struct Fails;

impl Hooks<DenoiserTask> for Fails {
    fn sample(&mut self, trainer: &Trainer<StDit>, step: u64) -> Result<(), BoxedError> {
        let average = trainer.average();
        assert_eq!(average.len(), trainer.trainable().len());
        assert!(average.iter().all(|(name, x)| x.dims() == trainer.values()[name].dims()));
        let _ = trainer.average_model();
        if step < 4 { Ok(()) } else { Err(format!("no sample at {step}").into()) }
    }
}

#[test]
fn an_error_of_rank_0_ends_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = RunRecipe { zero: Zero::Optimizer, sample_every: 2, ..recipe(20) };
    let job = Job::new(folder.path(), recipe);
    let lines =
        run_ranks(2, |group| error_line(&job.run(group, &mut (), &mut Fails).0.unwrap_err()));
    let line = "step 4: the hook between steps failed: no sample at 4";
    assert_eq!(lines, [line.to_string(), format!("rank 0: {line}")]);
}

#[test]
fn a_folder_that_cannot_be_written_ends_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("checkpoints"), "a file").unwrap();
    let errors = Job::new(folder.path(), recipe(2)).fail(2);
    assert!(matches!(errors[0], TrainError::Io { .. }), "{}", errors[0]);
    assert!(matches!(errors[1], TrainError::OtherRank { rank: 0, .. }), "{}", errors[1]);
}

#[test]
fn one_rank_is_one_process() {
    let ranks = Ranks::new(Arc::new(Solo));
    assert!(ranks.is_solo() && ranks.is_main());
}
