//! Random numbers drawn on the host, keyed by (seed, purpose, index, step).
//!
//! The numbers of a key come from ChaCha8. They are the same on every backend, at every batch size, with any
//! number of threads and after every resume, since there is no generator state to save.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Use of random numbers, part of their key. Different purposes have independent numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Initial latents of a sampler; `index` is the sample.
    InitialLatents = 1,
    /// Noise that a stochastic sampler adds after a step; `index` is the sample.
    SamplerStep = 2,
    /// Sample from a VAE's posterior; `index` is the clip.
    Posterior = 3,
    /// Random weights of test and demonstration models; `index` is the parameter.
    Weights = 4,
    /// Order of a data set; `index` is the epoch.
    Order = 5,
    /// Window and flip of a clip; `index` is the row, `step` the variant.
    Augmentation = 6,
    /// Timestep of a training sample; `index` counts the samples of the run.
    Timestep = 7,
    /// Noise of a training sample; `index` as for [`Purpose::Timestep`].
    TrainingNoise = 8,
    /// Omission of a training sample's caption; `index` as for [`Purpose::Timestep`].
    CaptionDropout = 9,
    /// Clips of the demo world; `index` is the clip.
    DemoWorld = 10,
    /// Masked tokens in the training of a text encoder; `index` as for [`Purpose::Timestep`].
    TokenMask = 11,
}

/// Generator of the random numbers of one key; see the [module](self).
#[derive(Debug, Clone)]
pub struct HostRng(ChaCha8Rng);

impl HostRng {
    /// Returns the generator of (seed, purpose, index, step), at its first number.
    pub fn new(seed: u64, purpose: Purpose, index: u64, step: u64) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16..24].copy_from_slice(&(purpose as u64).to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(step);
        Self(rng)
    }

    /// Returns a uniform number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a uniform number in `[low, high)`.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Returns a uniform integer in `0..count`.
    ///
    /// # Panics
    /// Panics if `count` is zero.
    pub fn below(&mut self, count: usize) -> usize {
        assert!(count > 0, "cannot choose from zero items");
        // Draws beyond the last multiple of `count` are rejected, since they would bias the result.
        let count = count as u64;
        let limit = u64::MAX - u64::MAX % count;
        loop {
            let draw = self.0.next_u64();
            if draw < limit {
                return (draw % count) as usize;
            }
        }
    }

    /// Returns one of `items`.
    ///
    /// # Panics
    /// Panics if `items` is empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Returns `0..len` in random order (Fisher-Yates shuffle).
    pub fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_contains_every_index_once_and_depends_on_the_key() {
        let order = |epoch| HostRng::new(7, Purpose::Order, epoch, 0).permutation(100);
        let mut sorted = order(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order(3), order(3));
        assert_ne!(order(0), order(1));
    }

    #[test]
    fn every_order_of_two_comes() {
        let order = |epoch| HostRng::new(7, Purpose::Order, epoch, 0).permutation(2);
        let swapped = (0..1000).filter(|&epoch| order(epoch) == [1, 0]).count();
        // Six standard deviations of a binomial with n = 1000, p = 1/2.
        assert!(swapped.abs_diff(500) < 95, "{swapped}");
    }

    #[test]
    fn uniform_numbers_fill_their_interval() {
        let mut rng = HostRng::new(1, Purpose::DemoWorld, 0, 0);
        for (low, high) in [(0.0, 1.0), (-3.0, -1.0), (2.0, 10.0)] {
            let draws: Vec<f64> = (0..10_000).map(|_| rng.uniform_in(low, high)).collect();
            assert!(draws.iter().all(|draw| (low..high).contains(draw)));
            // Six standard deviations of the mean, and both ends.
            let mean = draws.iter().sum::<f64>() / 10_000.0;
            let width = high - low;
            assert!((mean - (low + high) / 2.0).abs() < 0.018 * width, "{mean}");
            assert!(draws.iter().any(|draw| *draw < low + 0.01 * width));
            assert!(draws.iter().any(|draw| *draw > high - 0.01 * width));
        }
        let mut again = rng.clone();
        assert_eq!(rng.uniform_in(0.0, 1.0), again.uniform());
    }

    #[test]
    fn draws_beyond_the_last_multiple_are_rejected() {
        // The largest multiple of this count is the count: about half of all draws are rejected.
        let count = (1usize << 63) + 1;
        let mut rng = HostRng::new(3, Purpose::DemoWorld, 0, 0);
        let mut raw = rng.clone();
        for _ in 0..20 {
            let accepted = std::iter::repeat_with(|| raw.0.next_u64()).find(|&x| x < count as u64);
            assert_eq!(rng.below(count) as u64, accepted.unwrap());
        }
    }

    #[test]
    fn each_item_can_be_chosen() {
        let mut rng = HostRng::new(2, Purpose::DemoWorld, 0, 0);
        let mut chosen: Vec<char> = (0..100).map(|_| *rng.choose(&['a', 'b', 'c'])).collect();
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen, ['a', 'b', 'c']);
    }

    #[test]
    fn choices_are_uniform() {
        let mut rng = HostRng::new(1, Purpose::DemoWorld, 0, 0);
        let mut counts = [0usize; 6];
        for _ in 0..60_000 {
            counts[rng.below(6)] += 1;
        }
        // Six standard deviations of a binomial with n = 60000, p = 1/6.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 550), "{counts:?}");
    }
}
