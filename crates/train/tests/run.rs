//! Tests of the training loop on a model of two numbers: resume, finite numbers, checkpoints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::{
    nn::{Linear, LinearConfig},
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use opensora_checkpoint::BoxedError;
use opensora_data::{DataError, Source};
use opensora_files::error_line;
use opensora_parallel::threads::run_ranks;
use opensora_train::{
    Graph, Observer, Outcome, Ranks, Run, TrainError, Trainer, Zero,
    metrics::Table,
    observer::{CheckpointDamaged, CheckpointSaved, RemovalFailed, RowsMissing, StepDone, Update},
    optimizer::OptimizerRecipe,
    run::{Hooks, RunRecipe},
    state::{Checkpoints, Progress},
    task::{Cost, Evaluation, MicroBatch, Task},
};
use std::{cell::RefCell, fs, ops::ControlFlow, path::Path, sync::Arc};

/// Points of `y = 2 x + 1`; one can be NaN.
struct Line {
    poisoned: Option<usize>,
}

impl Source for Line {
    type Item = (usize, f32);

    fn len(&self) -> usize {
        20
    }

    fn read(&self, row: usize, _epoch: u64) -> Result<(usize, f32), DataError> {
        let x = if self.poisoned == Some(row) { f32::NAN } else { row as f32 / 20.0 };
        Ok((row, x))
    }

    fn describe(&self, row: usize) -> String {
        format!("point {row}")
    }
}

struct Regression;

/// An error type of the task.
#[derive(Debug, thiserror::Error)]
#[error("x is {0}, expected at most 1")]
struct TooLarge(f32);

impl Task for Regression {
    type Model = Linear;
    type Item = (usize, f32);
    type Error = TooLarge;

    fn gradients(
        &self,
        graph: &Graph<Linear>,
        items: &[(usize, f32)],
        _indices: &[u64],
    ) -> Result<Evaluation, TooLarge> {
        if let Some((_, x)) = items.iter().find(|(_, x)| *x > 1.0) {
            return Err(TooLarge(*x));
        }
        let xs: Vec<f32> = items.iter().map(|item| item.1).collect();
        let x = Tensor::<2>::from_data(TensorData::new(xs, [items.len(), 1]), &Device::flex());
        let loss = (graph.model.forward(x.clone()) - (x * 2.0 + 1.0)).square();
        let losses = loss.clone().inner().squeeze_dim(1);
        // A part that only odd rows have a value of.
        let odd = items.iter().filter(|(row, _)| row % 2 == 1).count();
        let odd = TensorData::new(vec![1.0f32; odd], [odd]);
        let parts = vec![("odd", Tensor::<1>::from_data(odd, &Device::flex()))];
        Ok(Evaluation { losses, parts, gradients: graph.backward(loss.mean()) })
    }

    fn dtype(&self) -> FloatDType {
        FloatDType::F32
    }

    fn cost(&self, _item: &(usize, f32)) -> Cost {
        Cost::default()
    }
}

fn trainer() -> Trainer<Linear> {
    let device = Device::flex();
    let mut linear = LinearConfig::new(1, 1).init(&device);
    linear.weight = linear.weight.map(|w| w.zeros_like());
    linear.bias = linear.bias.map(|bias| bias.map(|b| b.zeros_like()));
    let recipe = OptimizerRecipe {
        learning_rate: 0.05,
        warmup_steps: 3,
        ema_decay: 0.9,
        ..OptimizerRecipe::default()
    };
    Trainer::new(linear, &recipe, |_| true).unwrap()
}

fn recipe(steps: u64) -> RunRecipe {
    RunRecipe { steps, batch_size: 4, checkpoint_every: 5, keep: 2, ..RunRecipe::default() }
}

fn run(
    folder: &Path,
    recipe: &RunRecipe,
    trainer: &mut Trainer<Linear>,
    progress: Progress,
    source: Line,
    observer: &mut dyn Observer,
) -> Result<Outcome, TrainError> {
    let run = Run { task: &Regression, recipe, folder, peak_flops: None };
    run.train(trainer, Arc::new(source), progress, observer, &mut ())
}

/// Every number that the next step depends on.
fn state(folder: &Path, step: u64) -> Vec<Vec<u8>> {
    let folder = folder.join(format!("checkpoints/step-{step:08}"));
    ["values", "average", "optimizer"]
        .map(|name| fs::read(folder.join(format!("{name}.safetensors"))).unwrap())
        .into()
}

struct StopAt(u64);

impl Observer for StopAt {
    fn step(&mut self, event: &StepDone<'_>) {
        self.0 = self.0.saturating_sub(u64::from(event.record.step > 0));
    }

    fn update(&mut self, _event: &Update) -> ControlFlow<()> {
        if self.0 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_run_learns_and_writes_checkpoints_and_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer();
    let done = Progress::default();
    let source = Line { poisoned: None };
    let outcome = run(folder.path(), &recipe(200), &mut trainer, done, source, &mut ()).unwrap();
    assert!(matches!(outcome, Outcome::Finished(Progress { step: 200, samples: 800, .. })));
    let table = Table::read(&folder.path().join("metrics.csv")).unwrap();
    let loss = table.column("loss").unwrap();
    assert_eq!(loss.len(), 200);
    assert!(loss[199] < 0.05 * loss[0], "{} {}", loss[0], loss[199]);
    let kept = Checkpoints::new(folder.path(), 2).complete().unwrap();
    let names: Vec<_> = kept.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(names, ["step-00000200", "step-00000195"]);
}

#[test]
fn a_run_in_pieces_equals_a_run_without_a_break() {
    let (whole, pieces) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = || Line { poisoned: None };
    run(whole.path(), &recipe(23), &mut trainer(), Progress::default(), source(), &mut ()).unwrap();

    // Stopped by its observer, then resumed twice from its checkpoint.
    let mut progress = Progress::default();
    let mut current = trainer();
    for piece in [7, 9] {
        let mut stop = StopAt(piece);
        let outcome =
            run(pieces.path(), &recipe(23), &mut current, progress, source(), &mut stop).unwrap();
        assert!(matches!(outcome, Outcome::Stopped(_)));
        current = trainer();
        let newest = &Checkpoints::new(pieces.path(), 2).complete().unwrap()[0];
        progress = Checkpoints::load(newest, &mut current, &Device::flex()).unwrap();
    }
    assert_eq!(progress.step, 16);
    run(pieces.path(), &recipe(23), &mut current, progress, source(), &mut ()).unwrap();
    assert!(state(whole.path(), 23) == state(pieces.path(), 23));
    let steps =
        |folder: &Path| Table::read(&folder.join("metrics.csv")).unwrap().column("step").unwrap();
    assert_eq!(steps(whole.path()), steps(pieces.path()));
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
    let (large, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = || Line { poisoned: None };
    let one = RunRecipe { batch_size: 10, ..recipe(6) };
    let two = RunRecipe { batch_size: 5, accumulation: 2, ..recipe(6) };
    let (mut a, mut b) = (trainer(), trainer());
    run(large.path(), &one, &mut a, Progress::default(), source(), &mut ()).unwrap();
    run(small.path(), &two, &mut b, Progress::default(), source(), &mut ()).unwrap();
    for (name, value) in a.values() {
        let difference = (value.clone() - b.values()[name].clone()).abs().max();
        assert!(difference.into_scalar::<f32>() < 1e-6, "{name}");
    }
}

#[test]
fn a_loss_that_is_not_finite_is_an_error_with_step_and_row_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer();
    let source = Line { poisoned: Some(6) };
    let error = run(folder.path(), &recipe(50), &mut trainer, Progress::default(), source, &mut ())
        .unwrap_err();
    let TrainError::NonFinite { step, rows, .. } = &error else { panic!("{error}") };
    // The failed step, counted from 1 as in the metrics.
    assert_eq!((*step, rows.as_slice()), (trainer.step() + 1, [6].as_slice()));
    let table = Table::read(&folder.path().join("metrics.csv")).unwrap();
    assert_eq!(table.rows.len() as u64 + 1, *step);
    assert!(error.to_string().contains("rows 7"), "{error}");
    let finite = |value: &Tensor<1>| value.to_data().iter::<f32>().all(f32::is_finite);
    assert!(trainer.values().values().all(finite));
}

#[test]
fn incomplete_checkpoints_are_ignored_and_damaged_ones_found() {
    let folder = tempfile::tempdir().unwrap();
    let source = || Line { poisoned: None };
    let checkpoints = Checkpoints::new(folder.path(), 2);
    run(folder.path(), &recipe(10), &mut trainer(), Progress::default(), source(), &mut ())
        .unwrap();
    // Killed while building, and while removing.
    let root = folder.path().join("checkpoints");
    for half in [".step-00000015.partial", "step-00000015"] {
        fs::create_dir_all(root.join(half)).unwrap();
        fs::write(root.join(half).join("values.safetensors"), "half").unwrap();
    }
    let newest = checkpoints.complete().unwrap()[0].clone();
    assert!(newest.ends_with("step-00000010"));
    let mut resumed = trainer();
    let progress = Checkpoints::load(&newest, &mut resumed, &Device::flex()).unwrap();
    run(folder.path(), &recipe(15), &mut resumed, progress, source(), &mut ()).unwrap();
    assert!(checkpoints.complete().unwrap()[0].ends_with("step-00000015"));
    assert!(!root.join(".step-00000015.partial").exists());

    let values = root.join("step-00000015/values.safetensors");
    let mut bytes = fs::read(&values).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&values, bytes).unwrap();
    let damaged = root.join("step-00000015");
    let error = Checkpoints::load(&damaged, &mut trainer(), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

/// Damages a file by one bit.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_resume_skips_damaged_checkpoints_and_equals_a_run_without_a_break() {
    let (whole, damaged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = || Line { poisoned: None };
    run(whole.path(), &recipe(20), &mut trainer(), Progress::default(), source(), &mut ()).unwrap();
    let three = RunRecipe { keep: 3, ..recipe(15) };
    run(damaged.path(), &three, &mut trainer(), Progress::default(), source(), &mut ()).unwrap();
    let root = damaged.path().join("checkpoints");
    fs::remove_file(root.join("step-00000015/average.safetensors")).unwrap();
    damage(&root.join("step-00000010/optimizer.safetensors"));

    let checkpoints = Checkpoints::new(damaged.path(), 3);
    let (mut resumed, mut messages) = (trainer(), Messages::default());
    let progress = checkpoints.load_newest(&mut resumed, &Device::flex(), &mut messages).unwrap();
    let (progress, messages) = (progress.unwrap(), messages.0);
    assert_eq!(progress.step, 5);
    assert_eq!(messages.len(), 2);
    assert!(messages[0].contains("step-00000015/average.safetensors"), "{messages:?}");
    assert!(
        messages[1].contains("checksum") && messages[1].contains("step-00000010.damaged"),
        "{messages:?}"
    );

    // The damaged checkpoints are written again.
    let longer = RunRecipe { keep: 3, ..recipe(20) };
    run(damaged.path(), &longer, &mut resumed, progress, source(), &mut ()).unwrap();
    let names = |paths: Vec<std::path::PathBuf>| -> Vec<String> {
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into()).collect()
    };
    let kept = names(checkpoints.complete().unwrap());
    assert_eq!(kept, ["step-00000020", "step-00000015", "step-00000010"]);
    assert!(state(whole.path(), 20) == state(damaged.path(), 20));

    // If all are damaged, the error is that of the newest one, and all are kept.
    for step in [10, 15, 20] {
        damage(&root.join(format!("step-{step:08}/values.safetensors")));
    }
    let mut messages = Messages::default();
    let error =
        checkpoints.load_newest(&mut trainer(), &Device::flex(), &mut messages).unwrap_err();
    assert!(error.to_string().contains("step-00000020/values.safetensors"), "{error}");
    assert_eq!(names(checkpoints.complete().unwrap()), kept);
    let none = Checkpoints::new(&damaged.path().join("none"), 1);
    let found = none.load_newest(&mut trainer(), &Device::flex(), &mut messages).unwrap();
    assert!(found.is_none());
    assert!(messages.0.is_empty(), "{:?}", messages.0);
}

#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let source = || Line { poisoned: None };
    let mut trained = trainer();
    let done = Progress::default();
    run(folder.path(), &recipe(5), &mut trained, done, source(), &mut ()).unwrap();

    // A step whose loss and gradient are finite, and its result is not.
    let device = Device::flex();
    let huge = OptimizerRecipe { learning_rate: 1e39, ..OptimizerRecipe::default() };
    let mut exploding =
        Trainer::new(LinearConfig::new(1, 1).init(&device), &huge, |_| true).unwrap();
    let newest = folder.path().join("checkpoints/step-00000005");
    let progress = Checkpoints::load(&newest, &mut exploding, &device).unwrap();
    let error =
        run(folder.path(), &recipe(6), &mut exploding, progress, source(), &mut ()).unwrap_err();
    let TrainError::Exploded { step, tensor } = &error else { panic!("{error}") };
    assert_eq!(*step, 6);
    assert!(tensor.contains("values.safetensors"), "{tensor}");
    let names: Vec<_> = fs::read_dir(folder.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["step-00000005"]);
}

/// Keeps the text of events.
#[derive(Default)]
struct Messages(Vec<String>);

impl Observer for Messages {
    fn checkpoint_saved(&mut self, event: &CheckpointSaved) {
        assert!(event.path.ends_with(format!("step-{:08}", event.step)) && event.path.exists());
        self.0.push(event.to_string());
    }

    fn checkpoint_damaged(&mut self, event: &CheckpointDamaged<'_>) {
        self.0.push(event.to_string());
    }

    fn removal_failed(&mut self, event: &RemovalFailed<'_>) {
        self.0.push(event.to_string());
    }

    fn rows_missing(&mut self, event: &RowsMissing) {
        self.0.push(event.to_string());
    }
}

/// Points of which one is outside the range that the task accepts.
struct Outside;

impl Source for Outside {
    type Item = (usize, f32);

    fn len(&self) -> usize {
        20
    }

    fn read(&self, row: usize, _epoch: u64) -> Result<(usize, f32), DataError> {
        Ok((row, if row == 7 { 1.5 } else { 0.5 }))
    }

    fn describe(&self, row: usize) -> String {
        format!("point {row}")
    }
}

#[test]
fn the_error_of_a_task_stops_the_run_and_keeps_its_type() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(50);
    let run = Run { task: &Regression, recipe: &recipe, folder: folder.path(), peak_flops: None };
    let (mut trainer, start) = (trainer(), Progress::default());
    let error = run.train(&mut trainer, Arc::new(Outside), start, &mut (), &mut ()).unwrap_err();
    let text = error_line(&error);
    let TrainError::Task { step, rows, source } = error else { panic!("{text}") };
    assert_eq!(step, trainer.step() + 1);
    assert!(rows.len() == 4 && rows.contains(&7), "{rows:?}");
    assert!(source.downcast_ref::<TooLarge>().is_some_and(|error| error.0 == 1.5));
    assert!(text.starts_with(&format!("step {step}: the task failed for rows ")), "{text}");
    assert!(text.ends_with(": x is 1.5, expected at most 1"), "{text}");
}

/// Hooks that fail.
struct Fails;

impl Hooks<Regression> for Fails {
    fn sample(&mut self, _: &Trainer<Linear>, step: u64) -> Result<(), BoxedError> {
        Err(format!("no sample at {step}").into())
    }
}

#[test]
fn the_error_of_a_hook_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = RunRecipe { sample_every: 3, ..recipe(50) };
    let run = Run { task: &Regression, recipe: &recipe, folder: folder.path(), peak_flops: None };
    let (source, start) = (Arc::new(Line { poisoned: None }), Progress::default());
    let error = run.train(&mut trainer(), source, start, &mut (), &mut Fails).unwrap_err();
    assert!(matches!(error, TrainError::Hook { step: 3, .. }), "{error}");
    assert!(error_line(&error).ends_with(": no sample at 3"), "{}", error_line(&error));
}

#[test]
fn missing_rows_of_metrics_are_reported_at_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let source = || Line { poisoned: None };
    let mut trained = trainer();
    let outcome =
        run(folder.path(), &recipe(10), &mut trained, Progress::default(), source(), &mut ());
    let Outcome::Finished(progress) = outcome.unwrap() else { panic!("it was not stopped") };
    // After a power failure: the checkpoint was synced, the last rows were not.
    let path = folder.path().join("metrics.csv");
    let text = fs::read_to_string(&path).unwrap();
    let kept: String = text.split_inclusive('\n').take(8).collect();
    fs::write(&path, kept).unwrap();
    let mut messages = Messages::default();
    run(folder.path(), &recipe(12), &mut trained, progress, source(), &mut messages).unwrap();
    assert!(messages.0[0].contains("the rows of steps 8 to 10 are missing"), "{:?}", messages.0);
    assert!(messages.0[1].starts_with("checkpoint of step 12: "), "{:?}", messages.0);
    assert_eq!(messages.0.len(), 2);
    let table = Table::read(&path).unwrap();
    assert_eq!(table.gaps().len(), 1);
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_examined_is_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    let source = Line { poisoned: None };
    run(folder.path(), &recipe(5), &mut trainer(), Progress::default(), source, &mut ()).unwrap();
    let mark = folder.path().join("checkpoints/step-00000005/state.json");
    fs::remove_file(&mark).unwrap();
    // A link to itself.
    std::os::unix::fs::symlink("state.json", &mark).unwrap();
    let checkpoints = Checkpoints::new(folder.path(), 2);
    assert!(matches!(checkpoints.complete(), Err(TrainError::Io { .. })));
    assert!(checkpoints.load_newest(&mut trainer(), &Device::flex(), &mut ()).is_err());
}

#[test]
fn checkpoints_that_cannot_be_removed_do_not_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let source = || Line { poisoned: None };
    // A file where the folder of a killed process is expected.
    let root = folder.path().join("checkpoints");
    let left = root.join(".step-00000003.partial");
    fs::create_dir_all(&root).unwrap();
    fs::write(&left, "").unwrap();
    let (mut trained, mut messages) = (trainer(), Messages::default());
    let start = Progress::default();
    let outcome = run(folder.path(), &recipe(10), &mut trained, start, source(), &mut messages);
    let Outcome::Finished(progress) = outcome.unwrap() else { panic!("it was not stopped") };
    // One event for each checkpoint.
    let failed =
        |text: &&String| text.starts_with("warning: old or unfinished checkpoint not removed: ");
    let found: Vec<&String> = messages.0.iter().filter(failed).collect();
    assert_eq!((found.len(), messages.0.len()), (2, 4), "{:?}", messages.0);
    assert!(found[0].contains(".step-00000003.partial: I/O error: "), "{}", found[0]);

    // Once it can be removed, the next checkpoint removes it.
    fs::remove_file(&left).unwrap();
    fs::create_dir(&left).unwrap();
    let mut messages = Messages::default();
    run(folder.path(), &recipe(15), &mut trained, progress, source(), &mut messages).unwrap();
    assert_eq!(messages.0.len(), 1, "{:?}", messages.0);
    assert!(!left.exists());
}

#[test]
fn a_run_does_not_begin_before_the_newest_checkpoint_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let source = || Line { poisoned: None };
    let start = Progress::default();
    run(folder.path(), &recipe(10), &mut trainer(), start, source(), &mut ()).unwrap();
    let metrics = || fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
    let before = metrics();
    let refused = |trainer: &mut Trainer<Linear>, start: Progress| {
        let error = run(folder.path(), &recipe(15), trainer, start, source(), &mut ()).unwrap_err();
        assert!(matches!(error, TrainError::State { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("step-00000010: ") && text.contains("another folder"), "{text}");
        assert_eq!(metrics(), before);
    };
    refused(&mut trainer(), start);
    let mut older = trainer();
    let root = folder.path().join("checkpoints");
    let progress = Checkpoints::load(&root.join("step-00000005"), &mut older, &Device::flex());
    let progress = progress.unwrap();
    refused(&mut older, progress);
    // Without the newer checkpoint, the run resumes from the older one.
    fs::remove_dir_all(root.join("step-00000010")).unwrap();
    run(folder.path(), &recipe(15), &mut older, progress, source(), &mut ()).unwrap();
    assert_eq!(metrics().lines().count(), 1 + 15);
}

#[test]
fn a_part_has_the_same_mean_on_any_number_of_ranks() {
    // Many micro-batches, and many parts of micro-batches, have no odd row.
    let recipe = RunRecipe { batch_size: 2, accumulation: 2, workers: 0, ..recipe(20) };
    let odd = |ranks: usize| {
        let folder = tempfile::tempdir().unwrap();
        run_ranks(ranks, |group| {
            let mut trainer = trainer().over(&Ranks::new(group), Zero::Off, FloatDType::F32);
            let (start, source) = (Progress::default(), Line { poisoned: None });
            run(folder.path(), &recipe, &mut trainer, start, source, &mut ()).unwrap();
        });
        Table::read(&folder.path().join("metrics.csv")).unwrap().column("odd").unwrap()
    };
    let found = odd(1);
    // Each value is 1, and so is every mean; a step without an odd row has none.
    assert!(found.iter().all(|mean| *mean == 1.0 || mean.is_nan()), "{found:?}");
    assert!(found.contains(&1.0), "{found:?}");
    let has_mean = |means: &[f64]| means.iter().map(|mean| !mean.is_nan()).collect::<Vec<_>>();
    for ranks in [2, 3] {
        let other = odd(ranks);
        assert!(other.iter().all(|mean| *mean == 1.0 || mean.is_nan()), "{ranks}: {other:?}");
        assert_eq!(has_mean(&other), has_mean(&found), "{ranks}");
    }
}

/// Points of which two cannot be read.
struct Holes;

impl Source for Holes {
    type Item = (usize, f32);

    fn len(&self) -> usize {
        20
    }

    fn read(&self, row: usize, epoch: u64) -> Result<(usize, f32), DataError> {
        match row {
            3 | 8 => Err(DataError::row(row, format!("point {row}"), "missing")),
            _ => Line { poisoned: None }.read(row, epoch),
        }
    }

    fn describe(&self, row: usize) -> String {
        format!("point {row}")
    }
}

/// Keeps the numbers of its micro-batches.
#[derive(Default)]
struct Numbered(RefCell<Vec<u64>>);

impl Task for Numbered {
    type Model = Linear;
    type Item = (usize, f32);
    type Error = TooLarge;

    fn gradients(
        &self,
        graph: &Graph<Linear>,
        items: &[(usize, f32)],
        indices: &[u64],
    ) -> Result<Evaluation, TooLarge> {
        Regression.gradients(graph, items, indices)
    }

    fn gradients_of_part(
        &self,
        graph: &Graph<Linear>,
        items: &[(usize, f32)],
        indices: &[u64],
        whole: MicroBatch,
    ) -> Result<Evaluation, TooLarge> {
        self.0.borrow_mut().push(whole.number);
        self.gradients(graph, items, indices)
    }
}

#[test]
fn micro_batches_are_numbered_over_skipped_rows_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let task = Numbered::default();
    let mut progress = Progress::default();
    let mut trained = trainer();
    for steps in [3, 9] {
        let recipe = RunRecipe { batch_size: 3, accumulation: 2, skip_bad: 2, ..recipe(steps) };
        let run = Run { task: &task, recipe: &recipe, folder: folder.path(), peak_flops: None };
        run.train(&mut trained, Arc::new(Holes), progress, &mut (), &mut ()).unwrap();
        trained = trainer();
        let checkpoints = Checkpoints::new(folder.path(), 2);
        let found = checkpoints.load_newest(&mut trained, &Device::flex(), &mut ()).unwrap();
        progress = found.unwrap();
    }
    // 54 samples take more slots of the order, since two rows are skipped.
    assert!(progress.next_slot > 54, "{progress:?}");
    assert_eq!(*task.0.borrow(), (0..18).collect::<Vec<u64>>());
}
