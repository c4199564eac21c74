//! Gaussian noise drawn on the host.
//!
//! Backends draw differently from the same seed, so noise comes from ChaCha8 instead, keyed by
//! (seed, purpose, index, step): a seed means the same numbers on every backend, in every batch
//! size and after every resume.

use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// What a draw is for. Draws for different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The latents a sampler starts from; `index` is the sample.
    InitialLatents = 1,
    /// The noise that a stochastic sampler adds after a step; `index` is the sample.
    SamplerStep = 2,
    /// The sample from a VAE's posterior; `index` is the clip.
    Posterior = 3,
    /// Random weights of test and demonstration models; `index` is the parameter.
    Weights = 4,
}

/// `len` standard normal numbers for (seed, purpose, index, step).
pub fn normal(seed: u64, purpose: Purpose, index: u64, step: u64, len: usize) -> Vec<f32> {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16..24].copy_from_slice(&(purpose as u64).to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(step);

    let mut out = Vec::with_capacity(len + 1);
    while out.len() < len {
        // Box-Muller in f64. libm's own functions, because the platform's may differ in the last bit.
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - unit(&mut rng)));
        let angle = std::f64::consts::TAU * unit(&mut rng);
        out.push((radius * libm::cos(angle)) as f32);
        out.push((radius * libm::sin(angle)) as f32);
    }
    out.truncate(len);
    out
}

/// Uniform in `[0, 1)` with 53 bits.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Noise for a batch: `shape[0]` samples, the first of which has index `first`; f32 on `device`.
///
/// Each sample is drawn under its own index, so a sample's noise does not depend on its batch.
pub fn normal_batch<const D: usize>(
    seed: u64,
    purpose: Purpose,
    first: u64,
    step: u64,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let per_sample = shape[1..].iter().product();
    let values: Vec<f32> = (0..shape[0] as u64)
        .flat_map(|sample| normal(seed, purpose, first + sample, step, per_sample))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_variance_are_those_of_a_standard_normal() {
        let draws = normal(42, Purpose::InitialLatents, 0, 0, 200_001);
        assert_eq!(draws.len(), 200_001);
        let mean = draws.iter().map(|&v| v as f64).sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / 200_001.0;
        // Five standard errors of each estimate.
        assert!(mean.abs() < 5.0 / 200_001f64.sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / 200_001f64).sqrt(), "{variance}");
    }

    #[test]
    fn keys_are_independent_and_repeatable() {
        let base = normal(7, Purpose::InitialLatents, 1, 2, 8);
        assert_eq!(base, normal(7, Purpose::InitialLatents, 1, 2, 8));
        assert_eq!(base[..4], normal(7, Purpose::InitialLatents, 1, 2, 4)[..]);
        for other in [
            normal(8, Purpose::InitialLatents, 1, 2, 8),
            normal(7, Purpose::SamplerStep, 1, 2, 8),
            normal(7, Purpose::InitialLatents, 2, 2, 8),
            normal(7, Purpose::InitialLatents, 1, 3, 8),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_sample_does_not_depend_on_its_batch() {
        let device = Device::flex();
        let batch = normal_batch(1, Purpose::SamplerStep, 4, 9, [3, 2, 2], &device);
        let single = normal_batch(1, Purpose::SamplerStep, 5, 9, [1, 2, 2], &device);
        assert_eq!(
            batch.narrow(0, 1, 1).into_data().try_to_vec::<f32>().unwrap(),
            single.into_data().try_to_vec::<f32>().unwrap()
        );
    }

    /// Written down so that a change of the generator cannot pass unseen: seeds are a promise.
    #[test]
    fn the_first_numbers_of_seed_42_stay() {
        let got = normal(42, Purpose::InitialLatents, 0, 0, 4);
        assert_eq!(got, FIRST_OF_SEED_42);
    }

    const FIRST_OF_SEED_42: [f32; 4] = [0.60893714, -2.065614, 0.26780936, 1.0355835];
}
