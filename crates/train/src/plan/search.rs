//! All layouts of a job by speed, and weak scaling.

use super::{Job, Layout, PlanError, Prediction};
use crate::zero::Zero;
use serde::Serialize;

/// Values that the layouts of a search must have; `None` searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Constraints {
    /// Ranks that share the tokens of a clip.
    pub sequence: Option<usize>,
    /// Division of the training state.
    pub zero: Option<Zero>,
    /// Activation checkpointing.
    pub activation_checkpointing: Option<bool>,
    /// Micro-batches of a step.
    pub accumulation: Option<usize>,
}

/// The weak scaling of a job, [`Job::weak_scaling`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WeakScaling {
    /// One row for each number of ranks that has a layout, in the given order.
    pub rows: Vec<Scaling>,
    /// The other numbers of ranks, each with the reason for which it has no layout.
    pub left_out: Vec<(usize, PlanError)>,
}

/// One number of ranks in a table of weak scaling.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Scaling {
    /// Number of ranks.
    pub ranks: usize,
    /// Clips per second and rank, divided by those of the smallest group that computes a clip without a network:
    /// one rank, or the ranks of a sequence group.
    pub efficiency: f64,
    /// The prediction for the fastest layout that fits.
    pub prediction: Prediction,
}

impl Job {
    /// Returns the predictions for all layouts in which every group has a clip and micro-batches are equal: those that
    /// fit into memory first, the fastest before slower ones and the simpler one of equals; then the others by memory.
    ///
    /// # Errors
    /// Returns an error if a value of the job is out of range.
    pub fn search(&self) -> Result<Vec<Prediction>, PlanError> {
        self.search_within(&Constraints::default())
    }

    /// Returns the predictions of [`search`](Self::search) for layouts that satisfy `constraints`. It is never
    /// empty.
    ///
    /// # Errors
    /// Returns an error if a value of the job is out of range, or no layout satisfies the constraints.
    pub fn search_within(&self, constraints: &Constraints) -> Result<Vec<Prediction>, PlanError> {
        self.validate()?;
        let layouts = self.layouts(constraints);
        let mut found = layouts
            .into_iter()
            .filter(|layout| layout.check(self).is_ok())
            .map(|layout| self.predict(layout))
            .collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() {
            return Err(PlanError::NoLayout { ranks: self.ranks, clips: self.clips });
        }
        // Stable, so that the simpler layout stays first.
        found.sort_by(|a, b| match (a.fits, b.fits) {
            (true, true) => a.seconds.total_cmp(&b.seconds),
            (false, false) => a.memory_bytes.total_cmp(&b.memory_bytes),
            (fits, _) => {
                if fits {
                    std::cmp::Ordering::Less
                } else {
                    std::cmp::Ordering::Greater
                }
            }
        });
        Ok(found)
    }

    /// Returns the layouts that satisfy `constraints`, simple ones first.
    fn layouts(&self, constraints: &Constraints) -> Vec<Layout> {
        let wanted = |wanted: Option<usize>, found: usize| wanted.is_none_or(|w| w == found);
        let mut layouts = Vec::new();
        for sequence in divisors(self.ranks) {
            let data = self.ranks / sequence;
            if data > self.clips || !wanted(constraints.sequence, sequence) {
                continue;
            }
            // Of groups with different numbers of clips, the busiest counts. Micro-batches are equal.
            for accumulation in divisors(self.clips.div_ceil(data)) {
                let is_even = self.clips.is_multiple_of(accumulation);
                if !is_even || !wanted(constraints.accumulation, accumulation) {
                    continue;
                }
                for activation_checkpointing in [false, true] {
                    for zero in [Zero::Off, Zero::Optimizer, Zero::Gradients] {
                        layouts.push(Layout {
                            data,
                            sequence,
                            accumulation,
                            zero,
                            activation_checkpointing,
                        });
                    }
                }
            }
        }
        layouts.retain(|layout| {
            let recomputes = layout.activation_checkpointing;
            constraints.zero.is_none_or(|zero| zero == layout.zero)
                && constraints.activation_checkpointing.is_none_or(|wanted| wanted == recomputes)
        });
        layouts
    }

    /// Returns the weak scaling to the numbers of ranks in `counts`: the clips of a step are in proportion to the
    /// ranks, as many for each as in this job. Numbers of ranks at which the clips are not a whole number, that have
    /// no layout, or that are out of range have no row; [`WeakScaling::left_out`] tells why.
    ///
    /// # Errors
    /// Returns an error if a value of the job is out of range, or no layout satisfies the constraints.
    pub fn weak_scaling(
        &self,
        constraints: &Constraints,
        counts: &[usize],
    ) -> Result<WeakScaling, PlanError> {
        let best = self.search_within(constraints)?.swap_remove(0);
        let per_rank = |found: &Prediction, ranks: usize| found.clips_per_second / ranks as f64;
        // The smallest group computes the clips of the busiest group, without the other groups.
        let group = best.layout.sequence;
        let clips = best.layout.clips(self.clips);
        let alone = Self { ranks: group, clips, ..self.clone() };
        let base = per_rank(&alone.search_within(constraints)?[0], group);
        let (mut rows, mut left_out) = (Vec::with_capacity(counts.len()), Vec::new());
        for &ranks in counts {
            match self.on_ranks(ranks).and_then(|job| job.search_within(constraints)) {
                Ok(mut found) => {
                    let prediction = found.swap_remove(0);
                    let efficiency = per_rank(&prediction, ranks) / base;
                    rows.push(Scaling { ranks, efficiency, prediction });
                }
                Err(reason) => left_out.push((ranks, reason)),
            }
        }
        Ok(WeakScaling { rows, left_out })
    }

    /// Returns this job on another number of ranks, with as many clips for each.
    fn on_ranks(&self, ranks: usize) -> Result<Self, PlanError> {
        let job = Self { ranks, ..self.clone() };
        // Checks the range of `ranks`, so that the product does not overflow.
        job.validate()?;
        let clips = self.clips * ranks;
        if !clips.is_multiple_of(self.ranks) {
            let (from, clips) = (self.ranks, self.clips);
            return Err(PlanError::UnevenClips { ranks, from, clips });
        }
        Ok(Self { clips: clips / self.ranks, ..job })
    }
}

/// Returns the divisors of a number, ascending.
fn divisors(number: usize) -> Vec<usize> {
    let mut small: Vec<usize> =
        (1..).take_while(|n| n * n <= number).filter(|&n| number.is_multiple_of(n)).collect();
    let large = small.iter().rev().map(|n| number / n).filter(|&n| n * n > number);
    let large: Vec<usize> = large.collect();
    small.extend(large);
    small
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Network, Processor};

    fn on(processor: Processor, ranks: usize, clips: usize, latents: [usize; 3]) -> Job {
        let network = Network::of(&processor);
        Job { ranks, clips, latents, network, processor, ..Job::default() }
    }

    #[test]
    fn divisors_are_complete() {
        assert_eq!(divisors(12), [1, 2, 3, 4, 6, 12]);
        assert_eq!(divisors(16), [1, 2, 4, 8, 16]);
        assert_eq!(divisors(1), [1]);
    }

    #[test]
    fn the_first_layout_is_the_fastest_that_fits() {
        let job = on(Processor::H100, 16, 32, [16, 32, 32]);
        let found = job.search().unwrap();
        assert!(found[0].fits);
        for pair in found.windows(2) {
            assert!(pair[0].fits >= pair[1].fits);
            if pair[0].fits == pair[1].fits {
                let sorted = if pair[0].fits {
                    pair[0].seconds <= pair[1].seconds
                } else {
                    pair[0].memory_bytes <= pair[1].memory_bytes
                };
                assert!(sorted, "{pair:?}");
            }
        }
        // 5 layouts of ranks; 2 clips a rank: 2 micro-batches, 3 stages, 2 ways to save activations; more with
        // sequence groups, which have more clips.
        let data = found.iter().filter(|p| p.layout.sequence == 1).count();
        assert_eq!(data, 2 * 3 * 2);
    }

    /// 360 frames of 512x512 do not fit one GPU of 80 GB without sequence parallelism, as in the reference.
    #[test]
    fn long_clips_need_a_sequence_group() {
        let job = on(Processor::H800, 8, 4, [360, 64, 64]);
        let best = &job.search().unwrap()[0];
        assert!(best.layout.sequence >= 2 && best.layout.activation_checkpointing, "{best:?}");
    }

    #[test]
    fn constraints_hold() {
        let job = on(Processor::A100, 8, 64, [16, 32, 32]);
        let constraints = Constraints {
            sequence: Some(2),
            zero: Some(Zero::Optimizer),
            activation_checkpointing: Some(true),
            accumulation: Some(4),
        };
        let found = job.search_within(&constraints).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].layout.data, 4);
        let none = Constraints { sequence: Some(3), ..constraints };
        assert_eq!(
            job.search_within(&none).unwrap_err().to_string(),
            "no layout of 8 ranks for 64 clips a step satisfies the given constraints"
        );
    }

    #[test]
    fn clips_need_not_be_a_multiple_of_the_ranks() {
        let job = on(Processor::H100, 64, 100, [16, 32, 32]);
        let best = &job.search().unwrap()[0];
        assert_eq!((best.layout.data, best.layout.sequence), (64, 1), "{best:?}");
        // Two clips for the busiest rank.
        let even = &on(Processor::H100, 64, 128, [16, 32, 32]).search().unwrap()[0];
        assert_eq!(best.seconds, even.seconds);
        let one = Constraints { sequence: Some(1), ..Constraints::default() };
        assert!(on(Processor::H100, 17, 20, [16, 32, 32]).search_within(&one).is_ok());
    }

    #[test]
    fn efficiency_falls_with_ranks_and_rises_with_bandwidth() {
        let mut job = on(Processor::H100, 64, 512, [16, 32, 32]);
        let counts = [1, 8, 64, 512];
        let none = Constraints::default();
        // Numbers of ranks that are out of range have no row.
        let with_wrong = [0, 1, 8, 64, 512, 1 << 40, usize::MAX];
        let WeakScaling { rows: slow, left_out } = job.weak_scaling(&none, &with_wrong).unwrap();
        assert_eq!(slow.iter().map(|row| row.ranks).collect::<Vec<_>>(), counts);
        assert_eq!(
            left_out.iter().map(|(ranks, _)| *ranks).collect::<Vec<_>>(),
            [0, 1 << 40, usize::MAX]
        );
        assert_eq!(left_out[0].1.to_string(), "ranks is 0, expected 1 to 1048576");
        assert!((slow[0].efficiency - 1.0).abs() < 1e-12, "{slow:?}");
        assert!(slow.windows(2).all(|rows| rows[0].efficiency > rows[1].efficiency), "{slow:?}");
        job.network = job.network.with_gbits(1600.0);
        let fast = job.weak_scaling(&none, &counts).unwrap().rows;
        assert!(fast[2].efficiency > slow[2].efficiency);
        assert_eq!(fast[2].prediction.layout.ranks(), 64);
    }

    #[test]
    fn numbers_of_ranks_without_a_layout_are_left_out_with_the_reason() {
        // 3 clips for 2 ranks are no whole number of clips on 3 ranks.
        let job = on(Processor::H100, 2, 3, [16, 32, 32]);
        let found = job.weak_scaling(&Constraints::default(), &[2, 3, 4]).unwrap();
        assert_eq!(found.rows.iter().map(|row| row.ranks).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(found.left_out, [(3, PlanError::UnevenClips { ranks: 3, from: 2, clips: 3 })]);
        assert_eq!(
            found.left_out[0].1.to_string(),
            "3 clips a step of 2 ranks are not a whole number of clips on 3 ranks"
        );
        // Groups of 2 ranks do not divide 3 ranks.
        let pairs = Constraints { sequence: Some(2), ..Constraints::default() };
        let found = Job { clips: 2, ..job }.weak_scaling(&pairs, &[3]).unwrap();
        assert!(found.rows.is_empty());
        assert_eq!(found.left_out, [(3, PlanError::NoLayout { ranks: 3, clips: 3 })]);
    }
}
