//! Sinusoidal embedding of diffusion timesteps.

use crate::linear::{NORMAL_02, linear};
use burn::{
    module::Module,
    nn::Linear,
    tensor::{DType, Device, Tensor, TensorData, activation::silu},
};

/// Width of the sinusoidal embedding in all published models.
const FREQUENCIES: usize = 256;
const MAX_PERIOD: f64 = 10_000.0;

/// Embeds timesteps `[B]` as vectors `[B, hidden]`: 256 cosines and sines, then Linear - SiLU - Linear.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`, class `TimestepEmbedder` (DiT's,
/// which took it from GLIDE).
#[derive(Module, Debug)]
pub struct TimestepEmbedder {
    /// First layer, `256 -> hidden`.
    pub fc1: Linear,
    /// Second layer, `hidden -> hidden`.
    pub fc2: Linear,
}

impl TimestepEmbedder {
    /// Returns an embedder of width `hidden` with initial weights.
    pub fn new(hidden: usize, device: &Device) -> Self {
        Self {
            fc1: linear(FREQUENCIES, hidden, true, NORMAL_02, device),
            fc2: linear(hidden, hidden, true, NORMAL_02, device),
        }
    }

    /// Embeds `timesteps`, one for each sample, in 0..1000 and possibly fractional: `[B] -> [B, hidden]` in
    /// `dtype`.
    ///
    /// Deviation: the reference rounds timesteps to the model's dtype first (in bf16, those above 512 to
    /// multiples of 4). Here they are exact for every dtype.
    pub fn forward(&self, timesteps: &[f32], dtype: DType) -> Tensor<2> {
        let device = self.fc1.weight.device();
        let table = timestep_embedding(timesteps, FREQUENCIES);
        let x = Tensor::<2>::from_data(
            TensorData::new(table, [timesteps.len(), FREQUENCIES]),
            (&device, DType::F32),
        );
        let x = if dtype == DType::F32 { x } else { x.cast(dtype) };
        self.fc2.forward(silu(self.fc1.forward(x)))
    }
}

/// Returns the sinusoidal embedding `[B, dim]`, row-major: cosines, then sines.
///
/// Computed on the host, since angles reach 999 radians, where fast cosines of devices are inaccurate.
/// Frequencies and angles are f32 as in the reference: at t = 999 one unit in the last place of a frequency
/// changes the angle by 6e-5.
fn timestep_embedding(timesteps: &[f32], dim: usize) -> Vec<f32> {
    let half = dim / 2;
    let log_period = -(MAX_PERIOD.ln() as f32);
    let frequencies: Vec<f32> =
        (0..half).map(|i| libm::expf(log_period * i as f32 / half as f32)).collect();
    let mut table = Vec::with_capacity(timesteps.len() * dim);
    for &t in timesteps {
        table.extend(frequencies.iter().map(|&f| libm::cos((t * f) as f64) as f32));
        table.extend(frequencies.iter().map(|&f| libm::sin((t * f) as f64) as f32));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_come_first() {
        let table = timestep_embedding(&[0.0, 1.0], 4);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
        assert!((table[4] - 1f32.cos()).abs() < 1e-7 && (table[6] - 1f32.sin()).abs() < 1e-7);
        assert!((table[5] - 0.01f32.cos()).abs() < 1e-7 && (table[7] - 0.01f32.sin()).abs() < 1e-7);
    }
}
