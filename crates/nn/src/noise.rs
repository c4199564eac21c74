//! Gaussian noise drawn on the host.
//!
//! Backends draw different numbers from the same seed, so noise comes from [`HostRng`], keyed by (seed,
//! purpose, index, step). A seed gives the same numbers on every backend, at every batch size, and after
//! every resume.

use crate::random::HostRng;
use burn::tensor::{Device, Tensor, TensorData};

pub use crate::random::Purpose;

/// Returns `len` standard normal numbers for (seed, purpose, index, step).
pub fn normal(seed: u64, purpose: Purpose, index: u64, step: u64, len: usize) -> Vec<f32> {
    let mut rng = HostRng::new(seed, purpose, index, step);
    let mut out = Vec::with_capacity(len + 1);
    while out.len() < len {
        // Box-Muller in f64, with libm's functions, since those of platforms differ in the last bit.
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - rng.uniform()));
        let angle = std::f64::consts::TAU * rng.uniform();
        out.push((radius * libm::cos(angle)) as f32);
        out.push((radius * libm::sin(angle)) as f32);
    }
    out.truncate(len);
    out
}

/// Returns f32 noise for a batch of `shape[0]` samples with consecutive indices from `first` on.
///
/// The noise of a sample depends on its index and not on its batch.
pub fn normal_batch<const D: usize>(
    seed: u64,
    purpose: Purpose,
    first: u64,
    step: u64,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let indices: Vec<u64> = (first..first + shape[0] as u64).collect();
    normal_batch_of(seed, purpose, &indices, step, shape, device)
}

/// Returns f32 noise for a batch of `shape[0]` samples with the given `indices`.
pub fn normal_batch_of<const D: usize>(
    seed: u64,
    purpose: Purpose,
    indices: &[u64],
    step: u64,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let per_sample = shape[1..].iter().product();
    let values: Vec<f32> =
        indices.iter().flat_map(|&index| normal(seed, purpose, index, step, per_sample)).collect();
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

    /// Fails if the generator changes: a seed must give the same numbers in all versions.
    #[test]
    fn seed_42_gives_the_recorded_numbers() {
        let got = normal(42, Purpose::InitialLatents, 0, 0, 4);
        assert_eq!(got, FIRST_OF_SEED_42);
    }

    const FIRST_OF_SEED_42: [f32; 4] = [0.60893714, -2.065614, 0.26780936, 1.0355835];
}
