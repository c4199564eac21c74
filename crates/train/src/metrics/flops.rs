//! FLOPs of a training step and peak FLOP/s of a device, which give the utilisation.
//!
//! Matrix products of the blocks are counted, with two operations for a multiply-add, as in the
//! PaLM paper (arXiv 2204.02311, appendix B). Embeddings and the last layer are not counted: less
//! than one percent of STDiT-XL/2.

use burn::{
    module::{Param, ParamId},
    nn::Linear,
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use opensora_nn::{linear, read::wait};
use opensora_stdit::{DenoiserConfig, work::BlockFlops};
use std::time::{Duration, Instant};

/// Floating point operations of a denoiser on one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelFlops {
    forward: f64,
}

impl ModelFlops {
    /// Returns the FLOPs for a clip of `grid` tokens along (t, h, w), with cross attention to
    /// `caption_tokens`.
    pub fn new(config: &DenoiserConfig, grid: [usize; 3], caption_tokens: usize) -> Self {
        let block = BlockFlops::new(config, grid, caption_tokens).total();
        Self { forward: config.depth as f64 * block }
    }

    /// Returns the FLOPs of a forward pass.
    pub fn forward(self) -> f64 {
        self.forward
    }

    /// Returns the FLOPs of a training step: the backward pass costs two forward passes, and activation
    /// checkpointing does the forward pass twice.
    pub fn training(self, activation_checkpointing: bool) -> f64 {
        self.forward * if activation_checkpointing { 4.0 } else { 3.0 }
    }
}

/// The peak FLOP/s of a device, for the utilisation.
///
/// It starts at a measured or given number and rises to the fastest step. A measurement during
/// other work on the machine is too low, which would give a utilisation above 100 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling {
    best: f64,
}

impl Ceiling {
    /// Creates a ceiling of `flops` FLOP/s.
    pub fn new(flops: f64) -> Self {
        Self { best: flops }
    }

    /// Returns `flops` FLOP/s divided by the ceiling, 0 to 1.
    pub fn utilisation(&mut self, flops: f64) -> f64 {
        self.best = self.best.max(flops);
        flops / self.best
    }
}

/// Matrices grow until a product takes this long.
const LONG_ENOUGH: Duration = Duration::from_millis(20);
/// Maximum length of a matrix side: 256 MB in f32.
const LARGEST: usize = 8192;
/// Number of timings, of which the best is used.
const TIMINGS: usize = 5;

/// Measures the FLOP/s of a device in large square linear layers of `dtype`, in about a second. It
/// is the best of a few short timings, and the peak that models can approach.
///
/// Returns `None` if the device fails, such as for lack of memory.
pub fn measure_matmul_ceiling(device: &Device, dtype: FloatDType) -> Option<f64> {
    let mut side = 512;
    loop {
        let matrix = || matrix(side, device).cast(dtype);
        let bias = Tensor::<1>::zeros([side], device).cast(dtype);
        let b = Linear {
            weight: Param::initialized(ParamId::new(), matrix()),
            bias: Some(Param::initialized(ParamId::new(), bias)),
        };
        let a = matrix();
        // The first product includes compilation and tuning.
        seconds(&a, &b, 1, device)?;
        let once = seconds(&a, &b, 1, device)?;
        if once < LONG_ENOUGH.as_secs_f64() && side < LARGEST {
            side *= 2;
            continue;
        }
        let times = (LONG_ENOUGH.as_secs_f64() / once).ceil().clamp(1.0, 1000.0) as usize;
        let mut best = f64::INFINITY;
        for _ in 0..TIMINGS {
            best = best.min(seconds(&a, &b, times, device)? / times as f64);
        }
        return Some(2.0 * (side as f64).powi(3) / best);
    }
}

/// Returns the seconds of `times` products.
fn seconds(a: &Tensor<2>, b: &Linear, times: usize, device: &Device) -> Option<f64> {
    wait(device).ok()?;
    let began = Instant::now();
    for _ in 0..times {
        let _product = linear::forward(b, a.clone());
    }
    wait(device).ok()?;
    // Clocks can be too coarse for a small product.
    Some(began.elapsed().as_secs_f64().max(1e-9))
}

/// Returns a matrix `[side, side]` of values in [-1, 1]. Constant values use less power on some
/// devices, which makes products faster.
fn matrix(side: usize, device: &Device) -> Tensor<2> {
    const ROWS: usize = 64;
    let values: Vec<f32> = (0..ROWS * side).map(|i| (i as f32 * 0.7).sin()).collect();
    let band = Tensor::<2>::from_data(TensorData::new(values, [ROWS, side]), device);
    band.repeat_dim(0, side / ROWS) // [64, side] -> [side, side]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flops_of_stdit_xl_match_the_formula() {
        let xl = DenoiserConfig::xl_2();
        for (grid, tera) in [([16, 16, 16], 5.71), ([16, 32, 32], 24.4), ([64, 32, 32], 97.9)] {
            let flops = ModelFlops::new(&xl, grid, 120);
            assert!((flops.forward() / 1e12 / tera - 1.0).abs() < 3e-3, "{grid:?} {flops:?}");
            assert_eq!(flops.training(true) / flops.training(false), 4.0 / 3.0);
        }
        // 28 * (36 C^2 N + 4 C (S + T + 120) N + 4 C^2 120)
        let (c, s, t) = (1152.0, 256.0, 16.0);
        let n = s * t;
        let blocks =
            28.0 * (36.0 * c * c * n + 4.0 * c * (s + t + 120.0) * n + 4.0 * c * c * 120.0);
        assert_eq!(ModelFlops::new(&xl, [16, 16, 16], 120).forward(), blocks);
    }

    #[test]
    fn utilisation_is_at_most_one() {
        // Measured while something else ran.
        let mut ceiling = Ceiling::new(1e9);
        let utilisations = [0.5e9, 2e9, 4e9, 2e9].map(|flops| ceiling.utilisation(flops));
        assert_eq!(utilisations, [0.5, 1.0, 1.0, 0.5]);
    }

    #[test]
    fn the_peak_of_the_host_is_measured() {
        let ceiling = measure_matmul_ceiling(&Device::flex(), FloatDType::F32).unwrap();
        assert!((1e8..1e14).contains(&ceiling), "{ceiling}");
    }
}
