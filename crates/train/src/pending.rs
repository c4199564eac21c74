//! Steps whose numbers the device may still be computing.

use crate::{
    error::TrainError,
    optimizer::GradientNorm,
    shared::Numbers,
    task::Cost,
    trainer::{PendingReport, check_norm},
};
use burn::tensor::Tensor;
use opensora_nn::{device::is_host, read::read_f64};
use std::time::Instant;

/// Steps between reads of losses and norms, on devices where a read waits for all work.
const READ_EVERY: usize = 8;

/// Steps whose numbers have not been read yet.
pub(crate) struct Pending {
    steps: Vec<PendingStep>,
    since: Instant,
}

/// A step whose numbers the device may still be computing.
pub(crate) struct PendingStep {
    /// Number of the step, from 1.
    pub(crate) step: u64,
    pub(crate) batches: Vec<PendingBatch>,
    pub(crate) cost: Cost,
    pub(crate) next_slot: u64,
    pub(crate) report: PendingReport,
}

/// A micro-batch whose numbers the device may still be computing.
pub(crate) struct PendingBatch {
    rows: Vec<usize>,
    losses: Losses,
    /// Terms on the device.
    parts: Vec<(&'static str, Tensor<1>)>,
    /// Terms that have been read, as means.
    known_parts: Vec<(&'static str, f64)>,
}

/// Losses of a micro-batch, on the host or on a device.
#[allow(clippy::large_enum_variant, reason = "there are few micro-batches")]
enum Losses {
    /// Finite losses from host memory.
    Known(Vec<f64>),
    /// Losses `[B]` on a device that may still be computing them.
    OnDevice(Tensor<1>),
}

/// Loss, gradient norm, learning rate and cost of a step.
pub(crate) struct Step {
    /// Number of the step, from 1.
    pub(crate) step: u64,
    pub(crate) samples: usize,
    pub(crate) next_slot: u64,
    pub(crate) cost: Cost,
    pub(crate) loss: f64,
    pub(crate) parts: Vec<(&'static str, f64)>,
    pub(crate) gradient_norm: f64,
    pub(crate) learning_rate: f64,
}

/// Steps whose losses and norms have been read from the device.
pub(crate) struct Finished {
    pub(crate) steps: Vec<Step>,
    /// Each step's share of the seconds since the last read.
    pub(crate) seconds_each: f64,
    /// The error of the first step with a number that is not finite, which ends `steps`.
    pub(crate) failed: Option<TrainError>,
}

impl PendingBatch {
    /// Reads the losses if they are in host memory, where a read does not wait.
    ///
    /// # Errors
    /// Returns an error if a loss in host memory is not finite.
    pub(crate) fn new(
        step: u64,
        rows: Vec<usize>,
        losses: Tensor<1>,
        parts: Vec<(&'static str, Tensor<1>)>,
    ) -> Result<Self, TrainError> {
        let losses = if is_host(&losses.device()) {
            let losses = read_f64(losses)?;
            guard(step, &losses, &rows)?;
            Losses::Known(losses)
        } else {
            Losses::OnDevice(losses)
        };
        Ok(Self { rows, losses, parts, known_parts: Vec::new() })
    }

    /// Takes numbers that have been read, on several ranks.
    ///
    /// # Errors
    /// Returns an error if a loss is not finite.
    pub(crate) fn known(step: u64, rows: Vec<usize>, numbers: Numbers) -> Result<Self, TrainError> {
        let Numbers { losses, parts, .. } = numbers;
        guard(step, &losses, &rows)?;
        // A term without values has no mean.
        let mean = |(name, count, sum): (_, f64, f64)| (count > 0.0).then(|| (name, sum / count));
        let known_parts = parts.into_iter().filter_map(mean).collect();
        Ok(Self { rows, losses: Losses::Known(losses), parts: Vec::new(), known_parts })
    }

    /// Returns the losses `[B]` unless they have been read.
    pub(crate) fn losses_on_device(&self) -> Option<Tensor<1>> {
        match &self.losses {
            Losses::Known(_) => None,
            Losses::OnDevice(losses) => Some(losses.clone()),
        }
    }
}

/// Returns an error with the rows at fault if a loss is not finite; `step` counts from 1.
fn guard(step: u64, losses: &[f64], rows: &[usize]) -> Result<(), TrainError> {
    let bad = losses.iter().zip(rows).filter(|(loss, _)| !loss.is_finite());
    let rows: Vec<usize> = bad.map(|(_, &row)| row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    Err(TrainError::NonFinite { step, what: "the loss".into(), rows })
}

/// Fills all rows of the step into an error for numbers that are not finite.
pub(crate) fn with_rows(error: TrainError, batches: &[PendingBatch]) -> TrainError {
    match error {
        TrainError::NonFinite { step, what, .. } => {
            let rows = batches.iter().flat_map(|batch| batch.rows.iter().copied()).collect();
            TrainError::NonFinite { step, what, rows }
        }
        other => other,
    }
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self { steps: Vec::new(), since: Instant::now() }
    }

    pub(crate) fn push(&mut self, step: PendingStep) {
        self.steps.push(step);
    }

    /// Returns true if the numbers should be read: enough steps are pending, or a read does not wait.
    pub(crate) fn is_due(&self) -> bool {
        let known =
            |step: &PendingStep| matches!(step.report.gradient_norm, GradientNorm::Known(_));
        self.steps.len() >= READ_EVERY || self.steps.iter().all(known)
    }

    /// Lets the time of the next steps begin now.
    pub(crate) fn restart_clock(&mut self) {
        self.since = Instant::now();
    }

    /// Reads the numbers of all steps, up to the first step with a number that is not finite.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub(crate) fn read(&mut self) -> Result<Finished, TrainError> {
        let pending = std::mem::take(&mut self.steps);
        let mut numbers = Unread::of(&pending)?;
        let seconds_each = self.since.elapsed().as_secs_f64() / pending.len().max(1) as f64;
        self.restart_clock();
        let mut steps = Vec::with_capacity(pending.len());
        for step in pending {
            match step.finish(&mut numbers) {
                Ok(step) => steps.push(step),
                Err(error) => return Ok(Finished { steps, seconds_each, failed: Some(error) }),
            }
        }
        Ok(Finished { steps, seconds_each, failed: None })
    }
}

/// All unread numbers of some steps from one read, in the order in which they are consumed.
struct Unread(std::vec::IntoIter<f64>);

impl Unread {
    fn of(steps: &[PendingStep]) -> Result<Self, TrainError> {
        let mut tensors = Vec::new();
        for step in steps {
            for batch in &step.batches {
                tensors.extend(batch.losses_on_device());
                tensors.extend(batch.parts.iter().map(|(_, part)| part.clone()));
            }
            if let GradientNorm::OnDevice(norm) = &step.report.gradient_norm {
                tensors.push(norm.clone());
            }
        }
        let values = if tensors.is_empty() { vec![] } else { read_f64(Tensor::cat(tensors, 0))? };
        Ok(Self(values.into_iter()))
    }

    fn take(&mut self, tensor: &Tensor<1>) -> Vec<f64> {
        self.0.by_ref().take(tensor.dims()[0]).collect()
    }
}

impl PendingStep {
    fn finish(self, numbers: &mut Unread) -> Result<Step, TrainError> {
        let batches = self.batches.len().max(1) as f64;
        let share = 1.0 / batches;
        // Numbers of micro-batches that have values of each part.
        let mut counts: Vec<f64> = Vec::new();
        let mut step = Step {
            step: self.step,
            samples: self.batches.iter().map(|batch| batch.rows.len()).sum(),
            next_slot: self.next_slot,
            cost: self.cost,
            loss: 0.0,
            parts: Vec::new(),
            gradient_norm: 0.0,
            learning_rate: self.report.learning_rate,
        };
        for batch in &self.batches {
            step.loss += share
                * match &batch.losses {
                    Losses::Known(losses) => mean(losses),
                    Losses::OnDevice(losses) => {
                        let losses = numbers.take(losses);
                        guard(self.step, &losses, &batch.rows)?;
                        mean(&losses)
                    }
                };
            let read = batch.parts.iter().filter(|(_, part)| part.dims()[0] > 0);
            let read = read.map(|(name, part)| (*name, mean(&numbers.take(part))));
            for (name, value) in read.chain(batch.known_parts.iter().copied()) {
                let value = share * value;
                match step.parts.iter().position(|(part, _)| *part == name) {
                    Some(index) => {
                        step.parts[index].1 += value;
                        counts[index] += 1.0;
                    }
                    None => {
                        step.parts.push((name, value));
                        counts.push(1.0);
                    }
                }
            }
        }
        // The factor is exactly 1 for a part that all micro-batches have.
        for ((_, value), count) in step.parts.iter_mut().zip(counts) {
            *value *= batches / count;
        }
        step.gradient_norm = match &self.report.gradient_norm {
            GradientNorm::Known(norm) => *norm,
            GradientNorm::OnDevice(norm) => mean(&numbers.take(norm)),
        };
        check_norm(self.step, step.gradient_norm)
            .map_err(|error| with_rows(error, &self.batches))?;
        Ok(step)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// Returns the parts of a step of these micro-batches.
    fn parts(batches: Vec<PendingBatch>) -> Vec<(&'static str, f64)> {
        let report = PendingReport { gradient_norm: GradientNorm::Known(1.0), learning_rate: 0.1 };
        let mut pending = Pending::new();
        let cost = Cost::default();
        pending.push(PendingStep { step: 1, batches, cost, next_slot: 1, report });
        pending.read().unwrap().steps.remove(0).parts
    }

    #[test]
    fn micro_batches_without_values_of_a_part_have_no_weight() {
        let vector = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::<1>::from_data(data, &Device::flex())
        };
        let of_one = |hits: &[f32]| {
            let parts = vec![("accuracy", vector(hits)), ("mse", vector(&[2.0]))];
            PendingBatch::new(1, vec![0], vector(&[3.0]), parts).unwrap()
        };
        let of_ranks = |count: f64, hits: f64| {
            let parts = vec![("accuracy", count, hits), ("mse", 1.0, 2.0)];
            let numbers = Numbers { losses: vec![3.0], parts, cost: Cost::default() };
            PendingBatch::known(1, vec![0], numbers).unwrap()
        };
        let expected = [("mse", 2.0), ("accuracy", 0.5)];
        assert_eq!(parts(vec![of_one(&[]), of_one(&[1.0, 0.0])]), expected);
        assert_eq!(parts(vec![of_ranks(0.0, 0.0), of_ranks(2.0, 1.0)]), expected);
        assert_eq!(parts(vec![of_one(&[])]), [("mse", 2.0)]);
        assert_eq!(parts(vec![of_ranks(0.0, 0.0)]), [("mse", 2.0)]);
    }
}
