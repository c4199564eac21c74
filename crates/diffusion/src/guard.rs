//! The detection of latents that are not finite.
//!
//! An overflow in f16, a guidance scale that is too large or a damaged weight makes NaN of everything
//! within one step, and the VAE turns NaN into black frames. The guard stores the first such step in a tensor
//! on the device, so that checking a step does not wait for the device. The tensor is read every few steps and
//! after the last step.

use crate::step::StepInfo;
use burn::tensor::{Device, Int, Tensor};
use opensora_nn::read::{ReadError, read};

/// Records the first sampling step after which the latents were not finite.
#[derive(Debug)]
pub struct FiniteGuard {
    /// `[1]`: the step, from 0, or [`NONE`].
    first: Tensor<1, Int>,
    read_every: usize,
}

/// The value for "all latents were finite".
const NONE: i64 = -1;

impl FiniteGuard {
    /// Returns a guard for latents on `device` that reads its result every `read_every` steps: 1 on a device
    /// whose memory is the host's, more on devices where a read waits.
    pub fn new(device: &Device, read_every: usize) -> Self {
        Self { first: Tensor::full([1], NONE, device), read_every: read_every.max(1) }
    }

    /// Checks the latents after a step. Returns the first step (from 0) after which they were not finite, if
    /// there was one and this is a step at which the result is read.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn watch(&mut self, info: &StepInfo<'_>) -> Result<Option<usize>, ReadError> {
        let finite = info.latents.clone().is_finite().all(); // [1]
        let first_time = self.first.clone().equal_elem(NONE).bool_and(finite.bool_not());
        self.first = self.first.clone().mask_fill(first_time, info.step as i64);
        let is_due = (info.step + 1).is_multiple_of(self.read_every);
        if !is_due && info.step + 1 != info.total {
            return Ok(None);
        }
        let first = read(self.first.clone())?.iter::<i64>().next().expect("one number");
        Ok(usize::try_from(first).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the results of `watch` for each of `total` steps; from step `bad` on a value is not finite.
    fn watched(read_every: usize, total: usize, bad: usize, value: f32) -> Vec<Option<usize>> {
        let device = Device::flex();
        let mut guard = FiniteGuard::new(&device, read_every);
        (0..total)
            .map(|step| {
                let mut values = [1.0f32; 8];
                if step >= bad {
                    values[step % 8] = value;
                }
                let latents = Tensor::<1>::from_data(values, &device).reshape([1, 2, 1, 2, 2]);
                let timestep = 0.0;
                guard.watch(&StepInfo::new(step, total, timestep, &latents)).unwrap()
            })
            .collect()
    }

    #[test]
    fn the_first_bad_step_is_returned_at_the_next_read() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(watched(1, 4, 2, value), [None, None, Some(2), Some(2)]);
            let late = [None, None, None, None, None, Some(3), None, Some(3)];
            assert_eq!(watched(6, 8, 3, value), late);
        }
        assert_eq!(watched(3, 7, 99, f32::NAN), [None; 7]);
        // The last step is always read.
        assert_eq!(watched(8, 3, 2, f32::NAN), [None, None, Some(2)]);
    }
}
