//! Processors: peak FLOP/s, memory, and the values of data sheets.

use super::PlanError;
use burn::tensor::FloatDType;
use serde::Serialize;

/// A processor: a GPU, or the cores of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Processor {
    /// Name, as in [`Processor::find`].
    pub name: &'static str,
    /// Peak FLOP/s of matrix products in f32, without TF32.
    pub peak_f32: f64,
    /// Peak FLOP/s of dense matrix products in bf16 and f16 with f32 sums.
    pub peak_half: f64,
    /// Share of the peak that the passes of a training step reach, 0 to 1.
    pub efficiency: f64,
    /// Bytes of memory.
    pub memory_bytes: f64,
    /// Bytes per second of memory.
    pub memory_bandwidth: f64,
    /// Bytes per second between two processors of a node, in one direction.
    pub peer_bandwidth: f64,
    /// Bytes per second to and from the host's memory, in one direction; `None` if the processor computes there.
    pub host_bandwidth: Option<f64>,
}

/// Share of the peak that the reference reaches in training on H800: between 13 and 19 %, counting STDiT, text
/// encoder and VAE (hpcaitech/Open-Sora v1.0.0, `docs/acceleration.md`: 7.00, 1.45, 0.40 and 0.05 clips per second and
/// GPU). Not measured for this workspace.
const PUBLISHED_EFFICIENCY: f64 = 0.15;

impl Processor {
    /// NVIDIA H100 SXM. Source: data sheet "NVIDIA H100 Tensor Core GPU" (dense: half of the values with sparsity).
    pub const H100: Self = Self {
        name: "h100",
        peak_f32: 67e12,
        peak_half: 989.4e12,
        efficiency: PUBLISHED_EFFICIENCY,
        memory_bytes: 80e9,
        memory_bandwidth: 3.35e12,
        peer_bandwidth: 450e9,
        host_bandwidth: Some(64e9),
    };

    /// NVIDIA H200 SXM: an H100 with more memory. Source: data sheet "NVIDIA H200 Tensor Core GPU".
    pub const H200: Self =
        Self { name: "h200", memory_bytes: 141e9, memory_bandwidth: 4.8e12, ..Self::H100 };

    /// NVIDIA H800 SXM, on which the reference was measured: an H100 with 400 GB/s of NVLink in place of 900.
    pub const H800: Self = Self { name: "h800", peer_bandwidth: 200e9, ..Self::H100 };

    /// NVIDIA A100 SXM with 80 GB. Source: data sheet "NVIDIA A100 Tensor Core GPU".
    pub const A100: Self = Self {
        name: "a100",
        peak_f32: 19.5e12,
        peak_half: 312e12,
        efficiency: PUBLISHED_EFFICIENCY,
        memory_bytes: 80e9,
        memory_bandwidth: 2.039e12,
        peer_bandwidth: 300e9,
        host_bandwidth: Some(32e9),
    };

    /// NVIDIA GeForce RTX 4090, without NVLink. Source: "NVIDIA Ada GPU Architecture", table of specifications.
    pub const RTX_4090: Self = Self {
        name: "rtx-4090",
        peak_f32: 82.6e12,
        peak_half: 165.2e12,
        efficiency: PUBLISHED_EFFICIENCY,
        memory_bytes: 24e9,
        memory_bandwidth: 1.008e12,
        peer_bandwidth: 32e9,
        host_bandwidth: Some(32e9),
    };

    /// Two cores of an AMD EPYC (Zen 3) with 24 GB. The peak is the speed of large products in
    /// `docs/performance.md`, and the efficiency that of STDiT there (111 of 139 GFLOP/s); bf16 is computed in
    /// f32. The memory is one channel of DDR4-3200 (25.6 GB/s); ranks of one machine copy through it twice.
    pub const CPU: Self = Self {
        name: "cpu",
        peak_f32: 139e9,
        peak_half: 139e9,
        efficiency: 0.8,
        memory_bytes: 24e9,
        memory_bandwidth: 25.6e9,
        peer_bandwidth: 12.8e9,
        host_bandwidth: None,
    };

    /// All processors of the table.
    pub const ALL: [Self; 6] =
        [Self::H100, Self::H200, Self::H800, Self::A100, Self::RTX_4090, Self::CPU];

    /// Returns a processor of the table.
    ///
    /// # Errors
    /// Returns an error if the name is unknown.
    pub fn find(name: &str) -> Result<Self, PlanError> {
        Self::ALL.into_iter().find(|processor| processor.name == name).ok_or_else(|| {
            let known = Self::ALL.map(|processor| processor.name).join(", ");
            PlanError::Processor { name: name.into(), known }
        })
    }

    /// Returns the peak FLOP/s for a type to compute in.
    pub fn peak(&self, dtype: FloatDType) -> f64 {
        match dtype {
            FloatDType::F16 | FloatDType::BF16 => self.peak_half,
            FloatDType::F64 | FloatDType::F32 | FloatDType::Flex32 => self.peak_f32,
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if a rate is not positive or the efficiency is above 1.
    pub fn validate(&self) -> Result<(), PlanError> {
        let rates = [
            ("peak FLOP/s in f32", self.peak_f32),
            ("peak FLOP/s in bf16", self.peak_half),
            ("memory of a processor in bytes", self.memory_bytes),
            ("bandwidth of a processor's memory", self.memory_bandwidth),
            ("bandwidth between processors", self.peer_bandwidth),
            ("bandwidth to the host", self.host_bandwidth.unwrap_or(1.0)),
            ("efficiency", self.efficiency),
        ];
        for (field, found) in rates {
            if !(found.is_finite() && found > 0.0) {
                return Err(PlanError::value(field, found, "a positive number"));
            }
        }
        if self.efficiency > 1.0 {
            return Err(PlanError::value("efficiency", self.efficiency, "at most 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_found_by_name() {
        for processor in Processor::ALL {
            assert_eq!(Processor::find(processor.name), Ok(processor));
            assert_eq!(processor.validate(), Ok(()));
        }
        let error = Processor::find("tpu").unwrap_err().to_string();
        let known = "h100, h200, h800, a100, rtx-4090, cpu";
        assert_eq!(error, format!("no processor 'tpu', expected one of {known}"));
        assert_eq!(Processor::H200.peak(FloatDType::BF16), 989.4e12);
        assert_eq!(Processor::A100.peak(FloatDType::F32), 19.5e12);
    }
}
