//! Layouts: how the work and the state of a step are divided among the ranks.

use super::{Job, PlanError};
use crate::zero::Zero;
use serde::Serialize;
use std::fmt;

/// A layout of the ranks and their state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Groups that compute different clips.
    pub data: usize,
    /// Adjacent ranks that share the tokens of a clip.
    pub sequence: usize,
    /// Micro-batches whose gradients are added up before an update.
    pub accumulation: usize,
    /// Division of the training state.
    pub zero: Zero,
    /// True to save only the tokens that enter each block, and compute the rest again in the backward pass.
    pub activation_checkpointing: bool,
}

impl Layout {
    /// Returns data parallelism over `ranks`, with everything else off.
    pub fn data(ranks: usize) -> Self {
        Self {
            data: ranks,
            sequence: 1,
            accumulation: 1,
            zero: Zero::Off,
            activation_checkpointing: false,
        }
    }

    /// Returns the ranks.
    pub fn ranks(self) -> usize {
        self.data.saturating_mul(self.sequence)
    }

    /// Returns the clips that a sequence group computes in a step of `clips`; at most, if they are uneven.
    pub fn clips(self, clips: usize) -> usize {
        clips.div_ceil(self.data.max(1))
    }

    /// Returns the clips that a sequence group computes at once.
    pub fn micro_batch(self, clips: usize) -> usize {
        self.clips(clips).div_ceil(self.accumulation.max(1))
    }

    /// Checks that the layout fits `job`.
    pub(super) fn check(self, job: &Job) -> Result<(), PlanError> {
        if self.ranks() != job.ranks || self.data == 0 {
            let expected = format!("{}, the number of ranks", job.ranks);
            return Err(PlanError::value("data x sequence", self.ranks(), expected));
        }
        let [frames, height, width] = job.config.grid(job.latents)?;
        let most = frames.min(height * width);
        if self.sequence > most {
            let expected = format!("at most {most}, the frames and positions of a clip");
            return Err(PlanError::value("sequence", self.sequence, expected));
        }
        if self.data > job.clips {
            let expected = format!("at most {}, the clips of a step", job.clips);
            return Err(PlanError::value("data", self.data, expected));
        }
        let clips = self.clips(job.clips);
        if !(1..=clips).contains(&self.accumulation) {
            let expected = format!("1 to {clips}, the clips of a data group");
            return Err(PlanError::value("accumulation", self.accumulation, expected));
        }
        Ok(())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data {} x sequence {}", self.data, self.sequence)?;
        if self.accumulation > 1 {
            write!(f, ", accumulation {}", self.accumulation)?;
        }
        if self.zero != Zero::Off {
            write!(f, ", ZeRO {}", u8::from(self.zero))?;
        }
        if self.activation_checkpointing {
            f.write_str(", activation checkpointing")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_clips_are_those_of_the_busiest_group() {
        let layout = Layout { data: 4, accumulation: 2, ..Layout::data(4) };
        assert_eq!((layout.clips(10), layout.micro_batch(10)), (3, 2));
        assert_eq!((layout.clips(16), layout.micro_batch(16)), (4, 2));
    }

    #[test]
    fn layouts_that_do_not_fit_are_rejected() {
        let job = Job { ranks: 8, clips: 8, ..Job::default() };
        assert!(Layout::data(8).check(&job).is_ok());
        for bad in [
            Layout::data(4),
            Layout { sequence: 0, ..Layout::data(8) },
            Layout { accumulation: 2, ..Layout::data(8) },
            Layout { accumulation: 0, ..Layout::data(8) },
        ] {
            assert!(matches!(bad.check(&job), Err(PlanError::Value { .. })), "{bad:?}");
        }
        let long = Job { ranks: 32, clips: 8, ..Job::default() };
        let layout = Layout { sequence: 32, ..Layout::data(1) };
        let error = layout.check(&long).unwrap_err().to_string();
        assert!(error.starts_with("sequence is 32, expected at most 16"), "{error}");
    }

    #[test]
    fn layouts_are_shown_in_one_line() {
        let layout = Layout { sequence: 2, zero: Zero::Gradients, ..Layout::data(4) };
        let layout = Layout { accumulation: 3, activation_checkpointing: true, ..layout };
        assert_eq!(
            layout.to_string(),
            "data 4 x sequence 2, accumulation 3, ZeRO 2, activation checkpointing"
        );
        assert_eq!(Layout::data(8).to_string(), "data 8 x sequence 1");
    }
}
